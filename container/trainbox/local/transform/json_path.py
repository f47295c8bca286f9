"""JSONPath, as far as batch transform has it: `$[1:]`, `$.features`, `$['id','SageMakerOutput']`, `$[0,-1]`, `$.a.*`.

Source: https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html, "Supported JSONPath
Operators"; what it does not list (`..`, filters, steps of slices) is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from trainbox.contract.text import short
from trainbox.errors import DataError, RunError

#: API DataProcessing: InputFilter and OutputFilter.
LONGEST_PATH = 63
_NAME = re.compile(r"\.(?P<name>[^.\[\]'\"\s*,]+)")
_BRACKET = re.compile(r"\.?\[(?P<inner>(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\]'\"])*)\]")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_OPERATORS = "it may have $ .NAME .* ['NAME','NAME'] [INDEX,INDEX] [START:END] [*]"


class ChildNames(msgspec.Struct, frozen=True):
    """Children by name."""

    names: tuple[str, ...]


class Slice(msgspec.Struct, frozen=True):
    """Elements from `start` to before `end`; None is the beginning or the end of the array."""

    start: int | None
    end: int | None


class Indexes(msgspec.Struct, frozen=True):
    """Elements by place; -1 is the last."""

    places: tuple[int | Slice, ...]


class Wildcard(msgspec.Struct, frozen=True):
    """All children."""


Step: TypeAlias = ChildNames | Indexes | Wildcard


class JsonPath(msgspec.Struct, frozen=True):
    """A parsed path."""

    text: str
    steps: tuple[Step, ...]

    @property
    def is_root(self) -> bool:
        """Whether it selects all of a value."""
        return not self.steps

    @property
    def fits_rows(self) -> bool:
        """Whether it can select from a row of CSV, which is an array of cells."""
        return self.is_root or (len(self.steps) == 1 and not isinstance(self.steps[0], ChildNames))


def parse_path(text: str, *, flag: str) -> JsonPath:
    """Parse a path.

    Args:
        text: The path.
        flag: Where it was given, for the error.

    Raises:
        RunError: It is no path that SageMaker takes; says which part.
    """
    if len(text) > LONGEST_PATH:
        raise RunError(f"{flag} has {len(text)} characters", hint=f"SageMaker takes at most {LONGEST_PATH}")
    if not text.startswith("$"):
        raise RunError(f"{flag} {short(text)} does not begin with $", hint=_OPERATORS)
    steps, place = [], 1
    while place < len(text):
        step, place = _parse_step(text, place, flag)
        steps.append(step)
    return JsonPath(text, tuple(steps))


def _parse_step(text: str, place: int, flag: str) -> tuple[Step, int]:
    if text.startswith(".*", place):
        return Wildcard(), place + 2
    if found := _NAME.match(text, place):
        return ChildNames((found["name"],)), found.end()
    if found := _BRACKET.match(text, place):
        step = _parse_bracket(found["inner"].strip())
        if step is not None:
            return step, found.end()
    raise RunError(f"{flag} {short(text)} cannot be read from {short(text[place:])} on", hint=_OPERATORS)


def _parse_bracket(inner: str) -> Step | None:
    if inner == "*":
        return Wildcard()
    if inner[:1] in {"'", '"'}:
        names = tuple(re.sub(r"\\(.)", r"\1", one or other) for one, other in _QUOTED.findall(inner))
        return ChildNames(names) if re.fullmatch(r"[\s,]*", _QUOTED.sub("", inner)) and _commas(inner) else None
    places = tuple(_parse_place(part.strip()) for part in inner.split(","))
    found = tuple(place for place in places if place is not None)
    return Indexes(found) if len(found) == len(places) else None


def _commas(inner: str) -> bool:
    """Whether there is one comma between two names, and none else."""
    return len(_QUOTED.sub("", inner).replace(" ", "")) == len(_QUOTED.findall(inner)) - 1


def _parse_place(text: str) -> int | Slice | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    ends = [end.strip() for end in text.split(":")]
    if len(ends) != 2 or any(end and not _INTEGER.fullmatch(end) for end in ends):  # noqa: PLR2004 - start and end
        return None
    start, end = (int(end) if end else None for end in ends)
    return Slice(start, end)


def select(path: JsonPath, value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return what a path selects: the value itself where it names one, an array where it may name several.

    Several names behind each other at the end of a path give an object of these, in the order of the path.

    Raises:
        DataError: The value has no such child.
    """
    found, is_one = [value], True
    for number, step in enumerate(path.steps, start=1):
        if isinstance(step, ChildNames) and len(step.names) > 1 and number == len(path.steps):
            found = [{name: _child(each, name, path) for name in step.names} for each in found]
        else:
            found = [child for each in found for child in _children(each, step, path)]
            is_one = is_one and _names_one(step)
    return found[0] if is_one else found


def _names_one(step: Step) -> bool:
    if isinstance(step, ChildNames):
        return len(step.names) == 1
    return isinstance(step, Indexes) and len(step.places) == 1 and not isinstance(step.places[0], Slice)


def _children(value: Any, step: Step, path: JsonPath) -> Sequence[Any]:  # noqa: ANN401
    if isinstance(step, ChildNames):
        return [_child(value, name, path) for name in step.names]
    if isinstance(step, Wildcard):
        if isinstance(value, Mapping):
            return list(value.values())
        if isinstance(value, list):
            return value
        raise DataError(f"{path.text} asks for the children of {_kind(value)}")
    if not isinstance(value, list):
        raise DataError(f"{path.text} asks for elements of {_kind(value)}")
    return [element for place in step.places for element in _elements(value, place, path)]


def _elements(values: Sequence[Any], place: int | Slice, path: JsonPath) -> Sequence[Any]:
    if isinstance(place, Slice):
        found = values[place.start : place.end]
    else:
        found = [values[place]] if -len(values) <= place < len(values) else []
    if not found:
        raise DataError(f"{path.text} asks for what {len(values)} elements do not have")
    return found


def _child(value: Any, name: str, path: JsonPath) -> Any:  # noqa: ANN401
    if not isinstance(value, Mapping):
        raise DataError(f"{path.text} asks for {short(name)} of {_kind(value)}")
    if name not in value:
        raise DataError(f"{path.text} asks for {short(name)}, which is missing")
    return value[name]


def _kind(value: Any) -> str:  # noqa: ANN401
    kinds: tuple[tuple[type, str], ...] = ((dict, "an object"), (list, "an array"), (str, "a text"), (bool, "a truth"))
    return next((words for kind, words in kinds if isinstance(value, kind)), "null" if value is None else "a number")
