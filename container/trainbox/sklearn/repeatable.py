"""Serialize equal models to equal bytes.

Three things prevent this. Tree nodes have padding bytes that are never initialized. pickle writes an object once and
then refers to it, so trees that share a string give other bytes than trees that were read from files, each with its own
string. And skops names objects by their address in memory, and writes the time.
"""

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

#: The earliest that a ZIP archive can say.
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_OWNER_READS_AND_WRITES = 0o600 << 16
_DESCRIPTION = "schema.json"


def clear_padding(model: Any) -> None:  # noqa: ANN401 - any estimator
    """Zero the padding bytes of tree nodes, in place, in all trees of a model.

    Args:
        model: Any object that pickle takes; trees are found as pickle finds them.
    """
    _Trees(io.BytesIO(), protocol=5, buffer_callback=_discard).dump(model)


def _discard(_buffer: object) -> None:
    """Take the content of an array: it is not written."""


class _Trees(pickle.Pickler):
    """Goes through an object as pickle does, and clears each tree on its way."""

    def reducer_override(self, found: Any) -> Any:  # noqa: ANN401 - as pickle has it
        if (type(found).__module__, type(found).__name__) != ("sklearn.tree._tree", "Tree"):
            return NotImplemented
        constructor, arguments, state = found.__reduce__()
        _clear(state["nodes"])
        return constructor, arguments


def _clear(nodes: np.ndarray[Any, Any]) -> None:
    """Set the bytes of a structured array to zero that belong to no field."""
    fields = nodes.dtype.fields or {}
    unused = np.ones(nodes.dtype.itemsize, bool)
    for kind, offset, *_ in fields.values():
        unused[offset : offset + kind.itemsize] = False
    nodes.view(np.uint8).reshape(len(nodes), nodes.dtype.itemsize)[:, unused] = 0


def intern_texts(estimator: Any) -> None:  # noqa: ANN401 - any estimator
    """Intern the names and texts of an estimator's attributes, so that pickle writes each once."""
    vars_ = {sys.intern(name): _interned(value) for name, value in vars(estimator).items()}
    estimator.__dict__.clear()
    estimator.__dict__.update(vars_)


def _interned(value: object) -> object:
    if type(value) is str:
        return sys.intern(value)
    return tuple(map(_interned, value)) if type(value) is tuple else value


def rewrite(content: bytes, *, level: int) -> bytes:
    """Rewrite a skops archive with objects numbered in order, and without times.

    Args:
        content: What `skops.io.dumps` gives.
        level: How hard zlib is to try.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(packed, "w") as archive:
        description = json.loads(source.read(_DESCRIPTION))
        names = _number(description)
        for old, new in names.items():
            _write(archive, new, source.read(old), level)
        _write(archive, _DESCRIPTION, json.dumps(description).encode(), level)
    return packed.getvalue()


def _write(archive: zipfile.ZipFile, name: str, content: bytes, level: int) -> None:
    entry = zipfile.ZipInfo(name, _NO_TIME)
    entry.external_attr = _OWNER_READS_AND_WRITES
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED, level)


def _number(description: dict[str, Any]) -> dict[str, str]:
    """Number the objects of a description in place; gives the new name of each file.

    A plain value has one number wherever it stands, for whether two such are one object is chance.
    """
    numbers: dict[object, int] = {}
    names: dict[str, str] = {}
    for node in _walk(description):
        key = ("plain", node["content"]) if node["__loader__"] == "JsonNode" else node.get("__id__")
        if key is not None:
            node["__id__"] = numbers.setdefault(key, len(numbers) + 1)
        if "file" in node:
            node["file"] = names.setdefault(node["file"], f"{len(names) + 1}{_suffix(node['file'])}")
    return names


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _walk(node: object) -> Iterator[dict[str, Any]]:
    """Every object of a description, in its order."""
    rest = [node]
    while rest:
        match rest.pop():
            case dict() as entry:
                if isinstance(entry.get("__loader__"), str):  # else it is what a dict of the model holds, by its keys
                    yield entry
                rest += reversed(entry.values())
            case list() as entries:
                rest += reversed(entries)
