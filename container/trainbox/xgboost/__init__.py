"""The public names for scripts that train with XGBoost; `train_scripts/xgboost_train.py` is one to copy.

    params = trainbox.hyperparameters(XGBoostParams)
    with session(params) as run:
        boosting = run.read()
        start = boosting.resume()
        for progress in boosting.rounds(start):
            boosting.save_checkpoint(progress)
        boosting.save(progress)

`session` imports XGBoost without scikit-learn and pandas. A script that needs `xgboost.XGBClassifier` or data frames
imports `xgboost` at its top, as usual: then all of it is there.
"""

from typing import TYPE_CHECKING

from trainbox.lazy_names import lazy_names

if TYPE_CHECKING:
    from trainbox.xgboost.boosting import Boosting, BoostingSession
    from trainbox.xgboost.entry import session
    from trainbox.xgboost.model_check import Model, check_model
    from trainbox.xgboost.params.hyperparameters import XGBoostParams, declare
    from trainbox.xgboost.segments import Progress

__all__ = [
    "Boosting",
    "BoostingSession",
    "Model",
    "Progress",
    "XGBoostParams",
    "check_model",
    "declare",
    "session",
]

#: The module of each name; loaded on first use: hyperparameters and metrics are known without importing the library.
_MODULES = {
    "Boosting": "trainbox.xgboost.boosting",
    "BoostingSession": "trainbox.xgboost.boosting",
    "Model": "trainbox.xgboost.model_check",
    "Progress": "trainbox.xgboost.segments",
    "XGBoostParams": "trainbox.xgboost.params.hyperparameters",
    "check_model": "trainbox.xgboost.model_check",
    "declare": "trainbox.xgboost.params.hyperparameters",
    "session": "trainbox.xgboost.entry",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
