"""LitServe, as its own pages show it: JSON in, JSON out, one row a request."""

import os
import sys
from typing import Any

import litserve
import numpy as np
import xgboost as xgb


class Model(litserve.LitAPI):  # type: ignore[misc]
    """An XGBoost model."""

    def setup(self, _device: str) -> None:
        """Load the model in a worker."""
        self.booster = xgb.Booster()
        self.booster.load_model(os.environ["BENCH_MODEL"])
        self.booster.set_param({"nthread": 1})

    def decode_request(self, request: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Read the row."""
        return np.array(request["row"], np.float32).reshape(1, -1)

    def predict(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Predict it."""
        predicted: np.ndarray[Any, Any] = self.booster.inplace_predict(rows)
        return predicted

    def encode_response(self, predicted: np.ndarray[Any, Any]) -> dict[str, float]:
        """Say what was predicted."""
        return {"score": float(predicted[0])}


if __name__ == "__main__":
    litserve.LitServer(Model(), accelerator="cpu").run(
        port=int(sys.argv[1]), host="127.0.0.1", log_level="warning", generate_client_file=False
    )
