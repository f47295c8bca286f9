"""Batches as data loaders give them: tensors in tuples, lists and dicts."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")


def change(batch: T, function: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """The same batch with every tensor changed; what is no tensor stays."""
    return cast("T", _change(batch, function))


def tensors(batch: object) -> Iterator[torch.Tensor]:
    """Every tensor in a batch, in its order."""
    match batch:
        case torch.Tensor():
            yield batch
        case dict():
            for value in batch.values():
                yield from tensors(value)
        case list() | tuple():
            for value in batch:
                yield from tensors(value)


def samples(batch: object) -> int:
    """The length of the first tensor in a batch.

    Raises:
        TypeError: There is none.
    """
    for tensor in tensors(batch):
        return len(tensor)
    raise TypeError(f"a batch without any tensor: {type(batch).__name__}")


def _change(batch: object, function: Callable[[torch.Tensor], torch.Tensor]) -> object:
    match batch:
        case torch.Tensor():
            return function(batch)
        case dict():
            return {name: _change(value, function) for name, value in batch.items()}
        case list():
            return [_change(value, function) for value in batch]
        case tuple():
            values = [_change(value, function) for value in batch]
            kind: Any = type(batch)
            return kind(*values) if hasattr(batch, "_fields") else kind(values)
    return batch
