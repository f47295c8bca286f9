"""Which sample comes when: a permutation of an epoch that any part can be asked of, and seeds that belong to a name."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Indices = npt.NDArray[np.int64]

#: Above this the permutation is computed where it is asked for: a list of it would cost each rank 8 bytes a sample and
#: half a second an epoch.
LARGEST_LISTED = 10_000_000
_ROUNDS = 8


def derive(*parts: int | str) -> int:
    """A seed of 63 bits for what the parts name: the same everywhere, unrelated to that of any other name."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Permutation:
    """All numbers below `length` in an order that `seed` and `epoch` decide."""

    def __init__(self, length: int, seed: int, epoch: int, *, listed: bool | None = None) -> None:
        self.length = length
        self._listed: Indices | None = None
        if length <= LARGEST_LISTED if listed is None else listed:
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            self._listed = torch.randperm(length, generator=generator).numpy()
        keys = [derive(seed, "order", epoch, number) for number in range(_ROUNDS)]
        self._keys = np.array(keys, np.uint64)
        # A Feistel network permutes pairs of halves, so its numbers go up to a power of four.
        self._half = np.uint64((max(length - 1, 1).bit_length() + 1) // 2)
        self._mask = np.uint64(2 ** int(self._half) - 1)

    def part(self, start: int, stop: int) -> Indices:
        """The numbers at the places from `start` to below `stop`."""
        stop = min(stop, self.length)
        if self._listed is not None:
            return self._listed[start:stop]
        numbers = self._mix(np.arange(start, stop, dtype=np.uint64))
        # Whoever lands beyond the end walks on along its cycle until it is back inside: still a permutation.
        while (outside := numbers >= np.uint64(self.length)).any():
            numbers[outside] = self._mix(numbers[outside])
        return numbers.astype(np.int64)

    def _mix(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_scramble(right + key) & self._mask)
        return (left << self._half) | right


def _scramble(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
