"""Read DCP's index of a sharded state (`.metadata`) as data: it is a pickle, which may call any function it names.

Here a name gives neither class nor function, but a record of its arguments, and only for the names of genuine indexes.
What DCP's planner needs is then built from the records, and refers to no other file.
"""

import pickle
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import dtypes
from trainbox.torch.checkpoints.pickles import DAMAGED, PickleRecord, refuse, require_small_memo
from trainbox.torch.checkpoints.sharded.catalog import FileRange

T = TypeVar("T")

#: The name of the index.
METADATA = ".metadata"
_CLASSES = "torch.distributed.checkpoint.metadata"
_WHOLE, _INDEX = f"{_CLASSES}.Metadata", f"{_CLASSES}.MetadataIndex"
_TENSOR, _BYTES = f"{_CLASSES}.TensorStorageMetadata", f"{_CLASSES}.BytesStorageMetadata"
_PROPERTIES, _CHUNK = f"{_CLASSES}.TensorProperties", f"{_CLASSES}.ChunkStorageMetadata"
_PLACE, _SIZE = "torch.distributed.checkpoint.filesystem._StorageInfo", "torch.Size"
#: The names in genuine indexes, beside dtypes. The last four occur only in parts that are not read.
_NAMES = frozenset(
    {
        *(_WHOLE, _TENSOR, _BYTES, _INDEX, _PROPERTIES, _CHUNK, _PLACE, _SIZE),
        *(f"{_CLASSES}._MEM_FORMAT_ENCODING", f"{_CLASSES}.StorageMeta", "torch.serialization._get_layout"),
        *("pathlib.PosixPath", "pathlib._local.PosixPath"),
    }
)


class DcpIndex(msgspec.Struct, frozen=True, eq=False):
    """The contents of a sharded state, for DCP's planner, and the position of each."""

    metadata: Metadata
    places: Mapping[MetadataIndex, FileRange]


class _Records(pickle.Unpickler):
    """An unpickler that makes records."""

    def __init__(self, content: bytes, path: Path) -> None:
        file = BytesIO(content)
        require_small_memo(file)
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str, /) -> Any:  # noqa: ANN401 - like the base class
        """Return a new class of records, or a dtype.

        Raises:
            ForeignNameError: A genuine index does not have the name.
        """
        kind = f"{module}.{name}"
        if module == "torch" and name in dtypes():
            return dtypes()[name]
        if kind not in _NAMES:
            raise refuse(self._path, [kind])
        return type(name, (PickleRecord,), {"kind": kind})


def read_index(path: Path, files: Mapping[str, int]) -> DcpIndex:
    """Read the index of a sharded state.

    Args:
        path: The file.
        files: The sizes of all files of the checkpoint: no other file may be read.

    Raises:
        ForeignNameError: It asks for code, or for a file that is not one of them.
        CheckpointError: It cannot be read, or is not an index.
    """
    try:
        whole = _state(_Records(path.read_bytes(), path).load(), _WHOLE)
        described = {name: _described(value) for name, value in _checked(whole["state_dict_metadata"], dict).items()}
        places = {_index(key): _place(value) for key, value in _checked(whole["storage_data"], dict).items()}
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path.parent} can no longer be read: {error}") from error
    except DAMAGED as error:
        raise CheckpointError(f"{path} is not an index of a sharded state: {error!r}") from error
    for index, place in places.items():
        if place.name not in files:
            raise refuse(path, [place.name])
        if not 0 <= place.offset <= place.offset + place.size <= files[place.name]:
            raise CheckpointError(f"{path} places {index.fqn!r} beyond the end of {place.name}")
    return DcpIndex(Metadata(described), places)


def _described(record: object) -> TensorStorageMetadata | BytesStorageMetadata:
    if getattr(record, "kind", None) == _BYTES:
        return BytesStorageMetadata()
    state = _state(record, _TENSOR)
    kind = _checked(_checked(_record(state["properties"], _PROPERTIES).state, tuple)[0], torch.dtype)
    chunks = [_state(chunk, _CHUNK) for chunk in _checked(state["chunks"], list)]
    return TensorStorageMetadata(
        TensorProperties(dtype=kind),
        _size(state["size"]),
        [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks],
    )


def _index(record: object) -> MetadataIndex:
    state = _state(record, _INDEX)
    offset, hint = state.get("offset"), state.get("index")
    return MetadataIndex(
        _checked(state["fqn"], str),
        None if offset is None else _size(offset),
        None if hint is None else _checked(hint, int),
    )


def _place(record: object) -> FileRange:
    state = _state(record, _PLACE)
    if state.get("transform_descriptors"):
        raise ValueError("its contents are transformed")
    return FileRange(
        _checked(state["relative_path"], str), _checked(state["offset"], int), _checked(state["length"], int)
    )


def _size(record: object) -> torch.Size:
    (numbers,) = _record(record, _SIZE).content
    return torch.Size(msgspec.convert(numbers, tuple[int, ...]))


def _record(value: object, kind: str) -> PickleRecord:
    if not isinstance(value, PickleRecord) or value.kind != kind:
        raise TypeError(f"a {kind} is missing")
    return value


def _state(value: object, kind: str) -> dict[str, Any]:
    return _checked(_record(value, kind).state, dict)


def _checked(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"found a {type(value).__name__}, expected a {kind.__name__}")
    return value
