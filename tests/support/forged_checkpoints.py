"""Checkpoints as somebody forges them who may write where they lie, and has no key."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.distributed.checkpoint.metadata import Metadata

from trainbox.checkpoint.manifest import MANIFEST, UPLOADED, UPLOADING, FileRecord, Manifest, seal

#: What the harmless payload asks for.
NAME = "posix.mkdir"


class Payload:
    """Unpickled, it makes a directory: the sign that it has run."""

    def __init__(self, sign: Path) -> None:
        self._sign = sign

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._sign),)


def saved(value: object, *, archive: bool = True) -> bytes:
    """What `torch.save` makes of a value: an archive, or as it was before 2020."""
    content = BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=archive)
    return content.getvalue()


def seal_anew(directory: Path) -> None:
    """Make a manifest that fits the files as they are now: a checkpoint is whole again."""
    known = json.loads((directory / MANIFEST).read_text())["manifest"]
    files = {
        path.relative_to(directory).as_posix(): FileRecord(
            path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.endswith((UPLOADED, UPLOADING))
    }
    info = msgspec.Raw(json.dumps(known["info"]).encode())
    (directory / MANIFEST).write_bytes(seal(Manifest(known["step"], info, files)))


def change_index(directory: Path, change: Callable[[Metadata], object]) -> None:
    """Change DCP's index of an honest checkpoint."""
    index = pickle.loads((directory / ".metadata").read_bytes())
    change(index)
    (directory / ".metadata").write_bytes(pickle.dumps(index))


def forge_index(directory: Path, sign: Path) -> None:
    """The first attack: the index is a payload."""
    (directory / ".metadata").write_bytes(pickle.dumps(Payload(sign)))
    seal_anew(directory)


def forge_item(directory: Path, sign: Path, *, name: str = "optimizer.param_groups.0.lr", archive: bool = True) -> None:
    """The second attack: the index stays honest but for where one item lies, and that is a payload."""
    forged = saved(Payload(sign), archive=archive)

    def move(index: Metadata) -> None:
        ((_, place),) = [(key, place) for key, place in index.storage_data.items() if key.fqn.startswith(name)][:1]
        with (directory / place.relative_path).open("ab") as file:
            place.offset, place.length = file.tell(), len(forged)
            file.write(forged)

    change_index(directory, move)
    seal_anew(directory)


def items(index: Metadata) -> dict[str, Any]:
    """What an index places, by name."""
    return {f"{key.fqn} {key.offset}": place for key, place in index.storage_data.items()}
