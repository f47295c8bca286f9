"""Reading the parts of a checkpoint: rank 0 reads, the others get it from rank 0, and all know if it cannot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import Entry, decode, empty, flat, restride
from trainbox.torch.checkpoints.collectives import Peers
from trainbox.torch.checkpoints.state_manifest import Part
from trainbox.torch.checkpoints.writer import STATE, shard_name

#: Where a file of a checkpoint is, by its name.
Locate = Callable[[str], Path]
NO_EARLIER = "there is no earlier one that is valid; start fresh in another directory"


class UnreadableError(CheckpointError):
    """A checkpoint that was valid when it was chosen can no longer be read: an earlier one may do."""


def read_part(part: Part, shard_bytes: int, locate: Locate, peers: Peers) -> Any:  # noqa: ANN401 - any state
    """The state of a part of a checkpoint, on every rank; all ranks call it.

    Args:
        part: What the document of the checkpoint says of it.
        shard_bytes: How many bytes of the state each file has.
        locate: Finds the files of the checkpoint; only rank 0 asks.
        peers: All ranks.

    Raises:
        UnreadableError: Rank 0 cannot read it. On every rank, at once.
    """
    tensors = [empty(entry) for entry in part.table]
    try:
        peers.together(lambda: _fill(part.table, tensors, shard_bytes, locate) if peers.rank == 0 else None)
    except CheckpointError as error:
        raise UnreadableError(error.message, hint=error.hint) from error
    peers.share_tensors(tensors)
    return decode(part.tree, [restride(tensor, entry) for tensor, entry in zip(tensors, part.table, strict=True)])


def _fill(table: Sequence[Entry], tensors: Sequence[torch.Tensor], shard_bytes: int, locate: Locate) -> None:
    """Read the elements of tensors from the files of a checkpoint."""
    for tensor, entry in zip(tensors, table, strict=True):
        memory = memoryview(flat(tensor).numpy().data)
        done = 0
        while done < entry.size:
            index, offset = divmod(entry.offset + done, shard_bytes)
            path = locate(shard_name(index))
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(offset)
                    count = file.readinto(memory[done : done + shard_bytes - offset])
            except OSError as error:
                raise CheckpointError(f"the checkpoint {path.parent} can no longer be read: {error}") from error
            if not count:
                raise CheckpointError(
                    f"the checkpoint {path.parent} can no longer be read: {path} is shorter than {STATE} says"
                )
            done += count
