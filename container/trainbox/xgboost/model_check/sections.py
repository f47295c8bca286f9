"""Typed access to the decoded model: every error says at which place of the model."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainbox.xgboost.model_check import ubjson
from trainbox.xgboost.model_check.ubjson import Value

Ints = npt.NDArray[np.int64]

_NATURAL = re.compile(r"[0-9]{1,10}")
#: XGBoost's JSON reader keeps `\u0041` as it stands, where others read an "A": two readers would see two models.
_ESCAPED_ASCII = re.compile(rb"(?<!\\)(?:\\\\)*\\u00[2-7]")
_BYTES, _LARGEST_INT32 = 4, 2**31 - 1


def read(content: bytes) -> "Section":
    """Decode a model: UBJSON or JSON, told apart as XGBoost does (`DispatchModelType` in its `src/c_api/c_api.cc`).

    Raises:
        ValueError: It is neither.
    """
    second = content[1:].lstrip(b" \t\n\v\f\r")[:1]
    if content[:1] != b"{" or not (second == b'"' or second.isalpha()):
        raise ValueError("it is neither UBJSON nor JSON, the two formats of XGBoost")
    return Section(ubjson.decode(content) if second != b'"' else _decode_json(content), "the model")


def _decode_json(content: bytes) -> Value:
    if _ESCAPED_ASCII.search(content):
        raise ValueError("it writes a plain letter as \\u00XX, which XGBoost does not read as that letter")
    text = content.decode("utf-8")  # before `json`, which would take UTF-16, too
    try:
        value: Value = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("arrays and objects nest too deep") from None
    return value


def _once(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return members


class Section:
    """An object of the model.

    Args:
        value: Should be an object.
        where: Its place, for messages.

    Raises:
        ValueError: It is none.
    """

    def __init__(self, value: Value, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")  # noqa: TRY004 - the bytes are wrong, not the call
        self._members = value
        self.where = where

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return name in self._members

    def value(self, name: str) -> Value:
        """Return any member.

        Raises:
            ValueError: There is none of that name.
        """
        if name not in self._members:
            raise ValueError(f"{self.where} has no {name}")
        return self._members[name]

    def section(self, name: str) -> "Section":
        """Return a member that is an object.

        Raises:
            ValueError: It is none.
        """
        return Section(self.value(name), f"{self.where}, {name}" if self.where != "the model" else name)

    def items(self) -> Sequence[tuple[str, Value]]:
        """Return all members."""
        return tuple(self._members.items())

    def text(self, name: str) -> str:
        """Return a member that is text.

        Raises:
            ValueError: It is none.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise ValueError(f"{name} of {self.where} is not text")  # noqa: TRY004 - as above
        return value

    def number(self, name: str, highest: int, *, lowest: int = 0, default: int | None = None) -> int:
        """Return a whole number that is written as text, as all of XGBoost's parameters are.

        Raises:
            ValueError: It is none, or out of range.
        """
        if default is not None and name not in self._members:
            return default
        text = self.text(name)
        if not _NATURAL.fullmatch(text) or not lowest <= int(text) <= highest:
            raise ValueError(f"{name} of {self.where} is {text[:40]!r}, expected a number from {lowest} to {highest:,}")
        return int(text)

    def list_of(self, name: str) -> Sequence[Value]:
        """Return a member that is an array of any values.

        Raises:
            ValueError: It is none.
        """
        value = self.value(name)
        if not isinstance(value, list):
            raise ValueError(f"{name} of {self.where} is not an array")  # noqa: TRY004 - as above
        return value

    def length(self, name: str) -> int:
        """Return how many values an array has: XGBoost itself looks at their type.

        Raises:
            ValueError: It is none.
        """
        value = self.value(name)
        if not isinstance(value, list | np.ndarray):
            raise ValueError(f"{name} of {self.where} is not an array")  # noqa: TRY004 - as above
        return len(value)

    def integers(self, name: str) -> npt.NDArray[Any]:
        """Return an array of whole numbers that fit into 32 bits: of bytes a view.

        Raises:
            ValueError: It is none.
        """
        value = self.value(name)
        if isinstance(value, list):
            value = _array_of(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise ValueError(f"{name} of {self.where} is not an array of whole numbers")
        if value.dtype.itemsize > _BYTES and value.size and not -1 <= value.min() <= value.max() <= _LARGEST_INT32:
            raise ValueError(f"{name} of {self.where} has a number that needs more than 32 bits")
        return value


def _array_of(values: list[Value]) -> npt.NDArray[Any] | None:
    """Return an array of integers; none where something else is among them."""
    if not values:
        return np.empty(0, np.int64)
    if not {*map(type, values)} <= {int, bool}:  # models of XGBoost 1 have booleans for which side is the default
        return None
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return None
