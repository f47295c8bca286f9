"""Checks in processes of their own: whatever they do, the one who asked comes back in time."""

import ctypes
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.timeline import Timeline
from tests.support.trees import is_alive
from trainbox.health.probe import Probe, run

pytestmark = pytest.mark.process


def says(*words: object) -> Iterator[object]:
    yield from words


def hangs(after: object) -> Iterator[object]:
    yield after
    time.sleep(600)


def ignores_everything() -> Iterator[object]:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    yield os.getpid()
    time.sleep(600)


def raises() -> Iterator[object]:
    yield 1
    raise LookupError("planted")


def crashes() -> Iterator[object]:
    yield 1
    ctypes.string_at(0)


def exits() -> Iterator[object]:
    yield 1
    os._exit(3)


def writes_half_a_line() -> Iterator[object]:
    yield 1
    descriptor = max(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists())
    os.write(descriptor, b'{"half')
    time.sleep(600)


def test_messages_come_back_in_the_order_of_the_probes() -> None:
    probes = [Probe(f"{n}", 20, partial(says, n, {"n": n})) for n in range(5)]
    assert [answer.lines for answer in run(probes)] == [(b"%d" % n, b'{"n":%d}' % n) for n in range(5)]
    assert {answer.broken for answer in run(probes)} == {""}


def test_a_message_larger_than_a_pipe_comes_whole() -> None:
    (answer,) = run([Probe("large", 20, partial(says, "x" * 3_000_000))])
    assert (len(answer.lines[0]), answer.broken) == (3_000_002, "")


@pytest.mark.parametrize(
    ("work", "broken", "lines"),
    [
        (raises, "exit code 1: LookupError: planted", (b"1",)),
        (crashes, "killed by signal 11", (b"1",)),
        (exits, "exit code 3", (b"1",)),
        (("/no/such",), "exit code 1: FileNotFoundError: [Errno 2] No such file or directory: '/no/such'", ()),
        ((sys.executable, "-u", "-c", "print(7); import os; os.abort()"), "killed by signal 6", (b"7",)),
    ],
    ids=["raises", "crashes", "exits", "no program", "aborts"],
)
def test_whatever_it_does_is_said_and_what_it_said_is_kept(work: object, broken: str, lines: tuple[bytes, ...]) -> None:
    good, bad = run([Probe("good", 60, partial(says, 2)), Probe("bad", 60, work)])  # type: ignore[arg-type]
    assert (good.lines, good.broken) == ((b"2",), "")
    assert bad.broken == broken
    assert bad.lines == lines


class Moving(selectors.DefaultSelector):
    """Waits in truth until something is said, and lets the clock of a test go on where nothing more is."""

    def __init__(self, line: Timeline, *, jump: float = 0.0) -> None:
        super().__init__()
        self._line = line
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None
        ready = super().select(0.05)
        if not ready:
            self._line.sleep(timeout + self._jump)
        return ready


@pytest.mark.parametrize("work", [partial(hangs, 1), writes_half_a_line], ids=["hangs", "half a line"])
@pytest.mark.parametrize("seconds", [1.0, 20.0])
def test_one_that_does_not_end_is_ended_at_its_deadline_and_not_before(
    work: Callable[[], Iterator[object]], seconds: float
) -> None:
    line = Timeline()
    started = line.now
    good, bad = run(
        [Probe("good", 2000, partial(says, 2)), Probe("bad", seconds, work)],
        clock=line.clock,
        poller=lambda: Moving(line),
    )
    assert (good.lines, good.broken) == ((b"2",), "")
    assert (bad.lines, bad.broken) in {
        ((b"1",), f"not finished after {seconds:g} s"),
        ((), f"not finished after {seconds:g} s"),
    }
    assert line.now - started >= seconds


def test_a_stop_of_the_whole_host_is_no_time_of_its_checks(tmp_path: Path) -> None:
    """Each turn ends an hour later than it was to; a check that stood still meanwhile goes on afterwards."""
    line = Timeline()

    def works() -> Iterator[object]:
        (tmp_path / "begun").touch()
        while not (tmp_path / "awake").exists():
            time.sleep(0.01)
        yield "done"

    class Stopped(Moving):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if (tmp_path / "begun").exists() and line.now > 8000:
                (tmp_path / "awake").touch()
            return super().select(timeout)

    (answer,) = run([Probe("patient", 600, works)], clock=line.clock, poller=lambda: Stopped(line, jump=3600))
    assert (answer.lines, answer.broken) == ((b'"done"',), "")


def test_one_that_ignores_signals_is_gone_afterwards() -> None:
    (answer,) = run([Probe("stubborn", 1, ignores_everything)])
    assert not is_alive(int(answer.lines[0]))


def test_a_program_gets_its_variables_and_its_lines_come_back() -> None:
    program = (sys.executable, "-c", "import os; print(os.environ['PLANTED']); print('{}')")
    (answer,) = run([Probe("program", 20, program, environment=(("PLANTED", "yes"),))])
    assert (answer.lines, answer.broken) == ((b"yes", b"{}"), "")


def test_no_descriptor_of_ours_is_kept_open_by_one_that_hangs() -> None:
    """Else a host that dies would not be missed while a check of it still hangs."""

    def counts() -> Iterator[object]:
        yield sorted(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists())

    with socket.create_server(("127.0.0.1", 0)):
        (answer,) = run([Probe("descriptors", 20, counts)])
    opened = answer.lines[0].strip(b"[]").split(b",")
    assert len([number for number in opened if int(number) > 2]) == 1


def test_nothing_is_left_open_in_the_one_who_asks() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        run([Probe("good", 20, partial(says, 1)), Probe("bad", 0.1, partial(hangs, 1)), Probe("raises", 20, raises)])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
