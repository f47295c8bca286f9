"""The result of the last good attempt: no kill and no later failure loses it."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from trainbox.errors import RunError
from trainbox.local.results.archive import archive
from trainbox.local.results.folder import read_previous
from trainbox.local.results.record import (
    WORK,
    Attempt,
    JobRecord,
    ModelRecord,
    Seconds,
    Status,
    read_record,
    write_record,
)
from trainbox.local.results.result import ARCHIVE, BUILDING, commit, install, may_replace, put_aside

RECORD = JobRecord(job_name="job", attempt=1, started="2026-11-05T10:00:00+00:00", script="train.py")
SIZES = ModelRecord("model.tar.gz", 1, 1)
COMMAND = [sys.executable, "-m", "trainbox", "run", "src/train.py", "--out", "out"]


def record(attempt: int, status: Status, *, result: int | None, model: bool = True, earlier: str = "") -> JobRecord:
    """The record of an attempt; `earlier` names how those before it ended: "Completed Failed"."""
    ends = [
        Attempt(number, "", status, "Failed", 1, Seconds())  # type: ignore[arg-type]
        for number, status in enumerate(earlier.split(), start=1)
    ]
    return msgspec.structs.replace(
        RECORD,
        attempt=attempt,
        status=status,
        result=result,
        model=SIZES if model else None,
        earlier_attempts=tuple(ends),
    )


@pytest.mark.parametrize(
    ("status", "has_model", "before", "expected"),
    [
        ("Failed", False, record(1, "InProgress", result=None, model=False), True),
        ("Failed", True, record(3, "InProgress", result=1, earlier="Completed Failed"), False),
        ("Stopped", True, record(2, "InProgress", result=1, earlier="Completed"), False),
        ("Stopped", True, record(2, "InProgress", result=1, earlier="Stopped"), True),
        ("Completed", True, record(2, "InProgress", result=1, earlier="Completed"), True),
        ("Completed", False, record(2, "InProgress", result=1, earlier="Completed"), False),
        ("Completed", False, record(2, "InProgress", result=1, model=False, earlier="Stopped"), True),
        ("Failed", True, record(2, "InProgress", result=1, model=False, earlier="Completed"), False),
    ],
)
def test_a_result_gives_way_only_to_one_that_is_at_least_as_good(
    status: Status, has_model: bool, before: JobRecord, expected: bool
) -> None:
    assert may_replace(status, has_model=has_model, record=before) is expected


def build(out: Path, text: str) -> None:
    """What an attempt builds before it commits."""
    building = out / WORK / BUILDING
    for name in ("model/deep/m", "output/data/o"):
        (building / name).parent.mkdir(parents=True)
        (building / name).write_text(text)
    archive(building / "model", building / ARCHIVE)


def contents(out: Path) -> list[str]:
    """What model, archive and output are of, read as a person reads them."""
    with tarfile.open(out / ARCHIVE) as tar:
        member = tar.extractfile("deep/m")
        assert member is not None
        packed = member.read().decode()
    return [(out / "model/deep/m").read_text(), packed, (out / "output/data/o").read_text()]


#: What changes a file system, as Python tells it to those who audit it.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open", "shutil.rmtree", "ctypes.dlsym"}


def killed_at(moment: int, act: Callable[[], None]) -> bool:
    """Act in a process that kills itself before its change of that number; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        changes = 0

        def count(event: str, _: object) -> None:
            nonlocal changes
            if event in CHANGES:
                changes += 1
                if changes == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        act()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {0, -signal.SIGKILL}
    return code != 0


@pytest.mark.process
@pytest.mark.parametrize("can_exchange", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_kill_at_any_moment_leaves_the_old_result_or_the_new_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:  # an older file system
        monkeypatch.setattr("trainbox.local.results.result._exchange", lambda *_: False)
    second = record(2, "Completed", result=2, earlier="Completed")
    seen, moment = set(), 0
    while True:
        moment += 1
        out = tmp_path / str(moment)
        build(out, "one")
        commit(record(1, "Completed", result=1), out)
        install(out)
        build(out, "two")

        def act(out: Path = out) -> None:
            commit(second, out)
            install(out)

        if not killed_at(moment, act):
            break
        if can_exchange:  # not even a person who looks before the next start misses anything
            assert set(contents(out)) <= {"one", "two"}, moment
        found = read_record(out)
        assert found is not None
        install(out)  # the next start
        text = {1: "one", 2: "two"}[found.attempt]
        assert contents(out) == [text] * 3, moment
        assert read_record(out) == found
        seen.add(found.attempt)
    assert contents(out) == ["two"] * 3
    assert seen == {1, 2}
    assert sorted(path.name for path in out.iterdir()) == [WORK, "job.json", "model", ARCHIVE, "output"]


def test_what_a_worse_attempt_left_lies_beside_the_result(tmp_path: Path) -> None:
    build(tmp_path, "one")
    commit(record(1, "Completed", result=1), tmp_path)
    install(tmp_path)
    build(tmp_path, "three")
    assert put_aside(tmp_path, 3) == ("output.attempt-3", "model.attempt-3")
    assert contents(tmp_path) == ["one"] * 3
    assert (tmp_path / "model.attempt-3/deep/m").read_text() == "three"


# -- the record ------------------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_before_its_first_record_does_not_keep_others_away(tmp_path: Path) -> None:
    (tmp_path / ".job.json.part").write_text('{"job_na')
    assert read_previous(tmp_path, resume=True) is None
    assert read_previous(tmp_path, resume=False) is None


def test_a_torn_record_of_a_first_attempt_does_not_keep_it_from_a_resume(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"job_na')
    (tmp_path / "checkpoints").mkdir()
    assert read_previous(tmp_path, resume=True) is None


def test_where_a_record_is_torn_that_of_the_attempt_before_counts(tmp_path: Path) -> None:
    for attempt in (9, 10):
        write_record(record(attempt, "Completed", result=9), tmp_path, name=f"job.attempt-{attempt}.json")
    (tmp_path / "job.json").write_text("")
    (tmp_path / "model").mkdir()
    previous = read_previous(tmp_path, resume=True)
    assert previous is not None
    assert previous.attempt == 10


@pytest.mark.parametrize("content", ['{"job_na', '{"mine": 1}'])
def test_a_directory_that_may_be_somebody_elses_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"holds something else|is no record of a job"):
        read_previous(tmp_path, resume=True)


# -- as a person runs it ---------------------------------------------------------------------------------------------

#: Leaves what MINE says: text to be its model, or "fail"; "wait" first tells that it is at work.
SCRIPT = """
import os, sys, time
from pathlib import Path
mine = os.environ["MINE"]
print(f"[metrics] step=1 loss={len(mine)}")
Path(os.environ["SM_OUTPUT_DATA_DIR"], "o").write_text(mine)
if mine == "wait":
    print("now at work", flush=True)
    time.sleep(600)
(Path(os.environ["SM_MODEL_DIR"]) / "deep").mkdir()
Path(os.environ["SM_MODEL_DIR"], "deep", "m").write_text(mine)
if mine == "large":
    Path(os.environ["SM_MODEL_DIR"], "large").write_bytes(os.urandom(64_000_000))
if mine == "fail":
    sys.exit("not this time")
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(SCRIPT)
    return tmp_path


def start(here: Path, mine: str, *arguments: str) -> "subprocess.Popen[str]":
    argv = [*COMMAND, "--env", f"MINE={mine}", *arguments]
    return subprocess.Popen(argv, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(here: Path, mine: str, *arguments: str, code: int = 0) -> str:
    with start(here, mine, *arguments) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out + err


def kill_when(here: Path, mine: str, has_come: Callable[[], bool], *arguments: str) -> None:
    with start(here, mine, "--resume", *arguments) as process:
        while not has_come():
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.kill()
        process.communicate()


@pytest.mark.process
@pytest.mark.parametrize(
    ("hosts", "moment"),
    [
        ("2", "training"),
        ("1", "packing"),
        pytest.param("1", "training", marks=pytest.mark.long),
        pytest.param("2", "packing", marks=pytest.mark.long),
    ],
)
def test_a_killed_attempt_and_a_failed_one_leave_the_result_of_the_first(here: Path, hosts: str, moment: str) -> None:
    out = here / "out"
    run(here, "one", "--hosts", hosts)
    first = (out / "job.json").read_bytes()
    if moment == "training":
        logs = out / "logs"
        kill_when(
            here,
            "wait",
            lambda: (
                all("now at work" in path.read_text() for path in logs.glob("*.log") if "attempt" not in path.name)
                and len([path for path in logs.glob("*.log") if "attempt" not in path.name]) == int(hosts)
            ),
            "--hosts",
            hosts,
        )
    else:
        kill_when(here, "large", (out / WORK / BUILDING / f".{ARCHIVE}.part").exists, "--hosts", hosts)
    assert contents(out) == ["one"] * 3
    killed = read_record(out)
    assert killed is not None
    assert (killed.attempt, killed.status, killed.result) == (2, "InProgress", 1)
    assert (out / "job.attempt-1.json").read_bytes() == first
    said = run(here, "fail", "--resume", "--hosts", hosts, code=1)
    assert "are still those of attempt 1; what attempt 3 left is in output.attempt-3 and model.attempt-3" in said
    assert "of attempt 1\n" in said
    assert contents(out) == ["one"] * 3
    failed = read_record(out)
    assert failed is not None
    assert (failed.attempt, failed.status, failed.result) == (3, "Failed", 1)
    assert failed.model is not None
    run(here, "four", "--resume", "--hosts", hosts)
    assert contents(out) == ["four"] * 3


@pytest.mark.process
def test_a_result_that_was_committed_when_the_run_was_killed_is_found_by_the_next(here: Path) -> None:
    run(here, "one")
    code = """
import os, signal, sys
from trainbox.local import run_job
run_job.install = lambda out: os.kill(os.getpid(), signal.SIGKILL) if (out / ".trainbox/committed").exists() else None
from trainbox.cli import main
sys.exit(main())
"""
    argv = [sys.executable, "-c", code, *COMMAND[3:], "--env", "MINE=two", "--resume"]
    done = subprocess.run(argv, cwd=here, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = read_record(here / "out")
    assert found is not None
    assert (found.attempt, found.status, found.result) == (2, "Completed", 2)
    run(here, "fail", "--resume", code=1)
    assert contents(here / "out") == ["two"] * 3
