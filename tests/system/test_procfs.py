"""What the kernel says of real processes, and which of them are stopped for too long by a clock that the test moves."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.timeline import Timeline
from tests.support.waiting import eventually
from trainbox.system.procfs import Stat, StoppedProcesses, process_state, read_stat, read_stats

#: Above any id that the kernel gives.
NO_PROCESS = 2**22 + 1


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "1000"]) as started:
        yield started
        started.kill()


@pytest.mark.process
def test_a_process_is_found_that_was_stopped_at_every_look_for_longer_than_its_limit(
    process: "subprocess.Popen[bytes]",
) -> None:
    time, pid = Timeline(), process.pid
    stopped = StoppedProcesses(time.clock)
    assert stopped.find({pid: 10.0}) == {}
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: process_state(pid) == "T", "a stopped process")
    time.now += 100.0
    assert stopped.find({pid: 10.0}) == {}, "it may have been stopped a moment ago"
    time.now += 10.0
    assert stopped.find({pid: 10.0}) == {}
    time.now += 0.5
    assert stopped.find({pid: 10.0}) == {pid: 10.5}
    assert stopped.find({pid: 0.0}) == {}, "a limit of 0 never looks"
    process.send_signal(signal.SIGCONT)
    eventually(lambda: process_state(pid) != "T", "a process that runs")
    assert stopped.find({pid: 10.0}) == {}


#: It has a child that it traces, and which stops for it (ptrace(2)), and says its number.
_DEBUGGER = """
import ctypes, os, signal, time
pid = os.fork()
if not pid:
    ctypes.CDLL(None).ptrace(0, 0, None, None)  # PTRACE_TRACEME
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(pid, os.WUNTRACED)
print(pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.process
def test_a_process_that_a_debugger_holds_is_not_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", _DEBUGGER], stdout=subprocess.PIPE) as debugger:
        assert debugger.stdout is not None
        pid = int(debugger.stdout.readline())
        try:
            assert process_state(pid) == "t"
            time = Timeline()
            stopped = StoppedProcesses(time.clock)
            for _ in range(3):
                time.now += 4.0
                assert stopped.find({pid: 1.0}) == {}
        finally:
            os.kill(pid, signal.SIGKILL)
            debugger.kill()


def test_a_process_that_has_ended_is_not_stopped() -> None:
    assert process_state(NO_PROCESS) == "X"
    assert StoppedProcesses(Timeline().clock).find({NO_PROCESS: 1.0}) == {}


@pytest.mark.process
def test_a_process_tells_its_parent_and_its_session() -> None:
    ours = read_stat(os.getpid())
    assert (ours.parent, ours.session) == (os.getppid(), os.getsid(0))
    assert dict(read_stats())[os.getpid()].parent == os.getppid()


@pytest.mark.process
def test_a_process_has_ended_before_it_is_reaped_and_after() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        eventually(lambda: process_state(process.pid) == "Z", "a process that waits to be reaped")
        assert read_stat(process.pid).has_ended
    assert read_stat(process.pid) == Stat()
    assert Stat().has_ended


@pytest.mark.process
def test_a_command_may_hold_anything(tmp_path: Path) -> None:
    program = tmp_path / ") Z 1 (T"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as process:
        eventually(lambda: program.name in Path(f"/proc/{process.pid}/comm").read_text(), "the program")
        assert (read_stat(process.pid).parent, read_stat(process.pid).has_ended) == (os.getpid(), False)
        process.kill()
