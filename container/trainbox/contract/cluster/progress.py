"""The progress of the ranks of a host: one slot of shared memory per rank, written at every step, read by the agent.

A slot is written without a lock or a system call, in about a microsecond, since ranks do it at every step. The clock is
Linux' CLOCK_MONOTONIC, the same in all processes of a host. A read during a write may mix two successive marks, which
no limit in seconds can tell apart.
"""

import enum
import mmap
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from trainbox.contract.cluster.ranks import Ranks

#: The variable that names the file for a rank; its slot is its `LOCAL_RANK`.
PROGRESS_VARIABLE = "TRAINBOX_PROGRESS_FILE"
#: The variable that names the step after which a rank waits for the fault that will be injected into it.
PAUSE_VARIABLE = "TRAINBOX_PAUSE_STEP"
#: How long it waits; the agent looks several times a second.
_PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 0.01
#: A variable that scripts have in a job, and not where they are started by hand.
_OF_A_JOB = "SM_HOSTS"
_WITHOUT_AGENT = (
    "this script was not started by trainbox's launcher torchrun: no restart in place, no detection of ranks that hang"
    " or are slow, no drills; set trainbox_launcher=torchrun for these"
)
_SLOT = struct.Struct("=dqqqddd")
_SLOT_BYTES = 64
#: The weight of a new step in the running means.
_MEMORY = 0.05


class StepPhase(enum.IntEnum):
    """The phase of a step that a rank is in, in their order: of two ranks in one step the smaller is behind."""

    JOIN = -1  # waits for all others to join: it does not keep them waiting
    START = 0  # until the end of the first step: imports, connections, compilation
    DATA = 1  # waits for its batch
    COMPUTE = 2  # forward, backward, the optimizer's step
    CHECKPOINT = 3
    EVALUATION = 4
    DONE = 5


class ProgressSlot(msgspec.Struct, frozen=True):
    """The last mark of a rank."""

    #: When, by `time.monotonic()`; 0.0 if it has never made one.
    beat: float
    #: Steps it has finished, counted from the start of the whole job (a resumed job goes on counting).
    step: int
    phase: StepPhase
    #: Collectives it has begun in this step, where it counts them.
    collectives: int
    #: Its longest step so far, in seconds.
    longest: float
    #: Running means of its seconds per step: computing (without waiting for others) and waiting for data.
    compute: float
    data: float


class RankProgress:
    """The slot of this rank, to write its progress to.

    Args:
        path: The file.
        index: Which slot.
        pause_step: The step after which the agent injects a fault into this rank, which waits for it there: a fast rank
            would be at a later step by then, or have ended.
    """

    def __init__(self, path: Path, index: int, *, pause_step: int | None = None) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._offset = index * _SLOT_BYTES
        self._pause_step = pause_step
        self.longest = 0.0
        self.compute = 0.0
        self.data = 0.0

    def mark(self, step: int, phase: StepPhase, collectives: int = 0) -> None:
        """Make a mark: this rank is alive, has finished `step` steps and begins a phase."""
        _SLOT.pack_into(
            self._memory,
            self._offset,
            time.monotonic(),
            step,
            phase,
            collectives,
            self.longest,
            self.compute,
            self.data,
        )
        if self._pause_step is not None and step >= self._pause_step and phase is not StepPhase.JOIN:
            self._pause_step = None
            self._pause()

    def _pause(self) -> None:
        """Wait to be killed or stopped; a rank that continues after SIGSTOP has waited long enough."""
        until = time.monotonic() + _PAUSE_SECONDS
        while time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    def record(self, seconds: float, *, data: float, computed: Iterable[float]) -> None:
        """Record the times of a step, for the next mark.

        Args:
            seconds: The whole step.
            data: The seconds of it in which the rank waited for its batch.
            computed: The seconds of computing, in this step or earlier ones, as far as they are known by now.
        """
        self.longest = max(self.longest, seconds)
        self.data += _MEMORY * (data - self.data)
        for one in computed:
            self.compute += _MEMORY * (one - self.compute)

    def close(self) -> None:
        """Close the mapping."""
        self._memory.close()


def open_progress(env: Mapping[str, str], ranks: Ranks, log: Callable[[str], None]) -> RankProgress | None:
    """Open the slot of a rank; None where no agent of trainbox has started it: rank 0 of a job logs what is missing."""
    path, pause = env.get(PROGRESS_VARIABLE), env.get(PAUSE_VARIABLE)
    if path:
        return RankProgress(Path(path), ranks.local_rank, pause_step=int(pause) if pause else None)
    if ranks.rank == 0 and _OF_A_JOB in env:
        log(_WITHOUT_AGENT)
    return None


def create(path: Path, ranks: int) -> None:
    """Create the file for the ranks of a host, all slots empty."""
    path.write_bytes(bytes(ranks * _SLOT_BYTES))


def read(path: Path) -> tuple[ProgressSlot, ...]:
    """Return the last mark of each rank of the host, by local rank."""
    content = path.read_bytes()
    slots = (_SLOT.unpack_from(content, offset) for offset in range(0, len(content), _SLOT_BYTES))
    return tuple(
        ProgressSlot(beat, step, StepPhase(phase), collectives, longest, compute, data)
        for beat, step, phase, collectives, longest, compute, data in slots
    )
