"""What all pictures have in common: colours, sizes, room for what stands around the axes, PNG and SVG.

Matplotlib's objects are used without `pyplot`, whose figures and settings belong to the user's script. It is imported
where a picture is drawn, which takes half a second.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainbox import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22303c"
PALE = "#64727f"
_GRID = "#e4e8ec"
#: Told apart by people who see colours differently, and in grey (after Okabe and Ito); the first for what counts most.
COLOURS = ("#0b6fb8", "#d95f02", "#1b9e77", "#8e5ea2", "#b8860b", "#4d4d4d")
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a feature may be called "price in $ per m_2"
    "axes.labelcolor": PALE,
    "axes.edgecolor": "#b8c2cb",
    "xtick.color": PALE,
    "ytick.color": PALE,
    "axes.unicode_minus": True,
    "svg.hashsalt": "trainbox",
}
_DOTS_PER_INCH = 150
#: That is what Matplotlib's SVG counts in.
_DOTS_PER_INCH_OF_SVG = 72
PANEL_INCHES = (4.9, 3.1)
MOST_COLUMNS = 2
#: With fewer points than this each is marked.
SPARSE = 40
LONGEST_NAME = 36
BAR_INCHES = 0.27
#: Between a bar and what is written beside it, and around a picture.
GAP_INCHES = 0.055
_EDGE_INCHES = 0.12
_TITLE_INCHES = 0.35
#: Above the axes for the title and their own, below for the numbers and the name of the axis.
_HEAD_INCHES = 0.72
_FOOT_INCHES = 0.55
_LABEL_INCHES = 0.25
#: Between the axes and the numbers at their left, and for the name of that axis.
_PAD_INCHES = 0.07
_NAME_INCHES = 0.17
TICK_STEPS = (1, 2, 2.5, 5, 10)


@contextmanager
def new_figure(width: float, height: float, title: str) -> "Iterator[Figure]":
    """A figure in the house's style, whatever the style of this process is otherwise."""
    import matplotlib as mpl  # noqa: PLC0415 - see the module's docstring
    from matplotlib.figure import Figure  # noqa: PLC0415

    # But for the backend: to set that loads `pyplot`.
    defaults = {name: mpl.rcParamsDefault[name] for name in mpl.rcParamsDefault if not name.startswith("backend")}
    settings: Any = {**defaults, **_STYLE}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The font has no sign for, say, Chinese: the picture shows boxes then, and the JSON beside it has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        size: Any = {"figsize": (width, height), "dpi": _DOTS_PER_INCH}
        figure = Figure(**size, facecolor="white")
        corner: Any = {"x": _EDGE_INCHES / width, "y": 1 - _EDGE_INCHES / height, "ha": "left", "va": "top"}
        figure.suptitle(title, **corner, fontsize=13, fontweight="bold", color=INK)
        yield figure


def style(axes: "Axes", title: str, grid: str) -> None:
    """Lines, colours and title; where texts go is said, for to find it out takes a third of the time of a picture."""
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415 - see the module's docstring

    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=8, y=1.0)
    axes.yaxis.set_offset_position("right")  # such as 1e7: not where the title is
    below = axes.transAxes + ScaledTranslation(0, -_LABEL_INCHES, axes.figure.dpi_scale_trans)
    axes.xaxis.set_label_coords(0.5, 0.0, transform=below)
    axes.grid(visible=True, axis=grid, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]  # "x", "y" or "both"
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)  # points: `_PAD_INCHES`
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def tick_texts(axes: "Axes") -> list[str]:
    """What stands beside the axes."""
    return axes.yaxis.get_major_formatter().format_ticks(axes.get_yticks().tolist())


def place(figure: "Figure", beside: Sequence[str], columns: int = 1, rows: int = 1) -> None:
    """Make room for what stands around the axes; Matplotlib's solver takes as long for that as for the picture.

    Args:
        figure: With all its axes.
        beside: What stands to the left of some axes.
        columns: Of axes.
        rows: Of axes.
    """
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415 - see the module's docstring

    width, height = figure.get_size_inches()
    numbers = _measure(figure, beside) + _PAD_INCHES + GAP_INCHES
    left = numbers + _NAME_INCHES + _EDGE_INCHES
    for axes in figure.axes:
        name = axes.transAxes + ScaledTranslation(-numbers, 0, figure.dpi_scale_trans)
        axes.yaxis.set_label_coords(0.0, 0.5, transform=name)
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


def shorten(name: str) -> str:
    """The begin and the end of a long name: that is where names differ."""
    if len(name) <= LONGEST_NAME:
        return name
    kept = LONGEST_NAME - 1
    return f"{name[: kept - kept // 2]}…{name[-(kept // 2) :]}"


def save(figure: "Figure", path: Path) -> None:
    """Write `<path>.png` and `<path>.svg`, each whole.

    Raises:
        OSError: A file cannot be written.
    """
    for suffix, content in render(figure).items():
        atomic_write.write(path.with_name(path.name + suffix), content)


def render(figure: "Figure") -> dict[str, bytes]:
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
