"""`random_forest_train.py` as a process: alone and under `train`, killed between groups, and the seed's own script."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io

from tests.support.growth import anatomy, trees_of, write_rows
from tests.support.script_runs import SIGNAL_AT_STEP, Ended, ScriptRuns, make_job
from trainbox.contract.model_card import read_card

pytestmark = pytest.mark.process

SEED_SCRIPT = Path(__file__).parents[1] / "fixtures" / "seed_train.py"
TRAIN = Path(sys.executable).with_name("train")

SEEDS_NAMES = {"n-estimators": "12", "max-depth": "4", "min-samples-split": "5", "checkpoint-every": "4", "n-jobs": "1"}

Uninterrupted = Callable[[str], tuple[Path, Ended]]


@pytest.fixture(scope="module")
def runs() -> Iterator[ScriptRuns]:
    with ScriptRuns() as started:
        yield started


@pytest.fixture(scope="module")
def uninterrupted(runs: ScriptRuns, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """A job of a task that nobody disturbed, run once: its tree, and what it said."""
    known: dict[str, tuple[Path, Ended]] = {}

    def run(task: str) -> tuple[Path, Ended]:
        if task not in known:
            root = make_tree(tmp_path_factory.mktemp(task), hyperparameters_of(task), task=task)
            known[task] = root, runs.run(root)
            assert known[task][1].returncode == 0, known[task][1].stderr
        return known[task]

    return run


def hyperparameters_of(task: str) -> dict[str, str]:
    return {**SEEDS_NAMES, "task": "regression" if task == "regression" else "classification"}


def make_tree(
    root: Path, hyperparameters: Mapping[str, str], *, task: str = "two", channels: tuple[str, ...] = ("train", "test")
) -> Path:
    make_job(root, hyperparameters, channels=dict.fromkeys(channels, "FullyReplicated"))
    for number, name in enumerate(channels):
        write_rows(root / "input" / "data" / name / "a.csv", task=task, seed=number)
    return root


def signalled(number: int, at: int) -> str:
    return SIGNAL_AT_STEP.format(number=int(number), step=at)


@pytest.mark.parametrize(
    ("task", "at"),
    [
        ("two", 4),
        pytest.param("two", 12, marks=pytest.mark.long),
        ("three", 8),
        pytest.param("regression", 8, marks=pytest.mark.long),
    ],
)
def test_killed_after_a_group_the_trees_and_metrics_are_those_of_an_uninterrupted_job(
    tmp_path: Path, runs: ScriptRuns, uninterrupted: Uninterrupted, task: str, at: int
) -> None:
    whole, expected = uninterrupted(task)
    root = make_tree(tmp_path, hyperparameters_of(task), task=task)
    assert runs.run(root, first=signalled(signal.SIGKILL, at)).returncode == -signal.SIGKILL
    done = runs.run(root)
    assert done.returncode == 0, done.stderr
    saved = at // 4 - 1  # groups, when it was killed
    assert (f"resuming from step {saved * 4} " if saved else "starting fresh") in done.stderr
    assert done.stdout.splitlines() == expected.stdout.splitlines()[saved:]
    assert len(trees_of(root)) == 12
    assert trees_of(root) == trees_of(whole)
    for name in ("model.joblib", "model.skops"):
        assert (root / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    for name in ("learning-curves.json", "learning-curves.png", "learning-curves.svg", "feature-importance.svg"):
        assert (root / "output/data" / name).read_bytes() == (whole / "output/data" / name).read_bytes()


@pytest.mark.long
def test_more_trees_in_other_groups_on_more_threads_are_the_same_trees(
    tmp_path: Path, runs: ScriptRuns, uninterrupted: Uninterrupted
) -> None:
    root = make_tree(tmp_path, hyperparameters_of("two"))
    assert runs.run(root, "--n_estimators=7").returncode == 0
    more = runs.run(root, "--n-jobs=2", "--checkpoint-every=3")
    assert more.returncode == 0, more.stderr
    assert [line.split()[1] for line in more.stdout.splitlines()] == ["step=9", "step=12", "final"]
    assert trees_of(root) == trees_of(uninterrupted("two")[0])
    fewer = runs.run(root, "--n-estimators=3")
    assert fewer.returncode == 6
    assert re.search(r"n-estimators is 3, but .*step-00000012 has 12 trees", fewer.stderr), fewer.stderr


def test_sigterm_saves_the_trees_so_far_and_a_resumed_job_is_exact(
    tmp_path: Path, runs: ScriptRuns, uninterrupted: Uninterrupted
) -> None:
    whole, _ = uninterrupted("two")
    root = make_tree(tmp_path, hyperparameters_of("two"))
    stopped = runs.run(root, first=signalled(signal.SIGTERM, 4))
    assert stopped.returncode == 0, stopped.stderr
    assert "asked to stop after 4 of 12 trees" in stopped.stderr
    assert trees_of(root) == trees_of(whole)[:4]
    assert read_card(root / "model").complete is False
    assert runs.run(root).returncode == 0
    assert trees_of(root) == trees_of(whole)


def test_the_model_is_described_and_its_metrics_are_right(uninterrupted: Uninterrupted) -> None:
    root, done = uninterrupted("three")
    card = read_card(root / "model")
    assert (card.framework, card.algorithm, card.objective) == (
        "scikit-learn",
        "RandomForestClassifier",
        "classification",
    )
    assert card.classes == (0, 1, 2)
    assert card.features.listed() == ("f0", "f1", "f2", "f3")
    assert card.iterations == 12
    assert card.complete is True
    assert card.hyperparameters["min-samples-split"] == 5
    assert {"scikit-learn", "skops", "joblib", "numpy", "python", "trainbox"} <= set(card.versions)
    rows = np.loadtxt(root / "input" / "data" / "test" / "a.csv", delimiter=",", dtype=np.float32)
    forest = joblib.load(root / "model" / "model.joblib")
    assert forest.warm_start is False
    assert forest.random_state == 42
    assert card.metrics["validation:accuracy"] == (forest.predict(rows[:, 1:]) == rows[:, 0]).mean()
    assert (card.metrics["validation:auc"] or 0) > 0.8
    last = done.stdout.splitlines()[-1]
    assert last == "[metrics] final " + " ".join(f"{name}={value!r}" for name, value in card.metrics.items())


def test_the_model_that_runs_no_code_when_it_is_loaded_is_the_same(uninterrupted: Uninterrupted) -> None:
    root, _ = uninterrupted("three")
    card = read_card(root / "model")
    assert card.trusted == ("sklearn.tree._tree.Tree",)
    safe = skops.io.load(root / "model" / "model.skops", trusted=card.trusted)
    assert anatomy(safe.estimators_) == trees_of(root)
    assert safe.classes_.tolist() == [0, 1, 2]


def test_what_matters_and_how_it_was_learnt_is_drawn(uninterrupted: Uninterrupted) -> None:
    root, _ = uninterrupted("three")
    output = root / "output" / "data"
    importance = json.loads((output / "feature-importance.json").read_text())["impurity"]
    assert list(importance)[:2] in (["f0", "f1"], ["f1", "f0"])
    assert sum(importance.values()) == pytest.approx(1.0)
    curves = json.loads((output / "learning-curves.json").read_text())
    assert curves["validation:auc"]["trees"] == [4, 8, 12]
    for name in ("feature-importance", "learning-curves"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (output / f"{name}.svg").read_bytes()


def test_a_resume_with_other_trees_or_rows_is_refused_with_every_difference(tmp_path: Path, runs: ScriptRuns) -> None:
    root = make_tree(tmp_path, hyperparameters_of("two"))
    assert runs.run(root, first=signalled(signal.SIGKILL, 8)).returncode == -signal.SIGKILL
    write_rows(root / "input" / "data" / "train" / "b.csv", task="two", rows=10)
    refused = runs.run(root, "--max-depth=5")
    assert refused.returncode == 8
    assert re.search(r"CheckpointError: the checkpoint .*step-00000004 cannot be continued: ", refused.stderr)
    assert "max-depth was 4 and is 5" in refused.stderr
    assert re.search(r"channel train was 300 x 4, digest .* and is 310 x 4, digest ", refused.stderr)


BAD = {
    "a class that is no whole number": (
        "0.5,1,2,3,4\n",
        None,
        r"DataError: train/z\.csv:1: label 0\.5 is invalid: task=classification needs whole numbers",
    ),
    "a class that training has not": (
        None,
        "7,1,2,3,4\n",
        r"DataError: test/z\.csv:1: label 7 does not occur in training \(in 1 row\)",
    ),
    "a label of words": ("yes,1,2,3,4\n", None, r"DataError: train/z\.csv"),
    "a missing label": (",1,2,3,4\n", None, r"DataError: train/z\.csv:1: column 1: the label is missing"),
    "fewer columns in test": (None, "1,2,3\n", r"DataError: test/z\.csv has 3 columns, test/a\.csv has 5"),
}


@pytest.mark.parametrize(("train", "test", "message"), BAD.values(), ids=BAD.keys())
def test_bad_rows_end_with_an_error_that_says_where(
    tmp_path: Path, runs: ScriptRuns, train: str | None, test: str | None, message: str
) -> None:
    root = make_tree(tmp_path, hyperparameters_of("two"))
    for name, rows in (("train", train), ("test", test)):
        if rows is not None:
            (root / "input" / "data" / name / "z.csv").write_text(rows)
    done = runs.run(root)
    assert done.returncode == 7
    assert re.search(message, done.stderr), done.stderr
    assert done.stdout == ""


def test_one_class_only_is_nothing_to_learn(tmp_path: Path, runs: ScriptRuns) -> None:
    root = make_tree(tmp_path, hyperparameters_of("two"))
    (root / "input" / "data" / "train" / "a.csv").write_text("1,1,2,3,4\n" * 9)
    done = runs.run(root)
    assert done.returncode == 7
    assert (
        "channel train: all labels are equal, 1 (9 rows); training needs at least two different values" in done.stderr
    )


def test_counts_and_weights_are_checked_too(tmp_path: Path, runs: ScriptRuns) -> None:
    counts = {"task": "regression", "criterion": "poisson", "n-estimators": "2"}
    root = make_tree(tmp_path / "counts", counts, task="two")
    (root / "input" / "data" / "train" / "z.csv").write_text("3,1,2,3,4\n-2,1,2,3,4\n")
    done = runs.run(root)
    assert done.returncode == 7
    assert "train/z.csv:2: label -2 is invalid: criterion=poisson needs labels of 0 or more" in done.stderr
    root = make_tree(tmp_path / "weights", {"csv-weights": "true"})
    for path in (root / "input" / "data").rglob("a.csv"):
        path.write_text("1,0,2,3,4\n0,0,2,3,4\n")
    done = runs.run(root)
    assert done.returncode == 7
    assert "channel train: all weights are 0; training needs a weight above 0" in done.stderr


def test_the_objective_of_a_tuner_that_is_no_number_fails_the_job(tmp_path: Path, runs: ScriptRuns) -> None:
    root = make_tree(tmp_path, {"n-estimators": "2", "_tuning_objective_metric": "validation:auc"})
    (root / "input" / "data" / "test" / "a.csv").write_text("1,1,2,3,4\n" * 9)
    done = runs.run(root)
    assert done.returncode == 9
    assert "MetricError: the objective of the tuning job, 'validation:auc', is nan for the model" in done.stderr


@pytest.mark.long
def test_under_the_supervisor_without_a_second_channel_the_metrics_are_those_of_training(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {**SEEDS_NAMES, "trainbox_script": "random_forest"}, channels=("train",))
    environment = {**os.environ, "TRAINBOX_ROOT": str(root)}
    done = subprocess.run([TRAIN], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "the metrics are those of the training rows" in done.stderr
    metrics = " ".join(rf"train:{name}=[0-9.]+" for name in ("accuracy", "auc", "f1", "logloss"))
    assert re.search(rf"final {metrics}$", done.stdout.strip())
    assert len(trees_of(root)) == 12


def test_the_seeds_own_script_runs_unmodified(tmp_path: Path) -> None:
    """It reads SM_* variables and flags like --n-estimators, as sagemaker-training gives them."""
    names = {"n-estimators": "5", "max-depth": "3", "min-samples-split": "5"}
    code = {"sagemaker_program": "seed_train.py", "sagemaker_submit_directory": str(SEED_SCRIPT.parent)}
    root = make_tree(tmp_path, {**names, **code})
    for name in ("train", "test"):  # it takes the first line of every file for a header
        write_rows(root / "input" / "data" / name / "a.csv", task="two", header="y,a,b,c,d\n")
    environment = {**os.environ, "TRAINBOX_ROOT": str(root)}
    done = subprocess.run([TRAIN], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Hyperparameters: n_estimators=5, max_depth=3" in done.stdout
    assert re.search(r"Test AUC: 0\.[89]", done.stdout)
    assert len(joblib.load(root / "model" / "model.joblib").estimators_) == 5
