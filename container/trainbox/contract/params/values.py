"""One hyperparameter's text, read as the type of its field asks; nothing here guesses a type from the text."""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec import inspect

#: Types that msgspec makes of one text itself: dates, decimals, and classes built from one string, such as Path.
TEXT_TYPES = (
    inspect.DateTimeType,
    inspect.DateType,
    inspect.TimeType,
    inspect.TimeDeltaType,
    inspect.UUIDType,
    inspect.DecimalType,
    inspect.BytesType,
    inspect.CustomType,
)
LIST_TYPES = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType)

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NULLS = {"null": None, "None": None}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity)", re.IGNORECASE)


def read(kind: inspect.Type, raw: object) -> object:
    """What a text, or a value decoded already, says in a field of this type; ranges are not checked.

    Raises:
        ValueError, OverflowError, RecursionError: It says nothing that this type can hold.
    """
    kind = unwrap(kind)
    reader: Callable[[Any, object], object] = _READERS.get(type(kind), _read_object)
    return reader(kind, raw)


def unwrap(kind: inspect.Type) -> inspect.Type:
    """The type without the descriptions that `msgspec.Meta` put around it."""
    return unwrap(kind.type) if isinstance(kind, inspect.Metadata) else kind


def unquote(raw: object) -> str:
    """The text out of the quotes that SDK v2 puts around every text; a decoded value as JSON writes it."""
    if not isinstance(raw, str):
        return json.dumps(raw)
    if not (len(raw) > 1 and raw[0] == raw[-1] == '"'):
        return raw
    try:
        decoded: object = json.loads(raw)
    except ValueError:
        return raw
    return decoded if isinstance(decoded, str) else raw


def options(kind: inspect.LiteralType | inspect.EnumType) -> dict[str, object]:
    """The values of a Literal or an Enum, by how they are written."""
    values = kind.values if isinstance(kind, inspect.LiteralType) else tuple(member.value for member in kind.cls)
    return {"null" if value is None else str(value): value for value in values}


def _read_text(_kind: inspect.Type, raw: object) -> str:
    return unquote(raw)


def _read_bool(_kind: inspect.Type, raw: object) -> object:
    return _choose(_WORDS, unquote(raw).strip().lower())


def _read_null(_kind: inspect.Type, raw: object) -> object:
    return _choose(_NULLS, "null" if raw is None else raw)  # not "\"null\"", which is how SDK v2 sends the text


def _read_option(kind: inspect.LiteralType | inspect.EnumType, raw: object) -> object:
    return _choose(options(kind), unquote(raw).strip())


def _read_int(_kind: inspect.Type, raw: object) -> int:
    if _is_plain_integer(raw):
        return int(unquote(raw))
    number = _read_float(_kind, raw)  # 1e2, or 100.0 from a tuner
    if not number.is_integer():
        raise ValueError("not integral")
    return int(number)


def _read_float(_kind: inspect.Type, raw: object) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        number = float(raw)
    else:
        text = unquote(raw).strip()
        number = float(text) if _NUMBER.fullmatch(text) else math.nan
        if math.isinf(number) and "inf" not in text.lower():
            raise OverflowError("too large")
    if math.isnan(number):
        raise ValueError("not a number")
    return number


def _read_list(kind: Any, raw: object) -> list[object]:  # noqa: ANN401 - any of LIST_TYPES, which share no base
    return [read(kind.item_type, item) for item in _items(raw)]


def _read_tuple(kind: inspect.TupleType, raw: object) -> list[object]:
    return [read(wanted, item) for wanted, item in zip(kind.item_types, _items(raw), strict=True)]


def _read_dict(kind: inspect.DictType, raw: object) -> dict[object, object]:
    return {read(kind.key_type, key): read(kind.value_type, value) for key, value in _read_object(kind, raw).items()}


def _read_object(_kind: inspect.Type, raw: object) -> Mapping[Any, object]:
    decoded = _decode(unquote(raw)) if isinstance(raw, str) else raw
    if not isinstance(decoded, Mapping):
        raise ValueError("no JSON object")  # noqa: TRY004 - what cannot be read is a ValueError everywhere here
    return decoded


def _read_any(_kind: inspect.Type, raw: object) -> object:
    try:
        return json.loads(raw) if isinstance(raw, str) else raw
    except ValueError:
        return raw


def _read_union(kind: inspect.UnionType, raw: object) -> object:
    """What the first member that can read it makes of it: the strictest first, text, which reads everything, last."""
    members = sorted(map(unwrap, kind.types), key=_looseness)
    # In `int | float` 1 and 1.0 are two things (scikit-learn: one feature, all features), so 1.0 is no integer there.
    if any(isinstance(member, inspect.FloatType) for member in members) and not _is_plain_integer(raw):
        members = [member for member in members if not isinstance(member, inspect.IntType)]
    for member in members:
        try:
            return read(member, raw)
        except (ValueError, OverflowError, RecursionError):
            continue
    raise ValueError("no member of the union can read it")


def _looseness(kind: inspect.Type) -> int:
    strictest = (inspect.NoneType, inspect.LiteralType, inspect.EnumType, inspect.IntType, inspect.FloatType)
    loosest = (*TEXT_TYPES, inspect.StrType, inspect.AnyType)
    ranks = {each: rank for rank, each in enumerate(strictest)} | {each: rank for rank, each in enumerate(loosest, 100)}
    return ranks.get(type(kind), len(strictest))


def _is_plain_integer(raw: object) -> bool:
    if isinstance(raw, str):
        return _INTEGER.fullmatch(unquote(raw).strip()) is not None
    return isinstance(raw, int) and not isinstance(raw, bool)


def _choose(known: Mapping[str, object], text: object) -> object:
    if isinstance(text, str) and text in known:
        return known[text]
    raise ValueError("none of the options")


def _items(raw: object) -> Sequence[object]:
    """The elements of `["auc", "logloss"]`, of `auc,logloss` and of `auc`; tuples, `(1,0)` and `(1)`, are lists too."""
    if isinstance(raw, list | tuple):
        return raw
    if not isinstance(raw, str):
        return [raw]
    text = unquote(raw).strip()
    if text.startswith("["):
        decoded = _decode(text)
        if isinstance(decoded, list):
            return decoded
        raise ValueError("no list")
    if text.startswith("(") and text.endswith(")"):
        with suppress(ValueError):  # else it is text that happens to stand in parentheses
            decoded = _decode(text)
            return decoded if isinstance(decoded, list | tuple) else [decoded]
    return [item.strip() for item in text.split(",")] if text else []


def _decode(text: str) -> object:
    """JSON; or Python, which SDK v2 makes of a list or dict where it has no entry point: `str(value)`."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, TypeError, MemoryError, RecursionError) as error:  # {[]: 1} is a TypeError
            raise ValueError("neither JSON nor Python") from error


_READERS: Mapping[type[inspect.Type], Callable[[Any, object], object]] = {
    inspect.UnionType: _read_union,
    inspect.NoneType: _read_null,
    inspect.BoolType: _read_bool,
    inspect.IntType: _read_int,
    inspect.FloatType: _read_float,
    inspect.StrType: _read_text,
    inspect.LiteralType: _read_option,
    inspect.EnumType: _read_option,
    inspect.DictType: _read_dict,
    inspect.TupleType: _read_tuple,
    inspect.AnyType: _read_any,
    **dict.fromkeys(LIST_TYPES, _read_list),
    **dict.fromkeys(TEXT_TYPES, _read_text),
}
