"""Draw with rich; imported only where rich is installed (see `pens`)."""

from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments
from rich.table import Column, Table
from rich.text import Text

from trainbox.contract.text import coloured, visible


class RichPen:
    """Draws with rich.

    Args:
        file: Where to.
        width: In columns; that of the terminal where there is none.
    """

    def __init__(self, file: TextIO, width: int | None) -> None:
        # It takes no text for markup or emoji; rich itself heeds NO_COLOR, FORCE_COLOR and TERM.
        self.console = Console(file=file, width=width, soft_wrap=True, markup=False, emoji=False, highlight=False)
        # With FORCE_COLOR rich takes a pipe for a terminal.
        self.can_redraw = file.isatty() and self.console.is_interactive

    @property
    def width(self) -> int:
        """In columns."""
        return self.console.width

    @property
    def encoding(self) -> str:
        """Of the characters that can be shown."""
        return self.console.encoding

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Rows in columns, as lines without the blanks that fill them up."""
        return self._drawn(self._table(heads, rows))

    def width_of(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
        """The width of that table where there is room for all of it."""
        return self.console.measure(self._table(heads, rows)).maximum

    def styled(self, text: str, style: str) -> str:
        """Words in a colour."""
        return "\n".join(self._drawn(Text(text, style)))

    def quoted(self, text: str) -> str:
        """A line of a script, whose colours end with it."""
        return "\n".join(self._drawn(Text.from_ansi(coloured(text))))

    def live(self, line: Callable[[], str]) -> "RichLine":
        """The line that moves."""
        return RichLine(self.console, line)

    def _drawn(self, part: RenderableType) -> list[str]:
        with self.console.capture() as captured:
            self.console.print(part)
        return [line.rstrip(" ") for line in captured.get().removesuffix("\n").split("\n")]

    def _table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        used = [index for index in range(len(heads)) if not rows or any(row[index] for row in rows)]
        # Where there is room, the names in front are not broken, to be copied from there.
        roomy = 3 * max((len(row[0]) for row in rows), default=0) <= self.width
        columns = [Column(heads[index], overflow="fold", no_wrap=roomy and index == 0) for index in used]
        table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
        for row in rows:
            table.add_row(*(visible(row[index]) for index in used))
        return table


class RichLine:
    """A live line of rich.

    Args:
        console: Where it is.
        line: Gives its text.
    """

    def __init__(self, console: Console, line: Callable[[], str]) -> None:
        self._console = console
        self._live = Live(get_renderable=line, console=console, auto_refresh=False, transient=True)

    def show(self) -> None:
        """Draw it, or draw it anew."""
        self._live.start()
        self._live.refresh()

    def print_above(self, text: str) -> None:
        """Write lines that stay; a segment keeps tabs and colours, and costs nothing to measure."""
        self._console.print(Segments([Segment(text)]), end="")

    def hide(self) -> None:
        """Take it away."""
        self._live.stop()
