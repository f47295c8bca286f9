"""Parts whose state may differ between ranks: found by digests at each save, and saved for each rank.

A part with the same state on every rank is saved once, by rank 0. Modules always are: their parameters are equal, and
of their buffers (the running means of batch norm) DDP takes those of rank 0. Every other part is compared at each save.
One that differs is saved as a list of the packed states of all ranks; `StateManifest.per_rank` names it, and each rank
gets its own back. On another number of ranks such a part must be `parts.Reshardable`.
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
from trainbox.log_lines import emit
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.codec import EncodedState, encode, flat, pack, unpack
from trainbox.torch.checkpoints.collectives import RankGroup
from trainbox.torch.checkpoints.parts import Reshardable, Stateful, Trainable, load, state_of
from trainbox.torch.checkpoints.state_manifest import GENERATORS, LOADER, StateManifest

#: The number and size of blocks that are compared of a large tensor of an optimizer: one that differs does so nearly
#: everywhere, since gradients change all of it at each step.
_BLOCKS, _BLOCK_BYTES = 16, 64 << 10
_DIGEST_BYTES = hashlib.sha256().digest_size

Parts = dict[str, Stateful | dict[str, Any]]


class _LoaderPosition:
    """The position of a loader that the script iterates over and has not named as a part; it may be deleted."""

    def __init__(self, loader: Stateful) -> None:
        self._loader = weakref.ref(loader)

    def state_dict(self) -> Any:  # noqa: ANN401 - any state
        loader = self._loader()
        return {} if loader is None else loader.state_dict()

    def load_state_dict(self, _state: Any) -> None:  # noqa: ANN401 - any state
        """Not called: the loader itself loads it."""


class _PendingLoader:
    """The state of such a loader in a checkpoint, until the script reaches it; it is also saved until then."""

    def __init__(self, saved: Any, manifest: StateManifest, own: Any) -> None:  # noqa: ANN401 - any state
        self.saved, self.manifest, self._own = saved, manifest, own

    def state_dict(self) -> Any:  # noqa: ANN401 - any state
        return self._own

    def load_state_dict(self, _state: Any) -> None:  # noqa: ANN401 - any state
        """Not called: it has its state already."""


class Replicas:
    """The parts of all ranks, of which rank 0 writes those that are equal.

    Args:
        parts: The unwrapped parts, by name.
        peers: All ranks.
    """

    def __init__(self, parts: Parts, peers: RankGroup) -> None:
        self._parts = parts
        self._peers = peers
        self._warned: set[str] = set()

    def gather(self) -> dict[str, list[bytes]]:
        """Return the packed states of all ranks, on rank 0: of the generators, and of every part that differs.

        All ranks call it at the same step.
        """
        names = [name for name, part in self._parts.items() if not isinstance(part, torch.nn.Module | Trainable)]
        if self._peers.size == 1:
            names = []
        digests = b"".join(digest(self._parts[name], name) for name in names)
        gathered = self._peers.all_gather(digests + pack(rng_state.capture(), GENERATORS))
        found = {GENERATORS: [message[len(digests) :] for message in gathered]}
        for number, name in enumerate(names):
            part = slice(number * _DIGEST_BYTES, (number + 1) * _DIGEST_BYTES)
            if len({message[part] for message in gathered}) > 1:
                self._warn(name)
                found[name] = self._peers.gather(pack(state_of(self._parts[name]), name))
        return found

    def encode(self, gathered: Mapping[str, Sequence[bytes]] | None = None) -> dict[str, EncodedState]:
        """Encode all parts in a row: of gathered ones the states of all ranks, else the live state."""
        encoded: dict[str, EncodedState] = {}
        offset = 0
        for name in [*self._parts, *([GENERATORS] if gathered else [])]:
            packed = (gathered or {}).get(name)
            state = state_of(self._parts[name]) if packed is None else [_bytes(each) for each in packed]
            encoded[name] = encode(state, name, offset=offset)
            offset = encoded[name].end
        return encoded

    def check(self, manifest: StateManifest) -> None:
        """Check that each rank can get its parts of a checkpoint.

        Raises:
            CheckpointError: It is from another number of ranks, and a part cannot be resharded.
        """
        if manifest.world_size == self._peers.size:
            return
        for name, part in self._parts.items():
            if name in manifest.per_rank or isinstance(part, DataLoader):
                self._require_reshardable(name, part, manifest)

    def load_all(self, manifest: StateManifest, read: Callable[[str], Any]) -> dict[str, str]:
        """Load the parts of this rank from a checkpoint; all ranks call it.

        Args:
            manifest: The state manifest of the checkpoint.
            read: Returns the state of a part in the checkpoint.

        Returns:
            The kinds of loaders that the script has not reached yet, by the names of their parts.

        Raises:
            CheckpointError: A part rejects it. On every rank.
        """
        for name in [name for name in self._parts if name.startswith(LOADER)]:
            del self._parts[name]  # of a checkpoint that could not be read completely
        for name in self._parts:
            self._load(name, read(name), manifest)
        kinds = {name: part.kind for name, part in manifest.parts.items() if name.startswith(LOADER)}
        for name in kinds:
            saved, own = read(name), {}
            if manifest.world_size == self._peers.size:
                own = self._own(name, saved, manifest)
            self._parts[name] = _PendingLoader(saved, manifest, own)
        return kinds

    def adopt(self, number: int, loader: Stateful) -> str:
        """Save the position of a loader from now on, and load the one of the checkpoint; all ranks call it.

        Returns:
            The name of the new part.

        Raises:
            CheckpointError: It is from another number of ranks, or the loader rejects it.
        """
        name = f"{LOADER}{number}"
        before = self._parts.get(name)
        if isinstance(before, _PendingLoader):
            if before.manifest.world_size != self._peers.size:
                self._require_reshardable(name, loader, before.manifest)
            self._parts[name] = loader
            self._load(name, before.saved, before.manifest)
        self._parts[name] = _LoaderPosition(loader)
        return name

    def _require_reshardable(self, name: str, part: object, manifest: StateManifest) -> None:
        if not isinstance(part, Reshardable):
            raise CheckpointError(
                f"the part {name!r} of the checkpoint has a state for each of {manifest.world_size} ranks, and now"
                f" there are {self._peers.size}",
                hint=f"resume on {manifest.world_size} ranks, or give the part a method `reshard_state`",
            )

    def _load(self, name: str, saved: Any, manifest: StateManifest) -> None:  # noqa: ANN401 - any state
        part = self._parts[name]
        self._peers.run_together(lambda: load(name, part, self._own(name, saved, manifest)))

    def _own(self, name: str, saved: Any, manifest: StateManifest) -> Any:  # noqa: ANN401 - any state
        part: object = self._parts.get(name)
        rank, size = self._peers.rank, self._peers.size
        differs = name in manifest.per_rank
        if manifest.world_size == size:
            return unpack(saved[rank].numpy().tobytes()) if differs else saved
        if not isinstance(part, Reshardable):
            return saved
        before = [unpack(each.numpy().tobytes()) for each in saved] if differs else [saved] * manifest.world_size
        return part.reshard_state(before, rank, size)

    def _warn(self, name: str) -> None:
        if self._peers.rank == 0 and name not in self._warned and not name.startswith(LOADER):
            emit(f"the part {name!r} differs between the ranks: the checkpoint has the state of each rank")
        self._warned.add(name)


def digest(part: Stateful | dict[str, Any], name: str) -> bytes:
    """Return a digest of the state of a part, to compare ranks."""
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
