"""Runs checks in parallel, each in its own process that is killed at its timeout."""

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
#: A killed process that is still there after this time is blocked in the kernel (a dead network disk).
_REAP_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class Probe(msgspec.Struct, frozen=True):
    """One process to start: its messages are what `work` yields, as JSON lines, or the lines a program prints."""

    check: str
    seconds: float
    #: Generator of messages for JSON, or the command of a program.
    work: Callable[[], Iterator[object]] | tuple[str, ...]
    device: str = ""
    #: Additional variables of the program.
    environment: tuple[tuple[str, str], ...] = ()


class ProbeResult(msgspec.Struct, frozen=True):
    """Output of a probe, and how it ended."""

    probe: Probe
    lines: tuple[bytes, ...]
    #: Why it did not end normally; empty if it did.
    broken: str = ""


class _Running:
    def __init__(self, probe: Probe, now: float) -> None:
        self.probe = probe
        self.read, write = os.pipe()
        self.waiting = wait_from(now, probe.seconds)
        self.output = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.read)
            _become(probe, write)
        os.close(write)

    def answer(self, broken: str) -> ProbeResult:
        *whole, rest = self.output.split(b"\n")
        last = [rest] if rest else []
        return ProbeResult(self.probe, tuple(whole) if broken else (*whole, *last), broken)

    def end(self) -> int | None:
        """Kill the process and return its exit code; None if it does not die."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.read)
        return _reap(self.pid, _REAP_SECONDS)


def run(
    probes: Sequence[Probe],
    *,
    clock: Clock = time.monotonic,
    poller: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector,
) -> list[ProbeResult]:
    """Run all probes at once; return their results in the given order when the last one has ended or was killed.

    Args:
        probes: The probes to run.
        clock: The time in seconds. A pause of this process (a paused container) pauses the probes, too, and does not
            count for their timeouts.
        poller: Makes the selector that waits for their output, in seconds of that clock.
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
                    one.output += chunk
                    if not chunk:
                        selector.unregister(one.read)
                        results[key.data] = _ended(running.pop(key.data), clock)
                for place, one in list(running.items()):
                    if one.waiting.is_over:
                        selector.unregister(one.read)
                        running.pop(place).end()
                        results[place] = one.answer(f"not finished after {one.probe.seconds:g} s")
        finally:
            for one in running.values():
                one.end()
    return [results[place] for place in range(len(probes))]


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block signals around forks: Python drops what a handler raises in a fork callback of the standard library."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _ended(one: _Running, clock: Clock) -> ProbeResult:
    """Return the result of a probe that has closed its output, judged by its exit code."""
    code = _reap(one.pid, one.waiting.look(clock()).pause)
    if code is None:
        code = one.end()
    else:
        os.close(one.read)
    if code == 0:
        return one.answer("")
    died = "does not exit" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    # Its exception is the last, unterminated line of its output.
    last = one.output.rpartition(b"\n")[2].decode(errors="replace")
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
    """Run the probe in the child; never returns into the code of the parent."""
    code = 1
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        # Above all connections: while a hung child holds a copy, the peer sees no end of the stream.
        for opened in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if opened > _LAST_STANDARD and opened != write:
                with contextlib.suppress(OSError):
                    os.close(opened)
        if isinstance(probe.work, tuple):
            os.dup2(write, 1)
            add_to_environment(dict(probe.environment))
            try:
                os.execvp(probe.work[0], probe.work)  # noqa: S606 - an argument list, no shell
            except OSError as error:  # add the name of the program
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
