"""Which samples make which batch: decided by seed, epoch and position alone, whatever the number of ranks.

Batch by batch the epoch's permutation is cut into global batches; of each, rank r takes every `world_size`-th sample
from the r-th on. So the same batches come in the same order on 1, 2 or 4 ranks, and the whole state is three numbers.
The position counts what the optimizer has seen, not what loader workers have fetched ahead: a resumed job repeats no
sample and leaves none out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import torch

# Not public, but what torch.func and torch.export work with, under these names since torch 2.2.
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from trainbox.errors import CheckpointError, HyperparameterError
from trainbox.torch.permutation import Permutation, derive

T = TypeVar("T")

#: What happens to an epoch's last samples where they fill no batch: they are left out in this epoch, they come as a
#: smaller batch (for evaluation), or the batch is filled up with the next epoch's first.
Tail = Literal["drop", "keep", "wrap"]
#: A sample and the epoch it is drawn in.
Key: TypeAlias = tuple[int, int]


class Batches:
    """The batches of one data set for one rank.

    >>> batches = Batches(10, batch_size=4, seed=1, rank=0, world_size=2)
    >>> [len(share) for share in batches], batches.left
    ([2, 2], 2)

    Args:
        length: Samples in the data set.
        batch_size: Samples of a global batch, that of all ranks together.
        seed: Of the order.
        rank: This process among `world_size`.
        world_size: Processes that share each batch.
        tail: What becomes of the last samples of an epoch.
        shuffle: False keeps the order of the data set.

    Raises:
        HyperparameterError: The ranks cannot share the batches evenly, or there is not one whole batch.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: Tail = "drop",
        shuffle: bool = True,
    ) -> None:
        _check(length, batch_size, world_size, tail)
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.tail, self.shuffle = tail, shuffle
        self.epoch = 0
        #: Samples of this epoch that the optimizer has seen, on all ranks together.
        self.consumed = 0
        self._permutations: dict[int, Permutation] = {}

    @property
    def left(self) -> int:
        """Number of batches that remain in this epoch."""
        rest = max(0, self.length - self.consumed)
        return rest // self.batch_size if self.tail == "drop" else -(-rest // self.batch_size)

    def steps(self, epochs: int) -> int:
        """Return the number of batches in complete epochs."""
        match self.tail:
            case "drop":
                return epochs * (self.length // self.batch_size)
            case "keep":
                return epochs * -(-self.length // self.batch_size)
            case "wrap":
                return -(-epochs * self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's share of each batch that the epoch still has; `advance` is what moves the position."""
        return (indices for indices, _ in self._shares(self.epoch, self.consumed, self.left))

    def keys(self) -> Iterator[list[Key]]:
        """Yield the same batches, each sample with its epoch."""
        shares = self._shares(self.epoch, self.consumed, self.left)
        return (list(zip(epochs, indices, strict=True)) for indices, epochs in shares)

    def _shares(self, epoch: int, start: int, count: int) -> Iterator[tuple[list[int], list[int]]]:
        """From where the position was when this was asked for: it moves on while loaders still fetch."""
        for number in range(count):
            indices = self._order(epoch, start + number * self.batch_size, start + (number + 1) * self.batch_size)
            epochs = [epoch] * len(indices)
            missing = self.batch_size - len(indices)
            if missing and self.tail == "wrap":
                indices = indices + self._order(epoch + 1, 0, missing)
                epochs += [epoch + 1] * missing
            share = slice(self.rank, None, self.world_size)
            if self.rank < len(indices):  # a last small batch may have fewer samples than there are ranks
                yield indices[share], epochs[share]

    def advance(self) -> None:
        """Record that the optimizer has seen one more batch."""
        if not self.left:
            raise IndexError(f"epoch {self.epoch} has no batch left")
        reach = self.consumed + self.batch_size
        self.consumed = reach if self.tail == "wrap" else min(reach, self.length)

    def next_epoch(self) -> None:
        """Begin the next epoch, after the samples that the last batch has already taken from it."""
        self.epoch += 1
        self.consumed = max(0, self.consumed - self.length)

    def state_dict(self) -> dict[str, int]:
        """Return the position; it can be loaded with any number of ranks."""
        return {"length": self.length, "seed": self.seed, "epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            CheckpointError: It stood in another order of samples, so that some would come twice.
        """
        for name, mine in (("length", self.length), ("seed", self.seed)):
            if state[name] != mine:
                raise CheckpointError(
                    f"the batches were drawn with {name}={state[name]}, and it is {mine} now",
                    hint="take the data and the seed back, or start with an empty checkpoint directory",
                )
        self.epoch, self.consumed = int(state["epoch"]), int(state["consumed"])

    def loader(
        self,
        dataset: Dataset[T] | Sequence[T],
        *,
        workers: int = 0,
        augment: Callable[[T, torch.Generator], Any] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        pin_memory: bool = False,
        context: Literal["fork", "forkserver", "spawn"] | None = None,
    ) -> "Loader":
        """Return a data loader of this rank's samples; iterate over it once for each epoch.

        Args:
            dataset: Indexed from 0; with `__getitems__` it is asked for a batch at a time.
            workers: Processes that load ahead; 0 loads in this one.
            augment: Called with a sample and a generator that seed, epoch and index decide, so that random
                augmentation does not depend on the worker, the number of ranks, or a restart.
            collate: From samples (or what `__getitems__` gives) to a batch.
            pin_memory: For faster copies to a GPU.
            context: How workers start; the system's own way unless told.
        """
        chosen: Any = dataset if augment is None else Augmented(dataset, augment, self.seed)
        return Loader(
            chosen,
            self,
            batch_sampler=_Shares(self, keyed=augment is not None),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            multiprocessing_context=context if workers else None,
            # A loader draws a number for each epoch: out of the global generator it would change what dropout draws
            # in a job that was interrupted within the epoch.
            generator=torch.Generator().manual_seed(derive(self.seed, "loader", self.rank)),
        )

    def _order(self, epoch: int, start: int, stop: int) -> list[int]:
        if not self.shuffle:
            return list(range(start, min(stop, self.length)))
        if epoch not in self._permutations:
            kept = {number: known for number, known in self._permutations.items() if number == self.epoch}
            self._permutations = {**kept, epoch: Permutation(self.length, self.seed, epoch)}
        order: list[int] = self._permutations[epoch].part(start, stop).tolist()
        return order


def _check(length: int, batch_size: int, world_size: int, tail: Tail) -> None:
    if batch_size < world_size:
        raise HyperparameterError(
            f"batch-size {batch_size} is below the {world_size} ranks that share each batch",
            hint=f"use {world_size} or a multiple of it, or fewer processes",
        )
    if batch_size % world_size:
        below = batch_size - batch_size % world_size
        raise HyperparameterError(
            f"batch-size {batch_size} cannot be shared evenly by {world_size} ranks",
            hint=f"use {below} or {below + world_size}: it counts the samples of all ranks together",
        )
    if tail != "keep" and length < batch_size:
        raise HyperparameterError(
            f"batch-size {batch_size} is more than the {length} samples there are", hint="use a smaller batch-size"
        )


class Loader(DataLoader[Any]):
    """A data loader that knows whose batches it loads, so that `Session.steps` can move their position."""

    def __init__(self, dataset: Dataset[Any], batches: Batches, **options: Any) -> None:  # noqa: ANN401 - DataLoader's own
        super().__init__(dataset, **options)
        self.batches = batches


class Augmented(Dataset[Any]):
    """A data set whose samples are changed at random, each by a generator of its own."""

    def __init__(
        self, dataset: Dataset[T] | Sequence[T], augment: Callable[[T, torch.Generator], Any], seed: int
    ) -> None:
        self._dataset: Any = dataset
        self._augment = augment
        self._seed = seed

    def __getitem__(self, key: Key) -> Any:  # noqa: ANN401 - whatever the user's function gives
        epoch, index = key
        generator = torch.Generator().manual_seed(derive(self._seed, "sample", epoch, index))
        return self._augment(self._dataset[index], generator)


def map_tensors(batch: T, function: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """Return the batch with every tensor replaced by what a function makes of it; other values stay.

    Looks into tuples, lists, dicts, named tuples and the other containers of torch's pytree, classes that were
    registered there among them.
    """
    mapped: T = tree_map_only(torch.Tensor, function, batch)
    return mapped


def list_tensors(batch: object) -> list[torch.Tensor]:
    """Return every tensor in a batch, or in what a model returns, in its order."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]


class _Shares(Sampler[Any]):
    """The batch sampler that a data loader asks: it begins anew, at the position of the batches, for each epoch."""

    def __init__(self, batches: Batches, *, keyed: bool) -> None:
        self._batches = batches
        self._keyed = keyed

    def __iter__(self) -> Iterator[Any]:
        return self._batches.keys() if self._keyed else iter(self._batches)

    def __len__(self) -> int:
        return self._batches.left
