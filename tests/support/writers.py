"""Writes channels, byte by byte where the format matters: nothing here comes from the readers that it tests."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import scipy.sparse

from trainbox.data import Table

MAGIC = 0xCED7230A


def write(root: Path, files: Mapping[str, str | bytes], name: str = "train") -> Path:
    """A channel's directory with these files."""
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root / name


def sparse_features(table: Table) -> Any:
    """The features of a table, which must be sparse."""
    assert scipy.sparse.isspmatrix_csr(table.features)
    return table.features


# ---- recordio-protobuf ----


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(
    values: Sequence[float], *, keys: Sequence[int] = (), shape: Sequence[int] = (), kind: str = "float32"
) -> bytes:
    """A `Value` with a tensor."""
    if kind == "int32":
        packed = b"".join(varint(int(value) & 0xFFFFFFFFFFFFFFFF) for value in values)
    else:
        packed = struct.pack(f"<{len(values)}{'f' if kind == 'float32' else 'd'}", *values)
    content = field(1, packed) if values else b""
    content += field(2, b"".join(map(varint, keys))) if keys else b""
    content += field(3, b"".join(map(varint, shape))) if shape else b""
    return field({"float32": 2, "float64": 3, "int32": 7}[kind], content)


def entry(number: int, value: bytes, name: str = "values") -> bytes:
    """An entry of one of the two maps of a record."""
    return field(number, field(1, name.encode()) + field(2, value))


def record(features: bytes, label: bytes, *, rest: bytes = b"") -> bytes:
    return entry(1, features) + entry(2, label) + rest


def frame(content: bytes, flag: int = 0) -> bytes:
    return struct.pack("<II", MAGIC, flag << 29 | len(content)) + content + b"\0" * (-len(content) % 4)


def dense(rows: Iterable[Sequence[float]], **options: str) -> bytes:
    """A file of dense records, the label first in each row."""
    return b"".join(
        frame(record(tensor(row[1:], kind=options.get("kind", "float32")), tensor(row[:1]))) for row in rows
    )


def sparse(rows: Iterable[tuple[float, Mapping[int, float]]], width: int | None) -> bytes:
    """A file of sparse records: label, and value by column."""
    shape = [] if width is None else [width]
    return b"".join(
        frame(record(tensor(list(row.values()), keys=list(row), shape=shape), tensor([label]))) for label, row in rows
    )
