"""The public names for scripts that train with scikit-learn; `train_scripts/random_forest_train.py` is one to copy.

    params = trainbox.hyperparameters(Params)
    with session(params) as run:
        data = run.read()
        model = run.make_estimator()
        scores = run.fit(model, data)
        run.save(model, data, scores)

`session` imports scikit-learn without pandas. A script that uses data frames imports `sklearn` at its top, as usual:
then all of it is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainbox.sklearn.data import Data
    from trainbox.sklearn.entry import session
    from trainbox.sklearn.params import Params, declare
    from trainbox.sklearn.training import ForestSession, Growth

__all__ = [
    "Data",
    "ForestSession",
    "Growth",
    "Params",
    "declare",
    "session",
]

_HOMES = {
    "Data": "data",
    "ForestSession": "training",
    "Growth": "training",
    "Params": "params",
    "declare": "params",
    "session": "entry",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use, so that hyperparameters and metrics are known without importing scikit-learn."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainbox.sklearn' has no attribute {name!r}")
    return getattr(import_module(f"trainbox.sklearn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
