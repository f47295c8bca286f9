"""Pictures, drawn by a process of its own that imports Matplotlib while rows are read.

    with Painter() as painter:
        ...
        painter.draw(Importance("output/data/feature-importance", {"f0": 0.7}))

Import and pictures take a second of a processor. Where many rows are read one of two stands still for that long, and
both have nothing else to do at the end.
"""

import io
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

import msgspec

from trainbox.clock import AwakeClock, Clock, Silence
from trainbox.procfs import LOOK_SECONDS, read_stats
from trainbox.say import kept_words, say

# NumPy's threads would have nothing to do, and be a danger to forks.
_COMMAND = ("env", "OPENBLAS_NUM_THREADS=1", sys.executable, "-P", "-m", "trainbox.tabular.painting")

#: A picture takes a second of a processor; this is for one that gets none of a busy machine.
LIMIT_SECONDS = 30.0
_KILL_SECONDS = 5.0


class Curves(msgspec.Struct, frozen=True, tag=True):
    """The arguments of `plots.draw_curves`; a value that is no finite number may be None."""

    path: str
    curves: Mapping[str, tuple[Sequence[int], Sequence[float | None]]]
    step: str = "round"
    selected: int | None = None


class FoldCurve(msgspec.Struct, frozen=True):
    """One metric of several folds."""

    steps: Sequence[int]
    #: For each fold as many values.
    folds: Sequence[Sequence[float | None]]
    mean: Sequence[float | None]
    deviation: Sequence[float]
    #: For each fold the step whose model is saved, and its value.
    selected: Sequence[tuple[int, float | None]]
    #: Mean and deviation of those values, or of the last ones before.
    summary: tuple[float, float] | None


class Folds(msgspec.Struct, frozen=True, tag=True):
    """The arguments of `plots.draw_folds`; a value that is no finite number may be None."""

    path: str
    curves: Mapping[str, FoldCurve]
    step: str = "round"


class Importance(msgspec.Struct, frozen=True, tag=True):
    """The arguments of `plots.draw_importance`; a value that is no finite number may be None."""

    path: str
    importance: Mapping[str, float | None]
    kind: str = ""


Picture = Curves | Folds | Importance


class Failure(msgspec.Struct, frozen=True):
    """An OSError."""

    number: int
    reason: str
    file: str | None = None


class Painter:
    """The process that draws; the end of the block waits for the pictures.

    It is in a process group of its own: a SIGTERM for the script's asks that to save and to leave, for which it needs
    the pictures. Where the script dies stdin ends, and it leaves. Where it dies itself, perhaps for memory, or makes no
    progress, the log says so and there are no pictures: no reason to lose a job.

    Args:
        limit: Seconds without progress after which the script waits no longer.
        clock: Seconds that only grow.

    Raises:
        OSError: At the end of the block: a picture could not be written.
    """

    def __init__(self, *, limit: float = LIMIT_SECONDS, clock: Clock = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._errors = kept_words()
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, process_group=0
        )
        self._is_asked = False
        #: Of the process.
        self.process_id = self._process.pid

    def draw(self, *pictures: Picture) -> None:
        """Have these drawn, all at the same time, and do not wait; to be called once."""
        if self._is_asked:
            raise ValueError("pictures can be ordered once")
        self._is_asked = True
        # More than a pipe holds is not taken before Matplotlib has been imported, and never by one that is frozen.
        threading.Thread(target=self._order, args=(msgspec.json.encode(pictures),), daemon=True).start()

    def _order(self, content: bytes) -> None:
        with suppress(OSError), self._process.stdin or io.BytesIO() as orders:  # the end of the block says more
            orders.write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_awaited = kind is None and self._is_asked
        is_done = False
        try:
            is_done = is_awaited and self._await_end()
        finally:
            # With the forks, which hold stdout open and never leave where the process they are of was killed.
            with suppress(ProcessLookupError):
                os.killpg(self.process_id, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # in a driver or a disk, which no signal ends
                self._process.wait(_KILL_SECONDS)
        with self._errors, self._process.stdout or io.BytesIO() as stdout:
            if not self._is_asked and self._process.stdin:
                self._process.stdin.close()
            if is_done:
                self._report(stdout.read())
            elif is_awaited:
                say(f"WARNING: no pictures: what draws them made no progress for {self._limit:g} s and was killed")

    def _report(self, said: bytes) -> None:
        if said:
            failure = msgspec.json.decode(said, type=Failure)
            raise OSError(failure.number, f"a picture cannot be written: {failure.reason}", failure.file)
        if code := self._process.returncode:
            say(f"WARNING: no pictures: what draws them ended with {code}: {self._last_line()}")

    def _await_end(self) -> bool:
        """Wait as long as it makes progress: it or one of its forks uses a processor. Returns whether it has ended."""
        silence = Silence[str](AwakeClock(self._clock))
        while not _ends_within(self._process, LOOK_SECONDS):
            if silence.seconds({"painter": ticks_of_group(self.process_id)})["painter"] >= self._limit:
                return False
        return True

    def _last_line(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")


def ticks_of_group(group: int) -> int:
    """How long the processes of a group have used a processor, in ticks of the system; of those that live."""
    return sum(stat.ticks for _, stat in read_stats() if stat.group == group)


def _ends_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # an older kernel, or another: `Popen.wait` looks every now and then
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    else:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1000)
        os.close(descriptor)
    return process.poll() is not None
