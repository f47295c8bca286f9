"""Pictures, drawn by a process of its own that imports Matplotlib while rows are read.

    with Painter() as painter:
        ...
        painter.draw(Importance("output/data/feature-importance", {"f0": 0.7}))

Import and pictures take a second of a processor. Where many rows are read one of two stands still for that long, and
both have nothing else to do at the end.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

import msgspec

from trainbox.say import kept_words, say

# NumPy's threads would have nothing to do, and be a danger to forks.
_COMMAND = ("env", "OPENBLAS_NUM_THREADS=1", sys.executable, "-P", "-m", "trainbox.tabular.painting")


class Curves(msgspec.Struct, frozen=True, tag=True):
    """The arguments of `plots.draw_curves`; a value that is no finite number may be None."""

    path: str
    curves: Mapping[str, tuple[Sequence[int], Sequence[float | None]]]
    step: str = "round"


class Importance(msgspec.Struct, frozen=True, tag=True):
    """The arguments of `plots.draw_importance`; a value that is no finite number may be None."""

    path: str
    importance: Mapping[str, float | None]
    kind: str = ""


Picture = Curves | Importance


class Failure(msgspec.Struct, frozen=True):
    """An OSError."""

    number: int
    reason: str
    file: str | None = None


class Painter:
    """The process that draws; the end of the block waits for the pictures.

    It is in a process group of its own: a SIGTERM for the script's asks that to save and to leave, for which it needs
    the pictures. Where the script dies stdin ends, and it leaves. Where it dies itself, perhaps for memory, the log
    says so and there are no pictures: no reason to lose a job.

    Raises:
        OSError: At the end of the block: a picture could not be written.
    """

    def __init__(self) -> None:
        self._errors = kept_words()
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, process_group=0
        )
        self._is_asked = False
        #: Of the process.
        self.process_id = self._process.pid

    def draw(self, *pictures: Picture) -> None:
        """Have these drawn, all at the same time, and do not wait; to be called once."""
        orders, self._is_asked = self._process.stdin, True
        if orders is None:
            raise ValueError("pictures can be ordered once")
        with suppress(BrokenPipeError), orders:  # where it has died, the end of the block says so
            orders.write(msgspec.json.encode(pictures))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._errors, self._process as process:
            is_awaited = kind is None and self._is_asked
            if is_awaited:
                process.wait()
            # With the forks, which hold stdout open and never leave where the process they are of was killed.
            with suppress(ProcessLookupError):
                os.killpg(self.process_id, signal.SIGKILL)
            if not is_awaited:
                return
            said = process.stdout.read() if process.stdout else b""
            if said:
                failure = msgspec.json.decode(said, type=Failure)
                raise OSError(failure.number, f"a picture cannot be written: {failure.reason}", failure.file)
            if process.returncode:
                say(f"WARNING: no pictures: what draws them ended with {process.returncode}: {self._last_line()}")

    def _last_line(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
