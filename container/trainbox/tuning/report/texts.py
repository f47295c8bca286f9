"""Texts of trials in a page: names, values and reasons are anyone's, so that none of them may become markup."""

import html

from trainbox.contract.text import printable, six_digits, visible
from trainbox.tuning.records import TrialRecord

#: Of a name in a figure, and on an axis among others.
_LONGEST, _LONGEST_OF_AXIS = 60, 18


def page_text(text: str) -> str:
    """Pure: text for HTML, also for an attribute in quotes: markup and control characters are escaped."""
    return html.escape(printable(visible(text)))


def figure_text(text: str) -> str:
    """Pure: text for a figure on one line; Plotly reads `<b>`, `<a href>` and `&lt;` as HTML does.

    >>> figure_text("<b>eta</b>")
    '&lt;b&gt;eta&lt;/b&gt;'
    """
    return html.escape(_one_line(text, _LONGEST), quote=False)


def axis_name(text: str) -> str:
    """Pure: the name of an axis among others, as `figure_text`, but shorter."""
    return html.escape(_one_line(text, _LONGEST_OF_AXIS), quote=False)


def axis_value(text: str) -> str:
    """Pure: a value at an axis of parallel coordinates, where Plotly reads no HTML."""
    return _one_line(text, _LONGEST_OF_AXIS)


def value_text(text: str) -> str:
    """Pure: a value for people: a number that is not whole has six significant digits."""
    try:
        return text if text.lstrip("-").isdigit() else six_digits(float(text))
    except ValueError:
        return text


def status_text(trial: TrialRecord) -> str:
    """Pure: how a trial ended, in words."""
    if trial.is_stopped_early:
        return "Stopped early"
    if trial.is_interrupted:
        return "Interrupted"
    return "In progress" if trial.status == "InProgress" else trial.status


def describe(trial: TrialRecord) -> str:
    """Pure: what a figure shows of a trial under the pointer."""
    objective = "no objective" if trial.objective is None else f"objective {six_digits(trial.objective)}"
    values = (f"{figure_text(name)} = {figure_text(value_text(text))}" for name, text in trial.values.items())
    return "<br>".join([f"trial {trial.number}: {status_text(trial)}, {objective}", *values])


def _one_line(text: str, most: int) -> str:
    line = printable(visible(text.replace("\n", "\\n").replace("\t", "\\t")))
    return line if len(line) <= most else f"{line[: most - 1]}…"
