"""The figures of a report, as Plotly draws them."""

import itertools
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from trainbox.local.results.record import Curve
from trainbox.tuning.records import TrialRecord, TuningRecord
from trainbox.tuning.report.axes import Axis, number_axis, parameter_axis
from trainbox.tuning.report.texts import describe, figure_text, status_text
from trainbox.tuning.search_space import is_within

_INK, _PALE, _ACCENT, _GRID = "#24292f", "#9aa7b4", "#0969da", "#e6eaee"
_COLOURS = {"Completed": _ACCENT, "Stopped early": "#bf8700", "Stopped": "#bf8700", "Failed": "#cf222e"}
_SYMBOLS = {"Completed": "circle", "Stopped early": "diamond", "Stopped": "diamond", "Failed": "x"}
_SCALE = "Viridis"
_HEIGHT = 380
#: Below so many lines each is drawn in full strength.
_FEW_LINES = 12


def objective_figure(record: TuningRecord) -> go.Figure | None:
    """Pure: the objective of each trial, and the best so far; None where no trial has an objective."""
    found = _with_objective(record.trials)
    if not found:
        return None
    figure = _new_figure("trial", figure_text(record.objective.name))
    best = _best_so_far([value for _, value in found], record.objective.goal == "Maximize")
    numbers = [trial.number for trial, _ in found]
    line = {"shape": "hv", "color": _PALE, "width": 2}
    figure.add_scatter(x=numbers, y=best, mode="lines", name="best so far", line=line, hoverinfo="skip")
    for status in dict.fromkeys(status_text(trial) for trial, _ in found):
        chosen = [(trial, value) for trial, value in found if status_text(trial) == status]
        figure.add_scatter(
            x=[trial.number for trial, _ in chosen],
            y=[value for _, value in chosen],
            mode="markers",
            name=status.lower(),
            marker={"size": 9, "color": _COLOURS.get(status, _PALE), "symbol": _SYMBOLS.get(status, "circle-open")},
            hovertext=[describe(trial) for trial, _ in chosen],
            hoverinfo="text",
        )
    last = max(trial.number for trial in record.trials)
    figure.update_xaxes(range=[0.5, last + 0.5], tickformat="d", **({"dtick": 1} if last < _FEW_LINES else {}))
    return figure


def curves_figure(record: TuningRecord, metrics: Mapping[str, Mapping[int, Curve]]) -> go.Figure | None:
    """Pure: one metric of all trials over its steps, with a menu of the metrics; None where nothing was logged."""
    if not metrics:
        return None
    trials = [trial for trial in record.trials if any(trial.number in curves for curves in metrics.values())]
    # The best is drawn last, so that none lies over it.
    trials.sort(key=lambda trial: trial.number == record.best)
    first = next(iter(metrics))
    figure = _new_figure("step", figure_text(first))
    shades = _shades(record)
    for trial in trials:
        curve = metrics[first].get(trial.number, Curve((), ()))
        is_best = trial.number == record.best
        figure.add_scatter(
            x=curve.steps,
            y=curve.values,
            mode="lines+markers" if len(curve.steps) == 1 else "lines",
            name=f"trial {trial.number}{' (best)' if is_best else ''}",
            line={"color": _ACCENT if is_best else shades[trial.number], "width": 3 if is_best else 1.2},
            opacity=1 if is_best or len(trials) < _FEW_LINES else 0.6,
            text=describe(trial),
            hoverinfo="text+x+y",
            showlegend=is_best or len(trials) < _FEW_LINES,
        )
    if len(metrics) > 1:
        figure.update_layout(updatemenus=[_menu(metrics, trials)], margin={"t": 70})
    return figure


def parallel_figure(record: TuningRecord) -> go.Figure | None:
    """Pure: each trial with an objective as a line over its hyperparameters; None where there is no such trial."""
    found = [
        (trial, value) for trial, value in _with_objective(record.trials) if is_within(trial.values, record.ranges)
    ]
    if not found:
        return None
    objectives = [value for _, value in found]
    axes = [
        *(parameter_axis(each, [trial.values[each.name] for trial, _ in found]) for each in record.ranges),
        number_axis(record.objective.name, objectives),
    ]
    ends = axes[-1].ends
    figure = go.Figure(layout=_layout())
    figure.add_parcoords(
        dimensions=[_dimension(axis) for axis in axes],
        line={
            "color": objectives,
            "colorscale": _SCALE,
            "reversescale": record.objective.goal == "Minimize",
            "cmin": ends[0],
            "cmax": ends[1],
            "showscale": True,
            "colorbar": {"thickness": 12},
        },
        labelfont={"size": 13, "color": _INK},
        tickfont={"size": 11, "color": _INK},
        rangefont={"size": 1, "color": "rgba(0,0,0,0)"},  # the ends are ticks already
    )
    figure.update_layout(margin={"l": 90, "r": 60, "t": 60, "b": 30})
    return figure


def importance_figure(shares: Mapping[str, float]) -> go.Figure | None:
    """Pure: the share of each hyperparameter, the largest on top; None where there are none."""
    if not shares:
        return None
    names = [*shares][::-1]
    figure = _new_figure("share", "")
    figure.add_bar(
        x=[shares[name] for name in names],
        y=[*range(len(names))],
        orientation="h",
        marker={"color": _ACCENT},
        text=[f"{shares[name]:.2f}" for name in names],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
        width=0.6,
    )
    figure.update_yaxes(tickvals=[*range(len(names))], ticktext=[figure_text(name) for name in names], showgrid=False)
    figure.update_layout(height=100 + 36 * len(names), margin={"l": 160, "r": 60, "t": 20})
    return figure


def _with_objective(trials: Sequence[TrialRecord]) -> list[tuple[TrialRecord, float]]:
    return [
        (trial, trial.objective) for trial in trials if trial.objective is not None and math.isfinite(trial.objective)
    ]


def _best_so_far(values: Sequence[float], is_more_better: bool) -> list[float]:
    return [*itertools.accumulate(values, max if is_more_better else min)]


def _shades(record: TuningRecord) -> dict[int, str]:
    """A shade of grey and blue for each trial: the better its objective, the darker."""
    ranked = sorted(
        _with_objective(record.trials), key=lambda each: each[1], reverse=record.objective.goal == "Minimize"
    )
    places = {trial.number: place / max(1, len(ranked) - 1) for place, (trial, _) in enumerate(ranked)}
    return {trial.number: _shade(places.get(trial.number, 0.0)) for trial in record.trials}


def _shade(place: float) -> str:
    red, green, blue = (round(light + (dark - light) * place) for light, dark in ((205, 84), (213, 130), (221, 190)))
    return f"rgb({red},{green},{blue})"


def _menu(metrics: Mapping[str, Mapping[int, Curve]], trials: Sequence[TrialRecord]) -> dict[str, object]:
    """A button for each metric, which puts its curves into the lines of the trials."""
    buttons = []
    for name, curves in metrics.items():
        shown = [curves.get(trial.number, Curve((), ())) for trial in trials]
        lines = {"x": [curve.steps for curve in shown], "y": [curve.values for curve in shown]}
        label = figure_text(name)
        buttons.append({"label": label, "method": "update", "args": [lines, {"yaxis.title.text": label}]})
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"t": 4, "b": 8}}


def _dimension(axis: Axis) -> dict[str, object]:
    return {
        "label": axis.label,
        "values": axis.values,
        "range": axis.ends,
        "tickvals": axis.ticks,
        "ticktext": axis.tick_texts,
    }


def _new_figure(x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure(layout=_layout())
    line = {"gridcolor": _GRID, "linecolor": _PALE, "zeroline": False, "automargin": True}
    figure.update_xaxes(title={"text": x_title}, **line)
    figure.update_yaxes(title={"text": y_title}, **line)
    return figure


def _layout() -> go.Layout:
    return go.Layout(
        template=go.layout.Template(),
        height=_HEIGHT,
        margin={"l": 70, "r": 30, "t": 30, "b": 50},
        plot_bgcolor="white",
        paper_bgcolor="white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        hovermode="closest",
        legend={"orientation": "v"},
    )
