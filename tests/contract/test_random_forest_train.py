"""`random_forest_train.py` as a process: alone and under `train`, killed between groups, and the seed's own script."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import joblib
import numpy as np
import pytest

from forests.growth import trees_of, write_rows
from forests.nursery import SIGNAL_AT_TREES, Nursery, make_job

SEED_SCRIPT = Path(__file__).parents[1] / "fixtures" / "seed_train.py"
TRAIN = Path(sys.executable).with_name("train")

SEEDS_NAMES = {"n-estimators": "12", "max-depth": "4", "min-samples-split": "5", "checkpoint-every": "4", "n-jobs": "1"}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


def make_tree(
    root: Path, hyperparameters: Mapping[str, str], *, task: str = "two", channels: tuple[str, ...] = ("train", "test")
) -> Path:
    make_job(root, hyperparameters, channels=dict.fromkeys(channels, "FullyReplicated"))
    for number, name in enumerate(channels):
        write_rows(root / "input" / "data" / name / "a.csv", task=task, seed=number)
    return root


def signalled(number: int, at: int) -> str:
    return SIGNAL_AT_TREES.format(number=int(number), trees=at)


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "TRAINBOX_ROOT": str(root)}


@pytest.mark.parametrize("task", ["two", "three", "regression"])
def test_killed_between_groups_the_trees_and_metrics_are_those_of_an_uninterrupted_job(
    tmp_path: Path, nursery: Nursery, task: str
) -> None:
    hyperparameters = {**SEEDS_NAMES, "task": "regression" if task == "regression" else "classification"}
    whole = make_tree(tmp_path / "whole", hyperparameters, task=task)
    expected = nursery.run(whole)
    assert expected.returncode == 0, expected.stderr
    root = make_tree(tmp_path / "killed", hyperparameters, task=task)
    assert nursery.run(root, first=signalled(signal.SIGKILL, 8)).returncode == -signal.SIGKILL
    done = nursery.run(root)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 4 " in done.stderr
    assert done.stdout.splitlines() == expected.stdout.splitlines()[1:]
    assert len(trees_of(root)) == 12
    assert trees_of(root) == trees_of(whole)


def test_more_trees_in_other_groups_on_more_threads_are_the_same_trees(tmp_path: Path, nursery: Nursery) -> None:
    whole = make_tree(tmp_path / "whole", SEEDS_NAMES)
    assert nursery.run(whole).returncode == 0
    root = make_tree(tmp_path / "root", SEEDS_NAMES)
    assert nursery.run(root, "--n_estimators=7").returncode == 0
    more = nursery.run(root, "--n-jobs=2", "--checkpoint-every=3")
    assert more.returncode == 0, more.stderr
    assert [line.split()[1] for line in more.stdout.splitlines()] == ["step=9", "step=12", "final"]
    assert trees_of(root) == trees_of(whole)


def test_sigterm_saves_the_trees_so_far_and_a_resumed_job_is_exact(tmp_path: Path, nursery: Nursery) -> None:
    whole = make_tree(tmp_path / "whole", SEEDS_NAMES)
    assert nursery.run(whole).returncode == 0
    root = make_tree(tmp_path / "stopped", SEEDS_NAMES)
    stopped = nursery.run(root, first=signalled(signal.SIGTERM, 4))
    assert stopped.returncode == 0, stopped.stderr
    assert "asked to stop after 4 of 12 trees" in stopped.stderr
    assert trees_of(root) == trees_of(whole)[:4]
    assert nursery.run(root).returncode == 0
    assert trees_of(root) == trees_of(whole)


def test_the_model_is_described_and_its_metrics_are_right(tmp_path: Path, nursery: Nursery) -> None:
    root = make_tree(tmp_path, SEEDS_NAMES, task="three", channels=("train", "validation"))
    done = nursery.run(root)
    assert done.returncode == 0, done.stderr
    about = json.loads((root / "model" / "model.json").read_text())
    assert about["classes"] == [0, 1, 2]
    assert about["trees"] == 12
    assert about["complete"] is True
    assert about["hyperparameters"]["min-samples-split"] == 5
    rows = np.loadtxt(root / "input" / "data" / "validation" / "a.csv", delimiter=",", dtype=np.float32)
    forest = joblib.load(root / "model" / "model.joblib")
    assert about["metrics"]["validation:accuracy"] == (forest.predict(rows[:, 1:]) == rows[:, 0]).mean()
    assert about["metrics"]["validation:auc"] > 0.8
    last = done.stdout.splitlines()[-1]
    assert last == "[metrics] final " + " ".join(f"{name}={value!r}" for name, value in about["metrics"].items())


def test_a_resume_with_other_trees_or_rows_is_refused_with_every_difference(tmp_path: Path, nursery: Nursery) -> None:
    root = make_tree(tmp_path, SEEDS_NAMES)
    assert nursery.run(root, first=signalled(signal.SIGKILL, 8)).returncode == -signal.SIGKILL
    write_rows(root / "input" / "data" / "train" / "b.csv", task="two", rows=10)
    refused = nursery.run(root, "--max-depth=5")
    assert refused.returncode == 8
    assert re.search(r"CheckpointError: the checkpoint .*step-00000004 cannot be continued: ", refused.stderr)
    assert "max-depth was 4 and is 5" in refused.stderr
    assert re.search(r"channel train was 300 x 4, SHA-256 .* and is 310 x 4, SHA-256 ", refused.stderr)


BAD = {
    "a class that is no whole number": ("0.5,1,2,3,4\n", None, r"DataError: channel train: label 0\.5 is no class"),
    "a class that training has not": (
        None,
        "7,1,2,3,4\n",
        r"DataError: channel validation: label 7 \(1 row\) does not occur",
    ),
    "a missing label": (",1,2,3,4\n", None, r"DataError: train/z\.csv:1: column 1: the label is missing"),
    "fewer columns in test": (None, "1,2,3\n", r"DataError: test/z\.csv has 3 columns, test/a\.csv has 5"),
}


@pytest.mark.parametrize(("train", "test", "message"), BAD.values(), ids=BAD.keys())
def test_bad_rows_end_with_an_error_that_says_where(
    tmp_path: Path, nursery: Nursery, train: str | None, test: str | None, message: str
) -> None:
    root = make_tree(tmp_path, SEEDS_NAMES)
    for name, rows in (("train", train), ("test", test)):
        if rows is not None:
            (root / "input" / "data" / name / "z.csv").write_text(rows)
    done = nursery.run(root)
    assert done.returncode == 7
    assert re.search(message, done.stderr), done.stderr
    assert done.stdout == ""


def test_under_the_supervisor_without_a_second_channel_the_metrics_are_those_of_training(
    tmp_path: Path, nursery: Nursery
) -> None:
    root = make_tree(tmp_path, {**SEEDS_NAMES, "trainbox_script": "random_forest"}, channels=("train",))
    done = subprocess.run([TRAIN], env=environment(root), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "the metrics are those of the rows trained on" in done.stderr
    assert re.search(
        r"final train:accuracy=[0-9.]+ train:auc=[0-9.]+ train:f1=[0-9.]+ train:logloss=[0-9.]+$", done.stdout.strip()
    )
    assert len(trees_of(root)) == 12


def test_the_seeds_own_script_runs_unmodified(tmp_path: Path, nursery: Nursery) -> None:
    """It reads SM_* variables and flags like --n-estimators, as sagemaker-training gives them."""
    names = {"n-estimators": "5", "max-depth": "3", "min-samples-split": "5"}
    code = {"sagemaker_program": "seed_train.py", "sagemaker_submit_directory": str(SEED_SCRIPT.parent)}
    root = make_tree(tmp_path, {**names, **code})
    for name in ("train", "test"):  # it takes the first line of every file for a header
        write_rows(root / "input" / "data" / name / "a.csv", task="two", header="y,a,b,c,d\n")
    done = subprocess.run([TRAIN], env=environment(root), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Hyperparameters: n_estimators=5, max_depth=3" in done.stdout
    assert re.search(r"Test AUC: 0\.[89]", done.stdout)
    assert len(joblib.load(root / "model" / "model.joblib").estimators_) == 5
