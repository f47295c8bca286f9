"""The table of trials, and the facts above it, as HTML."""

from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from trainbox.contract.text import printable, six_digits
from trainbox.tuning.records import TrialRecord, TuningRecord
from trainbox.tuning.report.texts import page_text, status_text, value_text


def facts(record: TuningRecord) -> str:
    """Pure: what was searched, and what came of it, as a list of definitions."""
    counts = Counter(status_text(trial).lower() for trial in record.trials)
    trials = f"{len(record.trials)} of {record.max_trials}"
    if counts:
        trials += f" ({', '.join(f'{count} {status}' for status, count in counts.items())})"
    static = ", ".join(f"{name} = {text}" for name, text in record.static.items())
    early = ", early stopping" if record.early_stopping else ""
    rows = {
        "program": record.program,
        "objective": f"{record.objective.name} ({record.objective.goal.lower()})",
        "strategy": f"{record.strategy}, {record.max_parallel} at a time, seed {record.seed}{early}",
        "trials": trials,
        "the same in all trials": static or "nothing",
        "best": _best(record),
        **({"learned from": ", ".join(record.warm_start)} if record.warm_start else {}),
        **({"ended": record.failure_reason} if record.failure_reason else {}),
    }
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{page_text(text)}</dd>' for name, text in rows.items())}</dl>"


def trial_table(record: TuningRecord, problems: Mapping[int, str]) -> str:
    """Pure: the table; a click on a head sorts it.

    Args:
        record: Of the tuning job.
        problems: By trial, why its `job.json` cannot be used.
    """
    names = [each.name for each in record.ranges]
    heads = ["trial", "status", record.objective.name, *names, "seconds", "started", "why"]
    head = "".join(f'<th tabindex="0">{page_text(name)}</th>' for name in heads)
    rows = (_row(trial, names, trial.number == record.best, problems) for trial in record.trials)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _best(record: TuningRecord) -> str:
    best = next((trial for trial in record.trials if trial.number == record.best), None)
    if best is None or best.objective is None:
        return "no trial has an objective"
    values = ", ".join(f"{name} = {value_text(text)}" for name, text in best.values.items())
    return f"trial {best.number}: {six_digits(best.objective)} with {values}"


def _row(trial: TrialRecord, names: Iterable[str], is_best: bool, problems: Mapping[int, str]) -> str:
    status = status_text(trial)
    objective = "" if trial.objective is None else repr(trial.objective)
    reasons = [reason for reason in (trial.failure_reason, problems.get(trial.number, "")) if reason]
    cells = [
        _linked_cell(trial),
        _cell(status, f"word {status.lower().replace(' ', '-')}"),
        _number_cell(objective),
        *(_number_cell(trial.values.get(name, "")) for name in names),
        _cell(f"{trial.seconds:.1f}"),
        _cell(trial.started, "word"),
        _cell("\n".join(reasons), "reason"),
    ]
    kind = ' class="best"' if is_best else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{page_text(text)}</td>'


def _number_cell(text: str) -> str:
    """A value for people; all of its digits sort, and appear under the pointer."""
    whole = page_text(text)
    return f'<td data-value="{whole}" title="{whole}">{page_text(value_text(text))}</td>'


def _linked_cell(trial: TrialRecord) -> str:
    """The number, with a link to the folder; `./` keeps a path from being read as a scheme."""
    link = f"./{quote(printable(trial.out))}/"
    return f'<td data-value="{trial.number}"><a href="{page_text(link)}">{trial.number}</a></td>'
