"""`make fuzz-faults` from end to end: one event is played, judged and leaves nothing; and one is interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.fuzz_faults import disk
from tools.fuzz_faults.plan import Fault, draw

pytest.importorskip("xgboost")
ROOT = Path(__file__).parents[2]
SEED, NUMBER = 24, 11

pytestmark = [
    pytest.mark.kills,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(disk.refused()), reason="mounts and processes of its own are refused"),
]


def start(out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tools.fuzz_faults", "--seed", str(SEED), "--load", "0", "--out", str(out), *more]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def processes_of(out: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(out) in line:
            found.append(line.decode(errors="replace"))
    return found


def test_a_job_that_is_killed_comes_back_to_its_model_and_nothing_stays(tmp_path: Path) -> None:
    event = draw(SEED, NUMBER)
    assert (event.job.name, event.faults) == ("xgboost-1x1", (Fault("kill", "script"),))
    process = start(tmp_path / "out", "--only", str(NUMBER))
    said, _ = process.communicate()
    assert process.returncode == 0, said
    first, *_, last = said.strip().splitlines()
    assert str(event) in first, said
    assert "Failed 137, Completed 0: exact" in first, said
    assert last.split() == ["all", "1", "1", "0"], said
    assert sorted(path.name for path in (tmp_path / "out").glob("seed-*")) == []
    assert processes_of(tmp_path) == []


@pytest.mark.long
def test_an_interrupt_ends_the_event_and_says_what_was_found_before(tmp_path: Path) -> None:
    process = start(tmp_path / "out", "--first", str(NUMBER))
    assert process.stdout is not None
    first = process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate()
    assert "exact" in first, first + said
    assert process.returncode == 0, first + said
    assert "all" in said
    assert processes_of(tmp_path) == []
