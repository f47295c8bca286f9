"""How far each rank of a host is: one slot of shared memory a rank, written by it at every step, read by the agent.

A slot is written without a lock or a system call, in about a microsecond: the ranks pay for it at every step. The clock
is Linux' CLOCK_MONOTONIC, the same in all processes of a host. What is read while it is written may mix two marks that
follow each other, which no limit in seconds can tell apart.
"""

import enum
import mmap
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

#: The variable that names the file for a rank; its slot is its `LOCAL_RANK`.
PROGRESS_VARIABLE = "TRAINBOX_PROGRESS_FILE"
_SLOT = struct.Struct("=dqqqddd")
_SLOT_BYTES = 64
#: The weight of a new step in the running means.
_MEMORY = 0.05


class Section(enum.IntEnum):
    """What a rank is at within a step, in the order of the step: of two ranks in one step the smaller is behind."""

    JOIN = -1  # waits for all others to come: it is not this one that keeps them waiting
    START = 0  # until the end of the first step: imports, connections, compilation
    DATA = 1  # waits for its batch
    COMPUTE = 2  # forward, backward, the optimizer's step
    CHECKPOINT = 3
    EVALUATION = 4
    DONE = 5


class Slot(msgspec.Struct, frozen=True):
    """What one rank has said last."""

    #: When, by `time.monotonic()`; 0.0 if it has never said anything.
    beat: float
    #: Steps it has finished, counted from the start of the whole job (a resumed job goes on counting).
    step: int
    section: Section
    #: Collectives it has begun in this step, where it counts them.
    collectives: int
    #: Its longest step so far, in seconds.
    longest: float
    #: Running means of its seconds per step: computing (without waiting for others) and waiting for data.
    compute: float
    data: float


class Progress:
    """The slot of this rank."""

    def __init__(self, path: Path, index: int) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._offset = index * _SLOT_BYTES
        self.longest = 0.0
        self.compute = 0.0
        self.data = 0.0

    def mark(self, step: int, section: Section, collectives: int = 0) -> None:
        """Say that this rank is alive, has finished `step` steps and begins a section."""
        _SLOT.pack_into(
            self._memory,
            self._offset,
            time.monotonic(),
            step,
            section,
            collectives,
            self.longest,
            self.compute,
            self.data,
        )

    def record(self, seconds: float, *, data: float, computed: Iterable[float]) -> None:
        """Take a step into account; what the next mark tells.

        Args:
            seconds: Of the whole step.
            data: Seconds of it in which the rank waited for its batch.
            computed: Seconds that it computed by itself, in this step or earlier ones, as far as that is known by now.
        """
        self.longest = max(self.longest, seconds)
        self.data += _MEMORY * (data - self.data)
        for one in computed:
            self.compute += _MEMORY * (one - self.compute)

    def close(self) -> None:
        """Give the mapping back."""
        self._memory.close()


def create(path: Path, ranks: int) -> None:
    """Make the file for the ranks of a host, all slots empty."""
    path.write_bytes(bytes(ranks * _SLOT_BYTES))


def read(path: Path) -> tuple[Slot, ...]:
    """What each rank of the host has said last, by local rank."""
    content = path.read_bytes()
    slots = (_SLOT.unpack_from(content, offset) for offset in range(0, len(content), _SLOT_BYTES))
    return tuple(
        Slot(beat, step, Section(section), collectives, longest, compute, data)
        for beat, step, section, collectives, longest, compute, data in slots
    )
