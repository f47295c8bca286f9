"""`state.json`: what a checkpoint says about itself, and whether it belongs to the training that resumes."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

import trainbox
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import CODEC, Encoded, Entry, decode, difference, empty, flat, named, restride
from trainbox.torch.checkpoints.collectives import Peers
from trainbox.torch.checkpoints.parts import check_frozen
from trainbox.torch.checkpoints.writer import STATE, shard_name

#: Where a file of a checkpoint is, by its name.
Locate = Callable[[str], Path]
NO_EARLIER = "there is no earlier one that is valid; start fresh in another directory"
#: The part in which the generators of all ranks are kept; no part of the user's may have this name.
GENERATORS = "generators"
#: Before the number of a loader that `Session.steps` goes through, as the name of a part.
LOADER = "loader "


class Part(msgspec.Struct, frozen=True):
    """One thing with a state: what it is (`AdamW`), and its state taken apart."""

    kind: str
    tree: Any
    table: tuple[Entry, ...]


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """All parts, and what they were made with."""

    codec: int
    trainbox: str
    torch: str
    byteorder: str
    world_size: int
    #: The bytes of all tensors are cut into files of this size.
    shard_bytes: Annotated[int, msgspec.Meta(gt=0)]
    identity: dict[str, Any]
    parts: dict[str, Part]
    #: Parts that differ between the ranks: each is a list of the packed states of all of them.
    per_rank: tuple[str, ...] = ()


class _Codec(msgspec.Struct, frozen=True):
    """What is read first, of any version."""

    codec: int
    trainbox: str


def compose(
    kinds: Mapping[str, str],
    parts: Mapping[str, Encoded],
    *,
    world_size: int,
    shard_bytes: int,
    identity: Mapping[str, Any],
    per_rank: tuple[str, ...] = (),
) -> bytes:
    """The document of some parts.

    Raises:
        CheckpointError: JSON cannot say it.
    """
    document = Document(
        CODEC,
        trainbox.__version__,
        str(torch.__version__),
        sys.byteorder,
        world_size,
        shard_bytes,
        dict(identity),
        {name: Part(kinds[name], part.tree, part.table) for name, part in parts.items()},
        per_rank,
    )
    try:
        return json.dumps(msgspec.to_builtins(document), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the state cannot be written as JSON: {error}", hint="use numbers and strings of ordinary size"
        ) from error


def parse(text: bytes) -> Document:
    """A document, of this version.

    Raises:
        CheckpointError: It is of another version, or of a machine with another order of bytes.
    """
    try:
        # Not by msgspec: it makes floats of integers beyond 64 bits, which states of generators have.
        content = json.loads(text)
        made = msgspec.convert(content, _Codec)
        if made.codec != CODEC or _series(made.trainbox) != _series(trainbox.__version__):
            raise CheckpointError(
                f"the checkpoint was written by trainbox {made.trainbox} (state format {made.codec}), and this is "
                f"{trainbox.__version__} (state format {CODEC})",
                hint=f"resume with trainbox {made.trainbox}, or start fresh in another directory",
            )
        document = msgspec.convert(content, Document)
    except (ValueError, RecursionError) as error:  # msgspec's ValidationError is one
        raise CheckpointError(f"the state of the checkpoint cannot be read: {error}") from error
    if document.byteorder != sys.byteorder:
        raise CheckpointError(
            f"the checkpoint is of a {document.byteorder}-endian machine, and this one is {sys.byteorder}-endian",
            hint="resume on the architecture that wrote it",
        )
    return document


def check(
    document: Document, kinds: Mapping[str, str], models: Mapping[str, Encoded], identity: Mapping[str, Any]
) -> None:
    """Whether a checkpoint belongs to these parts.

    Args:
        document: That of the checkpoint.
        kinds: What each part is now.
        models: The states of those parts whose tensors do not change their shapes.
        identity: What must be as it was.

    Raises:
        CheckpointError: It belongs to another training; the message shows the first differences.
    """
    then, now = _plain(document.identity), _plain(identity)
    check_frozen(then, now)
    changed = [
        f"{key}: {then.get(key, 'absent')!r} in the checkpoint, {now.get(key, 'absent')!r} now"
        for key in sorted({*then, *now})
        if then.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    kinds = {name: kind for name, kind in kinds.items() if not name.startswith(LOADER)}
    saved = {
        name: part.kind
        for name, part in document.parts.items()
        if name != GENERATORS and not name.startswith(LOADER)  # whose turn comes later
    }
    changed += [
        f"{name}: {saved.get(name, 'absent')} in the checkpoint, {kinds.get(name, 'absent')} now"
        for name in [*kinds, *(name for name in saved if name not in kinds)]
        if saved.get(name) != kinds.get(name)
    ]
    for name, model in models.items():
        if name in saved:
            part = document.parts[name]
            differs = difference(named(part.tree, part.table), named(model.tree, model.table))
            changed += [f"{name}: {differs}"] if differs else []
    if changed:
        raise CheckpointError(
            "the checkpoint is that of another training: " + "; ".join(changed),
            hint="resume with the script and hyperparameters that wrote it, or start fresh in another directory",
        )


_ABSENT = object()


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return dict(msgspec.json.decode(msgspec.json.encode(dict(identity))))


def _series(version: str) -> str:
    """Versions that read each other's checkpoints: `0.1` of `0.1.7`."""
    return ".".join(version.split(".")[:2])


# ---- reading ----


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
