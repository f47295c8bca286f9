"""What savers have to know of the training that they serve."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import torch.distributed as dist

from trainbox.contract.settings import DEFAULT_HANG_SECONDS
from trainbox.say import say

#: The part of the time of a training that its stalls may take: CheckFreq (FAST '21).
STALLS = 0.035


class Course(msgspec.Struct, frozen=True):
    """One rank's view of a training; by default it is alone.

    Attributes:
        rank: This rank.
        world_size: How many ranks there are.
        group: For what they tell each other: one whose backend works on the CPU. None is the default group.
        host: The name of this host.
        seed: Of the generators, should a later run have another number of ranks.
        identity: What has to be the same in a run that resumes, beyond the shapes: values that JSON can say.
        interval_seconds: Between two checkpoints; longer if stalls would take too much of the time.
        hang_seconds: A process that writes for this rank and is stopped for longer is replaced; 0 never looks.
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    host: str = ""
    seed: int = 0
    identity: Mapping[str, Any] = {}
    interval_seconds: float = 300.0
    hang_seconds: float = DEFAULT_HANG_SECONDS


ALONE = Course()


class Saved(msgspec.Struct, frozen=True):
    """A checkpoint that is durable."""

    step: int
    #: Of the state, without its document.
    size: int
    #: Seconds for which the training stood still, the wait for other ranks included.
    stall: float
    #: Seconds from the call of `save` until it was on the disk.
    durable: float


class Pace:
    """When the next checkpoint is due: after an interval, or later if stalls would take more than `STALLS`."""

    def __init__(self, interval_seconds: float) -> None:
        self.interval = interval_seconds
        self._next = time.monotonic() + interval_seconds
        self._stretched = False

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def saved(self, stall: float) -> None:
        """Begin another interval, after the training stood still for so many seconds."""
        shortest = stall / STALLS
        if shortest > max(self.interval, 1.0) and not self._stretched:
            self._stretched = True
            say(
                f"a checkpoint stops the training for {stall:.2f} s: the next one not before {shortest:.0f} s instead "
                f"of {self.interval:.0f} s, so that stalls stay below {STALLS:.1%} of the time"
            )
        self._next = time.monotonic() + max(self.interval, shortest)
