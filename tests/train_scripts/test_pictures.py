"""Pictures of whole jobs: drawn last, not by a job that is stopped, and a failure to draw changes no job."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.script_runs import NO_MATPLOTLIB, Ended, ScriptRuns, make_job
from trainbox.contract.model_card import CARD_FILE

pytestmark = pytest.mark.process

SCRIPTS = Path(__file__).parents[2] / "train_scripts"
REPLICATED = {"train": "FullyReplicated", "validation": "FullyReplicated"}


class Job(msgspec.Struct, frozen=True):
    """A small job, and what it leaves in `output/data` as JSON with a picture."""

    script: str
    given: Mapping[str, str]
    numbers: tuple[str, ...] = ("feature-importance", "learning-curves")


_ROUNDS = {"num_round": "6", "checkpoint_every": "2", "objective": "binary:logistic", "max_depth": "2"}
_TREES = {"n-estimators": "6", "checkpoint-every": "2", "n-jobs": "1"}
JOBS: Mapping[str, Job] = {
    "xgboost": Job("xgboost_train.py", _ROUNDS),
    "cross-validation": Job("xgboost_train.py", {**_ROUNDS, "_kfold": "3"}, ("learning-curves",)),
    "forest": Job("random_forest_train.py", _TREES),
    "forest of XGBoost's kind": Job(
        "random_forest_train.py", {"n-estimators": "6", "n-jobs": "1", "engine": "xgboost"}, ("feature-importance",)
    ),
    "estimator": Job(
        "random_forest_train.py", {"estimator": "sklearn.linear_model.LogisticRegression"}, ("feature-importance",)
    ),
    "network": Job("pytorch_train.py", {"epochs": "3", "batch-size": "60"}, ("learning-curves",)),
}
#: Those that can be stopped in the middle and have a model then.
IN_PARTS = ("xgboost", "forest", "network")

#: To run first: the job is asked to stop as soon as it calls a function of trainbox.
STOPPED_AT = """
import os, signal, trainbox
call = trainbox.{name}
def call_and_stop(*arguments):
    call(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
trainbox.{name} = call_and_stop
"""

#: To run first: ways in which Matplotlib fails, and the line that says so.
FAILURES: Mapping[str, tuple[str, str]] = {
    "not installed": (
        NO_MATPLOTLIB,
        "no pictures: Matplotlib is not installed; the numbers are in output/data as JSON",
    ),
    "an unknown backend": ("import os; os.environ['MPLBACKEND'] = 'none'", "WARNING: no pictures: ValueError: "),
    "no directory for its caches": (
        "import os, tempfile; tempfile.tempdir = os.environ['MPLCONFIGDIR'] = '/dev/null/absent'",
        "WARNING: no pictures: OSError: Matplotlib requires access to a writable cache directory",
    ),
    "half a package": (
        "import sys, types; sys.modules['matplotlib'] = types.ModuleType('matplotlib')",
        "WARNING: no pictures: ModuleNotFoundError: ",
    ),
}


@pytest.fixture(scope="module")
def runs() -> Iterator[ScriptRuns]:
    with ScriptRuns() as started:
        yield started


@pytest.fixture(scope="module")
def whole(runs: ScriptRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of an XGBoost job that nothing disturbs."""
    root = make(tmp_path_factory.mktemp("whole"), JOBS["xgboost"])
    run(runs, root, JOBS["xgboost"])
    return root


def make(root: Path, job: Job) -> Path:
    make_job(root, job.given, channels=REPLICATED)
    for seed, channel in enumerate(REPLICATED):
        random = np.random.default_rng(seed)
        features = random.normal(size=(120, 3)).round(3)
        rows = np.column_stack([features[:, 0] > 0, features])
        np.savetxt(root / "input/data" / channel / "a.csv", rows, delimiter=",", fmt="%g")
    return root


def run(runs: ScriptRuns, root: Path, job: Job, first: str = "") -> Ended:
    ended = runs.run(root, script=SCRIPTS / job.script, first=first)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def output(root: Path, kind: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (root / "output/data").rglob(f"*.{kind}")))


@pytest.mark.parametrize("name", JOBS)
def test_a_job_draws_its_numbers_once_its_model_is_written(name: str, runs: ScriptRuns, tmp_path: Path) -> None:
    root = make(tmp_path, JOBS[name])
    ended = run(runs, root, JOBS[name])
    assert output(root, "json") == output(root, "png") == output(root, "svg") == JOBS[name].numbers
    written = [(root / "model" / CARD_FILE).stat().st_mtime_ns]
    written += [path.stat().st_mtime_ns for path in (root / "output/data").glob("*.json")]
    drawn = [path.stat().st_mtime_ns for kind in ("png", "svg") for path in (root / "output/data").glob(f"*.{kind}")]
    assert max(written) <= min(drawn)
    assert "no pictures" not in ended.stderr


@pytest.mark.parametrize(("name", "at"), [*((name, "final") for name in JOBS), *((name, "log") for name in IN_PARTS)])
def test_a_job_that_is_stopped_leaves_its_numbers_and_draws_nothing(
    name: str, at: str, runs: ScriptRuns, tmp_path: Path
) -> None:
    root = make(tmp_path, JOBS[name])
    ended = run(runs, root, JOBS[name], STOPPED_AT.format(name=at))
    assert (root / "model" / CARD_FILE).exists()
    assert output(root, "json") == JOBS[name].numbers
    assert output(root, "png") == output(root, "svg") == ()
    assert "[metrics] final" in ended.stdout


@pytest.mark.parametrize(("first", "line"), FAILURES.values(), ids=FAILURES.keys())
def test_a_matplotlib_that_fails_changes_neither_exit_code_nor_model(
    first: str, line: str, runs: ScriptRuns, whole: Path, tmp_path: Path
) -> None:
    root = make(tmp_path, JOBS["xgboost"])
    ended = run(runs, root, JOBS["xgboost"], first)
    assert [text for text in ended.stderr.splitlines() if "no pictures" in text] == [
        text for text in ended.stderr.splitlines() if text.startswith(f"trainbox: {line}")
    ]
    assert ended.stderr.count("no pictures") == 1
    assert output(root, "json") == JOBS["xgboost"].numbers
    assert output(root, "png") == output(root, "svg") == ()
    for name in ("xgboost-model", CARD_FILE):
        assert (root / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_a_picture_that_cannot_be_written_costs_no_other(runs: ScriptRuns, tmp_path: Path) -> None:
    root = make(tmp_path, JOBS["forest"])
    (root / "output/data/feature-importance.png").mkdir(parents=True)
    ended = run(runs, root, JOBS["forest"])
    assert ended.stderr.count("WARNING: no pictures: IsADirectoryError: ") == 1
    assert output(root, "json") == JOBS["forest"].numbers
    assert (root / "output/data/learning-curves.png").is_file()


def test_without_a_directory_for_its_settings_matplotlib_draws_all_the_same(runs: ScriptRuns, tmp_path: Path) -> None:
    root = make(tmp_path, JOBS["estimator"])
    ended = run(runs, root, JOBS["estimator"], "import os; os.environ['MPLCONFIGDIR'] = '/dev/null/absent'")
    assert output(root, "png") == JOBS["estimator"].numbers
    assert "MPLCONFIGDIR" not in ended.stderr, "its advice is not for the reader of this log"
