"""How long something has not changed, by a clock that leaves out the time in which this process did not run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.waiting import eventually
from trainbox.launch.silence import GAP_SECONDS, AwakeClock, Silence, StoppedProcesses, process_state


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_clock_leaves_out_what_its_process_has_slept_through_and_says_how_much() -> None:
    real = Clock()
    clock = AwakeClock(real)
    began = clock()
    for _ in range(3):
        real.now += GAP_SECONDS
        clock()
    assert clock() - began == 3 * GAP_SECONDS
    assert clock.pause == 0.0
    real.now += 60.0
    assert clock() - began == 3 * GAP_SECONDS
    assert (clock.pause, clock.paused_until) == (60.0, real.now)


def test_the_seconds_of_a_value_begin_when_it_changes() -> None:
    clock = Clock()
    silence = Silence[str](clock)
    assert silence.seconds({"a": 1, "b": 1}) == {"a": 0.0, "b": 0.0}
    clock.now += 3.0
    assert silence.seconds({"a": 1, "b": 2, "c": 1}) == {"a": 3.0, "b": 0.0, "c": 0.0}
    clock.now += 3.0
    assert silence.seconds({"a": 1, "c": 1}) == {"a": 6.0, "c": 3.0}
    assert silence.seconds({"b": 2}) == {"b": 0.0}, "it was not looked at meanwhile"


def test_who_was_stopped_itself_has_not_seen_others_be_silent() -> None:
    real = Clock()
    silence = Silence[str](AwakeClock(real))
    silence.seconds({"a": 1})
    real.now += 1.0
    silence.seconds({"a": 1})
    real.now += 600.0
    assert silence.seconds({"a": 1}) == {"a": 1.0}


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "1000"]) as started:
        yield started
        started.kill()


@pytest.mark.process
def test_a_process_is_found_that_was_stopped_at_every_look_for_longer_than_its_limit(
    process: "subprocess.Popen[bytes]",
) -> None:
    clock, pid = Clock(), process.pid
    stopped = StoppedProcesses(clock)
    assert stopped.find({pid: 10.0}) == {}
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: process_state(pid) == "T", "a stopped process")
    clock.now += 100.0
    assert stopped.find({pid: 10.0}) == {}, "it may have been stopped a moment ago"
    clock.now += 10.0
    assert stopped.find({pid: 10.0}) == {}
    clock.now += 0.5
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
            clock = Clock()
            stopped = StoppedProcesses(clock)
            for _ in range(3):
                clock.now += 4.0
                assert stopped.find({pid: 1.0}) == {}
        finally:
            os.kill(pid, signal.SIGKILL)
            debugger.kill()


def test_a_process_that_has_ended_is_not_stopped() -> None:
    assert process_state(2**22 + 1) == "X"
    assert StoppedProcesses(Clock()).find({2**22 + 1: 1.0}) == {}
