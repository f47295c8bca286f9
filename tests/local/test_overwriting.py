"""`--overwrite`: a new job in the place of an earlier result, of which nothing else is touched."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.runs import COMMAND, record
from tests.support.waiting import LIMIT
from trainbox.errors import RunError
from trainbox.local.results.overwriting import read_replaced, remove_result, require_kept
from trainbox.local.results.record import JobRecord, write_record

RECORD = JobRecord(job_name="old", status="Completed", attempt=2, started="", script="t.py")


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result with everything that attempts leave, and something of the user's."""
    out = tmp_path / "out"
    for name in ("model", "output", "checkpoints", "logs", ".trainbox", "model.attempt-1", "output.attempt-12", "mine"):
        (out / name).mkdir(parents=True)
        (out / name / "file").touch()
    for name in ("model.tar.gz", "job.attempt-1.json", "notes.txt", "model.attempt-x"):
        (out / name).touch()
    write_record(RECORD, out)
    return out


def test_a_result_is_removed_and_what_else_lies_there_stays(result: Path) -> None:
    remove_result(result)
    assert sorted(path.name for path in result.iterdir()) == ["mine", "model.attempt-x", "notes.txt"]


def test_only_a_result_can_be_overwritten_and_only_where_that_is_asked_for(result: Path, tmp_path: Path) -> None:
    assert read_replaced(result, overwrite=True, resume=False) == RECORD
    assert read_replaced(result, overwrite=False, resume=False) is None
    assert read_replaced(tmp_path / "none", overwrite=True, resume=False) is None
    with pytest.raises(RunError, match="holds something else than a result"):
        read_replaced(result / "mine", overwrite=True, resume=False)
    with pytest.raises(RunError, match="only one of them"):
        read_replaced(result, overwrite=True, resume=True)


def test_what_the_new_job_reads_is_not_removed(result: Path, tmp_path: Path) -> None:
    require_kept(result, {"--channel a": tmp_path, "--channel b": result / "mine", "--channel c": tmp_path / "out2"})
    for inside in (result, result / "model", result / "model" / "file", result / "output.attempt-12"):
        with pytest.raises(RunError, match="--overwrite would remove --channel train"):
            require_kept(result, {"--channel train": inside})


@pytest.mark.process
def test_a_job_runs_in_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(
        "import os, pathlib, sys\n"
        "kept = pathlib.Path(os.environ['SM_MODEL_DIR'], '../checkpoints')\n"
        "print('checkpoints', sorted(os.listdir(kept)))\n"
        "(kept / sys.argv[2]).touch()\n"
        "pathlib.Path(os.environ['SM_MODEL_DIR'], sys.argv[2]).touch()\n"
    )

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [*COMMAND, "t.py", "--out", "trainbox-out/job", *arguments]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LIMIT)

    out = tmp_path / "trainbox-out/job"
    first = run("--hp", "name=one")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-5] == ""
    assert all(line.startswith("Next: ") for line in first.stdout.splitlines()[-4:])
    assert "--overwrite" in first.stdout.splitlines()[-1]
    refused = run("--hp", "name=two")
    assert refused.returncode == 10
    assert "--overwrite a new job in its place" in refused.stderr
    second = run("--hp", "name=two", "--overwrite")
    assert second.returncode == 0, second.stderr
    assert "checkpoints []" in second.stdout
    assert "the result of job 'job' (Completed) was removed" in second.stderr
    assert (sorted(path.name for path in (out / "model").iterdir()), record(out)["attempt"]) == (["two"], 1)
    assert record(out)["hyperparameters"] == {"name": "two"}
    assert json.loads((out / "job.json").read_text())["earlier_attempts"] == []
    assert (tmp_path / "trainbox-out/.gitignore").read_text() == "*\n"
