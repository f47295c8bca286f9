"""Loads models as the built-in's hosting does; runs under `.venv-hosting-*`: `python peer.py DIRECTORY ...`.

The steps of aws/sagemaker-xgboost-container (`get_loaded_booster`, `predict` and what puts folds together): each
regular file of the directory is a model, a pickle or else what `Booster.load_model` reads; directories are skipped.
Several models count as their mean. The rows are `rows.csv` beside the directory; one line of JSON has what the models
of each directory say of them.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb


def load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return pickle.load(file)
    except Exception:  # noqa: BLE001 - as it is done there
        booster = xgb.Booster()
        booster.load_model(str(path))
        return booster


def say(directory: Path) -> dict[str, Any]:
    rows = xgb.DMatrix(np.genfromtxt(directory.parent / "rows.csv", delimiter=",", dtype=np.float32), nthread=1)
    boosters = [load(path) for path in sorted(directory.iterdir()) if path.is_file() and path.name[0] != "."]
    said = []
    for booster in boosters:
        booster.set_param({"nthread": 1})
        said.append(booster.predict(rows, iteration_range=(0, getattr(booster, "best_ntree_limit", 0))))
    return {"models": len(said), "said": np.mean(said, axis=0).tolist()}


def answer(directory: Path) -> dict[str, Any]:
    try:
        return say(directory)
    except xgb.core.XGBoostError as error:
        return {"models": 0, "said": str(error).splitlines()[0]}


print(json.dumps({"xgboost": xgb.__version__, **{name: answer(Path(name)) for name in sys.argv[1:]}}))
