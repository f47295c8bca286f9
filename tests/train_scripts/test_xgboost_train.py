"""`xgboost_train.py` as a process: alone and under `train`, killed at any round, and on data it cannot use."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from tests.support.script_runs import SIGNAL_AT_STEP, Ended, make_job, run_script
from trainbox.contract.model_card import CARD_FILE, read_card

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "xgboost_train.py"
TRAIN = Path(sys.executable).with_name("train")

BINARY = {
    "num_round": "23",
    "objective": "binary:logistic",
    "eval_metric": "logloss,auc",
    "subsample": "0.7",
    "colsample_bytree": "0.6",
    "eta": "0.2",
    "max_depth": "3",
    "checkpoint_every": "5",
    "nthread": "1",
}
CASES = {
    "binary": BINARY,
    "softprob": {**BINARY, "objective": "multi:softprob", "num_class": "3", "eval_metric": "mlogloss"},
    "early stopping": {
        **BINARY,
        "eta": "0.05",
        "num_round": "80",
        "early_stopping_rounds": "10",
        "eval_metric": "auc,logloss",
    },
}
MARKS = {"softprob": pytest.mark.long, "early stopping": pytest.mark.long}


def write_rows(path: Path, *, rows: int, classes: int = 2, seed: int = 0) -> None:
    """Labels that depend on the first feature, and on chance."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 4)).round(4)
    labels = np.digitize(features[:, 0] + random.normal(size=rows), [0.0, 1.0][: classes - 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join([str(label), *map(str, row)]) for label, row in zip(labels, features.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n")


def make_tree(
    root: Path, hyperparameters: Mapping[str, str], *, channels: tuple[str, ...] = ("train", "validation")
) -> Path:
    make_job(root, hyperparameters, channels=dict.fromkeys(channels, "FullyReplicated"))
    for number, name in enumerate(channels):
        classes = 3 if hyperparameters.get("num_class") else 2
        write_rows(root / "input" / "data" / name / "a.csv", rows=300, classes=classes, seed=number)
        write_rows(root / "input" / "data" / name / "b.csv", rows=50, classes=classes, seed=number + 10)
    return root


def environment(root: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TRAINBOX_ROOT": str(root), **more}


def run(root: Path, *arguments: str, pictures: bool = False) -> Ended:
    return run_script(SCRIPT, root, *arguments, pictures=pictures)


def run_and_signal(root: Path, number: int, at: int) -> Ended:
    return run_script(SCRIPT, root, first=SIGNAL_AT_STEP.format(number=int(number), step=at))


def logged(done: Ended) -> list[str]:
    """The metric lines; beside each stands XGBoost's own."""
    return [line for line in done.stdout.splitlines() if line.startswith("[metrics]")]


def model_of(root: Path) -> bytes:
    return (root / "model" / "xgboost-model").read_bytes()


def test_a_model_with_its_description_is_saved_and_the_objective_comes_last(tmp_path: Path) -> None:
    root = make_tree(tmp_path, CASES["early stopping"])
    done = run(root, pictures=True)
    assert done.returncode == 0, done.stderr
    lines = logged(done)
    card = read_card(root / "model")
    assert card.best_iteration is not None
    booster = xgb.Booster(model_file=bytearray(model_of(root)))
    assert booster.num_boosted_rounds() == card.iterations == card.best_iteration + 1
    assert 20 < len(lines) < 80
    assert len(lines) == card.best_iteration + 1 + 10 + 1  # patience, and the final line
    chosen = lines[card.best_iteration]
    assert lines[-1] == "[metrics] final " + chosen.partition(f"step={card.best_iteration} ")[2]
    assert done.stdout.splitlines()[-2].startswith(f"[{card.best_iteration}]\t")
    assert lines[-1].endswith(f"validation:logloss={card.metrics['validation:logloss']!r}")
    assert card.features.listed() == ("f0", "f1", "f2", "f3")
    assert (card.objective, card.classes, card.complete) == ("binary:logistic", (0, 1), True)
    assert card.hyperparameters["max_depth"] == 3
    assert card.versions["xgboost"] == xgb.__version__
    assert sorted(path.name for path in (root / "model").iterdir()) == ["trainbox", "xgboost-model"]
    assert sorted(path.name for path in (root / "output" / "data").iterdir()) == [
        f"{name}.{kind}" for name in ("feature-importance", "learning-curves") for kind in ("json", "png", "svg")
    ]
    importance = json.loads((root / "output" / "data" / "feature-importance.json").read_text())
    assert next(iter(importance["gain"])) == "f0"  # the label depends on it, and on chance
    curves = json.loads((root / "output" / "data" / "learning-curves.json").read_text())
    assert curves["validation:auc"]["rounds"] == list(range(len(lines) - 1))
    assert curves["train:auc"]["rounds"][:4] == [0, 9, 19, 29]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=MARKS.get(name, ())) for name, case in CASES.items()]
)
def test_killed_at_several_rounds_the_model_is_that_of_an_uninterrupted_job(
    tmp_path: Path, case: dict[str, str]
) -> None:
    whole = make_tree(tmp_path / "whole", case)
    expected = run(whole)
    assert expected.returncode == 0, expected.stderr
    root = make_tree(tmp_path / "killed", case)
    first = run_and_signal(root, signal.SIGKILL, 7)
    second = run_and_signal(root, signal.SIGKILL, 12)
    assert first.returncode == second.returncode == -signal.SIGKILL
    assert "starting fresh" in first.stderr
    assert "resuming from step 5" in second.stderr
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 10" in done.stderr
    assert model_of(root) == model_of(whole)
    assert logged(done) == logged(expected)[10:]
    assert (root / "model" / CARD_FILE).read_text() == (whole / "model" / CARD_FILE).read_text()


def test_sigterm_saves_the_model_so_far_and_a_resumed_job_is_exact(tmp_path: Path) -> None:
    whole = make_tree(tmp_path / "whole", BINARY)
    assert run(whole).returncode == 0
    root = make_tree(tmp_path / "stopped", BINARY)
    stopped = run_and_signal(root, signal.SIGTERM, 12)
    assert stopped.returncode == 0, stopped.stderr
    assert "asked to stop: 14 rounds are saved; a resumed job repeats the last 4 of them" in stopped.stderr
    assert xgb.Booster(model_file=bytearray(model_of(root))).num_boosted_rounds() == 14
    assert read_card(root / "model").complete is False
    assert run(root).returncode == 0
    assert model_of(root) == model_of(whole)


@pytest.mark.long
def test_a_job_killed_after_its_last_round_only_saves_the_model(tmp_path: Path) -> None:
    hyperparameters = {**BINARY, "num_round": "10"}
    whole, root = make_tree(tmp_path / "whole", hyperparameters), make_tree(tmp_path / "killed", hyperparameters)
    assert run(whole).returncode == 0
    assert run(root).returncode == 0
    (root / "model" / "xgboost-model").unlink()
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in logged(done)] == ["final"]
    assert model_of(root) == model_of(whole)


def test_a_resume_with_something_else_is_refused_with_every_difference(tmp_path: Path) -> None:
    root = make_tree(tmp_path, BINARY)
    assert run_and_signal(root, signal.SIGKILL, 6).returncode == -signal.SIGKILL
    fewer = run(root, "--num_round=4")
    assert fewer.returncode == 6
    assert re.search(r"HyperparameterError: num_round is 4, but the checkpoint has 5 rounds", fewer.stderr)
    (root / "input" / "data" / "validation" / "a.csv").unlink()
    refused = run(root, "--max_depth=4", "--checkpoint_every=6", "--seed=1")
    assert refused.returncode == 8
    assert re.search(r"CheckpointError: the checkpoint .*step-00000005 cannot be continued: ", refused.stderr)
    assert re.search(
        r"channel validation was 350 rows x 4 features, digest .* and is 50 rows x 4 features, ", refused.stderr
    )
    for difference in ("max_depth was 3 and is 4", "checkpoint_every was 5 and is 6", "seed was 0 and is 1"):
        assert difference in refused.stderr
    assert "hint: restore the values, or start with an empty checkpoint directory" in refused.stderr
    assert not (root / "model" / "xgboost-model").exists()


@pytest.mark.long
def test_more_rounds_may_be_added_to_a_job_that_is_done(tmp_path: Path) -> None:
    regression = {**BINARY, "objective": "reg:squarederror", "eval_metric": "rmse", "tree_method": "approx"}
    longer = make_tree(tmp_path / "longer", {**regression, "num_round": "15"})
    root = make_tree(tmp_path / "root", {**regression, "num_round": "10"})
    assert run(longer).returncode == 0
    assert run(root).returncode == 0
    assert run(root, "--num_round=15").returncode == 0
    assert model_of(root) == model_of(longer)


def test_under_the_supervisor_with_headers_and_a_test_channel(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {**BINARY, "num_round": "3", "trainbox_script": "xgboost"}, channels=("train", "test"))
    for name in ("train", "test"):
        for path in (root / "input" / "data" / name).iterdir():
            path.write_text("late,a,b,c,d\n" + path.read_text())
    done = subprocess.run([TRAIN], env=environment(root), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "train: 2 of 2 files have a header (late, a, b, c, d)" in done.stderr
    assert re.fullmatch(r"\[metrics\] final .* validation:auc=[0-9.]+", done.stdout.splitlines()[-1])
    assert read_card(root / "model").features.names == ("a", "b", "c", "d")


def test_sigterm_to_the_supervisor_ends_the_job_with_the_model_so_far(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {**BINARY, "num_round": "1000000", "trainbox_script": "xgboost"})
    with subprocess.Popen([TRAIN], env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert b"asked to stop" in errors
    assert read_card(root / "model").complete is False


BAD: dict[str, tuple[dict[str, str], str | None, str]] = {
    "text in a cell": ({}, "1,2,3,4,5\n0,2,x,4,5\n", r"DataError: train/z\.csv:2: column 3: 'x' is not a number"),
    "a label of 2": (
        {},
        "2,2,3,4,5\n",
        r"DataError: train/z\.csv:1: label 2 is invalid: .* needs labels 0 and 1; .* 0 \(\d+ rows\), .*, 2 \(1 row\)",
    ),
    "a code that is none": (
        {"categorical_features": "1"},
        "1,2,3,4,5\n0,2,-1,4,5\n",
        r"DataError: train/a\.csv:1: code -?\d+\.\d+ of categorical feature '1' is invalid",
    ),
    "more columns": ({}, "1,2,3,4,5,6\n", r"DataError: train/z\.csv has 6 columns, train/a\.csv has 5"),
    "an unknown hyperparameter": (
        {"max_dept": "3"},
        None,
        r"'max_dept' is not known to xgboost_train\.py - did you mean",
    ),
    "an unknown metric": (
        {"eval_metric": "auk"},
        None,
        r"HyperparameterError: .*eval_metric auk is unknown - did you mean 'auc'\?",
    ),
    "softmax without classes": ({"objective": "multi:softmax"}, None, r"objective multi:softmax needs num_class"),
    "two names of one": ({"learning_rate": "0.1"}, None, r"eta and learning_rate are the same hyperparameter"),
}


@pytest.mark.parametrize(("hyperparameters", "rows", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_an_error_that_says_where(
    tmp_path: Path, hyperparameters: dict[str, str], rows: str | None, message: str
) -> None:
    root = make_tree(tmp_path, {**BINARY, **hyperparameters})
    if rows is not None:
        (root / "input" / "data" / "train" / "z.csv").write_text(rows)
    done = run(root)
    assert done.returncode in {6, 7}
    assert re.search(message, done.stderr), done.stderr
    assert done.stdout == ""


def test_early_stopping_without_validation_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    root = make_tree(tmp_path, CASES["early stopping"], channels=("train",))
    done = run(root)
    assert done.returncode == 7
    assert "DataError: early_stopping_rounds needs a channel 'validation' or 'test'" in done.stderr


def test_rows_without_any_weight_are_an_error(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {**BINARY, "csv_weights": "1"})
    for path in (root / "input" / "data").rglob("*.csv"):
        path.write_text("1,0,3,4,5\n0,0,4,5,6\n")
    done = run(root)
    assert done.returncode == 7
    assert "DataError: channel train: all weights are 0; training needs a weight above 0" in done.stderr


def make_blind(root: Path, **more: str) -> Path:
    """A job whose rows to be scored by are of one class, so that they have no AUC."""
    make_tree(root, {**BINARY, "eval_metric": "auc", "num_round": "8", "trainbox_script": "xgboost", **more})
    for path in (root / "input" / "data" / "validation").iterdir():
        path.write_text("1,2,3,4,5\n1,3,4,5,6\n")
    return root


def test_early_stopping_by_what_is_no_number_saves_no_model_and_says_why(tmp_path: Path) -> None:
    root = make_blind(tmp_path, early_stopping_rounds="3")
    done = subprocess.run([TRAIN], env=environment(root), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 11
    reason = (root / "output" / "failure").read_text()
    assert "early stopping has no best round: validation:auc was not a finite number in any of 4 rounds" in reason
    assert "leave early_stopping_rounds out" in reason
    assert not list((root / "model").iterdir())


def test_the_objective_of_a_tuner_that_is_no_number_fails_the_job_and_else_it_is_said(tmp_path: Path) -> None:
    tuned = run(make_blind(tmp_path / "tuned", _tuning_objective_metric="validation:auc"))
    assert tuned.returncode == 9
    assert "MetricError: the objective of the tuning job, 'validation:auc', is nan for the model" in tuned.stderr
    other = make_blind(tmp_path / "other", _tuning_objective_metric="train:auc")
    done = run(other)
    assert done.returncode == 0, done.stderr
    assert "metric 'validation:auc' is nan: logged as 'not-a-number'" in done.stderr
    card = read_card(other / "model")
    assert (card.iterations, card.best_iteration) == (8, None)


def test_the_processes_of_a_host_cannot_share_a_pipe(tmp_path: Path) -> None:
    root = make_tree(
        tmp_path, {**BINARY, "trainbox_script": "xgboost", "processes_per_host": "2", "trainbox_preflight": "off"}
    )
    config = {name: {"TrainingInputMode": "Pipe", "ContentType": "text/csv"} for name in ("train", "validation")}
    (root / "input" / "config" / "inputdataconfig.json").write_text(json.dumps(config))
    done = subprocess.run([TRAIN], env=environment(root), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 7
    assert "channel train: the 2 processes of a host cannot all read its one pipe" in done.stderr


def test_one_class_only_is_an_error_in_the_failure_file(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {**BINARY, "trainbox_script": "xgboost"})
    for path in (root / "input" / "data" / "train").iterdir():
        path.write_text("1,2,3,4,5\n1,3,4,5,6\n")
    done = subprocess.run([TRAIN], env=environment(root), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 7
    assert (
        "channel train: all labels are equal, 1 (4 rows); training needs at least two different values"
        in (root / "output" / "failure").read_text()
    )


FOLDS = {**BINARY, "_kfold": "3", "_num_cv_round": "2", "eval_metric": "auc", "num_round": "6"}


def make_chance(root: Path) -> Path:
    """Rows whose labels have nothing to do with the features."""
    make_tree(root, FOLDS)
    random = np.random.default_rng(5)
    for path in sorted((root / "input" / "data").rglob("*.csv")):
        rows = [line.split(",", 1)[1] for line in path.read_text().splitlines()]
        path.write_text("".join(f"{random.integers(2)},{row}\n" for row in rows))
    return root


def test_folds_are_scored_on_rows_not_seen_and_a_killed_job_goes_on_with_the_fold_it_was_in(tmp_path: Path) -> None:
    whole, killed = make_chance(tmp_path / "whole"), make_chance(tmp_path / "killed")
    done = run(whole, pictures=True)
    assert done.returncode == 0, done.stderr
    mean = re.fullmatch(r"\[6\]\ttrain-auc:(\S+)\tvalidation-auc:(\S+)", done.stdout.splitlines()[-2])
    assert mean is not None
    # The incumbent, which scores each fold's model on its own rows too, says 0.94 of labels that are pure chance.
    assert float(mean[1]) > 0.65
    assert 0.4 < float(mean[2]) < 0.6
    predictions = np.loadtxt(whole / "output" / "data" / "predictions.csv", delimiter=",")
    assert predictions.shape == (700, 3)
    assert run_and_signal(killed, signal.SIGKILL, 5).returncode == -signal.SIGKILL  # in the last round of the first
    again = run(killed, pictures=True)
    assert "fold 1 of 6" in again.stderr
    assert logged(again) == logged(done)
    curves = json.loads((whole / "output/data/learning-curves.json").read_text())["validation:auc"]
    assert (curves["rounds"], len(curves["folds"]), len(curves["mean"])) == (list(range(6)), 6, 6)
    steps = [int(line.split("step=")[1].split()[0]) for line in logged(done)[:-1]]
    assert steps == list(range(36)), "each round of each fold has a step of its own"
    output = [f"output/data/{name}" for name in ("predictions.csv", "learning-curves.json", "learning-curves.png")]
    for name in [*(f"model/xgboost-model-{number}" for number in range(6)), *output]:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_the_published_regex_of_the_built_in_finds_each_round(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {**BINARY, "num_round": "4", "eval_metric": "f1,auc", "eval_train_every": "1"})
    done = run(root)
    shown = done.stdout.replace("\t", "#011")  # as CloudWatch shows a tab
    for channel in ("train", "validation"):
        found = re.findall(rf".*\[[0-9]+\].*#011{channel}-auc:([^#\s]+)", shown)
        assert len(found) == 4 + 1  # and once more at the end
        assert found[-1] == found[-2]
