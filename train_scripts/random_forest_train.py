"""A random forest with scikit-learn, from the channel `train` to `model.joblib` and `model.skops`.

    trainbox run random_forest --channel train=DIR --channel validation=DIR --hp n-estimators=200 --hp max-depth=15
    python train_scripts/random_forest_train.py --n-estimators 200 --channel train=DIR --channel validation=DIR
    docker run -e TRAINBOX_SCRIPT=random_forest -v TREE:/opt/ml IMAGE train

Channels: `train`, and `validation` or `test`: CSV, Parquet, libsvm or recordio-protobuf, the label first; whole numbers
are the classes where `task` is classification. Metrics are called `validation:…` whichever of the two channels there
is, and `train:…` where there is neither.

Trees grow in groups of `checkpoint-every`, each followed by metrics and a checkpoint. A tree depends on `seed`, its
number and the rows alone: a resumed forest, one grown on more threads and one grown on several hosts are the same tree
by tree. On several hosts each grows some of the trees from all rows, and the first puts them together; rows that are
sharded are gathered first. A stop waits for the end of its group.

`estimator=sklearn.linear_model.LogisticRegression` trains that one instead, on the same rows, with the same metrics.
`engine=xgboost` grows a forest of another kind, faster. `model.joblib` is a pickle: load none that others wrote.
"""

from collections.abc import Mapping

import trainbox
from trainbox.sklearn import EstimatorParams, declare, session


class Params(EstimatorParams, frozen=True, kw_only=True):
    """The hyperparameters; `trainbox describe random_forest` lists them."""


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs: `trainbox metrics random_forest` prints it for SageMaker."""
    return declare(params)


def main() -> None:
    """Train what is asked for: a forest, another estimator, or XGBoost's kind of forest."""
    params = trainbox.hyperparameters(Params)
    with session(params) as run:
        if params.estimator is not None:
            model = run.make_estimator()  # the one that `estimator` names; or any of your own, such as a pipeline
            data = run.read()
            scores = run.fit(model, data)
            run.save(model, data, scores)
        elif params.engine == "xgboost":
            data = run.read()
            scores = run.save_booster(run.boost(data), data)
        else:
            forest = run.grow(run.read())  # continues from the newest checkpoint, or from a former model
            for trees, found in forest:  # group by group, each a checkpoint, to the last tree or SIGTERM
                trainbox.log(trees, declared(params, found))
            scores = forest.save()  # the model in two formats, its card, importance and learning curves
        if scores:  # none on hosts other than the first, and where a stop came before the first tree
            trainbox.final(declared(params, scores))


def declared(params: Params, scores: Mapping[str, float]) -> dict[trainbox.Metric, float]:
    """The scores by the metrics that they are values of."""
    known = {metric.name: metric for metric in metrics(params)}
    return {known[name]: score for name, score in scores.items()}


if __name__ == "__main__":
    main()
