"""Write predictions as CSV, JSON and JSON Lines; `encode_binary` has the other content types.

One prediction a record has the bytes of the built-in XGBoost: 32-bit floats are widened and written as Python writes
them, `{"predictions": [{"score": 0.5}]}` in JSON, one value a line in CSV.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from trainbox.serving.bodies.outputs import ORDER, Column, Numbers

_ONE = 1
#: Numbers between have no exponent; a little less than that.
_SMALL, _LARGE = 2e-4, 1e15


def encode_csv(columns: Sequence[Column]) -> bytes:
    """Return a line for each row, without a newline at the end."""
    if len(columns) == 1 and isinstance(columns[0].values, np.ndarray) and columns[0].values.ndim == 1:
        return b"\n".join(_texts(columns[0].values))
    cells = [_cells(column) for column in columns]
    return b"\n".join(map(b",".join, zip(*cells, strict=True)))


def encode_plain_csv(numbers: Numbers) -> bytes:
    """Return the numbers of each row in a line, without a newline at the end."""
    if numbers.ndim == 1:
        return b"\n".join(_texts(numbers))
    texts = _texts(numbers.ravel())
    width = numbers.shape[1]
    return b"\n".join(b",".join(texts[at : at + width]) for at in range(0, len(texts), width))


def encode_json(columns: Sequence[Column]) -> bytes:
    """Return one document with an object for each row."""
    return b'{"predictions": [%b]}' % b", ".join(_objects(columns))


def encode_json_lines(columns: Sequence[Column]) -> bytes:
    """Return an object for each row, a line each, without a newline at the end."""
    return b"\n".join(_objects(columns))


def encode_values(numbers: Numbers) -> bytes:
    """Return for each row its number, or the list of its numbers, a line each, without a newline at the end."""
    return b"\n".join(_values(numbers))


def _objects(columns: Sequence[Column]) -> list[bytes]:
    ordered = sorted(columns, key=lambda column: ORDER.index(column.name))
    if len(ordered) == _ONE:
        name = ordered[0].name.encode()
        return [b'{"%b": %b}' % (name, value) for value in _values(ordered[0].values)]
    pairs = [[b'"%b": %b' % (column.name.encode(), value) for value in _values(column.values)] for column in ordered]
    return [b"{%b}" % b", ".join(row) for row in zip(*pairs, strict=True)]


def _values(values: Numbers | list[Any]) -> list[bytes]:
    """Return the JSON of the value of each row."""
    if isinstance(values, list):
        return [json.dumps(value).encode() for value in values]
    if values.ndim == 1:
        texts = _texts(values)
        return texts if np.isfinite(values).all() else [_finite(text) for text in texts]
    if values.ndim > 2:  # noqa: PLR2004 - contributions to each of several outputs
        return [b"[%b]" % b", ".join(_values(row)) for row in values]
    width = values.shape[1]
    texts = _texts(values.ravel())
    texts = texts if np.isfinite(values).all() else [_finite(text) for text in texts]
    return [b"[%b]" % b", ".join(texts[at : at + width]) for at in range(0, len(texts), width)]


def _finite(text: bytes) -> bytes:
    return text if math.isfinite(float(text)) else b"null"


def _texts(numbers: Numbers) -> list[bytes]:
    """Return numbers as Python writes them."""
    values = numbers.tolist()
    if len(values) == _ONE:
        return [repr(values[0]).encode()]
    content = msgspec.json.encode(values)
    texts = content[1:-1].split(b",") if values else []
    if b"e" in content or b"n" in content:  # exponents, and what is not finite, are written otherwise
        sizes = np.abs(numbers)
        for place in np.flatnonzero(~((sizes > _SMALL) & (sizes < _LARGE))).tolist():
            texts[place] = repr(values[place]).encode()
    return texts


def _cells(column: Column) -> list[bytes]:
    """Return a cell of CSV for each row; a list is a cell in quotes."""
    values = column.values
    if isinstance(values, list):
        return [_quoted(value) for value in values]
    if values.ndim == 1:
        return _texts(values)
    return [b'"%b"' % text for text in _values(values)]


def _quoted(value: Any) -> bytes:  # noqa: ANN401 - a label, or a list of them
    if isinstance(value, list):
        return b'"%b"' % json.dumps(value).replace('"', '""').encode()
    text = str(value)
    if any(sign in text for sign in ',"\r\n') or text != text.strip():
        text = '"' + text.replace('"', '""') + '"'
    return text.encode()
