"""Parts whose state is not the same on all ranks: found by digests at each save, and kept for each rank.

What every rank holds alike is saved once, by rank 0. Modules always are: their parameters are alike, and of their
buffers (the running means of batch norm) DDP lets those of rank 0 count. Every other part is compared at each save. One
that differs is saved as a list of the states of all ranks, packed as the generators are; `Document.per_rank` names it,
and each rank gets its own back. On another number of ranks such a part has to say how its states are dealt out anew
(`parts.Reshardable`).
"""

import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch.utils.data import DataLoader

from trainbox.errors import CheckpointError
from trainbox.say import say
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.codec import Encoded, encode, flat, pack, unpack
from trainbox.torch.checkpoints.collectives import Peers
from trainbox.torch.checkpoints.parts import Reshardable, Stateful, Trainable, load, state_of
from trainbox.torch.checkpoints.state_manifest import GENERATORS, LOADER, Document

#: Of a large tensor of an optimizer so many blocks are compared: what makes it differ, differs nearly everywhere, since
#: gradients change all of it at each step.
_BLOCKS, _BLOCK_BYTES = 16, 64 << 10
_DIGEST_BYTES = hashlib.sha256().digest_size

Parts = dict[str, Stateful | dict[str, Any]]


class _Place:
    """Where a loader stands that the script goes through and has not named as a part; it may be gone."""

    def __init__(self, loader: Stateful) -> None:
        self._loader = weakref.ref(loader)

    def state_dict(self) -> Any:  # noqa: ANN401 - any state
        loader = self._loader()
        return {} if loader is None else loader.state_dict()

    def load_state_dict(self, _state: Any) -> None:  # noqa: ANN401 - any state
        """Never: the loader itself gets it."""


class _Waiting:
    """What a checkpoint has of such a loader until the script comes to it; also what is saved of it until then."""

    def __init__(self, saved: Any, document: Document, own: Any) -> None:  # noqa: ANN401 - any state
        self.saved, self.document, self._own = saved, document, own

    def state_dict(self) -> Any:  # noqa: ANN401 - any state
        return self._own

    def load_state_dict(self, _state: Any) -> None:  # noqa: ANN401 - any state
        """Never: it has it already."""


class Replicas:
    """The parts of all ranks, of which rank 0 writes those that are alike.

    Args:
        parts: By name, without what is wrapped around them.
        peers: All ranks.
    """

    def __init__(self, parts: Parts, peers: Peers) -> None:
        self._parts = parts
        self._peers = peers
        self._said: set[str] = set()

    def gather(self) -> dict[str, list[bytes]]:
        """The packed states of all ranks, on rank 0: those of the generators, and of every part that differs.

        All ranks call it at the same step.
        """
        names = [name for name, part in self._parts.items() if not isinstance(part, torch.nn.Module | Trainable)]
        if self._peers.size == 1:
            names = []
        digests = b"".join(digest(self._parts[name], name) for name in names)
        told = self._peers.gather(digests + pack(rng_state.capture(), GENERATORS))
        found = {GENERATORS: [message[len(digests) :] for message in told]}
        for number, name in enumerate(names):
            part = slice(number * _DIGEST_BYTES, (number + 1) * _DIGEST_BYTES)
            if len({message[part] for message in told}) > 1:
                self._say(name)
                found[name] = self._peers.collect(pack(state_of(self._parts[name]), name))
        return found

    def encode(self, gathered: Mapping[str, Sequence[bytes]] | None = None) -> dict[str, Encoded]:
        """All parts, one behind the other: of those that were gathered the states of all ranks, else the live state."""
        encoded: dict[str, Encoded] = {}
        offset = 0
        for name in [*self._parts, *([GENERATORS] if gathered else [])]:
            packed = (gathered or {}).get(name)
            state = state_of(self._parts[name]) if packed is None else [_bytes(each) for each in packed]
            encoded[name] = encode(state, name, offset=offset)
            offset = encoded[name].end
        return encoded

    def check(self, document: Document) -> None:
        """Whether each rank can get its part of a checkpoint.

        Raises:
            CheckpointError: It is of another number of ranks, and a part cannot be dealt out anew.
        """
        if document.world_size == self._peers.size:
            return
        for name, part in self._parts.items():
            if name in document.per_rank or isinstance(part, DataLoader):
                self._require_reshardable(name, part, document)

    def load_all(self, document: Document, read: Callable[[str], Any]) -> dict[str, str]:
        """Give all parts what this rank gets of a checkpoint; all ranks call it.

        Args:
            document: That of the checkpoint.
            read: Gives what the checkpoint has of a part.

        Returns:
            The kinds of loaders that the script has not come to yet, by the names of their parts.

        Raises:
            CheckpointError: A part does not take it. On every rank.
        """
        for name in [name for name in self._parts if name.startswith(LOADER)]:
            del self._parts[name]  # of a checkpoint that could not be read to its end
        for name in self._parts:
            self._load(name, read(name), document)
        kinds = {name: part.kind for name, part in document.parts.items() if name.startswith(LOADER)}
        for name in kinds:
            saved, own = read(name), {}
            if document.world_size == self._peers.size:
                own = self._own(name, saved, document)
            self._parts[name] = _Waiting(saved, document, own)
        return kinds

    def adopt(self, number: int, loader: Stateful) -> str:
        """Save the place of a loader from now on, and give it that of the checkpoint; all ranks call it.

        Returns:
            The name of the new part.

        Raises:
            CheckpointError: It is of another number of ranks, or the loader does not take it.
        """
        name = f"{LOADER}{number}"
        before = self._parts.get(name)
        if isinstance(before, _Waiting):
            if before.document.world_size != self._peers.size:
                self._require_reshardable(name, loader, before.document)
            self._parts[name] = loader
            self._load(name, before.saved, before.document)
        self._parts[name] = _Place(loader)
        return name

    def _require_reshardable(self, name: str, part: object, document: Document) -> None:
        if not isinstance(part, Reshardable):
            raise CheckpointError(
                f"the part {name!r} of the checkpoint has a state for each of {document.world_size} ranks, and now"
                f" there are {self._peers.size}",
                hint=f"resume on {document.world_size} ranks, or give the part a method `reshard_state`",
            )

    def _load(self, name: str, saved: Any, document: Document) -> None:  # noqa: ANN401 - any state
        part = self._parts[name]
        self._peers.together(lambda: load(name, part, self._own(name, saved, document)))

    def _own(self, name: str, saved: Any, document: Document) -> Any:  # noqa: ANN401 - any state
        part: object = self._parts.get(name)
        rank, size = self._peers.rank, self._peers.size
        differs = name in document.per_rank
        if document.world_size == size:
            return unpack(saved[rank].numpy().tobytes()) if differs else saved
        if not isinstance(part, Reshardable):
            return saved
        before = [unpack(each.numpy().tobytes()) for each in saved] if differs else [saved] * document.world_size
        return part.reshard_state(before, rank, size)

    def _say(self, name: str) -> None:
        if self._peers.rank == 0 and name not in self._said and not name.startswith(LOADER):
            say(f"the part {name!r} differs between the ranks: each keeps its own in the checkpoint")
        self._said.add(name)


def digest(part: Stateful | dict[str, Any], name: str) -> bytes:
    """What tells the state of a part on one rank from that on another."""
    encoded = encode(state_of(part), name)
    found = hashlib.sha256(json.dumps(msgspec.to_builtins([encoded.tree, encoded.table])).encode())
    sampled = isinstance(part, torch.optim.Optimizer)
    for tensor in encoded.tensors:
        content = flat(tensor.detach().contiguous())
        if sampled and content.numel() > _BLOCKS * _BLOCK_BYTES:
            last = content.numel() - _BLOCK_BYTES
            starts = [number * last // (_BLOCKS - 1) for number in range(_BLOCKS)]
            content = torch.cat([content[start : start + _BLOCK_BYTES] for start in starts])
        found.update(content.cpu().numpy().data)
    return found.digest()


def _bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
