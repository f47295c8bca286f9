"""The training as savers see it: one rank's view of it, and the schedule of its checkpoints."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import torch.distributed as dist

from trainbox.contract.settings import DEFAULT_HANG_SECONDS
from trainbox.log_lines import emit

#: The share of a training's time that stalls may take: CheckFreq (FAST '21).
STALLS = 0.035


class RunInfo(msgspec.Struct, frozen=True):
    """One rank's view of a training; by default of a single rank.

    Attributes:
        rank: This rank.
        world_size: The number of ranks.
        group: A process group with a backend for the CPU. None is the default group.
        host: The name of this host.
        seed: The seed of the generators if a later run has another number of ranks.
        identity: JSON values that must be the same in a run that resumes, beside the shapes.
        interval_seconds: The time between two checkpoints; longer if stalls would take too much of the time.
        hang_seconds: A writer process of this rank that is stopped for longer is replaced; 0 never looks.
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    host: str = ""
    seed: int = 0
    identity: Mapping[str, Any] = {}
    interval_seconds: float = 300.0
    hang_seconds: float = DEFAULT_HANG_SECONDS


ALONE = RunInfo()


class SavedCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint that is durable."""

    step: int
    #: The bytes of the state, without its manifest.
    size: int
    #: Seconds for which the training was stalled, including the wait for other ranks.
    stall: float
    #: Seconds from the call of `save` until it was on disk.
    durable: float


class SaveSchedule:
    """Tells when the next checkpoint is due: after an interval, or later if stalls would take more than `STALLS`."""

    def __init__(self, interval_seconds: float) -> None:
        self.interval = interval_seconds
        self._next = time.monotonic() + interval_seconds
        self._stretched = False

    def due(self) -> bool:
        """Whether a checkpoint is due."""
        return time.monotonic() >= self._next

    def saved(self, stall: float) -> None:
        """Begin the next interval after a checkpoint that stalled the training for so many seconds."""
        shortest = stall / STALLS
        if shortest > max(self.interval, 1.0) and not self._stretched:
            self._stretched = True
            emit(
                f"a checkpoint stalls the training for {stall:.2f} s: the next one follows after {shortest:.0f} s, not "
                f"{self.interval:.0f} s, so that stalls stay below {STALLS:.1%} of the time"
            )
        self._next = time.monotonic() + max(self.interval, shortest)
