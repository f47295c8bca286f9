"""The hooks of a model on `sagemaker-inference`, whose Multi Model Server answers: `model_fn` and `predict_fn`."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import xgboost as xgb


def model_fn(model_dir: str) -> xgb.Booster:
    """Load the model."""
    booster = xgb.Booster()
    booster.load_model(Path(model_dir, "xgboost-model"))
    booster.set_param({"nthread": 1})
    return booster


def predict_fn(rows: npt.NDArray[np.float64], booster: xgb.Booster) -> npt.NDArray[np.float32]:
    """Predict; the toolkit makes one row of CSV an array of one dimension."""
    found: npt.NDArray[np.float32] = booster.inplace_predict(np.atleast_2d(rows))
    return found
