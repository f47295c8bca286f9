"""Agreement between ranks: to stop, to save, to fail; and whether they still have the same parameters."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from trainbox.errors import DataError, TrainingError

#: From one message to the next. On two processors a message of two ranks takes some 3 ms from the steps beside it; a
#: stop can wait that long.
PAUSE_SECONDS = 1.0
#: In steps, because they may become slower meanwhile.
_LONGEST_PAUSE = 50
_LARGEST = 2**62


class Place(msgspec.Struct, frozen=True, order=True):
    """Where something happened first: the smaller, the earlier."""

    step: int
    rank: int


class StepFlags(msgspec.Struct, frozen=True):
    """The flags of one rank at the end of a step, or of all ranks together."""

    stop: bool = False
    save: bool = False
    #: Where a loss was not finite.
    bad: Place | None = None

    def merge(self, other: "StepFlags") -> "StepFlags":
        """Return the union of both."""
        if other is NO_FLAGS:
            return self
        return StepFlags(self.stop or other.stop, self.save or other.save, self.bad or other.bad)


#: The flags at the end of most steps.
NO_FLAGS = StepFlags()


class Agreement:
    """The flags of all ranks, one step late: they are sent while the next step computes, so no rank waits.

    Every rank reads the same flags at the end of the same step. Where steps are short not each of them is worth a
    message: the ranks agree, with the flags, on how many to let pass, which is `PAUSE_SECONDS` of them.
    One that is alone reads its own flags at once.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._ranks = 1 if group is None else dist.get_world_size(group)
        self._held = NO_FLAGS
        self._sent = torch.zeros(4, dtype=torch.int64)
        self._work: dist.Work | None = None
        self._steps = 0  # since flags were last read
        self._read_at = time.monotonic()
        self._pause = 0
        self._step_seconds = 0.0  # before the first measurement: each step is worth a message

    def exchange(self, flags: StepFlags) -> StepFlags:
        """Send this step's flags; return the flags of all ranks if they have arrived."""
        if self._group is None:
            return flags
        self._held = self._held.merge(flags)
        self._steps += 1
        arrived = NO_FLAGS if self._work is None else self._read()
        if self._steps >= self._pause:
            self._begin()
        return arrived

    def hurry(self) -> None:
        """Exchange flags at the next step: steps may become slower now. All ranks call this at the same step."""
        self._pause, self._steps, self._read_at = 0, 0, time.monotonic()

    def having(self, *, batch: bool) -> int:
        """Count the ranks that have a batch; all ranks call this."""
        if self._group is None:
            return int(batch)
        count = torch.tensor([batch], dtype=torch.int64)
        dist.all_reduce(count, group=self._group)
        return int(count.item())

    def finish(self) -> StepFlags:
        """Wait for all flags of all ranks that were not exchanged yet."""
        if self._group is None:
            return NO_FLAGS
        arrived = NO_FLAGS if self._work is None else self._read()
        self._begin()
        return arrived.merge(self._read())

    def _begin(self) -> None:
        stop, save, place = self._held.stop, self._held.save, self._held.bad
        bad = 0 if place is None else _LARGEST - (place.step * self._ranks + place.rank)
        if self._steps:  # else flags have just been read: no step has gone by since
            self._measure()
        pause = min(_LONGEST_PAUSE, int(PAUSE_SECONDS / max(self._step_seconds, 1e-6)))
        self._held = NO_FLAGS
        self._sent = torch.tensor([stop, save, bad, pause], dtype=torch.int64)
        self._work = dist.all_reduce(self._sent, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _measure(self) -> None:
        self._step_seconds = (time.monotonic() - self._read_at) / self._steps

    def _read(self) -> StepFlags:
        if self._steps:
            self._measure()
        if self._work is not None:
            self._work.wait()
        self._work, self._steps, self._read_at = None, 0, time.monotonic()
        stop, save, bad, self._pause = self._sent.tolist()
        place = Place(*divmod(_LARGEST - bad, self._ranks)) if bad else None
        return StepFlags(stop=bool(stop), save=bool(save), bad=place)


def checksum(parameters: Iterable[torch.Tensor]) -> int:
    """Return a sum over the bits of all parameters: exact, in any order, on any device."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        parameter.detach().contiguous().view(kinds[min(parameter.element_size(), 8)]).sum(dtype=torch.int64)
        for parameter in parameters
    ]
    return int(torch.stack(sums).sum().item()) if sums else 0


def finite(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether all local values of some parameters are finite."""
    held = (value.to_local() if isinstance(value, DTensor) else value for value in parameters)
    return all(bool(torch.isfinite(value.detach()).all()) for value in held)


def different(values: Sequence[int]) -> tuple[int, ...]:
    """Return the ranks whose value is not that of the majority; all of them if there is none."""
    value, count = Counter(values).most_common(1)[0]
    if 2 * count <= len(values):
        return tuple(range(len(values)))
    return tuple(rank for rank, mine in enumerate(values) if mine != value)


def gather(value: int, group: dist.ProcessGroup | None) -> list[int]:
    """Return the value of every rank."""
    if group is None:
        return [value]
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, torch.tensor([value], dtype=torch.int64), group=group)
    return [int(tensor.item()) for tensor in found]


def compare_parameters(parameters: Iterable[torch.Tensor], step: int, group: dist.ProcessGroup | None) -> None:
    """Compare the parameters of all ranks; all ranks call this at the same step.

    Raises:
        TrainingError: Ranks have different parameters; it names them.
    """
    ranks = different(gather(checksum(parameters), group))
    if ranks:
        raise TrainingError(
            f"after step {step} the parameters of ranks {_listed(ranks)} differ from the others'",
            hint="a device that computes wrongly, or code that changes parameters on some ranks alone",
        )


def require_same(what: str, value: int, group: dist.ProcessGroup | None) -> None:
    """Require that all ranks have the same value; all ranks call this.

    Raises:
        DataError: Ranks have different values; it names them.
    """
    ranks = different(gather(value, group))
    if ranks:
        raise DataError(
            f"{what} differ between the ranks: those of {_listed(ranks)} are not the others'",
            hint="give every host the whole channel (FullyReplicated)",
        )


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
