"""Pictures of a training: learning curves and what each feature matters, as PNG and SVG, each written whole.

matplotlib is loaded when a picture is drawn: it takes a third of a second, which no job should wait at its start.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainbox import whole

#: A metric's steps and values.
Curve = tuple[Sequence[int], Sequence[float]]

#: A channel has one colour in every panel.
_COLORS = {"train": "C0", "validation": "C1"}
_FEW_POINTS = 30
_LONGEST_NAME = 40


def draw_curves(path: Path, curves: Mapping[str, Curve], *, step: str = "round") -> None:
    """Draw each metric over the steps; those of one name on several channels share a panel.

    Args:
        path: Without its ending; `.png` and `.svg` are written.
        curves: By name, such as `validation:auc`; a value that is not a number is a gap.
        step: What a step is.
    """
    panels: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        channel, _, metric = name.rpartition(":")
        panels.setdefault(metric, {})[channel or metric] = curve
    figure = _figure(7.0, 3.2 * max(1, len(panels)))
    for place, (metric, channels) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, place)
        for channel, (steps, values) in channels.items():
            mark = "o" if len(steps) <= _FEW_POINTS else None
            color = _COLORS.get(channel)
            axes.plot(steps, values, marker=mark, markersize=3, linewidth=1.4, label=channel, color=color)
        axes.set_ylabel(metric)
        axes.set_xlabel(step)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _save(figure, path)


def draw_importance(path: Path, values: Mapping[str, float], *, most: int = 30, what: str = "importance") -> None:
    """Draw the features that matter most, the first on top.

    Args:
        path: Without its ending; `.png` and `.svg` are written.
        values: By feature.
        most: How many at most.
        what: What the values are.
    """
    first = sorted(((name, value) for name, value in values.items() if math.isfinite(value)), key=lambda x: -abs(x[1]))
    shown = first[:most][::-1]
    figure = _figure(7.0, 1.2 + 0.24 * max(1, len(shown)))
    axes = figure.add_subplot(1, 1, 1)
    axes.barh([_short(name) for name, _ in shown], [value for _, value in shown], height=0.7)
    axes.set_xlabel(what)
    axes.grid(visible=True, axis="x", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _save(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _figure(width: float, height: float) -> Any:  # noqa: ANN401 - matplotlib is not loaded yet
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - see above
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - as above
    import matplotlib as mpl  # noqa: PLC0415 - see above

    # The same curves give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "trainbox", "svg.fonttype": "none"}):
        for kind, about in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=150, metadata=about)
            whole.write(path.with_name(f"{path.name}.{kind}"), content.getvalue())
