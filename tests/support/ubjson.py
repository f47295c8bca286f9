"""UBJSON written as XGBoost writes it: what is decoded and encoded again is the same bytes."""

import json
import re
import struct
from typing import Any

import numpy as np

_BASE_SCORE = re.compile(rb"base_scoreSL(.{8})", re.DOTALL)
_MARKERS = {"i1": "i", "u1": "U", "i2": "I", "i4": "l", "i8": "L", "f4": "d", "f8": "D"}


def encode(value: Any) -> bytes:  # noqa: PLR0911 - one for each type
    """A value as XGBoost would write it."""
    match value:
        case None:
            return b"Z"
        case bool():
            return b"T" if value else b"F"
        case int():
            return _integer(value)
        case float():
            return b"d" + struct.pack(">f", value)
        case str():
            return b"S" + _text(value)
        case np.ndarray():
            marker = _MARKERS[value.dtype.str[1:]].encode()
            return b"[$" + marker + b"#" + _length(len(value)) + value.astype(value.dtype.newbyteorder(">")).tobytes()
        case list():
            return b"[#" + _length(len(value)) + b"".join(map(encode, value))
        case dict():
            return b"{" + b"".join(_text(name) + encode(member) for name, member in value.items()) + b"}"
    raise TypeError(f"{type(value).__name__} is no value of UBJSON")


def _integer(value: int) -> bytes:
    for marker, form, limit in (("i", ">b", 2**7), ("I", ">h", 2**15), ("l", ">i", 2**31)):
        if -limit < value < limit - 1:  # as XGBoost has it: neither end
            return marker.encode() + struct.pack(form, value)
    return b"L" + struct.pack(">q", value)


def _text(text: str) -> bytes:
    content = text.encode()
    return _length(len(content)) + content


def _length(number: int) -> bytes:
    return b"L" + struct.pack(">q", number)


def without_base_score(model: bytes) -> tuple[bytes, list[float]]:
    """All of a model but how the first predictions are spelled, and those."""
    found = _BASE_SCORE.search(model)
    assert found is not None
    end = found.end() + int.from_bytes(found[1])
    numbers = json.loads(model[found.end() : end])
    return model[: found.start()] + model[end:], numbers if isinstance(numbers, list) else [numbers]
