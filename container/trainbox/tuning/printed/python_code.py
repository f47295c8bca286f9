"""Values and calls as Python source: one line where it fits, else one element a line, as formatters write it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

_WIDTH = 120
_INDENT = "    "


class Name(msgspec.Struct, frozen=True):
    """A name or an attribute, such as `WarmStartTypes.TRANSFER_LEARNING`."""

    text: str


class CodeCall(msgspec.Struct, frozen=True):
    """A call: a function, positional arguments, and keywords."""

    function: str
    positional: tuple[object, ...] = ()
    keywords: Mapping[str, object] = {}


def write_code(value: object, *, before: str = "", indent: int = 0) -> str:
    """Pure: write a value as Python source.

    Args:
        value: A scalar, a list, a tuple (written as a list), a mapping, a `Name` or a `CodeCall`, and these within it.
        before: What stands on the line already, such as `tuner = `.
        indent: How many levels deep the line stands.

    >>> write_code(CodeCall("f", (1.5,), {"names": ["a"]}), before="x = ")
    'x = f(1.5, names=["a"])'
    """
    opening, parts, closing = _parts(value)
    whole = f"{before}{opening}{', '.join(f'{lead}{write_code(each)}' for lead, each in parts)}{closing}"
    if not parts or ("\n" not in whole and len(whole) + indent * len(_INDENT) < _WIDTH):
        return whole
    inner = indent + 1
    lines = [f"{_INDENT * inner}{write_code(each, before=lead, indent=inner)}," for lead, each in parts]
    return "\n".join([f"{before}{opening}", *lines, f"{_INDENT * indent}{closing}"])


def write_comment(text: str) -> str:
    """Pure: write a comment of one line; what would end the line is escaped."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return f"# {shown}"


def write_import(module: str, names: Iterable[str]) -> str:
    """Pure: write `from MODULE import NAMES`, sorted."""
    found = sorted(names)
    whole = f"from {module} import {', '.join(found)}"
    if len(whole) <= _WIDTH:
        return whole
    return "\n".join([f"from {module} import (", *(f"{_INDENT}{name}," for name in found), ")"])


def _parts(value: object) -> tuple[str, Sequence[tuple[str, object]], str]:
    match value:
        case CodeCall():
            keywords = [(f"{name}=", each) for name, each in value.keywords.items()]
            return f"{value.function}(", [*_unnamed(value.positional), *keywords], ")"
        case Mapping():
            return "{", [(f"{_text(str(key))}: ", each) for key, each in value.items()], "}"
        case list() | tuple():
            return "[", _unnamed(value), "]"
        case _:
            return _scalar(value), (), ""


def _unnamed(values: Iterable[object]) -> list[tuple[str, object]]:
    return [("", each) for each in values]


def _scalar(value: object) -> str:
    match value:
        case Name():
            return value.text
        case str():
            return _text(value)
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case _:
            return repr(value)


def _text(text: str) -> str:
    """A string literal in double quotes, raw where backslashes are many and it can be."""
    if "\\" in text and text.isprintable() and '"' not in text and not text.endswith("\\"):
        return f'r"{text}"'
    if text.isprintable() and "\\" not in text:
        quote = "'" if '"' in text and "'" not in text else '"'
        return quote + text.replace(quote, f"\\{quote}") + quote
    return json.dumps(text) if text.isascii() else repr(text)
