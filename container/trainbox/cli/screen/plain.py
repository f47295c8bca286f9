"""What is drawn where rich is not installed: the same words and tables, no colours, and no line that moves."""

import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import TextIO

from trainbox.contract.text import visible

_GAP = "  "
#: Narrower than this the last column is not folded.
_LEAST_COLUMNS = 20


class PlainPen:
    """Draws with nothing but letters.

    Args:
        file: Where to.
        width: In columns; that of the terminal where there is none.
    """

    can_redraw = False

    def __init__(self, file: TextIO, width: int | None) -> None:
        self.width = width or shutil.get_terminal_size().columns
        self.encoding = (file.encoding or "ascii").lower()

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Rows in columns, as lines; the last column is folded where the width does not suffice."""
        cells, widths = _measure(heads, rows)
        if not widths:
            return []
        before = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
        room = max(self.width - before, _LEAST_COLUMNS)
        lines = []
        for *first, last in cells:
            pieces = textwrap.wrap(last, room, break_on_hyphens=False) if len(last) > room else [last]
            front = "".join(cell.ljust(width) + _GAP for cell, width in zip(first, widths, strict=False))
            lines += [front + pieces[0], *(" " * before + piece for piece in pieces[1:])]
        return [line.rstrip(" ") for line in lines]

    def width_of(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
        """The width of that table where there is room for all of it."""
        _, widths = _measure(heads, rows)
        return sum(widths) + len(_GAP) * len(widths)

    def styled(self, text: str, style: str) -> str:  # noqa: ARG002 - as a pen with colours has it
        """Words, without their colour."""
        return text

    def quoted(self, text: str) -> str:
        """A line of a script, without its colours."""
        return visible(text)

    def live(self, line: Callable[[], str]) -> "NoLine":  # noqa: ARG002 - as a pen with a line has it
        """No line: it is never asked to be shown."""
        return NoLine()


class NoLine:
    """In place of a live line, where there is none."""

    def show(self) -> None:
        """Nothing moves here."""

    def print_above(self, text: str) -> None:
        """There is nothing below it."""

    def hide(self) -> None:
        """It is not there."""


def _measure(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[int]]:
    """The cells of all columns that have a value, heads first, and how wide each column is."""
    used = [index for index in range(len(heads)) if not rows or any(row[index] for row in rows)]
    cells = [[visible(row[index]).replace("\n", " ") for index in used] for row in (heads, *rows)]
    return cells, [max(len(row[column]) for row in cells) for column in range(len(used))]
