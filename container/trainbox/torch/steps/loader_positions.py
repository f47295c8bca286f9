"""The position of each loader of a job: in the checkpoint if the loader has a state, else a warning that it is lost."""

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, WeightedRandomSampler

from trainbox.torch.batches import Loader
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.parts import Stateful
from trainbox.torch.permutation import derive

if TYPE_CHECKING:
    from trainbox.torch.checkpoints.saver import Saver
    from trainbox.torch.checkpoints.sharded.saver import ShardedSaver

T = TypeVar("T")

_REMEDY = "use run.batches(…).loader, or a loader with state_dict, as torchdata's StatefulDataLoader"


class LoaderPositions:
    """The positions of the loaders of a session.

    Args:
        seed: Of the session.
        rank: This rank.
        log: Where a warning goes.
    """

    def __init__(self, seed: int, rank: int, log: Callable[[str], None]) -> None:
        self._seed, self._rank, self._log = seed, rank, log
        self._known: list[weakref.ref[Any]] = []
        self._warned = False

    def enter(self, loader: Iterable[T], saver: "Saver | ShardedSaver | None", first: int) -> Iterator[T]:
        """Iterate over a loader, from its position in the checkpoint if it has one.

        Args:
            loader: Of any kind.
            saver: Of the session, once the script has called `resume`.
            first: Batches that the job has had before.
        """
        if saver is None:
            return iter(loader)
        self._warn(loader, saver.parts)
        if isinstance(loader, Loader) or not isinstance(loader, Stateful):
            return iter(loader)
        if not any(part is loader for part in saver.parts.values()):
            saver.adopt(self._number(loader), loader)
        return self._apart(loader, first)

    def _apart(self, loader: Iterable[T], first: int) -> Iterator[T]:
        """Yield the batches of a loader that draws from separate generators at each step.

        Loaders draw seeds when they begin. Out of the global generators these would change what dropout draws in a job
        that was interrupted within the epoch.
        """
        iterator: Iterator[T] | None = None
        for number in itertools.count(first):
            drawn = rng_state.capture()
            rng_state.reseed(derive(self._seed, "loader", self._rank, number))
            iterator = iter(loader) if iterator is None else iterator
            batch = list(itertools.islice(iterator, 1))
            rng_state.restore(drawn)
            if not batch:
                return
            yield batch[0]

    def _number(self, loader: object) -> int:
        """The same for the same loader; that of one that is gone is given to the next."""
        for number, known in enumerate(self._known):
            if known() is loader:
                return number
        for number, known in enumerate(self._known):
            if known() is None:
                self._known[number] = weakref.ref(loader)
                return number
        self._known.append(weakref.ref(loader))
        return len(self._known) - 1

    def _warn(self, loader: object, parts: Mapping[str, object]) -> None:
        what = lost(loader, parts)
        if what and not self._warned:
            self._warned = True
            self._log(f"WARNING: a resumed job will not be exact: {what}")


def lost(loader: object, parts: Mapping[str, object]) -> str:
    """Pure: describe what a checkpoint of these parts lacks of a loader's position, and the remedy; else empty."""
    if isinstance(loader, Loader):
        if any(part is loader.batches for part in parts.values()):
            return ""
        return "the place in the batches is not in the checkpoint: name them in run.resume(…, batches=batches)"
    sampler = _sampler_of(loader)
    name = type(loader if sampler is None else sampler).__name__
    if isinstance(loader, Stateful) and isinstance(sampler, WeightedRandomSampler | SubsetRandomSampler):
        return f"{name} draws its samples anew, it has no state_dict: use run.batches(…).loader, or a sampler with one"
    if isinstance(loader, Stateful | itertools.repeat):  # the latter gives the same at each place
        return ""
    if sampler is not None:
        return f"the order of {name} and the place in it are not in the checkpoint, the epoch begins anew: {_REMEDY}"
    if isinstance(loader, DataLoader):
        name = f"{type(loader.dataset).__name__} (an IterableDataset)"
    return f"the place in {name} is not in the checkpoint, it begins anew: {_REMEDY}"


def _sampler_of(loader: object) -> object | None:
    """What decides which samples make a batch: the user's own batch sampler, or the sampler."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    sampler: object | None = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    if batch_sampler is not None and getattr(loader, "batch_size", None) is None:
        sampler = getattr(batch_sampler, "sampler", batch_sampler)
    return sampler
