"""Learning curves and feature importance as pictures, PNG and SVG, the same bytes for the same numbers.

Matplotlib's objects are used without `pyplot`, whose figures and settings belong to whoever runs this process. It is
imported where a picture is drawn, which takes half a second: see `painter` for how a script does not wait for that.
"""

import importlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainbox import whole
from trainbox.tabular.lean import staying

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]

_INK = "#22303c"
_PALE = "#64727f"
_GRID = "#e4e8ec"
#: Told apart by people who see colours differently, and in grey (after Okabe and Ito); the first for what counts most.
_COLOURS = ("#0b6fb8", "#d95f02", "#1b9e77", "#8e5ea2", "#b8860b", "#4d4d4d")
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": _INK,
    "text.parse_math": False,  # a feature may be called "price in $ per m_2"
    "axes.labelcolor": _PALE,
    "axes.edgecolor": "#b8c2cb",
    "xtick.color": _PALE,
    "ytick.color": _PALE,
    "axes.unicode_minus": True,
    "svg.hashsalt": "trainbox",
}
_DOTS_PER_INCH = 150
#: That is what Matplotlib's SVG counts in.
_DOTS_PER_INCH_OF_SVG = 72
_PANEL_INCHES = (4.9, 3.1)
_MOST_COLUMNS = 2
#: With fewer points than this each is marked.
_SPARSE = 40
_LONGEST_NAME = 36
_BAR_INCHES = 0.27
#: Between a bar and what is written beside it, and around a picture.
_GAP_INCHES = 0.055
_EDGE_INCHES = 0.12
_TITLE_INCHES = 0.35
#: Above the axes for the title and their own, below for the numbers and the name of the axis.
_HEAD_INCHES = 0.72
_FOOT_INCHES = 0.55
_LABEL_INCHES = 0.25
_TICK_STEPS = (1, 2, 2.5, 5, 10)


def load() -> None:
    """Import Matplotlib and draw what nobody sees: the first picture of a process takes half as long again."""
    with staying():
        for name in ("figure", "ticker", "backends.backend_agg", "backends.backend_svg"):
            importlib.import_module(f"matplotlib.{name}")
        with _figure(*_PANEL_INCHES, "Ready") as figure:
            axes = figure.subplots()
            _style(axes, "drawn", "both")
            _draw_curve(axes, "train", ([0, 1], [0.25, 0.75]), _COLOURS[0])
            _finish_panel(axes, "round")
            _name_bars(axes, [("f0", 0.5)])
            _place(figure, beside=_numbers(axes))
            _render(figure)


def draw_curves(
    path: Path, curves: Mapping[str, Curve], *, title: str = "Learning curves", step: str = "round"
) -> None:
    """Draw the values of each metric over the steps: a panel for each metric, in it a line for each channel.

    Args:
        path: Without its suffix: `<path>.png` and `<path>.svg` are written, each whole.
        curves: By name, such as "validation:auc": the steps, and as many values. Where a value is no finite number
            the line has a gap; a curve may have few points, or one, and they need not be at the same steps.
        title: What stands above.
        step: What the steps count.

    Raises:
        OSError: A file cannot be written.
    """
    panels: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        channel, _, metric = name.rpartition(":")
        panels.setdefault(metric, {})[channel or metric] = curve
    channels = {channel: place for place, channel in enumerate(_ordered({c: 0 for p in panels.values() for c in p}))}
    columns = min(_MOST_COLUMNS, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    with _figure(_PANEL_INCHES[0] * columns + 0.4, _PANEL_INCHES[1] * rows + 0.6, title) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in list(grid.flat)[max(1, len(panels)) :]:
            axes.remove()
        for axes, (metric, lines) in zip(grid.flat, panels.items(), strict=False):
            _style(axes, metric, "both")
            for channel in _ordered(lines):
                _draw_curve(axes, channel, lines[channel], _COLOURS[channels[channel] % len(_COLOURS)])
            _finish_panel(axes, step)
        if not panels:
            _style(grid[0, 0], "no metric was logged", "both")
        numbers = [text for axes in figure.axes for text in _numbers(axes)]
        _place(figure, beside=numbers, columns=columns, rows=rows)
        _save(figure, path)


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
    inches = 6.2 + 0.075 * min(width, _LONGEST_NAME)
    with _figure(inches, 1.35 + _BAR_INCHES * max(3, len(shown)), title) as figure:
        axes = figure.subplots()
        _style(axes, "" if shown else "no feature has a value", "x")
        axes.barh(range(len(shown)), [value for _, value in shown], height=0.68, color=_COLOURS[0], zorder=2)
        axes.set_ylim(max(3, len(shown)) - 0.5, -0.5)
        axes.set_yticks([])
        axes.set_xlabel(kind)
        axes.spines["left"].set_visible(False)
        axes.axvline(0.0, color="#b8c2cb", linewidth=0.8, zorder=3)
        axes.margins(x=0.12)
        _name_bars(axes, shown)
        _place(figure, beside=[_shorten(name) for name, _ in shown])
        _save(figure, path)


def _name_bars(axes: "Axes", shown: Sequence[tuple[str, float]]) -> None:
    """Write each name beside the axes, and each value at the end of its bar: as ticks they take three times as long."""
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415 - see the module's docstring

    scale = axes.figure.dpi_scale_trans
    left = axes.get_yaxis_transform() + ScaledTranslation(-_GAP_INCHES, 0, scale)
    ends = {sign: axes.transData + ScaledTranslation(sign * _GAP_INCHES, 0, scale) for sign in (-1, 1)}
    for place, (name, value) in enumerate(shown):
        axes.text(0, place, _shorten(name), transform=left, ha="right", va="center", color=_INK)
        sign, side = (-1, "right") if value < 0 else (1, "left")
        end = ends[sign]
        axes.text(value, place, f"{value:.3g}", transform=end, ha=side, va="center", color=_PALE, fontsize=8)


@contextmanager
def _figure(width: float, height: float, title: str) -> "Iterator[Figure]":
    """A figure in the house's style, whatever the style of this process is otherwise."""
    import matplotlib as mpl  # noqa: PLC0415 - see the module's docstring
    from matplotlib.figure import Figure  # noqa: PLC0415

    # But for the backend: to set that loads `pyplot`.
    defaults = {name: mpl.rcParamsDefault[name] for name in mpl.rcParamsDefault if not name.startswith("backend")}
    style: Any = {**defaults, **_STYLE}
    with mpl.rc_context(style), warnings.catch_warnings():
        # The font has no sign for, say, Chinese: the picture shows boxes then, and the JSON beside it has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        size: Any = {"figsize": (width, height), "dpi": _DOTS_PER_INCH}
        figure = Figure(**size, facecolor="white")
        place: Any = {"x": _EDGE_INCHES / width, "y": 1 - _EDGE_INCHES / height, "ha": "left", "va": "top"}
        figure.suptitle(title, **place, fontsize=13, fontweight="bold", color=_INK)
        yield figure


def _style(axes: "Axes", title: str, grid: str) -> None:
    """Lines, colours and title; where texts go is said, for to find it out takes a third of the time of a picture."""
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415 - see the module's docstring

    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, pad=8, y=1.0)
    axes.yaxis.set_offset_position("right")  # such as 1e7: not where the title is
    below = axes.transAxes + ScaledTranslation(0, -_LABEL_INCHES, axes.figure.dpi_scale_trans)
    axes.xaxis.set_label_coords(0.5, 0.0, transform=below)
    axes.yaxis.set_label_coords(0.0, 0.5)  # there is none
    axes.grid(visible=True, axis=grid, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]  # "x", "y" or "both"
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_curve(axes: "Axes", channel: str, curve: Curve, colour: str) -> None:
    steps = list(curve[0])
    values = [float(value) if math.isfinite(value) else math.nan for value in curve[1]]
    finite = [value for value in values if math.isfinite(value)]
    label = f"{_shorten(channel)}  {finite[-1]:.5g}" if finite else f"{_shorten(channel)}  no finite value"
    alone = [place for place in range(len(values)) if _stands_alone(values, place)]
    marked = range(len(values)) if len(finite) < _SPARSE else alone
    axes.plot(
        steps,
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


def _stands_alone(values: Sequence[float], place: int) -> bool:
    """Whether no line reaches a point, so that it would not be seen."""
    around = values[max(0, place - 1) : place] + values[place + 1 : place + 2]  # type: ignore[operator]  # of a list
    return math.isfinite(values[place]) and not any(map(math.isfinite, around))


def _finish_panel(axes: "Axes", step: str) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - see the module's docstring

    axes.set_xlabel(step)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=_TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_TICK_STEPS))
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]  # that of numbers
    axes.margins(x=0.03, y=0.12)
    if not any(math.isfinite(value) for line in axes.lines for value in np.asarray(line.get_ydata())):
        axes.set_yticks([])
    axes.legend(frameon=False, fontsize=9, loc="best", handlelength=1.4, labelcolor=_INK)


def _numbers(axes: "Axes") -> list[str]:
    """What stands beside the axes."""
    return axes.yaxis.get_major_formatter().format_ticks(axes.get_yticks().tolist())


def _place(figure: "Figure", beside: Sequence[str], columns: int = 1, rows: int = 1) -> None:
    """Make room for what stands around the axes; Matplotlib's solver takes as long for that as for the picture.

    Args:
        figure: With all its axes.
        beside: What stands to the left of some axes.
        columns: Of axes.
        rows: Of axes.
    """
    width, height = figure.get_size_inches()
    left = _measure(figure, beside) + _GAP_INCHES + _EDGE_INCHES
    right, top, bottom = _EDGE_INCHES, _HEAD_INCHES, _FOOT_INCHES
    between = left + _EDGE_INCHES, bottom + top - _TITLE_INCHES
    sizes = [
        (width - left - right - between[0] * (columns - 1)) / columns,
        (height - bottom - top - between[1] * (rows - 1)) / rows,
    ]
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=between[0] / sizes[0],
        hspace=between[1] / sizes[1],
    )


def _measure(figure: "Figure", texts: Sequence[str]) -> float:
    """The width of the widest text, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - see the module's docstring

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    widths = [0.0]
    for text in texts:
        label = figure.text(0, 0, text)
        widths.append(label.get_window_extent(renderer).width / figure.dpi)
        label.remove()
    return max(widths)


def _ordered(channels: Mapping[str, object]) -> list[str]:
    """What is judged by first, and the rows trained on last."""
    return sorted(channels, key=lambda channel: (channel == "train", channel != "validation"))


def _shorten(name: str) -> str:
    """The begin and the end of a long name: that is where names differ."""
    if len(name) <= _LONGEST_NAME:
        return name
    kept = _LONGEST_NAME - 1
    return f"{name[: kept - kept // 2]}…{name[-(kept // 2) :]}"


def _save(figure: "Figure", path: Path) -> None:
    for suffix, content in _render(figure).items():
        whole.write(path.with_name(path.name + suffix), content)


def _render(figure: "Figure") -> dict[str, bytes]:
    """The figure by suffix, rendered once for each: `savefig` would do it twice, the first time to find its edges."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - see the module's docstring
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415

    content, text = io.BytesIO(), io.StringIO()
    # A date, or the version of the library, would make two files of the same picture.
    fast = {"compress_level": 1}  # a quarter more bytes
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None}, pil_kwargs=fast)  # type: ignore[no-untyped-call]
    figure.set_dpi(_DOTS_PER_INCH_OF_SVG)
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return {".png": content.getvalue(), ".svg": text.getvalue().encode()}
