"""Rich, as the workbench draws with it: whatever a job says is shown as it is, and nothing is cut off.

Imported only where something is drawn: not everybody who runs `trainbox` has rich, or time to load it.
"""

import sys
from collections.abc import Sequence
from typing import TextIO

from trainbox.contract.text import visible
from trainbox.errors import RunError

try:
    from rich.console import Console, RenderableType
    from rich.table import Column, Table
except ModuleNotFoundError as error:
    raise RunError("rich, which draws this, is not installed: pip install 'trainbox[workbench]'") from error

#: Of a place that is no terminal: a table is as wide as its cells, whoever looks at it later.
_ANY_WIDTH = 1_000_000


def console_on(file: TextIO) -> Console:
    """A console that takes no text for markup or emoji; rich itself heeds NO_COLOR, FORCE_COLOR and TERM."""
    width = None if file.isatty() else _ANY_WIDTH
    return Console(file=file, width=width, soft_wrap=True, markup=False, emoji=False, highlight=False)


def drawn(console: Console, *parts: RenderableType) -> str:
    """The parts below each other as that console shows them, without the blanks that fill a table up."""
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return "".join(f"{line.rstrip(' ')}\n" for line in captured.get().removesuffix("\n").split("\n"))


def table(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows in columns, without lines; a column without any value is left out."""
    used = [index for index in range(len(heads)) if not rows or any(row[index] for row in rows)]
    # Where there is room, the names in front are not broken, to be copied from there.
    roomy = 3 * max((len(row[0]) for row in rows), default=0) <= console.width
    columns = [Column(heads[index], overflow="fold", no_wrap=roomy and index == 0) for index in used]
    drawing = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for row in rows:
        drawing.add_row(*(visible(row[index]) for index in used))
    return drawing


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout."""
    console = console_on(sys.stdout)
    print(drawn(console, table(console, heads, rows)), end="")
