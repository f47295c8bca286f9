"""Rows of libsvm in very many columns, as text becomes: what a job writes grows with its model, not with the table."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from tests.train_scripts.test_xgboost_train import make_tree, model_of, run, run_and_signal

pytestmark = pytest.mark.process

#: A fifth of what a table of text may have, for the sake of time.
COLUMNS = 200_000
JOB = {
    "num_round": "6",
    "checkpoint_every": "2",
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "max_depth": "3",
    "subsample": "0.8",
}


def lines(rows: int, columns: int, seed: int) -> list[str]:
    """Rows that have the first five columns, on which the label depends, and twenty of the others; one has the last."""
    random = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        common = random.normal(size=5).round(3).tolist()
        drawn = {*random.integers(5, columns, 20).tolist()} | ({columns - 1} if row == 0 else set())
        pairs = [*enumerate(common), *((place, int(random.integers(1, 4))) for place in sorted(drawn))]
        label = int(common[0] + common[1] + random.normal() / 2 > 0)
        found.append(f"{label} {' '.join(f'{place}:{value}' for place, value in pairs)}")
    return found


def tree(root: Path, *, validation: int = COLUMNS, **more: str) -> Path:
    make_tree(root, {**JOB, **more}, channels=("train", "validation"))
    for seed, (name, columns) in enumerate({"train": COLUMNS, "validation": validation}.items()):
        channel = root / "input/data" / name
        for path in channel.iterdir():
            path.unlink()
        (channel / "rows.libsvm").write_text("\n".join(lines(150, columns, seed)) + "\n")
    return root


def written(root: Path) -> dict[str, int]:
    """The size of each file that a job has left, but for the pictures."""
    files = [path for name in ("model", "output", "checkpoints") for path in (root / name).rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix not in {".png", ".svg"}]
    return {str(path.relative_to(root)): path.stat().st_size for path in kept}


def test_nothing_that_a_job_writes_grows_with_the_table_and_it_resumes(tmp_path: Path) -> None:
    whole = tree(tmp_path / "whole")
    done = run(whole)
    assert done.returncode == 0, done.stderr
    sizes = written(whole)
    assert max(sizes.values()) < 50_000, sizes
    importance = json.loads((whole / "output/data/feature-importance.json").read_text())
    used = xgb.Booster(model_file=bytearray(model_of(whole))).get_score(importance_type="gain")
    assert importance["gain"] == pytest.approx(used)
    assert next(iter(importance["gain"])) in {"f0", "f1"}

    root = tree(tmp_path / "stopped")
    assert run_and_signal(root, signal.SIGKILL, 4).returncode == -signal.SIGKILL
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 4 " in done.stderr
    assert model_of(root) == model_of(whole)


@pytest.mark.long
def test_a_row_held_out_may_have_a_feature_that_no_row_to_learn_from_has(tmp_path: Path) -> None:
    """The trees are the same: they never ask for it."""
    narrow, wide = tree(tmp_path / "narrow", validation=1_000), tree(tmp_path / "wide", validation=COLUMNS + 5)
    models = []
    for root in (narrow, wide):
        done = run(root)
        assert done.returncode == 0, done.stderr
        models.append(xgb.Booster(model_file=bytearray(model_of(root))))
    assert [model.num_features() for model in models] == [COLUMNS, COLUMNS + 5]
    assert models[0].get_dump(with_stats=True) == models[1].get_dump(with_stats=True)


@pytest.mark.long
def test_folds_of_a_wide_table_write_models_alone(tmp_path: Path) -> None:
    root = tree(tmp_path, validation=COLUMNS + 5, _kfold="2", num_round="2")
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert max(written(root).values()) < 50_000, written(root)
    assert [path.name for path in sorted((root / "model").glob("xgboost-model-*"))] == [
        "xgboost-model-0",
        "xgboost-model-1",
    ]
