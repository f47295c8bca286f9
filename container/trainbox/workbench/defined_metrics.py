"""MetricDefinitions: the value that a regular expression of the request finds in a line of the log.

SageMaker searches each line. So does this, one line at a time and no more of it than `LONGEST_SEARCHED`, so that the
time grows with the length of the log. A regular expression whose own time can double with every character is not
searched, and one that is slow all the same is given up; both are told.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from trainbox.clock import Clock
from trainbox.contract.job_spec import MetricDefinition
from trainbox.workbench.curves import MARK, Curves

#: Characters of a line; a metric further behind is not found.
LONGEST_SEARCHED = 2_000
#: For one line.
SLOW_SECONDS = 1.0
#: In a pattern: an escaped character, a class, what a group begins with, or any other character.
_PART = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[^:()]*?[:=!>)]|\{[0-9]*,?[0-9]*\}[?+]?|[*+?][?+]?|.",
    re.DOTALL,
)


class DefinedValue(msgspec.Struct, frozen=True):
    """What a definition has found."""

    name: str
    value: float


class LineValue(msgspec.Struct, frozen=True):
    """A metric in a line; `step` is None for a selected value."""

    name: str
    value: float
    step: int | None


class DefinedMetrics:
    """Searches lines for the metrics of the request.

    Args:
        definitions: Those of the request.
        say: Tells a person.
        clock: The time in seconds.
    """

    def __init__(
        self,
        definitions: Sequence[MetricDefinition],
        say: Callable[[str], None],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._say = say
        self._clock = clock
        self._searches: dict[str, Callable[[str], re.Match[str] | None]] = {}
        self._is_cut_told = False
        for definition in definitions:
            problem = refuse(definition.regex)
            if problem:
                say(f"metric {definition.name!r} is not searched for: {problem}")
            else:
                pattern = re.compile(definition.regex)
                # Where it is not found from the start, `.*` finds it nowhere: one look in place of one for each place.
                self._searches[definition.name] = pattern.match if is_found_at_start(pattern) else pattern.search

    def __bool__(self) -> bool:
        """Whether there is anything to search for."""
        return bool(self._searches)

    def find(self, line: str) -> Iterator[DefinedValue]:
        """The values in a line: what the first group of each regular expression finds, if it is a number."""
        if len(line) > LONGEST_SEARCHED and not self._is_cut_told:
            self._is_cut_told = True
            self._say(f"metrics are searched for in the first {LONGEST_SEARCHED:,} characters of a line")
        for name, search in tuple(self._searches.items()):
            started = self._clock()
            found = search(line[:LONGEST_SEARCHED])
            if self._clock() - started > SLOW_SECONDS:
                del self._searches[name]
                self._say(
                    f"metric {name!r} is not searched for any more: its regular expression took more than"
                    f" {SLOW_SECONDS:g} s for one line"
                )
            value = None if found is None else _number(found)
            if value is not None:
                yield DefinedValue(name, value)


def read_line(host: str, line: bytes, curves: Curves, defined: DefinedMetrics) -> list[LineValue]:
    """Take one line of a host's log: our own metric lines, and what the request defines.

    Where both say a metric of one name, our own line counts, which has the step.

    Args:
        host: Whose.
        line: As it was written.
        curves: Where the values go.
        defined: The metrics of the request.
    """
    if MARK not in line and not defined:
        return []
    text = line.decode(errors="replace").rstrip("\r\n")
    sample = curves.read(host, text) if MARK in line else None
    found = [LineValue(name, value, sample.step) for name, value in sample.values.items()] if sample else []
    own = {each.name for each in found}
    for each in defined.find(text):
        if each.name not in own:
            step = curves.add(host, each.name, each.value)
            found += [] if step is None else [LineValue(each.name, each.value, step)]
    return found


def _number(found: "re.Match[str]") -> float | None:
    """The first group as a number; one of `re`'s own groups that took no part has none."""
    try:
        return float(found[1] or "")
    except ValueError:
        return None


def refuse(regex: str) -> str:
    """Pure: why a regular expression is not searched for; empty where it is."""
    try:
        groups = re.compile(regex).groups
    except (re.error, OverflowError, RecursionError) as error:
        return f"its regular expression {regex!r} is malformed: {error}"
    if not groups:
        return f"its regular expression {regex!r} has no group (…) around the value"
    if can_explode(regex):
        return (
            f"its regular expression {regex!r} repeats a group that repeats something itself or has alternatives,"
            " which can take for ever"
        )
    return ""


def is_found_at_start(pattern: "re.Pattern[str]") -> bool:
    """Pure: whether what a regular expression finds in a line, it finds from the start: it begins with `.*`.

    >>> is_found_at_start(re.compile(".*loss=(.)")), is_found_at_start(re.compile(".*a(b)|(c)"))
    (True, False)
    """
    depth = 0
    parts = _PART.findall(pattern.pattern)
    for part in parts:
        depth += (part[0] == "(" and not part.endswith(")")) - (part == ")")
        if part == "|" and depth == 0:
            return False
    return parts[:1] == ["."] and parts[1:2] in (["*"], ["*?"]) and not pattern.flags & re.VERBOSE


def can_explode(regex: str) -> bool:
    """Pure: whether the time may double with each character: a repeated group has a repeat or an alternative in it.

    >>> can_explode("loss=([0-9.]+)"), can_explode("(a+)+b"), can_explode("(?:a|ab)*c")
    (False, True, True)
    """
    #: For each open group: whether what is in it can match in several ways.
    open_groups = [False]
    closed = False
    for part in _PART.findall(regex):
        if part[0] == "(" and not part.endswith(")"):
            open_groups.append(False)
            closed = False
        elif part == ")" and len(open_groups) > 1:
            closed = open_groups.pop()
            open_groups[-1] = open_groups[-1] or closed
        elif part[0] in "*+?{" and part != "{":
            if closed and part[0] != "?":
                return True
            open_groups[-1] = True
            closed = False
        else:
            open_groups[-1] = open_groups[-1] or part == "|"
            closed = False
    return False
