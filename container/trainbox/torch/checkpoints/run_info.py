"""What savers have to know of the training that they serve."""

from collections.abc import Mapping
from typing import Any

import msgspec
import torch.distributed as dist

from trainbox.contract.settings import DEFAULT_HANG_SECONDS


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
