"""UBJSON as XGBoost writes it, read strictly: XGBoost's own reader runs past the end of what is cut off.

What XGBoost never writes is refused also where UBJSON allows it, so that this reader and XGBoost's see the same values.
Arrays of numbers are views of the bytes, so a model of 100 MB costs its keys and not its numbers. Depth, lengths and
counts are bounded by the bytes themselves. The format: https://ubjson.org, and `src/common/json.cc` of XGBoost.
"""

import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

#: Numbers of a typed array (a view, big-endian), or a value as JSON has it.
Value: TypeAlias = "bool | int | float | str | npt.NDArray[Any] | list[Value] | dict[str, Value] | None"

#: XGBoost nests eight.
DEEPEST = 32
#: The smallest container that XGBoost writes takes more; an empty one takes 64 bytes of memory.
_BYTES_PER_CONTAINER = 16
_NUMBERS = {
    ord("i"): struct.Struct(">b"),
    ord("U"): struct.Struct(">B"),
    ord("I"): struct.Struct(">h"),
    ord("l"): struct.Struct(">i"),
    ord("L"): struct.Struct(">q"),
    ord("d"): struct.Struct(">f"),
    ord("D"): struct.Struct(">d"),
}
_TYPES = {
    ord(marker): np.dtype(name)
    for marker, name in {"i": "i1", "U": "u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}.items()
}
_WORDS = {ord("Z"): None, ord("T"): True, ord("F"): False}
_STRING, _ARRAY, _OBJECT, _END = ord("S"), ord("["), ord("{"), ord("}")
_COUNTED = b"#L"
_LENGTH = struct.Struct(">cq")


def decode(content: bytes) -> Value:
    """Decode the one value that the bytes hold.

    Raises:
        ValueError: They are not UBJSON as XGBoost writes it; says at which byte.
    """
    reader = _Reader(content)
    value = reader.value(0)
    if reader.at != len(content):
        raise ValueError(f"{len(content) - reader.at:,} bytes follow the model")
    return value


class _Reader:
    """Reads values one after the other.

    Args:
        content: What is read.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0
        self._containers = len(content) // _BYTES_PER_CONTAINER + DEEPEST

    def value(self, depth: int) -> Value:
        """Read the next value.

        Raises:
            ValueError: There is none.
        """
        marker = self._marker()
        if marker == _ARRAY:
            return self._array(depth)
        if marker == _OBJECT:
            return self._object(depth)
        if marker == _STRING:
            return self._text()
        if marker in _NUMBERS:
            return self._number(_NUMBERS[marker])
        if marker in _WORDS:
            return _WORDS[marker]
        raise self._error(f"the marker {chr(marker)!r} is not one that XGBoost writes", back=1)

    def _object(self, depth: int) -> dict[str, Value]:
        self._enter(depth)
        members: dict[str, Value] = {}
        while self._peek() != _END:
            name = self._text()
            if name in members:
                raise self._error(f"the key {name[:80]!r} occurs twice")
            members[name] = self.value(depth + 1)
        self.at += 1
        return members

    def _array(self, depth: int) -> npt.NDArray[Any] | list[Value]:
        self._enter(depth)
        if self._peek() == ord("$"):
            self.at += 1
            kind = _TYPES.get(self._marker())
            if kind is None:
                raise self._error("an array of a type that XGBoost does not write", back=1)
            return self._typed_array(kind)
        if self._peek() != ord("#"):
            raise self._error("an array without a length")
        self.at += 1
        return [self.value(depth + 1) for _ in range(self._length(1))]

    def _typed_array(self, kind: np.dtype[Any]) -> npt.NDArray[Any]:
        if self._marker() != ord("#"):
            raise self._error("an array without a length", back=1)
        count = self._length(kind.itemsize)
        array = np.frombuffer(self._content, kind, count, self.at) if count else np.empty(0, kind)
        self.at += count * kind.itemsize
        return array

    def _text(self) -> str:
        start = self.at + _LENGTH.size
        self.at = start + self._length(1)
        # XGBoost takes any bytes; these are compared with names of ASCII and shown, nothing else.
        return self._content[start : self.at].decode(errors="replace")

    def _length(self, size: int) -> int:
        """Read how many things of at least so many bytes follow."""
        marker, length = self._unpack(_LENGTH)
        left = len(self._content) - self.at
        if marker != b"L" or not 0 <= length * size <= left:
            raise self._error(f"a length of {length:,} with {left:,} bytes left", back=_LENGTH.size)
        return int(length)

    def _number(self, form: struct.Struct) -> int | float:
        (number,) = self._unpack(form)
        return number  # type: ignore[no-any-return]

    def _unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        try:
            values = form.unpack_from(self._content, self.at)
        except struct.error:
            raise self._error("it is cut off") from None
        self.at += form.size
        return values

    def _marker(self) -> int:
        marker = self._peek()
        self.at += 1
        return marker

    def _peek(self) -> int:
        if self.at >= len(self._content):
            raise self._error("it is cut off")
        return self._content[self.at]

    def _enter(self, depth: int) -> None:
        self._containers -= 1
        if depth >= DEEPEST:
            raise self._error(f"arrays and objects nest deeper than {DEEPEST}")
        if self._containers < 0:
            raise self._error("more arrays and objects than so few bytes can be of a model")

    def _error(self, what: str, *, back: int = 0) -> ValueError:
        return ValueError(f"{what} (byte {self.at - back:,})")
