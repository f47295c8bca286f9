"""Which bins a job of `xgboost_train.py` has: XGBoost's own, so that its trees are XGBoost's, or exact quantiles."""

import json
import math
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import xgboost as xgb

from tests.support.ubjson import without_base_score
from tests.train_scripts.test_xgboost_train import make_tree, model_of, run, run_and_signal

pytestmark = pytest.mark.process

#: So many that quantiles are quicker, and that before `bins` they were what a job had.
ROWS = 110_000
SEGMENT = 4
GIVEN = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.3, "subsample": 0.8, "colsample_bynode": 0.7}
JOB = {
    **{name: str(value) for name, value in GIVEN.items()},
    "num_round": "10",
    "checkpoint_every": str(SEGMENT),
    "seed": "7",
    "eval_metric": "logloss",
    "eval_train_every": "1",
}

Floats = npt.NDArray[np.float32]


def draw(rows: int = ROWS) -> tuple[Floats, Floats]:
    """Features that have as many values as there are rows, but for one, and some that are missing."""
    random = np.random.default_rng(11)
    features = random.normal(size=(rows, 4)).astype(np.float32)
    features[:, 3] = random.integers(0, 9, rows)
    labels = (features[:, 0] * features[:, 1] + random.logistic(size=rows) > 0).astype(np.float32)
    features[::7, 2] = np.nan
    return features, labels


def tree(root: Path, features: Floats, labels: Floats, **more: str) -> Path:
    make_tree(root, {**JOB, **more}, channels=("train",))
    for path in (root / "input/data/train").iterdir():
        path.unlink()
    rows: list[list[float]] = np.column_stack([labels, features]).astype(np.float64).tolist()
    lines = (",".join("" if math.isnan(value) else repr(value) for value in row) for row in rows)
    (root / "input/data/train/rows.csv").write_text("\n".join(lines) + "\n")
    return root


def plain(rows: xgb.DMatrix, given: Mapping[str, object], rounds: int) -> bytes:
    """What XGBoost itself makes, segment by segment as docs/xgboost.md says."""
    model: xgb.Booster | None = None
    for start in range(0, rounds, SEGMENT):
        seed = (7 + start * 1_000_003) % 2**31
        count = min(SEGMENT, rounds - start)
        model = xgb.train({**given, "seed": seed}, rows, count, xgb_model=model and bytearray(model.save_raw("ubj")))
    assert model is not None
    return bytes(model.save_raw("ubj"))


def test_a_job_gives_the_trees_that_xgboost_gives_for_the_same_segments_and_seeds(tmp_path: Path) -> None:
    features, labels = draw()
    root = tree(tmp_path, features, labels)
    done = run(root)
    assert done.returncode == 0, done.stderr
    expected = plain(xgb.DMatrix(features, labels), GIVEN, 10)
    assert without_base_score(model_of(root)) == without_base_score(expected)


def test_a_checkpoint_keeps_the_bins_it_was_begun_with(tmp_path: Path) -> None:
    features, labels = draw(3_000)
    whole = tree(tmp_path / "whole", features, labels, bins="quantiles")
    assert run(whole).returncode == 0
    root = tree(tmp_path / "stopped", features, labels, bins="quantiles")
    assert run_and_signal(root, signal.SIGKILL, 5).returncode == -signal.SIGKILL
    hyperparameters = root / "input/config/hyperparameters.json"
    hyperparameters.write_text(json.dumps({**JOB, "bins": "sketch"}))
    refused = run(root)
    assert refused.returncode == 8
    assert "bins was quantiles and is sketch" in refused.stderr
    hyperparameters.write_text(json.dumps(JOB))
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert "bins stay at exact quantiles" in done.stderr
    assert model_of(root) == model_of(whole)
    assert without_base_score(model_of(root)) != without_base_score(plain(xgb.DMatrix(features, labels), GIVEN, 10))
