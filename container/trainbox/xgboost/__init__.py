"""The public names for scripts that train with XGBoost; `train_scripts/xgboost_train.py` is one to copy.

    params = trainbox.hyperparameters(Params)
    with session(params) as run:
        boosting = run.read()
        start = boosting.resume()
        for progress in boosting.rounds(start):
            boosting.save_checkpoint(progress)
        boosting.save(progress)

`session` imports XGBoost without scikit-learn and pandas. A script that needs `xgboost.XGBClassifier` or data frames
imports `xgboost` at its top, as usual: then all of it is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainbox.xgboost.boosting import Boosting, BoostingSession
    from trainbox.xgboost.entry import session
    from trainbox.xgboost.model_check import Model, check_model
    from trainbox.xgboost.params.declared_metrics import declare
    from trainbox.xgboost.params.hyperparameters import Params
    from trainbox.xgboost.segments import Progress

__all__ = [
    "Boosting",
    "BoostingSession",
    "Model",
    "Params",
    "Progress",
    "check_model",
    "declare",
    "session",
]

_HOMES = {
    "Boosting": "boosting",
    "BoostingSession": "boosting",
    "Model": "model_check",
    "Params": "params.hyperparameters",
    "Progress": "segments",
    "check_model": "model_check",
    "declare": "params.declared_metrics",
    "session": "entry",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use, so that hyperparameters and metrics are known without importing XGBoost."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainbox.xgboost' has no attribute {name!r}")
    return getattr(import_module(f"trainbox.xgboost.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
