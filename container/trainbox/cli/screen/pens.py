"""Draw on a terminal: with rich where it is installed, otherwise as into a pipe.

Whatever a job says is shown as it is, and nothing is cut off.
"""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TextIO

#: Of a place that is no terminal: a table is as wide as its cells, whoever looks at it later.
ANY_WIDTH = 1_000_000
_STDERR = 2


class LiveLine(Protocol):
    """The last line of a terminal, which moves below all others."""

    def show(self) -> None:
        """Draw it, or draw it anew."""

    def print_above(self, text: str) -> None:
        """Write lines that stay; they may have colours."""

    def hide(self) -> None:
        """Take it away, until it is shown again."""


class Pen(Protocol):
    """Draws for one place, in its width, its characters and its colours."""

    #: Whether it is a terminal with a line that can move.
    can_redraw: bool

    @property
    def width(self) -> int:
        """In columns."""

    @property
    def encoding(self) -> str:
        """Of the characters that can be shown."""

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Rows in columns, as lines; a column without any value is left out."""

    def width_of(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
        """The width of that table where there is room for all of it."""

    def styled(self, text: str, style: str) -> str:
        """Words in a colour, `bold green` for example."""

    def quoted(self, text: str) -> str:
        """A line of a script, whose colours do not run on into what follows."""

    def live(self, line: Callable[[], str]) -> LiveLine:
        """The line that `line` gives the text of, where the place can redraw."""


def find_pen(file: TextIO, env: Mapping[str, str]) -> Pen:
    """The pen for a place.

    Args:
        file: Where it draws.
        env: `COLUMNS` is heeded where that is no terminal: `trainbox describe xgboost | less`.
    """
    width = None if file.isatty() else _width_of_pipe(file, env)
    try:
        from trainbox.cli.screen.drawing import RichPen  # noqa: PLC0415 - not everybody has rich, or time to load it
    except ModuleNotFoundError:
        from trainbox.cli.screen.plain import PlainPen  # noqa: PLC0415 - one of two

        return PlainPen(file, width)
    return RichPen(file, width)


def _width_of_pipe(file: TextIO, env: Mapping[str, str]) -> int:
    given = env.get("COLUMNS", "")
    if given.isascii() and given.isdecimal() and int(given):
        return int(given)
    try:
        # Behind a pipe is often a pager, in the terminal that stderr is; shells keep COLUMNS to themselves.
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) and os.isatty(_STDERR):
            return os.get_terminal_size(_STDERR).columns or ANY_WIDTH
    except OSError:  # a file without a number, or a terminal without a size
        pass
    return ANY_WIDTH


def print_table(file: TextIO, env: Mapping[str, str], heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    file.write("".join(f"{line}\n" for line in find_pen(file, env).table(heads, rows)))
