"""Learning curves and feature importance as pictures, PNG and SVG, the same bytes for the same numbers.

Matplotlib is imported when the first picture is drawn: it takes half a second, and a job that is stopped draws nothing.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec
import numpy as np

from trainbox import toolkit
from trainbox.contract.text import six_digits
from trainbox.log_lines import emit
from trainbox.model.figures import (
    BAR_INCHES,
    COLOURS,
    GAP_INCHES,
    INK,
    LONGEST_NAME,
    MOST_COLUMNS,
    PALE,
    PANEL_INCHES,
    SPARSE,
    TICK_STEPS,
    new_figure,
    place,
    save,
    shorten,
    style,
    tick_texts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[Sequence[float], Sequence[float]]
#: Draws one picture and writes its files.
Picture: TypeAlias = Callable[[], None]
T = TypeVar("T")

#: What Matplotlib raises where its installation is broken: no module of that name, a binary for another NumPy, files of
#: two versions, an unknown MPLBACKEND, no directory for its caches, no font, a full disk, `-W error`.
_FAILURES_TO_DRAW = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError),
    *(RuntimeError, SyntaxError, SystemError, TypeError, ValueError, Warning),
)


class FoldCurve(msgspec.Struct, frozen=True):
    """One metric of several folds."""

    steps: Sequence[int]
    #: For each fold one value per step; NaN where the fold has none.
    folds: Sequence[Sequence[float]]
    mean: Sequence[float]
    deviation: Sequence[float]
    #: For each fold the step whose model is saved, and its value.
    selected: Sequence[tuple[int, float]]
    #: Mean and deviation of those values, or of the last ones before.
    summary: tuple[float, float] | None


def draw_pictures(*pictures: Picture, stop: Callable[[], bool] = toolkit.stop_requested) -> None:
    """Draw the pictures of a job; call it last, when model, metrics and checkpoint are written.

    A job that is asked to stop draws no further picture. A picture that cannot be drawn is one line in the log, and the
    job goes on.

    Args:
        pictures: In the order in which they are drawn.
        stop: Whether the job is asked to stop.
    """
    failures: list[str] = []
    for picture in pictures:
        if stop():
            break
        if failure := _try_to_draw(picture):
            failures.append(failure)
    for failure in dict.fromkeys(failures):  # one reason, such as a missing library, is often that of all pictures
        emit(failure)


def _try_to_draw(picture: Picture) -> str:
    """Draw a picture; returns why there is none. The boundary to Matplotlib: its errors end here as a log line."""
    try:
        with _without_advice():
            picture()
    except _FAILURES_TO_DRAW as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "matplotlib":
            return "no pictures: Matplotlib is not installed; the numbers are in output/data as JSON"
        return " ".join(f"WARNING: no pictures: {type(error).__name__}: {error}".split())
    return ""


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep Matplotlib's warnings about its caches and settings out of the job's log."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def draw_curves(
    path: Path,
    curves: Mapping[str, Curve],
    *,
    title: str = "Learning curves",
    step: str = "round",
    selected: float | None = None,
) -> None:
    """Draw the values of each metric over the steps: a panel for each metric, in it a line for each channel.

    Args:
        path: Without its suffix: `<path>.png` and `<path>.svg` are written, each whole.
        curves: By name, such as "validation:auc": the steps, and as many values. Where a value is no finite number
            the line has a gap; a curve may have few points, or one, and they need not be at the same steps.
        title: What stands above.
        step: What the steps count.
        selected: The step whose model is saved: it is marked, with its values.

    Raises:
        OSError: A file cannot be written.
    """

    def draw(axes: "Axes", channel: str, curve: Curve, colour: str) -> None:
        chosen = dict(zip(*curve, strict=True)).get(selected, math.nan) if selected is not None else math.nan
        _draw_curve(axes, curve, colour, label=_curve_label(channel, curve, selected, chosen))
        if selected is not None and math.isfinite(chosen):
            _mark(axes, selected, chosen, colour)

    _draw_panels(path, curves, draw, title=title, step=step)


def draw_folds(
    path: Path, curves: Mapping[str, FoldCurve], *, title: str = "Learning curves", step: str = "round"
) -> None:
    """Draw a cross-validation: in the panel of each metric a line for each fold, their mean, and its deviation.

    Args:
        path: Without its suffix: `<path>.png` and `<path>.svg` are written, each whole.
        curves: By name, such as "validation:auc".
        title: What stands above; the number of folds is put behind it.
        step: What the steps count.

    Raises:
        OSError: A file cannot be written.
    """
    count = max((len(curve.folds) for curve in curves.values()), default=0)

    def draw(axes: "Axes", channel: str, curve: FoldCurve, colour: str) -> None:
        for fold in curve.folds:
            axes.plot(curve.steps, fold, color=colour, linewidth=0.8, alpha=0.45, zorder=2)
        mean, deviation = np.array(curve.mean), np.array(curve.deviation)
        axes.fill_between(curve.steps, mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)
        _draw_curve(axes, (curve.steps, curve.mean), colour, label=_fold_label(channel, curve))
        for at, value in curve.selected:
            axes.plot([at], [value], color=colour, marker="o", markersize=5, markerfacecolor="white", zorder=4)

    _draw_panels(path, curves, draw, title=f"{title} of {count} folds" if count else title, step=step)


def _draw_panels(
    path: Path,
    curves: Mapping[str, T],
    draw: "Callable[[Axes, str, T, str], None]",
    *,
    title: str,
    step: str,
) -> None:
    panels: dict[str, dict[str, T]] = {}
    for name, curve in curves.items():
        channel, _, metric = name.rpartition(":")
        panels.setdefault(metric, {})[channel or metric] = curve
    channels = {channel: number for number, channel in enumerate(_ordered({c: 0 for p in panels.values() for c in p}))}
    columns = min(MOST_COLUMNS, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    with new_figure(PANEL_INCHES[0] * columns + 0.4, PANEL_INCHES[1] * rows + 0.6, title) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in list(grid.flat)[max(1, len(panels)) :]:
            axes.remove()
        for axes, (metric, lines) in zip(grid.flat, panels.items(), strict=False):
            style(axes, "", "both")
            for channel in _ordered(lines):
                draw(axes, channel, lines[channel], COLOURS[channels[channel] % len(COLOURS)])
            _finish_panel(axes, step, metric)
        if not panels:
            style(grid[0, 0], "no metric was logged", "both")
        place(figure, beside=[text for axes in figure.axes for text in tick_texts(axes)], columns=columns, rows=rows)
        save(figure, path)


def draw_importance(
    path: Path, importance: Mapping[str, float], most: int = 30, *, title: str = "Feature importance", kind: str = ""
) -> None:
    """Draw how much each feature matters, the most important on top.

    Args:
        path: Without its suffix: `<path>.png` and `<path>.svg` are written, each whole.
        importance: By feature; what is no finite number is left out.
        most: How many to draw; the title says so where there are more.
        title: What stands above.
        kind: What is measured, below the bars.

    Raises:
        OSError: A file cannot be written.
    """
    known = {name: value for name, value in importance.items() if math.isfinite(value)}
    shown = sorted(known.items(), key=lambda item: -abs(item[1]))[:most]
    if len(shown) < len(importance):
        title += f": {len(shown)} of {len(importance)} features"
    width = max((len(name) for name, _ in shown), default=0)
    inches = 6.2 + 0.075 * min(width, LONGEST_NAME)
    with new_figure(inches, 1.35 + BAR_INCHES * max(3, len(shown)), title) as figure:
        axes = figure.subplots()
        style(axes, "" if shown else "no feature has a value", "x")
        axes.barh(range(len(shown)), [value for _, value in shown], height=0.68, color=COLOURS[0], zorder=2)
        axes.set_ylim(max(3, len(shown)) - 0.5, -0.5)
        axes.set_yticks([])
        axes.set_xlabel(kind)
        axes.set_ylabel("feature")
        axes.spines["left"].set_visible(False)
        axes.axvline(0.0, color="#b8c2cb", linewidth=0.8, zorder=3)
        axes.margins(x=0.12)
        _name_bars(axes, shown)
        place(figure, beside=[shorten(name) for name, _ in shown])
        save(figure, path)


def _name_bars(axes: "Axes", shown: Sequence[tuple[str, float]]) -> None:
    """Write each name beside the axes, and each value at the end of its bar: as ticks they take three times as long."""
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415 - see the module's docstring

    scale = axes.figure.dpi_scale_trans
    left = axes.get_yaxis_transform() + ScaledTranslation(-GAP_INCHES, 0, scale)
    ends = {sign: axes.transData + ScaledTranslation(sign * GAP_INCHES, 0, scale) for sign in (-1, 1)}
    for row, (name, value) in enumerate(shown):
        axes.text(0, row, shorten(name), transform=left, ha="right", va="center", color=INK)
        sign, side = (-1, "right") if value < 0 else (1, "left")
        end = ends[sign]
        axes.text(value, row, f"{value:.3g}", transform=end, ha=side, va="center", color=PALE, fontsize=8)


def _curve_label(channel: str, curve: Curve, selected: float | None, chosen: float) -> str:
    """The channel, and its value at the selected step or else the last one."""
    finite = [value for value in curve[1] if math.isfinite(value)]
    if math.isfinite(chosen):
        return f"{shorten(channel)}  {six_digits(chosen)} at {selected}"
    return f"{shorten(channel)}  {six_digits(finite[-1])}" if finite else f"{shorten(channel)}  no finite value"


def _fold_label(channel: str, curve: FoldCurve) -> str:
    if curve.summary is None:
        return f"{shorten(channel)}  no finite value"
    mean, deviation = curve.summary
    return f"{shorten(channel)}  mean {six_digits(mean)}, deviation {deviation:.3g}"


def _draw_curve(axes: "Axes", curve: Curve, colour: str, *, label: str) -> None:
    values = [float(value) if math.isfinite(value) else math.nan for value in curve[1]]
    count = sum(map(math.isfinite, values))
    alone = [number for number in range(len(values)) if _stands_alone(values, number)]
    marked = range(len(values)) if count < SPARSE else alone
    axes.plot(
        list(curve[0]),
        values,
        label=label,
        color=colour,
        linewidth=1.8,
        marker="o",
        markersize=3.6,
        markevery=list(marked),
        solid_capstyle="round",
        zorder=3,
    )


def _mark(axes: "Axes", step: float, value: float, colour: str) -> None:
    """Mark the point of the model that is saved, and write its value beside it."""
    axes.axvline(step, color=PALE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(
        [step],
        [value],
        color=colour,
        marker="o",
        markersize=7.5,
        markerfacecolor="white",
        markeredgewidth=1.8,
        linestyle="none",
        zorder=4,
    )
    axes.annotate(
        six_digits(value),
        (step, value),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        color=colour,
        fontsize=8,
        zorder=5,
    )


def _stands_alone(values: Sequence[float], number: int) -> bool:
    """Whether no line reaches a point, so that it would not be seen."""
    around = values[max(0, number - 1) : number] + values[number + 1 : number + 2]  # type: ignore[operator]  # of a list
    return math.isfinite(values[number]) and not any(map(math.isfinite, around))


def _finish_panel(axes: "Axes", step: str, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - see the module's docstring

    axes.set_xlabel(step)
    axes.set_ylabel(shorten(metric))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=TICK_STEPS))
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]  # that of numbers
    axes.margins(x=0.03, y=0.12)
    if not any(math.isfinite(value) for line in axes.lines for value in np.asarray(line.get_ydata())):
        axes.set_yticks([])
    axes.legend(frameon=False, fontsize=9, loc="best", handlelength=1.4, labelcolor=INK)


def _ordered(channels: Mapping[str, object]) -> list[str]:
    """What is judged by first, and the rows trained on last."""
    return sorted(channels, key=lambda channel: (channel == "train", channel != "validation"))
