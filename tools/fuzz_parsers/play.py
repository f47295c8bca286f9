"""Feeds a target in a fork of its own, with limits for its memory and for the time of an input; says what it found."""

import faulthandler
import gc
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from tools.fuzz_parsers.mutations import draw
from tools.fuzz_parsers.targets import TARGETS, Target, use

#: Beyond what the process has at its start: inputs have 64 KiB.
MEMORY_BYTES = 512 * 1024**2
#: Of the processor, for one input: those that take longest take a tenth of a second.
SECONDS_PER_INPUT = 20
_NUMBER = struct.Struct("q")
_LONGEST_TRACEBACK = 6000


class Finding(msgspec.Struct, frozen=True):
    """An input that a target did not take as it must."""

    target: str
    seed: int
    number: int
    what: str


class _TookTooLong(BaseException):
    """An input has had its time; nothing that a parser catches."""


def inputs(name: str, seed: int, numbers: range) -> Iterator[tuple[int, bytes]]:
    """Draw the inputs of a target; the first ones are its honest bytes themselves."""
    target = TARGETS[name]
    honest = target.honest()
    for number in numbers:
        yield number, honest[number] if number < len(honest) else draw(f"{seed}/{name}/{number}", honest, target.words)


def play(name: str, seed: int, numbers: range) -> list[Finding]:
    """Feed a target some inputs; one that ends the process is the last of them."""
    target = TARGETS[name]
    target.honest()  # made once, for the forks
    with tempfile.TemporaryFile() as told, mmap.mmap(-1, _NUMBER.size) as place:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _be_fed(target, name, (seed, numbers), told.fileno(), place)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told.seek(0)
        found = [msgspec.json.decode(line, type=Finding) for line in told]
        if code:
            (number,) = _NUMBER.unpack(place[:])
            found.append(Finding(name, seed, number, f"the process ended with {code}"))
    return found


def _be_fed(target: Target, name: str, drawn: tuple[int, range], told: int, place: mmap.mmap) -> NoReturn:
    """What the fork does; it never returns."""
    code, (seed, numbers) = 1, drawn
    try:
        faulthandler.disable()
        silence = os.open(os.devnull, os.O_WRONLY)  # what parsers tell the log of each input
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        _limit()
        with tempfile.TemporaryDirectory() as scratch:
            for number, content in inputs(name, seed, numbers):
                place[:] = _NUMBER.pack(number)
                is_honest = number < len(target.honest())
                if what := feed(target, content, Path(scratch) / "input", is_honest=is_honest):
                    os.write(told, msgspec.json.encode(Finding(name, seed, number, what)) + b"\n")
        code = 0
    finally:
        os._exit(code)


def feed(target: Target, content: bytes, directory: Path, *, is_honest: bool = False) -> str:
    """Feed a target one input; what is wrong, or nothing."""
    try:
        with _limited_time():
            use(target, content, directory, is_honest=is_honest)
    except _TookTooLong:
        return f"it takes more than {SECONDS_PER_INPUT} s of a processor\n{_tail()}"
    except Exception:  # noqa: BLE001 - that is what is looked for
        return _tail()
    return ""


def _tail() -> str:
    return traceback.format_exc()[-_LONGEST_TRACEBACK:]


def _limit() -> None:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A parser that does not come back to Python is ended by the system.
    signal.signal(signal.SIGVTALRM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _TookTooLong


@contextmanager
def _limited_time() -> Iterator[None]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 3 * SECONDS_PER_INPUT
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_PER_INPUT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
