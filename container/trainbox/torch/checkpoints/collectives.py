"""What ranks tell each other about checkpoints: bytes and tensors, over a group of the CPU. Nothing is pickled."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist

from trainbox.errors import CheckpointError
from trainbox.manifest import NotGenuineError
from trainbox.torch.checkpoints.codec import flat

T = TypeVar("T")

#: Tensors are sent in messages of about this many bytes: small ones together.
MESSAGE_BYTES = 32 << 20


class PeerCheckpointError(CheckpointError):
    """Another rank could not read or write a checkpoint, so no rank goes on: it follows from that rank's error."""


class PeerNotGenuineError(PeerCheckpointError, NotGenuineError):
    """Likewise, and what that rank has read is forged."""


class Peers:
    """The ranks of a job, of which rank 0 is the one that reads and writes; alone, everything is at hand."""

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group

    def share(self, content: bytes) -> bytes:
        """What rank 0 gives, for everybody."""
        if self.size == 1:
            return content
        size = torch.tensor([len(content)])
        dist.broadcast(size, 0, self._group)
        message = _tensor(content, int(size)) if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(message, 0, self._group)
        return message.numpy().tobytes()

    def gather(self, content: bytes) -> list[bytes]:
        """What everybody gives, by rank."""
        if self.size == 1:
            return [content]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), self._group)
        longest = max(1, *map(int, sizes))
        contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(contents, _tensor(content, longest), self._group)
        return [message[: int(size)].numpy().tobytes() for message, size in zip(contents, sizes, strict=True)]

    def collect(self, content: bytes) -> list[bytes]:
        """What everybody gives, by rank, for rank 0 alone; the others get nothing."""
        if self.size == 1:
            return [content]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), self._group)
        longest = max(1, *map(int, sizes))
        first = self.rank == 0
        contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)] if first else None
        dist.gather(_tensor(content, longest), contents, 0, self._group)
        return [message[: int(size)].numpy().tobytes() for message, size in zip(contents or (), sizes, strict=first)]

    def deal(self, contents: Sequence[bytes]) -> bytes:
        """What rank 0 gives for this rank; it gives something for each, by rank, and the others give nothing."""
        if self.size == 1:
            return contents[0]
        sizes = torch.tensor([len(content) for content in contents] or [0] * self.size)
        dist.broadcast(sizes, 0, self._group)
        longest = max(1, int(sizes.max()))
        message = torch.empty(longest, dtype=torch.uint8)
        dealt = [_tensor(content, longest) for content in contents] if self.rank == 0 else None
        dist.scatter(message, dealt, 0, self._group)
        return message[: int(sizes[self.rank])].numpy().tobytes()

    def together(self, act: Callable[[], T]) -> T:
        """Do what may fail on one rank alone; all ranks call it, and none goes on where one has failed.

        Raises:
            CheckpointError: It failed here.
            PeerCheckpointError: It failed on another rank, the first of which is named.
            NotGenuineError: What one of them has read is forged: on all ranks, whatever else has failed.
        """
        failure: CheckpointError | None = None
        try:
            done = act()
        except CheckpointError as error:
            failure = error
        forged = isinstance(failure, NotGenuineError)
        told = self.gather(msgspec.json.encode(failure and (failure.message, failure.hint, forged)))
        if failure is not None and forged:
            raise failure
        failures = [
            (rank, msgspec.json.decode(one, type=tuple[str, str, bool] | None)) for rank, one in enumerate(told)
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
        """Give one rank a tensor, and wait until it is on its way."""
        dist.send(message, rank, self._group)

    def receive(self, message: torch.Tensor, rank: int) -> None:
        """Fill a tensor with what one rank sends."""
        dist.recv(message, rank, self._group)

    def share_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give everybody the elements that rank 0 has, in place.

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


def _batches(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours that make up one message."""
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
    """Bytes as a tensor of `size` elements, the rest zero."""
    return torch.frombuffer(bytearray(content.ljust(max(1, size), b"\0")), dtype=torch.uint8)[:size]
