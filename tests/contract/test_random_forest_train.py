"""`random_forest_train.py` as a process: alone and under `train`, killed between groups, and the seed's own script."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "random_forest_train.py"
SEED_SCRIPT = Path(__file__).parents[1] / "fixtures" / "seed_train.py"
TRAIN = Path(sys.executable).with_name("train")

# Runs the script, and sends its own process a signal right after it has logged a group of trees.
SIGNAL_AT_TREES = """
import os, runpy, sys, trainbox
script, signal_number, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv = [script]
log = trainbox.log
def log_and_signal(step, values):
    log(step, values)
    if step == at:
        os.kill(os.getpid(), signal_number)
trainbox.log = log_and_signal
runpy.run_path(script, run_name="__main__")
"""

SEEDS_NAMES = {"n-estimators": "12", "max-depth": "4", "min-samples-split": "5", "checkpoint-every": "4", "n-jobs": "1"}


def write_rows(path: Path, *, task: str, rows: int = 300, seed: int = 0, header: str = "") -> None:
    """Three classes, or a number, that depend on the first two features."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 4)).round(4)
    signal_ = features[:, 0] + features[:, 1] + random.normal(size=rows) / 2
    labels = (
        signal_.round(4) if task == "regression" else np.digitize(signal_, [-0.5, 0.5] if task == "three" else [0.0])
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(map(str, [label, *row])) for label, row in zip(labels.tolist(), features.tolist(), strict=True)]
    path.write_text(header + "\n".join(lines) + "\n")


def make_tree(
    root: Path, hyperparameters: Mapping[str, str], *, task: str = "two", channels: tuple[str, ...] = ("train", "test")
) -> Path:
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "inputdataconfig.json").write_text(json.dumps({name: {"TrainingInputMode": "File"} for name in channels}))
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}))
    (config / "checkpointconfig.json").write_text(json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
    for number, name in enumerate(channels):
        write_rows(root / "input" / "data" / name / "a.csv", task=task, seed=number)
    return root


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "TRAINBOX_ROOT": str(root)}


def run(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment(root), capture_output=True, text=True, check=False, timeout=60)


def run_and_signal(root: Path, number: int, at: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", SIGNAL_AT_TREES, str(SCRIPT), str(number), str(at)]
    return subprocess.run(command, env=environment(root), capture_output=True, text=True, check=False, timeout=60)


def trees_of(root: Path) -> list[tuple[Any, ...]]:
    """Everything that a tree decides by, as bytes."""
    forest = joblib.load(root / "model" / "model.joblib")
    return [
        (tree.random_state, tree.tree_.feature.tobytes(), tree.tree_.threshold.tobytes(), tree.tree_.value.tobytes())
        for tree in forest.estimators_
    ]


@pytest.mark.parametrize("task", ["two", "three", "regression"])
def test_killed_between_groups_the_trees_and_metrics_are_those_of_an_uninterrupted_job(
    tmp_path: Path, task: str
) -> None:
    hyperparameters = {**SEEDS_NAMES, "task": "regression" if task == "regression" else "classification"}
    whole = make_tree(tmp_path / "whole", hyperparameters, task=task)
    expected = run(whole)
    assert expected.returncode == 0, expected.stderr
    root = make_tree(tmp_path / "killed", hyperparameters, task=task)
    assert run_and_signal(root, signal.SIGKILL, 8).returncode == -signal.SIGKILL
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 4 " in done.stderr
    assert done.stdout.splitlines() == expected.stdout.splitlines()[1:]
    assert len(trees_of(root)) == 12
    assert trees_of(root) == trees_of(whole)


def test_more_trees_in_other_groups_on_more_threads_are_the_same_trees(tmp_path: Path) -> None:
    whole = make_tree(tmp_path / "whole", SEEDS_NAMES)
    assert run(whole).returncode == 0
    root = make_tree(tmp_path / "root", SEEDS_NAMES)
    assert run(root, "--n_estimators=7").returncode == 0
    more = run(root, "--n-jobs=2", "--checkpoint-every=3")
    assert more.returncode == 0, more.stderr
    assert [line.split()[1] for line in more.stdout.splitlines()] == ["step=9", "step=12", "final"]
    assert trees_of(root) == trees_of(whole)


def test_sigterm_saves_the_trees_so_far_and_a_resumed_job_is_exact(tmp_path: Path) -> None:
    whole = make_tree(tmp_path / "whole", SEEDS_NAMES)
    assert run(whole).returncode == 0
    root = make_tree(tmp_path / "stopped", SEEDS_NAMES)
    stopped = run_and_signal(root, signal.SIGTERM, 4)
    assert stopped.returncode == 0, stopped.stderr
    assert "asked to stop after 4 of 12 trees" in stopped.stderr
    assert trees_of(root) == trees_of(whole)[:4]
    assert run(root).returncode == 0
    assert trees_of(root) == trees_of(whole)


def test_the_model_is_described_and_its_metrics_are_right(tmp_path: Path) -> None:
    root = make_tree(tmp_path, SEEDS_NAMES, task="three", channels=("train", "validation"))
    done = run(root)
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


def test_a_resume_with_other_trees_or_rows_is_refused_with_every_difference(tmp_path: Path) -> None:
    root = make_tree(tmp_path, SEEDS_NAMES)
    assert run_and_signal(root, signal.SIGKILL, 8).returncode == -signal.SIGKILL
    write_rows(root / "input" / "data" / "train" / "b.csv", task="two", rows=10)
    refused = run(root, "--max-depth=5")
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
    tmp_path: Path, train: str | None, test: str | None, message: str
) -> None:
    root = make_tree(tmp_path, SEEDS_NAMES)
    for name, rows in (("train", train), ("test", test)):
        if rows is not None:
            (root / "input" / "data" / name / "z.csv").write_text(rows)
    done = run(root)
    assert done.returncode == 7
    assert re.search(message, done.stderr), done.stderr
    assert done.stdout == ""


def test_under_the_supervisor_without_a_second_channel_the_metrics_are_those_of_training(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {**SEEDS_NAMES, "trainbox_script": "random_forest"}, channels=("train",))
    done = subprocess.run([TRAIN], env=environment(root), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "the metrics are those of the rows trained on" in done.stderr
    assert re.search(
        r"final train:accuracy=[0-9.]+ train:auc=[0-9.]+ train:f1=[0-9.]+ train:logloss=[0-9.]+$", done.stdout.strip()
    )
    assert len(trees_of(root)) == 12


def test_the_seeds_own_script_runs_unmodified(tmp_path: Path) -> None:
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
