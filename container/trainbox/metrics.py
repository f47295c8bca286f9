r"""Declare a metric once: the line that logs it, the regex that reads it back, the tuner's JSON.

The one format, for any language that can print a line:

    [metrics] step=5 train:auc=0.86597 validation:auc=0.84081
    [metrics] final validation:auc=0.8512

One space between tokens, no tab, no carriage return: CloudWatch shows those as `#011` and `#015`, and a regex that
works on a laptop then finds nothing in the cloud. The regex is anchored on `[metrics] ` and not on `^`: local mode
(`algo-1 | `), torchrun (`[rank0]:`) and a progress bar without newline all put something before the line.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import UnsupportedOperation
from typing import Literal, SupportsFloat, SupportsIndex, cast

import msgspec

from trainbox.errors import MetricError

# Limits of MetricDefinition and of AlgorithmSpecification.MetricDefinitions (a name may have 255 characters there).
# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_MetricDefinition.html
MAX_DEFINITIONS = 40
MAX_REGEX_LENGTH = 500
MAX_NAME_LENGTH = 200
MAX_UNREAD_KEPT = 10
MAX_STEP = 10**18 - 1

PREFIX = "[metrics] "
NOT_A_NUMBER = "not-a-number"
INFINITE = "infinite"

# The parts of every regex: only what Python and Java read alike (no \d, which is Unicode in Python). No repetition
# runs across "[", so two places where a match may begin never scan the same text: the time stays linear in the length
# of the line. Between step and metric is one character class, no repeated group: Java spends stack on each turn of it.
_NAME = "[A-Za-z0-9_][A-Za-z0-9_:.@/+-]*"
_HEAD = r"\[metrics\] (?:step=[0-9]{1,18}|final)"
_TOKENS = " [A-Za-z0-9_:.@/+= -]*"
_FLOAT = r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_LINE = re.compile(rf"\[metrics\] (?:step=([0-9]{{1,18}})|final)({_TOKENS})")
_VALUE = re.compile(rf" ({_NAME})=({_FLOAT})(?=\s|$)")


class Metric(msgspec.Struct, frozen=True):
    """Declare a metric: its name, and whether higher or lower is better.

    >>> Metric("validation:auc", "maximize").goal
    'maximize'
    """

    name: str
    goal: Literal["maximize", "minimize"]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(_NAME, self.name):
            raise MetricError(
                f"metric name {self.name!r} cannot be logged",
                hint="begin with a letter, digit or '_'; go on with letters, digits and _ : . @ / + -",
            )
        if len(self.name) > MAX_NAME_LENGTH:
            raise MetricError(
                f"metric name '{self.name[:40]}…' has {len(self.name)} characters",
                hint=f"at most {MAX_NAME_LENGTH} are allowed",
            )
        if self.goal not in ("maximize", "minimize"):
            raise MetricError(f"metric '{self.name}' has the goal {self.goal!r}", hint="use 'maximize' or 'minimize'")
        if len(self.regex) > MAX_REGEX_LENGTH:
            raise MetricError(
                f"metric name '{self.name[:40]}…' needs a regex of {len(self.regex)} characters; "
                f"SageMaker takes {MAX_REGEX_LENGTH}",
                hint="use a shorter name, or fewer '.' and '+' in it",
            )

    @property
    def regex(self) -> str:
        """The regex that finds the value of this metric, and of no other, in a metric line."""
        name = re.sub(r"([.+])", r"\\\1", self.name)
        return rf"{_HEAD}(?:{_TOKENS})? {name}=({_FLOAT})(?:\s|$)"


class Sample(msgspec.Struct, frozen=True):
    """What one metric line says; `step` is None in the final line."""

    step: int | None
    values: Mapping[str, float]


class MetricSummary(msgspec.Struct, frozen=True):
    """What the regex of one metric finds in a log; `last` is what SageMaker's tuner takes."""

    metric: Metric
    count: int = 0
    first: float | None = None
    last: float | None = None
    best: float | None = None


class UnreadLine(msgspec.Struct, frozen=True):
    """A line that looks like a metric line, but in which no regex finds a number."""

    number: int
    text: str


class Check(msgspec.Struct, frozen=True):
    """What a log holds for the metrics declared.

    Args:
        findings: One for each metric, in their order.
        unread_count: How many lines look like metric lines but are read by no regex.
        unread: The first ten of these.
        undeclared: Names that are logged in metric lines but not declared.
    """

    findings: tuple[MetricSummary, ...]
    unread_count: int
    unread: tuple[UnreadLine, ...]
    undeclared: tuple[str, ...]


def line(step: SupportsIndex, values: Mapping[Metric, SupportsFloat]) -> str:
    """The line that logs the values of one step, without its newline.

    >>> line(5, {Metric("train:auc", "maximize"): 0.86597})
    '[metrics] step=5 train:auc=0.86597'
    """
    return f"{PREFIX}step={_step(step)} {_tokens(values)}"


def final_line(values: Mapping[Metric, SupportsFloat]) -> str:
    """The line that logs the selected values after everything else, because the tuner takes the last one it sees.

    >>> final_line({Metric("validation:auc", "maximize"): 0.8512})
    '[metrics] final validation:auc=0.8512'
    """
    return f"{PREFIX}final {_tokens(values)}"


def warnings(values: Mapping[Metric, SupportsFloat]) -> tuple[str, ...]:
    """One sentence for each value that no regex will read because it is not finite.

    >>> warnings({Metric("loss", "minimize"): 0.5})
    ()
    """
    words = {metric.name: _number(metric, value) for metric, value in values.items()}
    return tuple(
        f"metric '{name}' is {number!r}: logged as '{_word(number)}', which SageMaker does not read"
        for name, number in words.items()
        if not math.isfinite(number)
    )


def check_objective(name: object, values: Mapping[Metric, SupportsFloat]) -> None:
    """Refuse an objective of a tuning job that says nothing about the model that is saved.

    A tuner takes the last number that it finds in the log: that of an earlier model, or none.

    Args:
        name: Of the objective, as the request says it: with its channel, or for `validation` without; or nothing.
        values: The final ones.

    Raises:
        MetricError: It is among them, and is not a finite number.
    """
    for metric, value in values.items():
        if metric.name in {name, f"validation:{name}"} and not math.isfinite(number := _number(metric, value)):
            raise MetricError(
                f"the objective of the tuning job, '{metric.name}', is {number!r} for the model that is saved",
                hint="check the rows it is computed from (auc needs both classes, for example), or tune another metric",
            )


def emit(text: str) -> None:
    """Print one line to stdout in one write, so that no other writer's output can cut it.

    The system keeps a write to a pipe whole up to 4,096 bytes (PIPE_BUF); a longer one can mix with other writers.
    """
    sys.stdout.flush()  # what the script printed before stays before
    try:
        descriptor = sys.stdout.fileno()
    except UnsupportedOperation:  # stdout is no file: a notebook, or a test that captures it
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        return
    rest = memoryview(f"{text}\n".encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def parse_line(text: str) -> Sample | None:
    """What a line of a log says, prefix or not; None if it is no metric line.

    Reads a number exactly where the generated regexes read one, so a value logged in words (not-a-number) is left out.

    >>> parse_line("[metrics] final validation:auc=0.8512")
    Sample(step=None, values={'validation:auc': 0.8512})
    """
    if PREFIX not in text:
        return None
    found = _LINE.search(text)
    if found is None:
        return None
    step, tokens = found.groups()
    following = text[found.end() : found.end() + 1]
    if following and not following.isspace():
        tokens = tokens[: tokens.rfind(" ")]  # the last token goes on with a character of no metric line
    return Sample(
        step=None if step is None else int(step),
        values={name: float(number) for name, number in _VALUE.findall(tokens)},
    )


def definitions(metrics: Iterable[Metric]) -> list[dict[str, str]]:
    """`AlgorithmSpecification.MetricDefinitions` of a training job.

    >>> definitions([Metric("loss", "minimize")])[0]["Name"]
    'loss'
    """
    declared = tuple(metrics)
    names = [metric.name for metric in declared]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MetricError(f"declared more than once: {_listed(twice)}", hint="declare each metric once and import it")
    if len(declared) > MAX_DEFINITIONS:
        raise MetricError(
            f"{len(declared)} metrics are declared; SageMaker takes {MAX_DEFINITIONS}",
            hint="log the others without declaring them to SageMaker",
        )
    return [{"Name": metric.name, "Regex": metric.regex} for metric in declared]


def check(metrics: Sequence[Metric], lines: Iterable[str]) -> Check:
    """Run each metric's regex over the lines of a log, as SageMaker does."""
    patterns = [(metric, re.compile(metric.regex)) for metric in metrics]
    readings: dict[Metric, list[float]] = {metric: [] for metric in metrics}
    names = {metric.name for metric in metrics}
    undeclared: dict[str, None] = {}
    unread: list[UnreadLine] = []
    unread_count = 0
    for number, text in enumerate(lines, start=1):
        if PREFIX.rstrip() not in text:
            continue
        hits = [(metric, found[1]) for metric, pattern in patterns if (found := pattern.search(text))]
        for metric, value in hits:
            readings[metric].append(float(value))
        sample = parse_line(text)
        if sample is not None:
            undeclared.update(dict.fromkeys(name for name in sample.values if name not in names))
        if hits or (sample is not None and sample.values):  # the latter is read once it is declared
            continue
        unread_count += 1
        if len(unread) < MAX_UNREAD_KEPT:
            unread.append(UnreadLine(number, text.rstrip("\r\n")))
    findings = tuple(_summarize(metric, values) for metric, values in readings.items())
    return Check(findings=findings, unread_count=unread_count, unread=tuple(unread), undeclared=tuple(undeclared))


def _summarize(metric: Metric, values: Sequence[float]) -> MetricSummary:
    if not values:
        return MetricSummary(metric)
    best = max(values) if metric.goal == "maximize" else min(values)
    return MetricSummary(metric, count=len(values), first=values[0], last=values[-1], best=best)


def _step(step: SupportsIndex) -> int:
    try:
        number = step.__index__()
    except (AttributeError, TypeError):
        raise MetricError(f"step {step!r} is not a whole number", hint="count steps, rounds or epochs from 0") from None
    if not 0 <= number <= MAX_STEP:
        raise MetricError(f"step {number} is out of range", hint="count steps, rounds or epochs from 0")
    return number


def _tokens(values: Mapping[Metric, SupportsFloat]) -> str:
    if not values:
        raise MetricError("no metric to log", hint="give at least one, as {METRIC: value}")
    numbers = [(metric, _number(metric, value)) for metric, value in values.items()]
    names = [metric.name for metric, _ in numbers]
    if len(set(names)) < len(names):
        raise MetricError(f"the same metric twice in one line: {_listed(names)}", hint="declare each metric once")
    return " ".join(f"{metric.name}={_word(number)}" for metric, number in numbers)


def _number(metric: Metric, value: SupportsFloat) -> float:
    if not isinstance(cast("object", metric), Metric):
        raise MetricError(
            f"{metric!r} is logged but not declared as a metric",
            hint=f"write Metric({metric!r}, 'maximize') or 'minimize' once, and log with that",
        )
    if isinstance(value, str | bytes):
        raise MetricError(f"metric '{metric.name}' has the value {value!r}, expected a number", hint="convert it first")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise MetricError(
            f"metric '{metric.name}' has a value of type {type(value).__name__}, expected one number: {error}",
            hint="log a single number, such as loss.item()",
        ) from error


def _word(number: float) -> str:
    if math.isnan(number):
        return NOT_A_NUMBER
    if math.isinf(number):
        return INFINITE if number > 0 else f"-{INFINITE}"
    return repr(number)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
