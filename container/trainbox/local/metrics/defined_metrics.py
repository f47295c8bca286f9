"""MetricDefinitions: the value that a regular expression of the request finds in a line of the log.

SageMaker searches each line, and so does this. The time is linear in the length of the log: only the first
`LONGEST_SEARCHED` characters of a line are searched, an expression that can take exponential time is not used, and one
that turns out to be slow is dropped. Each of these is reported once.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from trainbox.clock import Clock
from trainbox.contract.job_spec import MetricDefinition
from trainbox.local.metrics.curves import MARK, Curves

#: Characters of a line that are searched.
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
        note: Reports a note.
        clock: The time in seconds.
    """

    def __init__(
        self,
        definitions: Sequence[MetricDefinition],
        note: Callable[[str], None],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._note = note
        self._clock = clock
        self._searches: dict[str, Callable[[str], re.Match[str] | None]] = {}
        self._is_cut_told = False
        for definition in definitions:
            problem = refuse(definition.regex)
            if problem:
                note(f"metric {definition.name!r} is not recorded: {problem}")
            else:
                pattern = re.compile(definition.regex)
                # With a leading `.*`, no match from the start means no match anywhere: one attempt is enough.
                self._searches[definition.name] = pattern.match if is_found_at_start(pattern) else pattern.search

    def __bool__(self) -> bool:
        """Whether there is anything to search for."""
        return bool(self._searches)

    def find(self, line: str) -> Iterator[DefinedValue]:
        """Yield the values in a line: the first group of each regular expression, if it is a number."""
        if len(line) > LONGEST_SEARCHED and not self._is_cut_told:
            self._is_cut_told = True
            self._note(f"metrics are searched for in the first {LONGEST_SEARCHED:,} characters of a line")
        for name, search in tuple(self._searches.items()):
            started = self._clock()
            found = search(line[:LONGEST_SEARCHED])
            if self._clock() - started > SLOW_SECONDS:
                del self._searches[name]
                self._note(
                    f"metric {name!r} is not recorded any more: its regular expression took more than"
                    f" {SLOW_SECONDS:g} s for one line"
                )
            value = None if found is None else _number(found)
            if value is not None:
                yield DefinedValue(name, value)


def read_line(host: str, line: bytes, curves: Curves, defined: DefinedMetrics) -> list[LineValue]:
    """Record the metrics in one line of a log: those of trainbox's own metric lines, and those of the request.

    If both have a metric of the same name, trainbox's own line counts, because it has the step.

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
    """Return the first group as a number; None if it is not one, or took no part in the match."""
    try:
        return float(found[1] or "")
    except ValueError:
        return None


def refuse(regex: str) -> str:
    """Pure: return why a regular expression is not used; empty if it is."""
    try:
        groups = re.compile(regex).groups
    except (re.error, OverflowError, RecursionError) as error:
        return f"its regular expression {regex!r} is malformed: {error}"
    if not groups:
        return f"its regular expression {regex!r} has no group (…) around the value"
    if can_explode(regex):
        return (
            f"its regular expression {regex!r} repeats a group that has a repetition or alternatives in it, which can"
            " take exponential time"
        )
    return ""


def is_found_at_start(pattern: "re.Pattern[str]") -> bool:
    """Pure: return whether any match of a regular expression in a line begins at its start: it begins with `.*`.

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
    """Pure: return whether matching may take exponential time: a repeated group has a repetition or alternatives in it.

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
