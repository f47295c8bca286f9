"""A random forest with scikit-learn, from the channel `train` to `model.joblib`.

    trainbox run random_forest --channel train=DIR --channel validation=DIR --hp n-estimators=200 --hp max-depth=15
    python train_scripts/random_forest_train.py --n-estimators 200 --channel train=DIR --channel validation=DIR
    docker run -e TRAINBOX_SCRIPT=random_forest -v TREE:/opt/ml IMAGE train

Channels: `train`, and `validation` or `test`, of CSV or Parquet files, the label first; whole numbers are the classes
where `task` is classification. Metrics are called `validation:…` whichever of the two channels there is, and `train:…`
where there is neither.

Trees grow in groups of `checkpoint-every`, each followed by metrics and a checkpoint. A tree's seed depends on `seed`
and its number alone, so a resumed forest has the very trees of one that was never interrupted, whatever `n-jobs`. A
stop waits for the end of its group. A checkpoint and `model.joblib` are pickles: load none that others wrote.
"""

import hashlib
import io
import json
import sys
from typing import Annotated, Any, Literal, TypeAlias

import joblib
import msgspec
import numpy as np
import numpy.typing as npt
import sklearn
from msgspec import Meta
from sklearn import ensemble
from sklearn.base import is_regressor
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score, root_mean_squared_error

import trainbox
from trainbox.channels import Table, read_table
from trainbox.errors import CheckpointError, DataError, HyperparameterError, RunError

#: What a resumed job may change, because it does not shape the trees.
FREE = {"n-estimators", "n-jobs", "checkpoint-every"}
#: zlib's level: a third of the size for a quarter of a second; higher ones bring little.
COMPRESSION = 3
GOALS: dict[str, dict[str, Literal["maximize", "minimize"]]] = {
    "classification": {"accuracy": "maximize", "auc": "maximize", "logloss": "minimize"},
    "regression": {"r2": "maximize", "rmse": "minimize"},
}

Forest: TypeAlias = ensemble.RandomForestClassifier | ensemble.RandomForestRegressor
Array = npt.NDArray[Any]
Share = Annotated[float, Meta(gt=0, le=1)]


class Params(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The hyperparameters; `-` and `_` are alike."""

    task: Annotated[Literal["classification", "regression"], Meta(description="what the label is")] = "classification"
    n_estimators: Annotated[int, Meta(ge=1, description="trees")] = 100
    max_depth: Annotated[int, Meta(ge=1, description="deepest tree; null is no limit")] | None = 10
    min_samples_split: Annotated[int, Meta(ge=2, description="least rows of a node that is split")] = 2
    min_samples_leaf: Annotated[int, Meta(ge=1, description="least rows of a leaf")] = 1
    max_features: Annotated[Literal["sqrt", "log2"] | Share, Meta(description="tried for each split")] | None = None
    max_samples: Annotated[Share, Meta(description="share of the rows drawn for each tree")] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="of every random choice")] = 42
    n_jobs: Annotated[int, Meta(description="threads; -1 is one for each processor")] = -1
    checkpoint_every: Annotated[int, Meta(ge=1, description="trees from one checkpoint to the next")] = 10


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs: `trainbox metrics random_forest` prints it for SageMaker."""
    return tuple(
        trainbox.Metric(f"{channel}:{name}", goal)
        for channel in ("train", "validation")
        for name, goal in GOALS[params.task].items()
    )


def main() -> None:
    """Read, resume, grow group by group, save."""
    params = trainbox.hyperparameters(Params)
    tables = read_tables(params)
    train = tables["train"]
    channel, scored = list(tables.items())[-1]
    declared = {metric.name: metric for metric in metrics(params)}

    store = trainbox.checkpoints()
    identity = identify(params, tables)
    forest, done = resume(store, identity, params)
    votes, counted = np.zeros(()), 0
    scores: dict[str, float] = {}

    while done < params.n_estimators and not trainbox.stop_requested():
        done = min(done - done % params.checkpoint_every + params.checkpoint_every, params.n_estimators)
        forest.set_params(n_estimators=done)
        forest.fit(train.features, targets(train, params))
        votes, counted = add_votes(votes, forest, counted, scored), done
        scores = score(votes / done, forest, targets(scored, params))
        trainbox.log(done, {declared[f"{channel}:{name}"]: value for name, value in scores.items()})
        with store.writing(done, info=identity) as path:
            joblib.dump(forest, path / "forest.joblib", compress=COMPRESSION)

    if not done:
        say("asked to stop before the first tree: there is no model to save")
        return
    if done < params.n_estimators:
        say(
            f"asked to stop after {done} of {params.n_estimators} trees: saved so far; a resumed job goes on from there"
        )
    if not scores:
        scores = score(add_votes(votes, forest, 0, scored) / done, forest, targets(scored, params))
    save(forest, {f"{channel}:{name}": value for name, value in scores.items()}, train, params)
    trainbox.final({declared[f"{channel}:{name}"]: value for name, value in scores.items()})


def read_tables(params: Params) -> dict[str, Table]:
    """`train`, and `validation` where there is a channel of that name or `test`."""
    job = trainbox.current_job()
    if len(job.hosts) > 1 or (job.settings.processes_per_host or 1) > 1:
        raise RunError("random_forest_train.py trains in one process", hint="one instance, and no processes_per_host")
    tables = {"train": read_table(trainbox.channel("train"))}
    held_out = [name for name in ("validation", "test") if name in job.channels][:1]
    for name in held_out:
        tables["validation"] = read_table(trainbox.channel(name), like=tables["train"])
    if not held_out:
        say("no channel 'validation' or 'test': the metrics are those of the rows trained on, which flatter a forest")
    for name in sorted({*job.channels} - {"train", "code", *held_out}):
        say(f"the channel {name!r} is not read")
    if params.task == "classification":
        check_classes(tables)
    return tables


def check_classes(tables: dict[str, Table]) -> None:
    """Classes are whole numbers, more than one, and none is new in validation."""
    classes = np.unique(tables["train"].labels)
    if (classes % 1).any():
        fraction = classes[classes % 1 != 0][0]
        raise DataError(
            f"channel train: label {fraction:g} is no class", hint="classes are whole numbers; or task=regression"
        )
    if len(classes) == 1:
        raise DataError(f"channel train: every label is {classes[0]:g}: there is nothing to learn")
    unknown = np.setdiff1d(list(tables.values())[-1].labels, classes)
    if len(unknown):
        raise DataError(f"channel validation: label {unknown[0]:g} does not occur in training", hint="check the split")


def targets(table: Table, params: Params) -> Array:
    """The labels; as whole numbers where they are classes, so that the model's predictions are."""
    return table.labels.astype(np.int64) if params.task == "classification" else table.labels


def identify(params: Params, tables: dict[str, Table]) -> dict[str, str]:
    """Everything that shapes the trees: a checkpoint of something else must not be continued."""
    values = msgspec.to_builtins(params)
    identity = {name: json.dumps(value) for name, value in values.items() if name not in FREE}
    digest = hashlib.sha256(tables["train"].labels.tobytes())
    digest.update(tables["train"].features.data)
    shape = " x ".join(map(str, tables["train"].features.shape))
    identity["channel train"] = f"{shape}, SHA-256 {digest.hexdigest()[:16]}"
    return identity | {"scikit-learn": sklearn.__version__}


def resume(store: trainbox.Checkpoints, identity: dict[str, str], params: Params) -> tuple[Forest, int]:
    """The forest to grow on, and how many trees it has."""
    found = store.latest()
    if found is None:
        return plant(params), 0
    differing = [name for name in sorted({*identity, *found.info}) if identity.get(name) != found.info.get(name)]
    if differing:
        listed = "; ".join(f"{name} was {found.info.get(name)} and is {identity.get(name)}" for name in differing)
        hint = "take the values back, or start with an empty checkpoint directory"
        raise CheckpointError(f"the checkpoint {found.path} cannot be continued: {listed}", hint=hint)
    if found.step > params.n_estimators:
        raise HyperparameterError(f"n-estimators is {params.n_estimators}, but {found.path} has {found.step} trees")
    forest: Forest = joblib.load(found.path / "forest.joblib")
    forest.set_params(n_jobs=params.n_jobs)
    return forest, found.step


def plant(params: Params) -> Forest:
    """A forest without trees; `warm_start` keeps those it has when it grows."""
    shared = {
        "max_depth": params.max_depth,
        "min_samples_split": params.min_samples_split,
        "min_samples_leaf": params.min_samples_leaf,
        "max_samples": params.max_samples,
        "random_state": params.seed,
        "n_jobs": params.n_jobs,
        "warm_start": True,
    }
    # The two have defaults of their own: the square root of all features, and all.
    chosen = {} if params.max_features is None else {"max_features": params.max_features}
    if params.task == "regression":
        return ensemble.RandomForestRegressor(**shared, **chosen)
    return ensemble.RandomForestClassifier(**shared, **chosen)


def add_votes(votes: Array, forest: Forest, counted: int, table: Table) -> Array:
    """The sum of what the trees say, in their order: the forest's own sum depends on which thread is done first."""
    for tree in forest.estimators_[counted:]:
        said = tree.predict(table.features) if is_regressor(tree) else tree.predict_proba(table.features)
        votes = votes + said
    return votes


def score(votes: Array, forest: Forest, labels: Array) -> dict[str, float]:
    """The metrics of the task."""
    if isinstance(forest, ensemble.RandomForestRegressor):
        return {"r2": r2_score(labels, votes), "rmse": root_mean_squared_error(labels, votes)}
    classes = forest.classes_
    accuracy = accuracy_score(labels, classes[votes.argmax(axis=1)])
    if len(np.unique(labels)) < len(classes):
        auc = float("nan")  # not defined where a class does not occur
    elif len(classes) == 2:  # noqa: PLR2004
        auc = roc_auc_score(labels, votes[:, 1])
    else:
        auc = roc_auc_score(labels, votes, multi_class="ovr", labels=classes)
    return {"accuracy": accuracy, "auc": auc, "logloss": log_loss(labels, votes, labels=classes)}


def save(forest: Forest, scores: dict[str, float], train: Table, params: Params) -> None:
    """`model.joblib`, and what one must know to use it, `model.json`."""
    about = {
        "algorithm": type(forest).__name__,
        "complete": len(forest.estimators_) == params.n_estimators,
        "trees": len(forest.estimators_),
        "metrics": {name: float(value) for name, value in scores.items()},
        "features": train.feature_names,
        "classes": [] if params.task == "regression" else forest.classes_.tolist(),
        "hyperparameters": msgspec.to_builtins(params),
        "versions": {
            "trainbox": trainbox.__version__,
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
            "joblib": joblib.__version__,
            "python": sys.version.split()[0],
        },
    }
    trainbox.save("model.json", msgspec.json.format(msgspec.json.encode(about), indent=1))
    # What is loaded later must not grow by surprise when it is fitted again.
    forest.set_params(warm_start=False)
    content = io.BytesIO()
    joblib.dump(forest, content, compress=COMPRESSION)
    trainbox.save("model.joblib", content.getvalue())
    say(f"saved {len(forest.estimators_)} trees to {trainbox.model_dir() / 'model.joblib'}")


def say(text: str) -> None:
    """Tell the reader of the log about a choice."""
    print(f"random_forest_train: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
