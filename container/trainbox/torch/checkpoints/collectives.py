"""Collectives of bytes and CPU tensors, for checkpoints. Nothing is pickled."""

import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist

from trainbox.checkpoint.manifest import NotGenuineError
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit
from trainbox.torch.checkpoints.codec import flat

T = TypeVar("T")

#: Tensors are sent in messages of about this many bytes: small ones together.
MESSAGE_BYTES = 32 << 20


class PeerCheckpointError(CheckpointError):
    """Another rank could not read or write a checkpoint, so no rank continues."""


class PeerNotGenuineError(PeerCheckpointError, NotGenuineError):
    """Another rank has read a checkpoint that is not genuine."""


class RankGroup:
    """The ranks of a job, of which rank 0 reads and writes checkpoints; a single rank communicates with no other.

    Args:
        rank: This rank.
        size: The number of ranks.
        group: A process group with a backend for the CPU; None is the default group.
    """

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group

    def log(self, text: str) -> None:
        """Log a line, on rank 0."""
        if self.rank == 0:
            emit(text)

    def broadcast(self, content: bytes) -> bytes:
        """Return the content of rank 0, on every rank."""
        if self.size == 1:
            return content
        size = torch.tensor([len(content)])
        dist.broadcast(size, 0, self._group)
        message = _tensor(content, int(size)) if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(message, 0, self._group)
        return message.numpy().tobytes()

    def all_gather(self, content: bytes) -> list[bytes]:
        """Return the contents of all ranks, by rank, on every rank."""
        if self.size == 1:
            return [content]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), self._group)
        longest = max(1, *map(int, sizes))
        contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(contents, _tensor(content, longest), self._group)
        return [message[: int(size)].numpy().tobytes() for message, size in zip(contents, sizes, strict=True)]

    def gather(self, content: bytes) -> list[bytes]:
        """Return the contents of all ranks, by rank, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [content]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), self._group)
        longest = max(1, *map(int, sizes))
        first = self.rank == 0
        contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)] if first else None
        dist.gather(_tensor(content, longest), contents, 0, self._group)
        return [message[: int(size)].numpy().tobytes() for message, size in zip(contents or (), sizes, strict=first)]

    def scatter(self, contents: Sequence[bytes]) -> bytes:
        """Return the content for this rank; rank 0 gives one for each rank, the others an empty list."""
        if self.size == 1:
            return contents[0]
        sizes = torch.tensor([len(content) for content in contents] or [0] * self.size)
        dist.broadcast(sizes, 0, self._group)
        longest = max(1, int(sizes.max()))
        message = torch.empty(longest, dtype=torch.uint8)
        scattered = [_tensor(content, longest) for content in contents] if self.rank == 0 else None
        dist.scatter(message, scattered, 0, self._group)
        return message[: int(sizes[self.rank])].numpy().tobytes()

    def run_together(self, act: Callable[[], T]) -> T:
        """Run a function that may fail on one rank alone; all ranks call this, and fail where one has failed.

        Raises:
            CheckpointError: It failed on this rank.
            PeerCheckpointError: It failed on another rank; the message names the first one.
            NotGenuineError: A rank has read what is forged: on all ranks, whatever else has failed.
        """
        failure: CheckpointError | None = None
        try:
            done = act()
        except CheckpointError as error:
            failure = error
        forged = isinstance(failure, NotGenuineError)
        gathered = self.all_gather(msgspec.json.encode(failure and (failure.message, failure.hint, forged)))
        if failure is not None and forged:
            raise failure
        failures = [
            (rank, msgspec.json.decode(one, type=tuple[str, str, bool] | None)) for rank, one in enumerate(gathered)
        ]
        failed = [(rank, *one) for rank, one in failures if one is not None]
        for rank, message, hint, is_forged in failed:
            if is_forged:
                raise PeerNotGenuineError(f"rank {rank}: {message}", hint=hint)
        if failure is not None:
            raise failure
        for rank, message, hint, _ in failed:
            raise PeerCheckpointError(f"rank {rank}: {message}", hint=hint)
        return done

    def send(self, message: torch.Tensor, rank: int) -> None:
        """Send a tensor to a rank."""
        dist.send(message, rank, self._group)

    def recv(self, message: torch.Tensor, rank: int) -> None:
        """Fill a tensor with what a rank sends."""
        dist.recv(message, rank, self._group)

    def broadcast_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy the elements of rank 0 into the tensors of every rank.

        Args:
            tensors: Contiguous CPU tensors, of the same shapes and types on every rank.
        """
        if self.size == 1:
            return
        for batch in _batches([flat(tensor) for tensor in tensors if tensor.numel()]):
            if len(batch) == 1:
                for piece in torch.split(batch[0], MESSAGE_BYTES):
                    dist.broadcast(piece, 0, self._group)
                continue
            message = torch.cat(batch)
            dist.broadcast(message, 0, self._group)
            for tensor, content in zip(batch, torch.split(message, [tensor.numel() for tensor in batch]), strict=True):
                tensor.copy_(content)


def read_messages(path: Path, offset: int, size: int) -> Iterator[memoryview]:
    """Read a range of a file in messages of at most `MESSAGE_BYTES`.

    Raises:
        OSError: The file cannot be read, or is too short.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        left = size
        while left:
            content = memoryview(bytearray(min(left, MESSAGE_BYTES)))
            count = file.readinto(content)
            if not count:
                raise OSError(errno.EIO, "it is too short", str(path))
            left -= count
            yield content[:count]


def _batches(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Group successive tensors into messages."""
    batch: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if batch and size + tensor.numel() > MESSAGE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(tensor)
        size += tensor.numel()
    if batch:
        yield batch


def _tensor(content: bytes, size: int) -> torch.Tensor:
    """Return bytes as a tensor of `size` elements, padded with zeros."""
    return torch.frombuffer(bytearray(content.ljust(max(1, size), b"\0")), dtype=torch.uint8)[:size]
