"""The hyperparameters of forests: those of scikit-learn's constructors, and trainbox's own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from trainbox.contract.model_card import MISSING
from trainbox.metrics import Metric

#: What a resumed job may change, because it does not shape the trees.
#: How CSV is read shows in the digest of what was read.
FREE = frozenset(
    {
        *("n-estimators", "n-jobs", "verbose", "checkpoint-every"),
        *("missing", "delimiter", "categorical", "encoding", "unseen"),
    }
)
#: What scikit-learn's constructors have and these hyperparameters have not: the trees of a forest grow in groups here,
#: each a fit of its own, and `seed` is the random state.
OURS = frozenset({"warm_start", "random_state"})

_CRITERIA: Mapping[str, tuple[str, ...]] = {
    "classification": ("gini", "entropy", "log_loss"),
    "regression": ("squared_error", "absolute_error", "poisson"),
}
#: What shapes single trees in a way that XGBoost's trees have not.
_NOT_FOR_XGBOOST = (
    "criterion",
    "min_samples_split",
    "min_samples_leaf",
    "min_weight_fraction_leaf",
    "min_impurity_decrease",
    "class_weight",
    "ccp_alpha",
    "oob_score",
    "allow_shard_forests",
    "encoding",
)
#: What goes with an estimator of one's own choice.
_FOR_ESTIMATORS = frozenset(
    {
        *("task", "csv_weights", "missing", "delimiter", "categorical", "encoding", "unseen"),
        *("seed", "estimator", "estimator_params"),
    }
)

Goal = Literal["maximize", "minimize"]
#: The metrics of each task.
GOALS: Mapping[str, Mapping[str, Goal]] = {
    "classification": {"accuracy": "maximize", "auc": "maximize", "f1": "maximize", "logloss": "minimize"},
    "regression": {"r2": "maximize", "rmse": "minimize", "mae": "minimize"},
}
#: The share of rows that are right, or R², each row judged by the trees that have not seen it.
OUT_OF_BAG = "train:oob"

Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Direction = Literal[-1, 0, 1]


class EstimatorParams(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The hyperparameters of scripts that train with scikit-learn; `-` and `_` are equivalent."""

    task: Annotated[
        Literal["classification", "regression"], Meta(description="kind of the label: a class or a number")
    ] = "classification"
    algorithm: Annotated[
        Literal["forest", "extra_trees"], Meta(description="extra trees draw the thresholds of splits at random")
    ] = "forest"
    n_estimators: Annotated[int, Meta(ge=1, description="number of trees")] = 100
    criterion: (
        Annotated[
            Literal["gini", "entropy", "log_loss", "squared_error", "absolute_error", "poisson"],
            Meta(description="split criterion; null is gini, or squared_error"),
        ]
        | None
    ) = None
    max_depth: Annotated[int, Meta(ge=1, description="largest depth of a tree; null is no limit")] | None = 10
    min_samples_split: (
        Annotated[int, Meta(ge=2, description="fewest rows, or their share, of a node that is split")] | Share
    ) = 2
    min_samples_leaf: (
        Annotated[int, Meta(ge=1, description="fewest rows, or their share, of a leaf")]
        | Annotated[float, Meta(gt=0, lt=1)]
    ) = 1
    min_weight_fraction_leaf: Annotated[
        float, Meta(ge=0, le=0.5, description="least share of the weights in a leaf")
    ] = 0.0
    max_features: (
        Annotated[
            Literal["sqrt", "log2", "all"],
            Meta(
                description="features tried for each split, or how many, or their share; null: sqrt, all for regression"
            ),
        ]
        | Count
        | Share
        | None
    ) = None
    max_leaf_nodes: Annotated[int, Meta(ge=2, description="most leaves of a tree; null is no limit")] | None = None
    min_impurity_decrease: Annotated[float, Meta(ge=0, description="least decrease of impurity by a split")] = 0.0
    bootstrap: (
        Annotated[bool, Meta(description="draw rows for each tree; null is true for a forest, false for extra trees")]
        | None
    ) = None
    max_samples: (
        Annotated[int, Meta(ge=1, description="rows drawn for each tree, or their share; null is as many as there are")]
        | Share
        | None
    ) = None
    oob_score: Annotated[bool, Meta(description="out-of-bag score, as the metric train:oob")] = False
    class_weight: (
        Annotated[
            Literal["balanced", "balanced_subsample"],
            Meta(description='weights of the classes; or one for each as JSON: {"0": 1, "1": 5}'),
        ]
        | dict[str, Annotated[float, Meta(ge=0)]]
        | None
    ) = None
    ccp_alpha: Annotated[float, Meta(ge=0, description="complexity parameter of pruning")] = 0.0
    monotonic_cst: (
        Annotated[
            tuple[Direction, ...],
            Meta(description="for each feature 1, -1 or 0: predictions grow with it, fall, or either"),
        ]
        | None
    ) = None
    csv_weights: Annotated[bool, Meta(description="whether the column after the label is the row's weight")] = False
    missing: Annotated[tuple[str, ...], Meta(description="texts of CSV that mean a missing value")] = MISSING
    delimiter: Annotated[str, Meta(min_length=1, max_length=1, description="of CSV; detected by default")] | None = None
    categorical: (
        Annotated[
            tuple[str, ...],
            Meta(description="names or positions of features all of whose cells are texts, numbers too"),
        ]
        | None
    ) = None
    encoding: Annotated[
        Literal["ordinal", "onehot"], Meta(description="encoding of texts: codes in one column, or one-hot columns")
    ] = "ordinal"
    unseen: Annotated[
        Literal["error", "missing"], Meta(description="what to do with a validation text that `train` does not have")
    ] = "error"
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="seed of every random choice (random_state)")] = 42
    n_jobs: Annotated[int, Meta(description="threads; -1 is one for each processor")] = -1
    verbose: Annotated[int, Meta(ge=0, description="verbosity of scikit-learn")] = 0
    checkpoint_every: Annotated[int, Meta(ge=1, description="trees from one checkpoint to the next")] = 10
    allow_shard_forests: Annotated[
        bool, Meta(description="for sharded rows too many for one host: each host grows trees on its own rows")
    ] = False
    engine: Annotated[
        Literal["sklearn", "xgboost"], Meta(description="xgboost: XGBoost's random forest, faster, and on sharded rows")
    ] = "sklearn"
    estimator: (
        Annotated[str, Meta(description="another estimator: sklearn.linear_model.LogisticRegression or module:Class")]
        | None
    ) = None
    estimator_params: Annotated[dict[str, Any], Meta(description="its constructor's arguments, as a JSON object")] = {}

    def __post_init__(self) -> None:
        problems = [*_find_contradictions(self), *_find_unused(self)]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def draws_rows(self) -> bool:
        """Whether each tree learns from rows drawn with replacement."""
        return self.algorithm == "forest" if self.bootstrap is None else self.bootstrap

    @property
    def weights_of_classes(self) -> str | dict[int, float] | None:
        """`class_weight` as scikit-learn takes it, with numbers as classes."""
        if isinstance(self.class_weight, dict):
            return {int(label): weight for label, weight in self.class_weight.items()}
        return self.class_weight


def _find_contradictions(params: EstimatorParams) -> list[str]:
    problems = []
    if params.criterion is not None and params.criterion not in _CRITERIA[params.task]:
        known = ", ".join(_CRITERIA[params.task])
        problems.append(f"criterion={params.criterion} is not for {params.task}, which has {known}")
    needing = [name for name in ("oob_score", "max_samples") if getattr(params, name)]
    if needing and not params.draws_rows:
        problems.append(f"{' and '.join(needing)}: bootstrap=true is needed, without it each tree sees all rows")
    if params.class_weight is not None and params.task == "regression":
        problems.append("class_weight is for classification; rows have weights by csv_weights")
    if isinstance(params.class_weight, dict):
        odd = [label for label in params.class_weight if not _is_whole(label)]
        if odd or not params.class_weight:
            problems.append(
                f"class_weight: {odd[0] if odd else '{}'!r} is not a class; classes are whole numbers, and texts"
                " have the numbers 0, 1, … in the order of their letters"
            )
    if params.allow_shard_forests and params.oob_score:
        problems.append("oob_score has no meaning with allow_shard_forests: no tree has seen the rows of other hosts")
    if params.n_jobs == 0:
        problems.append("n_jobs=0 is not a number of threads, -1 is one for each processor")
    return problems


def _find_unused(params: EstimatorParams) -> list[str]:
    """What is given and would have no effect: a default that is given is not seen, and changes nothing."""
    given = [field for field in EstimatorParams.__struct_fields__ if getattr(params, field) != _defaults()[field]]
    if params.estimator is not None:
        strange = [name for name in given if name not in _FOR_ESTIMATORS]
        reason = f"with estimator={params.estimator}, which takes estimator_params"
    elif params.engine == "xgboost":
        strange = [name for name in given if name in _NOT_FOR_XGBOOST]
        strange += ["algorithm"] * (params.algorithm != "forest")
        reason = "with engine=xgboost, which has no equivalent"
    else:
        strange, reason = [], ""
    if params.estimator_params and params.estimator is None:
        strange, reason = ["estimator_params"], "without estimator"
    return [f"{', '.join(strange)} cannot be used {reason}"] if strange else []


def _defaults() -> Mapping[str, Any]:
    return dict(
        zip(
            EstimatorParams.__struct_fields__[-len(EstimatorParams.__struct_defaults__) :],
            EstimatorParams.__struct_defaults__,
            strict=True,
        )
    )


def _is_whole(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def constructor_arguments(params: EstimatorParams) -> dict[str, Any]:
    """Return the arguments of scikit-learn's constructor, without the number of trees and the random state."""
    arguments: dict[str, Any] = {
        "max_depth": params.max_depth,
        "min_samples_split": params.min_samples_split,
        "min_samples_leaf": params.min_samples_leaf,
        "min_weight_fraction_leaf": params.min_weight_fraction_leaf,
        "max_leaf_nodes": params.max_leaf_nodes,
        "min_impurity_decrease": params.min_impurity_decrease,
        "bootstrap": params.draws_rows,
        "max_samples": params.max_samples,
        "ccp_alpha": params.ccp_alpha,
        "monotonic_cst": None if params.monotonic_cst is None else list(params.monotonic_cst),
        "n_jobs": params.n_jobs,
        "verbose": params.verbose,
    }
    # Classifiers and regressors have defaults of their own.
    if params.criterion is not None:
        arguments["criterion"] = params.criterion
    if params.max_features is not None:
        arguments["max_features"] = None if params.max_features == "all" else params.max_features
    if params.task == "classification":
        arguments["class_weight"] = params.weights_of_classes
    return arguments


def declare(params: EstimatorParams) -> tuple[Metric, ...]:
    """Return the metrics of the task on both channels, and the out-of-bag score if `oob_score` is set."""
    metrics = [
        Metric(f"{channel}:{name}", goal)
        for channel in ("train", "validation")
        for name, goal in GOALS[params.task].items()
    ]
    return (*metrics, *[Metric(OUT_OF_BAG, "maximize")] * params.oob_score)
