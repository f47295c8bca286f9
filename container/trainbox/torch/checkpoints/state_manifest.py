"""The state manifest (`state.json`): what a checkpoint holds, whether it fits the training, and reading its parts."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

import trainbox
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import (
    CODEC,
    EncodedState,
    TensorEntry,
    decode,
    difference,
    empty,
    flat,
    named,
    restride,
)
from trainbox.torch.checkpoints.collectives import RankGroup
from trainbox.torch.checkpoints.parts import check_frozen
from trainbox.torch.checkpoints.writer import STATE, shard_name

#: Returns the path of a file of a checkpoint, by its name.
Locate = Callable[[str], Path]
NO_EARLIER = "there is no earlier valid checkpoint; start fresh in another directory"
#: The part with the generators of all ranks; no other part may have this name.
GENERATORS = "generators"
#: The prefix of the names of loaders that `Session.steps` iterates over; a number follows.
LOADER = "loader "


class StatePart(msgspec.Struct, frozen=True):
    """One part: its class (`AdamW`), and its encoded state."""

    kind: str
    tree: Any
    table: tuple[TensorEntry, ...]


class StateManifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """All parts, and the versions that wrote them."""

    codec: int
    trainbox: str
    torch: str
    byteorder: str
    world_size: int
    #: The bytes of all tensors are split into files of this size.
    shard_bytes: Annotated[int, msgspec.Meta(gt=0)]
    identity: dict[str, Any]
    parts: dict[str, StatePart]
    #: Parts that differ between the ranks: each is a list of the packed states of all ranks.
    per_rank: tuple[str, ...] = ()


class _Codec(msgspec.Struct, frozen=True):
    """What every version of the format has; read first."""

    codec: int
    trainbox: str


def encode_manifest(
    kinds: Mapping[str, str],
    parts: Mapping[str, EncodedState],
    *,
    world_size: int,
    shard_bytes: int,
    identity: Mapping[str, Any],
    per_rank: tuple[str, ...] = (),
) -> bytes:
    """Encode the state manifest of some parts.

    Raises:
        CheckpointError: It cannot be written as JSON.
    """
    manifest = StateManifest(
        CODEC,
        trainbox.__version__,
        str(torch.__version__),
        sys.byteorder,
        world_size,
        shard_bytes,
        dict(identity),
        {name: StatePart(kinds[name], part.tree, part.table) for name, part in parts.items()},
        per_rank,
    )
    try:
        return json.dumps(msgspec.to_builtins(manifest), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the state cannot be written as JSON: {error}", hint="use numbers and strings of ordinary size"
        ) from error


def decode_manifest(text: bytes) -> StateManifest:
    """Decode a state manifest of this version.

    Raises:
        CheckpointError: It is damaged, of another version, or from a machine with another byte order.
    """
    try:
        # Not msgspec: it turns integers beyond 64 bits, which states of generators have, into floats.
        content = json.loads(text)
        made = msgspec.convert(content, _Codec)
        if made.codec != CODEC or _series(made.trainbox) != _series(trainbox.__version__):
            raise CheckpointError(
                f"the checkpoint was written by trainbox {made.trainbox} (state format {made.codec}), and this is "
                f"{trainbox.__version__} (state format {CODEC})",
                hint=f"resume with trainbox {made.trainbox}, or start fresh in another directory",
            )
        manifest = msgspec.convert(content, StateManifest)
    except (ValueError, RecursionError) as error:  # msgspec's ValidationError is one
        raise CheckpointError(f"the state of the checkpoint cannot be read: {error}") from error
    if manifest.byteorder != sys.byteorder:
        raise CheckpointError(
            f"the checkpoint is from a {manifest.byteorder}-endian machine, and this one is {sys.byteorder}-endian",
            hint="resume on the architecture that wrote it",
        )
    return manifest


def check_manifest(
    manifest: StateManifest, kinds: Mapping[str, str], models: Mapping[str, EncodedState], identity: Mapping[str, Any]
) -> None:
    """Check that a checkpoint belongs to these parts.

    Args:
        manifest: The state manifest of the checkpoint.
        kinds: The class of each part now.
        models: The states of the parts whose tensors do not change their shapes.
        identity: The identity of this training, which must be the same.

    Raises:
        CheckpointError: It belongs to another training; the message shows the first differences.
    """
    then, now = _plain(manifest.identity), _plain(identity)
    check_frozen(then, now)
    changed = [
        f"{key}: {then.get(key, 'absent')!r} in the checkpoint, {now.get(key, 'absent')!r} now"
        for key in sorted({*then, *now})
        if then.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    kinds = {name: kind for name, kind in kinds.items() if not name.startswith(LOADER)}
    saved = {
        name: part.kind
        for name, part in manifest.parts.items()
        if name != GENERATORS and not name.startswith(LOADER)  # checked later
    }
    changed += [
        f"{name}: {saved.get(name, 'absent')} in the checkpoint, {kinds.get(name, 'absent')} now"
        for name in [*kinds, *(name for name in saved if name not in kinds)]
        if saved.get(name) != kinds.get(name)
    ]
    for name, model in models.items():
        if name in saved:
            part = manifest.parts[name]
            differs = difference(named(part.tree, part.table), named(model.tree, model.table))
            changed += [f"{name}: {differs}"] if differs else []
    if changed:
        raise CheckpointError(
            "the checkpoint is that of another training: " + "; ".join(changed),
            hint="resume with the script and hyperparameters that wrote it, or start fresh in another directory",
        )


_ABSENT = object()


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity as JSON decodes it: with lists for tuples."""
    return dict(msgspec.json.decode(msgspec.json.encode(dict(identity))))


def _series(version: str) -> str:
    """Return the series of a version: `0.1` of `0.1.7`; its versions read each other's checkpoints."""
    return ".".join(version.split(".")[:2])


# ---- reading ----


class UnreadableError(CheckpointError):
    """A checkpoint that was valid when it was chosen can no longer be read; an earlier one may be used."""


def read_part(part: StatePart, shard_bytes: int, locate: Locate, peers: RankGroup) -> Any:  # noqa: ANN401 - any state
    """Read the state of a part of a checkpoint, on every rank; all ranks call it.

    Args:
        part: The part in the state manifest.
        shard_bytes: The size of the files of the state.
        locate: Finds the files of the checkpoint; only rank 0 calls it.
        peers: All ranks.

    Raises:
        UnreadableError: Rank 0 cannot read it. On every rank, at once.
    """
    tensors = [empty(entry) for entry in part.table]
    try:
        peers.run_together(lambda: _fill(part.table, tensors, shard_bytes, locate) if peers.rank == 0 else None)
    except CheckpointError as error:
        raise UnreadableError(error.message, hint=error.hint) from error
    peers.broadcast_tensors(tensors)
    return decode(part.tree, [restride(tensor, entry) for tensor, entry in zip(tensors, part.table, strict=True)])


def _fill(table: Sequence[TensorEntry], tensors: Sequence[torch.Tensor], shard_bytes: int, locate: Locate) -> None:
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
