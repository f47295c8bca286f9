"""What the sessions of the algorithms share: partial imports, an early stop, log lines, outputs, the remaining time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from trainbox import atomic_write, toolkit
from trainbox.errors import Stopped
from trainbox.log_lines import emit


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Make packages impossible to import inside the block; afterwards everything is as before.

    A library that is imported for the first time inside the block lacks the parts that need these packages, until the
    process ends. So this is for the entry of a program, not for modules that others import.

    >>> with without("xmlrpc"):
    ...     import xmlrpc
    Traceback (most recent call last):
    ModuleNotFoundError: import of xmlrpc halted; None in sys.modules
    """
    before: dict[str, ModuleType | None] = {name: sys.modules[name] for name in packages if name in sys.modules}
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]  # as Python forbids an import
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(before)  # type: ignore[arg-type]


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Catch SIGTERM from here on; a stop before there is anything to save ends the block, and is not an error.

    Slow work that has nothing to save, such as importing a library or reading rows, belongs inside the block.

    Raises:
        Stopped: Another host was stopped, and this one was not.
    """
    toolkit.stop_requested()
    try:
        yield
    except Stopped as stop:
        if not toolkit.stop_requested():
            raise
        log_line(f"{stop.message}: there is nothing to save; a resumed job starts from its last checkpoint")


def log_line(text: str) -> None:
    """Write a line to stderr, prefixed with the name of the script."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    print(f"{name}: {text}", file=sys.stderr, flush=True)


def save_output(name: str, content: bytes) -> Path:
    """Write a file of `output/data`, which SageMaker packs into `output.tar.gz`, and return its path."""
    directory = toolkit.current_job().layout.output_data_dir
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write.write(directory / name, content)
    return directory / name


class RemainingTime:
    """Logs how much of the work is done, and about how long the rest takes at the speed so far.

    Args:
        total: How much there is to do.
        done: How much of it was done before this process began.
        unit: What is counted, as "trees".
        least: Seconds from one line to the next, at least.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, total: int, done: int, unit: str, *, least: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._first, self._unit = total, done, unit
        self._least, self._clock = least, clock
        self._start = self._logged = clock()

    def update(self, done: int) -> None:
        """Log it, unless all is done or the last line is newer than `least` seconds."""
        now = self._clock()
        if done >= self._total or done <= self._first or now - self._logged < self._least:
            return
        self._logged = now
        left = (now - self._start) / (done - self._first) * (self._total - done)
        emit(f"{done:,} of {self._total:,} {self._unit}, about {format_duration(left)} left")


def format_duration(seconds: float) -> str:
    """Format a time in its two largest units.

    >>> format_duration(59.6), format_duration(3725)
    ('1 min 0 s', '1 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
