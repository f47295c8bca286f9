"""Lines of a request or an answer, and the cells of those that are CSV, as they are written."""

import re

from trainbox.errors import DataError

#: The quotes stay, as the model is to read the same text.
_CELL = re.compile(rb'[ \t]*"(?:[^"]|"")*"[^,]*|[^,]*')


def strip_newline(line: bytes) -> bytes:
    """Return a line without its end."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def split_cells(row: bytes) -> list[bytes]:
    """Return the cells of a row of CSV as they are written, with their quotes.

    Raises:
        DataError: A quote is not closed: the rows of a transform job end at the end of a line.
    """
    if b'"' not in row:
        return row.split(b",")
    cells, place = list[bytes](), 0
    while True:
        found = _CELL.match(row, place)
        assert found is not None  # noqa: S101 - it matches nothing, too
        cell = found[0]
        if cell.lstrip().startswith(b'"') and cell.count(b'"') % 2:
            raise DataError(
                f"cell {len(cells) + 1} has a quote that is not closed",
                hint="batch transform reads line by line: a cell cannot hold the end of a line",
            )
        cells.append(cell)
        if found.end() == len(row):
            return cells
        place = found.end() + 1
