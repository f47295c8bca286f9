"""Runs checks beside each other, each in a process of its own that is ended at its deadline."""

import contextlib
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from trainbox.clock import Clock, wait_from
from trainbox.contract.job import add_to_environment

_LAST_STANDARD = 2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CHUNK_BYTES = 64 * 1024
#: A killed process that is not gone by then sleeps in the kernel (a dead network disk): nobody waits for it.
_REAP_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class Probe(msgspec.Struct, frozen=True):
    """One process to be: its messages are whatever `work` yields, as JSON lines, or the lines a program prints."""

    check: str
    seconds: float
    #: Messages (JSON can hold them), or the command of a program of its own.
    work: Callable[[], Iterator[object]] | tuple[str, ...]
    device: str = ""
    #: Variables of the program beside ours.
    environment: tuple[tuple[str, str], ...] = ()


class ProbeResult(msgspec.Struct, frozen=True):
    """What a probe said, and whether it came to its end."""

    probe: Probe
    lines: tuple[bytes, ...]
    #: Why it has no end of its own; empty where it has.
    broken: str = ""


class _Running:
    def __init__(self, probe: Probe, now: float) -> None:
        self.probe = probe
        self.read, write = os.pipe()
        self.waiting = wait_from(now, probe.seconds)
        self.said = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.read)
            _become(probe, write)
        os.close(write)

    def answer(self, broken: str) -> ProbeResult:
        *whole, rest = self.said.split(b"\n")
        last = [rest] if rest else []
        return ProbeResult(self.probe, tuple(whole) if broken else (*whole, *last), broken)

    def end(self) -> int | None:
        """Kill it and let go of it; its exit code, None where it does not even die."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.read)
        return _reap(self.pid, _REAP_SECONDS)


def run(
    probes: Sequence[Probe],
    *,
    clock: Clock = time.monotonic,
    poller: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector,
) -> list[ProbeResult]:
    """Run all at once; comes back when the last has ended or has been ended, in the order given.

    Args:
        probes: What to run.
        clock: The time in seconds. What stops this process (a paused container) stops the probes, too, so the time in
            which it did not run is not theirs.
        poller: What waits for their words, in seconds of that clock.
    """
    results: dict[int, ProbeResult] = {}
    running: dict[int, _Running] = {}
    with poller() as selector:
        try:
            with _signals_held_back():
                for place, probe in enumerate(probes):
                    running[place] = _Running(probe, clock())
                    selector.register(running[place].read, selectors.EVENT_READ, place)
            while running:
                now = clock()
                for one in running.values():
                    one.waiting = one.waiting.look(now, pause=_LOOK_SECONDS)
                for key, _ in selector.select(min(one.waiting.pause for one in running.values())):
                    one = running[key.data]
                    chunk = os.read(one.read, _CHUNK_BYTES)
                    one.said += chunk
                    if not chunk:
                        selector.unregister(one.read)
                        results[key.data] = _ended(running.pop(key.data), clock)
                for place, one in list(running.items()):
                    if one.waiting.is_over:
                        selector.unregister(one.read)
                        running.pop(place).end()
                        results[place] = one.answer(f"no end after {one.probe.seconds:g} s")
        finally:
            for one in running.values():
                one.end()
    return [results[place] for place in range(len(probes))]


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Python drops what a handler raises in a callback at a fork, and the standard library has such callbacks."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _ended(one: _Running, clock: Clock) -> ProbeResult:
    """It has closed its output; whether it ended well is in its exit code."""
    code = _reap(one.pid, one.waiting.look(clock()).pause)
    if code is None:
        code = one.end()
    else:
        os.close(one.read)
    if code == 0:
        return one.answer("")
    died = "it does not end" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    # Its exception is what it said last, on a line that does not end.
    last = one.said.rpartition(b"\n")[2].decode(errors="replace")
    return one.answer(f"{died}: {last}" if last else died)


def _reap(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def _become(probe: Probe, write: int) -> NoReturn:
    """In the child: nothing may come back from here into what the parent was doing."""
    code = 1
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        # Connections above all: while one that hangs holds a copy, the other side sees no end.
        for opened in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if opened > _LAST_STANDARD and opened != write:
                with contextlib.suppress(OSError):
                    os.close(opened)
        if isinstance(probe.work, tuple):
            os.dup2(write, 1)
            add_to_environment(dict(probe.environment))
            try:
                os.execvp(probe.work[0], probe.work)  # noqa: S606 - an argument list, no shell: just what is wanted
            except OSError as error:  # it does not name the program
                raise OSError(error.errno, error.strerror, probe.work[0]) from error
        with open(write, "wb", closefd=False) as pipe:
            for message in probe.work():
                pipe.write(msgspec.json.encode(message) + b"\n")
                pipe.flush()
        code = 0
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(write, "".join(traceback.format_exception_only(error)).strip().replace("\n", " ").encode())
        raise
    finally:
        os._exit(code)
