"""CSV: Arrow parses blocks of lines against a strict schema; what it refuses is looked at cell by cell.

XGBoost's own text loader takes a header for a row with label 0, text for a missing value, and a short row for one with
missing values behind. Here every cell is a number or missing, every row has the same number of columns, and a first
line without any number is a header. Arrow does not say on which line it failed, so a block that it refuses is read
again, slowly, to say it.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from trainbox.channels.arrays import column_of, fill
from trainbox.channels.blocks import Block, is_sound
from trainbox.channels.cells import Form, first_bad_row, is_cell, line_of
from trainbox.channels.layout import Layout
from trainbox.channels.sources import Source
from trainbox.channels.streams import LONGEST_LINE, PIECE_BYTES, Lines, Stream, first_lines, max_pieces, read_lines
from trainbox.channels.table import Columns
from trainbox.contract.text import short
from trainbox.errors import DataError
from trainbox.say import say

DELIMITERS = ",;\t|"
#: A first row of 0,1,2,… longer than this is no accident.
_COUNTING = 3
#: Rows to parse at a time where they are long.
_FEWEST_ROWS = 256


def look(stream: Stream, path: Path, columns: Columns, *, is_joined: bool = False) -> Source | None:
    """What the first two rows say; None where there is no row. Nothing is consumed.

    Raises:
        DataError: The first line is neither a row of numbers nor a header.
    """
    lines = first_lines(stream)
    if not lines:
        return None
    shown = stream.shown
    # The last of them: where there is a second line, it is no header.
    delimiter = columns.delimiter or _delimiter_of(lines[-1][1], columns, shown)
    number, first = lines[0]
    cells = tuple(cell.strip() for cell in _split(first, delimiter, f"{shown}:{number}"))
    note, header = "", ""
    if not all(is_cell(cell, columns.missing) for cell in cells):
        _refuse_no_header(cells, columns, f"{shown}:{number}")
        header = first
    elif len(cells) > _COUNTING and list(cells) == [str(i) for i in range(len(cells))]:
        note = f"{shown}:{number}: 0,1,2,… is taken for a row; if it is a data frame's header, write with header=False"
    return Source(
        path,
        shown,
        "CSV",
        len(cells),
        cells if header else None,
        delimiter,
        skip=number if header else 0,
        header=header,
        row_bytes=len(lines[-1][1]),
        is_joined=is_joined,
        note=note,
    )


def _split(line: str, delimiter: str, where: str) -> list[str]:
    if delimiter not in line and '"' not in line:
        return [line]  # which may be longer than `csv` allows a cell to be
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{where} is no row of CSV: {error}", hint="is this CSV, and its quotes closed?") from error


def _refuse_no_header(cells: Sequence[str], columns: Columns, where: str) -> None:
    numbers = [cell for cell in cells if is_cell(cell, columns.missing) and cell not in columns.missing]
    word = next(place for place, cell in enumerate(cells) if not is_cell(cell, columns.missing))
    if numbers and word < columns.labels:
        raise DataError(
            f"{where}: {cells[word]!r} is not a number, and the label must be one",
            hint="encode the labels as numbers: 0 and 1, or 0, 1, 2, … for several classes",
        )
    if numbers:
        raise DataError(
            f"{where}: {cells[word]!r} is not a number",
            hint="if this line is a header, give every column a name that is not a number, or leave the header out",
        )
    if cells[0] in {"", "Unnamed: 0"}:
        raise DataError(
            f"{where}: the header does not name the first column, which looks like a data frame's index",
            hint="the first column must be the label: write with index=False",
        )


def _delimiter_of(line: str, columns: Columns, shown: str) -> str:
    """The delimiter that makes numbers of a line; else the one that cuts it in most pieces."""
    split = {delimiter: _split(line, delimiter, shown) for delimiter in DELIMITERS}
    numeric = [
        delimiter
        for delimiter, cells in split.items()
        if len(cells) > 1 and all(is_cell(cell.strip(), columns.missing) for cell in cells)
    ]
    decimal = [cell.strip().replace(",", ".") for cell in split[";"]]
    if not numeric and len(decimal) > 1 and all(is_cell(cell, columns.missing) for cell in decimal):
        raise DataError(f"{shown} has decimal commas: {short(line)}", hint="write numbers with a decimal point")
    return numeric[0] if numeric else max(DELIMITERS, key=lambda delimiter: len(split[delimiter]))


def read(stream: Stream, source: Source, layout: Layout, columns: Columns, *, size: int) -> Iterator[Block]:
    """The rows, block by block.

    Raises:
        DataError: With file, line and column.
    """
    form = Form(source, layout, columns)
    has_said = False
    # Arrow's work for a column is the same for few rows as for many.
    size = max(size, min(_FEWEST_ROWS * source.row_bytes, LONGEST_LINE))
    for lines in read_lines(stream, size=size):
        skip = max(0, source.skip - lines.number + 1)
        block = _parse(lines, skip, form)
        if block is None and source.is_joined and source.header:
            lines, repeats = _without_headers(lines, source)  # noqa: PLW2901 - the same lines, some of them blank
            if repeats > (skip > 0) and not has_said:
                has_said = True
                say(f"{source.shown}: the header comes again further down: several files were joined")
            block = _parse(lines, skip, form)
        if block is None:
            raise first_bad_row(lines, skip, form)
        if len(block.labels):
            yield block
        del block, lines  # so that there is one block in memory, not two


def _without_headers(lines: Lines, source: Source) -> tuple[Lines, int]:
    """A block with a blank line in place of each header, and how many there were."""
    content, count = re.subn(rb"(?m)^" + re.escape(source.header.encode()) + rb"\r?$", b"", lines.content)
    return Lines(content, lines.number), count


def _parse(lines: Lines, skip: int, form: Form) -> Block | None:
    """A block of lines; None where anything is wrong with it."""
    piece = max(PIECE_BYTES, len(lines.content) // max_pieces())
    table = _read_csv(lines, skip, form, piece)
    if table is None and len(lines.content) > piece:  # is a row longer than a piece?
        table = _read_csv(lines, skip, form, len(lines.content))
    group = form.layout.group
    if table is None or (group is not None and table.column(group).null_count):
        return None
    delimiter = form.source.delimiter
    block = take_columns(table, form.layout, lambda row: f"{form.source.shown}:{line_of(lines, skip, delimiter, row)}")
    return block if is_sound(block) else None


def _read_csv(lines: Lines, skip: int, form: Form, piece: int) -> Any:  # noqa: ANN401 - a table, or None
    names = [str(i) for i in range(form.layout.width)]
    types = dict.fromkeys(names, pa.float32())
    if form.layout.group is not None:
        types[str(form.layout.group)] = pa.int64()
    try:
        return pa.csv.read_csv(
            pa.BufferReader(lines.content),
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=skip, block_size=piece),
            parse_options=pa.csv.ParseOptions(delimiter=form.source.delimiter),
            convert_options=pa.csv.ConvertOptions(column_types=types, null_values=list(form.columns.missing)),
        )
    except pa.ArrowInvalid:  # the content; any other of its errors is not about that
        return None


def take_columns(table: Any, layout: Layout, where: Callable[[int], str]) -> Block:  # noqa: ANN401 - no types
    """A block from a table of 32-bit floats, whose groups, if any, are 64-bit integers."""
    labels = fill(table, layout.labels)
    return Block(
        labels[:, 0] if len(layout.labels) == 1 else labels,
        fill(table, layout.features),
        None if layout.weight is None else fill(table, (layout.weight,))[:, 0],
        None if layout.group is None else column_of(table.column(layout.group)),
        where,
    )
