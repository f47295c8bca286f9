"""The public names for scripts that train with scikit-learn; `train_scripts/random_forest_train.py` is one to copy.

    params = trainbox.hyperparameters(EstimatorParams)
    with session(params) as run:
        data = run.read()
        model = run.make_estimator()
        scores = run.fit(model, data)
        run.save(model, data, scores)

`session` imports scikit-learn without pandas. A script that uses data frames imports `sklearn` at its top, as usual:
then all of it is there.
"""

from typing import TYPE_CHECKING

from trainbox.lazy_names import lazy_names

if TYPE_CHECKING:
    from trainbox.sklearn.data import EstimatorData
    from trainbox.sklearn.entry import session
    from trainbox.sklearn.params import EstimatorParams, declare
    from trainbox.sklearn.training import ForestSession, Growth

__all__ = [
    "EstimatorData",
    "EstimatorParams",
    "ForestSession",
    "Growth",
    "declare",
    "session",
]

#: The module of each name; loaded on first use: hyperparameters and metrics are known without importing the library.
_MODULES = {
    "EstimatorData": "trainbox.sklearn.data",
    "EstimatorParams": "trainbox.sklearn.params",
    "ForestSession": "trainbox.sklearn.training",
    "Growth": "trainbox.sklearn.training",
    "declare": "trainbox.sklearn.params",
    "session": "trainbox.sklearn.entry",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
