"""Pure: what is shown of a search and its trials, in lines and tables."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from trainbox.cli.screen.pens import Pen
from trainbox.contract.text import six_digits, visible
from trainbox.tuning.records import TrialRecord, TuningRecord, find_best
from trainbox.tuning.search_space import CategoricalRange, ContinuousRange, IntegerRange, ParameterRange

#: Rows of the table that moves: a terminal has 24 lines.
_MOST_ROWS = 12
#: Characters of a failure's reason, in a line and in a table.
_LONGEST_REASON = 300
_LONGEST_CELL = 80


class Running(Protocol):
    """A trial that runs."""

    trial: TrialRecord
    began: float
    step: int | None
    value: float | None
    is_stopping: bool


def tuning_line(record: TuningRecord) -> str:
    """What is searched, in one line."""
    ended = sum(trial.status != "InProgress" for trial in record.trials)
    so_far = f", {ended} of them have ended" if ended else ""
    names = ", ".join(each.name for each in record.ranges)
    objective = record.objective
    return (
        f"{record.name}: {record.strategy.lower()} search for {names}: {record.max_trials} trials{so_far},"
        f" {record.max_parallel} at a time; {objective.goal.lower()} {objective.name!r}"
    )


def range_line(given: ParameterRange) -> str:
    """What is tried of one hyperparameter."""
    match given:
        case CategoricalRange(name=name, values=values):
            return f"  {name}: {', '.join(values)}"
        case IntegerRange(name=name, low=low, high=high, scaling=scaling):
            return f"  {name}: {low} to {high}, whole numbers, {scaling}"
        case ContinuousRange(name=name, low=low, high=high, scaling=scaling):
            return f"  {name}: {six_digits(low)} to {six_digits(high)}, {scaling}"


def started_line(trial: TrialRecord, *, is_resumed: bool) -> str:
    """A trial that starts."""
    how = "goes on" if is_resumed else "starts"
    return f"trial {trial.number} {how}: {shown_values(trial)}"


def shown_values(trial: TrialRecord) -> str:
    """The values of a trial, in one line."""
    return " ".join(f"{name}={shown_value(value)}" for name, value in trial.values.items())


def shown_value(text: str) -> str:
    """A value with as many digits as one compares."""
    try:
        return six_digits(float(text)) if "." in text or "e" in text else text
    except ValueError:
        return text


def ended_line(trial: TrialRecord, objective: str, *, is_best: bool) -> str:
    """A trial that has ended."""
    value = "" if trial.objective is None else f", {objective} {six_digits(trial.objective)}"
    best = ", the best so far" if is_best else ""
    return f"trial {trial.number}: {state_of(trial)}{value}, {trial.seconds:.1f} s{best}{_because(trial)}"


def _because(trial: TrialRecord) -> str:
    return f": {_short(trial.failure_reason, _LONGEST_REASON)}" if trial.failure_reason else ""


def _short(text: str, most: int) -> str:
    """A reason in one line; the whole of it is in the record."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"


def state_of(trial: TrialRecord) -> str:
    """The status of a trial, and why it was stopped."""
    if trial.is_stopped_early:
        return "Stopped early"
    return "Stopped (goes on with --resume)" if trial.is_interrupted else trial.status


def running_table(pen: Pen, record: TuningRecord, running: Sequence[Running], now: float) -> list[str]:
    """The trials that run, as lines."""
    names = [each.name for each in record.ranges]
    rows = [
        (
            str(each.trial.number),
            *(shown_value(each.trial.values.get(name, "")) for name in names),
            "" if each.step is None else str(each.step),
            "" if each.value is None else six_digits(each.value),
            clock(now - each.began),
            "stopping" if each.is_stopping else "",
        )
        for each in running[:_MOST_ROWS]
    ]
    more = len(running) - _MOST_ROWS
    heads = ("TRIAL", *names, "STEP", record.objective.name, "TIME", "")
    return [*pen.table(heads, rows), *([f"and {more} more"] if more > 0 else [])]


def progress_line(record: TuningRecord, ended: Sequence[TrialRecord], running: int, seconds: float) -> str:
    """How far the search is.

    Args:
        record: As it began.
        ended: The trials that have ended since.
        running: How many run.
        seconds: Since it began.
    """
    known = {trial.number: trial for trial in (*record.trials, *ended) if trial.status != "InProgress"}
    parts = [clock(seconds), f"{len(known)} of {record.max_trials} trials"]
    best = known.get(find_best(list(known.values()), record.objective.goal) or 0)
    if best is not None and best.objective is not None:
        parts.append(f"best {six_digits(best.objective)} (trial {best.number})")
    left = record.max_trials - len(known)
    if ended and left > 0:
        each = sum(trial.seconds for trial in ended) / len(ended)
        parts.append(f"ETA {clock(each * left / max(1, running))}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """A time as a clock shows it, such as 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def tuning_summary(record: TuningRecord, out: Path, pen: Pen, *, has_model: bool, report: str) -> str:
    """The table of all trials, the best one and its directory, and a few things to do next.

    Args:
        record: Of the search.
        out: Its directory.
        pen: Draws where it will be shown.
        has_model: Whether the best trial left a model.
        report: Where the report is, or why there is none.
    """
    lines = ["", *_table(record, pen), ""]
    best, objective = record.best_trial, record.objective
    if best is not None and best.objective is not None:
        value = f"{objective.name} {six_digits(best.objective)}"
        lines.append(f"{pen.styled('best', 'bold green')}    trial {best.number}: {value} with {shown_values(best)}")
        lines.append(f"job     {out / best.out}")
    else:
        lines.append(f"best    none: no trial has {objective.name!r}")
    if record.failure_reason:
        lines.append(f"{pen.styled('ended', 'bold red')}   {_short(record.failure_reason, _LONGEST_REASON)}")
    lines.append(f"record  {out / 'tuning.json'}")
    lines.append(f"report  {report}")
    return (
        visible("\n".join([*lines, "", *(f"Next: {step}" for step in _next_steps(record, out, has_model=has_model))]))
        + "\n"
    )


def _table(record: TuningRecord, pen: Pen) -> list[str]:
    names = [each.name for each in record.ranges]
    rows = [
        (
            f"{trial.number} *" if trial.number == record.best else str(trial.number),
            *(shown_value(trial.values.get(name, "")) for name in names),
            "" if trial.objective is None else six_digits(trial.objective),
            f"{trial.seconds:.1f} s",
            "Stopped early" if trial.is_stopped_early else trial.status,
            _short(trial.failure_reason, _LONGEST_CELL),
        )
        for trial in record.trials
    ]
    return pen.table(("TRIAL", *names, record.objective.name, "TIME", "STATUS", "REASON"), rows)


def _next_steps(record: TuningRecord, out: Path, *, has_model: bool) -> list[str]:
    best = record.best_trial
    steps = []
    if best is not None and has_model:
        steps.append(f"predict with the best: {shlex.join(['trainbox', 'serve', str(out / best.out)])}")
    if record.status == "Stopped":
        steps.append(f"go on: the same command with --resume --out {shlex.quote(str(out))}")
    failed = next((trial for trial in record.trials if trial.failure_reason), None)
    if failed is not None and best is None:
        steps.append(f"read why: {shlex.join(['less', str(out / failed.out / 'logs' / 'algo-1.log')])}")
    if best is not None:
        steps.append(f"search on from here: the same command with --warm-start {shlex.quote(str(out))} --out DIR")
    return steps
