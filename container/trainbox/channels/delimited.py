"""CSV: Arrow parses blocks of lines against a strict schema; what it refuses is looked at cell by cell.

XGBoost's own text loader takes a header for a row with label 0, text for a missing value, and a short row for one with
missing values behind. Here every cell is a number or missing, every row has the same number of columns, and a first
line without any number is a header. Arrow does not say on which line it failed, so a block that it refuses is read
again, slowly, to say it.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from trainbox.channels.arrays import column_of, fill
from trainbox.channels.blocks import Block, is_sound
from trainbox.channels.bounds import fill_bounds
from trainbox.channels.cells import Form, first_bad_row, is_cell, line_of
from trainbox.channels.first_lines import FirstLines
from trainbox.channels.layout import Layout
from trainbox.channels.odd import hint_for_cell, numbers_are_names
from trainbox.channels.sources import Source
from trainbox.channels.spelling import kind_of
from trainbox.channels.streams import LONGEST_LINE, PIECE_BYTES, Lines, Stream, lines_in_head, max_pieces, read_lines
from trainbox.channels.table import Columns
from trainbox.channels.tidy import Opening, open_lines, tidied, with_single_blanks
from trainbox.channels.words import learn_columns, number_columns
from trainbox.contract.text import short
from trainbox.errors import DataError
from trainbox.say import say

DELIMITERS = ",;\t|"
#: A first row of 0,1,2,… longer than this is no accident.
_COUNTING = 3
#: Rows to parse at a time where they are long.
_FEWEST_ROWS = 256


def look(stream: Stream, path: Path, columns: Columns) -> Source | None:
    """What the first two rows say; None where there is no row. Nothing is consumed.

    Raises:
        DataError: The first line is neither a row of numbers nor a header.
    """
    opening = open_lines(lines_in_head(stream))
    if not opening.lines:
        return None
    shown = stream.shown
    # Where there is a second line, it is no header.
    (number, first), (_, second) = opening.lines[0], opening.lines[:2][-1]
    delimiter = columns.delimiter or opening.delimiter or _delimiter_of(second, columns, shown)
    cells = tuple(cell.strip() for cell in _split(first, delimiter, f"{shown}:{number}"))
    following = _split(second, delimiter, shown)
    lines = FirstLines(f"{shown}:{number}", first, second, cells, following, delimiter)
    lines.refuse_odd(is_guessed=columns.delimiter is None)
    notes, header = [*_about_comments(opening, shown), *lines.notes()], ""
    if not all(is_cell(cell, columns.missing) for cell in cells):
        is_row = columns.texts and _has_texts(cells, following, columns)
        if not is_row and not _names_numbers(cells, following, columns):
            _refuse_no_header(cells, columns, f"{shown}:{number}")
        header = "" if is_row else first
    elif not cells[0] and list(cells[1:]) == [str(i) for i in range(len(cells) - 1)]:
        raise _index(f"{shown}:{number}")
    elif len(cells) > _COUNTING and list(cells) == [str(i) for i in range(len(cells))]:
        notes += [
            f"{shown}:{number}: 0,1,2,… is taken for a row; if it is a data frame's header, write with header=False"
        ]
    return Source(
        path,
        shown,
        "CSV",
        len(cells),
        cells if header else None,
        delimiter,
        skip=number if header else opening.skipped,
        header=header,
        row_bytes=len(second),
        note="; ".join(notes),
    )


def _about_comments(opening: Opening, shown: str) -> list[str]:
    return [f"{shown}: lines that begin with # are comments, and left out"] if opening.comments else []


def _names_numbers(cells: Sequence[str], following: Sequence[str], columns: Columns) -> bool:
    """Whether a first line with words and numbers is a header, as the next line says."""
    if list(following) == list(cells):  # the only line: a row that is not read would be lost without a word
        return False
    is_like = columns.texts or all(is_cell(cell.strip(), columns.missing) for cell in following)
    if len(following) != len(cells) or not is_like:
        return False
    words = [cell for cell in cells if not is_cell(cell, columns.missing)]
    numbers = [cell for cell in cells if is_cell(cell, columns.missing)]
    return bool(numbers) and numbers_are_names(cells, words, numbers)


def _split(line: str, delimiter: str, where: str) -> list[str]:
    if delimiter == " ":
        line = " ".join(line.split())
    if delimiter not in line and '"' not in line:
        return [line]  # which may be longer than `csv` allows a cell to be
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{where} is no row of CSV: {error}", hint="is this CSV, and its quotes closed?") from error


def _has_texts(cells: Sequence[str], following: Sequence[str], columns: Columns) -> bool:
    """Whether a first line with words and numbers is a row: the label says so, its own and the next one's."""
    if not any(_is_number(cell, columns) for cell in cells):
        return False
    words = [place for place, cell in enumerate(cells) if not is_cell(cell, columns.missing)]
    below = following if len(following) == len(cells) else cells
    if _names_by_counting(cells, columns) and all(_is_number(below[place], columns) for place in words):
        return False
    if words[0] >= columns.labels or len(following) != len(cells):
        return True
    is_label = not any(_is_number(following[place], columns) for place in words if place < columns.labels)
    return is_label and not _names_by_counting(cells, columns)


def _is_number(cell: str, columns: Columns) -> bool:
    return cell.strip() not in columns.missing and kind_of(cell) != "text"


def _names_by_counting(cells: Sequence[str], columns: Columns) -> bool:
    """Whether the numbers among names are those that a data frame gives to columns: so many are no accident."""
    numbers = [cell for cell in cells if _is_number(cell, columns)]
    counted = [[str(first + place) for place in range(len(numbers))] for first in (0, 1)]
    return len(numbers) >= _COUNTING and numbers in counted


def _refuse_no_header(cells: Sequence[str], columns: Columns, where: str) -> None:
    numbers = [cell for cell in cells if is_cell(cell, columns.missing) and cell not in columns.missing]
    word = next(place for place, cell in enumerate(cells) if not is_cell(cell, columns.missing))
    names = [cell for cell in cells[1:] if not is_cell(cell, columns.missing)]
    if cells[0] in {"", "Unnamed: 0"} and (not numbers or numbers_are_names(cells[1:], names, numbers)):
        raise _index(where)
    hint = hint_for_cell(cells[word], columns.missing) if numbers else ""
    if numbers and word < columns.labels:
        raise DataError(
            f"{where}: {cells[word]!r} is not a number, and the label must be one",
            hint=hint or "encode the labels as numbers: 0 and 1, or 0, 1, 2, … for several classes",
        )
    if numbers:
        other = "if this line is a header, give every column a name that is not a number, or leave the header out"
        raise DataError(f"{where}: {cells[word]!r} is not a number", hint=hint or other)


def _index(where: str) -> DataError:
    return DataError(
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
    if numeric:
        return numeric[0]
    split[" "] = line.split()
    for delimiter, cells in split.items():
        decimal = [cell.strip().replace(",", ".") for cell in cells]
        if delimiter != "," and len(cells) > 1 and all(is_cell(cell, columns.missing) for cell in decimal):
            if all(is_cell(cell.strip(), columns.missing) for cell in cells):
                return delimiter  # blanks alone, which the others come before
            raise DataError(f"{shown} has decimal commas: {short(line)}", hint="write numbers with a decimal point")
    most = max(DELIMITERS, key=lambda delimiter: len(split[delimiter]))
    return most if len(split[most]) > 1 or len(split[" "]) == 1 else " "


def read(stream: Stream, form: Form, *, size: int) -> Iterator[Block]:
    """The rows, block by block; the words of the form hear of the texts in them.

    Raises:
        DataError: With file, line and column.
    """
    source = form.source
    header = " ".join(source.header.split()) if source.delimiter == " " else source.header
    has_said: set[str] = set()
    # Arrow's work for a column is the same for few rows as for many.
    size = max(size, min(_FEWEST_ROWS * source.row_bytes, LONGEST_LINE))
    for lines in read_lines(stream, size=size):
        if source.delimiter == " ":
            lines = with_single_blanks(lines)  # noqa: PLW2901 - the same rows
        skip = max(0, source.skip - lines.number + 1)
        # Names that come again are texts among texts, and no fault.
        joined = form.columns.texts and header and lines.content.count(header.encode()) > (skip > 0)
        block = None if joined else _parse(lines, skip, form)
        if block is None:
            lines, comments, headers = tidied(lines, delimiter=source.delimiter, header=header)  # noqa: PLW2901
            _say_once(source, has_said, comments=comments > 0, repeats=headers > (skip > 0 and bool(header)))
            if not lines.content.strip():
                continue
            block = _parse(lines, skip, form)
        if block is None:
            raise first_bad_row(lines, skip, form)
        if len(block.labels):
            yield block
        del block, lines  # so that there is one block in memory, not two


def _say_once(source: Source, has_said: set[str], *, comments: bool, repeats: bool) -> None:
    """What is left out of a block beside the rows."""
    texts = {
        "the header comes again further down: several files were joined": repeats,
        "lines that begin with # are comments, and left out": comments and not source.note,
    }
    for text in [text for text, is_so in texts.items() if is_so and text not in has_said]:
        has_said.add(text)
        say(f"{source.shown}: {text}")


def _parse(lines: Lines, skip: int, form: Form) -> Block | None:
    """A block of lines; None where anything is wrong with it."""
    table = _read_words(lines, skip, form)
    group = form.layout.group
    if table is None or (group is not None and table.column(group).null_count):
        return None
    delimiter, bounds = form.source.delimiter, form.columns.bounds
    block = take_columns(
        table, form.layout, lambda row: f"{form.source.shown}:{line_of(lines, skip, delimiter, row)}", bounds=bounds
    )
    if not is_sound(block, bounds=bounds):
        return None
    form.words.close(block.features, block.labels)
    return block


def _read_words(lines: Lines, skip: int, form: Form) -> Any:  # noqa: ANN401 - a table, or None
    """A table of numbers, with those that stand for words; None where anything is wrong with it."""
    known = form.words.columns
    table = _read_whole(lines, skip, form, known)
    if table is None:
        others = [column for column in range(form.layout.width) if column not in {*known, form.layout.group}]
        told = _read_whole(lines, skip, form, frozenset({*known, *others}))
        if told is not None:
            learn_columns(told, form.words, others)
        if form.words.columns == known:
            return None
        table = _read_whole(lines, skip, form, form.words.columns)
    return None if table is None else number_columns(table, form.words)


def _read_whole(lines: Lines, skip: int, form: Form, words: AbstractSet[int]) -> Any:  # noqa: ANN401 - a table, or None
    piece = max(PIECE_BYTES, len(lines.content) // max_pieces())
    table = _read_csv(lines, skip, form, words, piece)
    if table is None and len(lines.content) > piece:  # is a row longer than a piece?
        table = _read_csv(lines, skip, form, words, len(lines.content))
    return table


def _read_csv(lines: Lines, skip: int, form: Form, words: AbstractSet[int], piece: int) -> Any:  # noqa: ANN401
    names = [str(i) for i in range(form.layout.width)]
    texts = pa.dictionary(pa.int32(), pa.string())
    types = {name: texts if column in words else pa.float32() for column, name in enumerate(names)}
    if form.layout.group is not None:
        types[str(form.layout.group)] = pa.int64()
    try:
        return pa.csv.read_csv(
            pa.BufferReader(lines.content),
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=skip, block_size=piece),
            parse_options=pa.csv.ParseOptions(delimiter=form.source.delimiter),
            convert_options=pa.csv.ConvertOptions(
                column_types=types, null_values=list(form.columns.missing), strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:  # the content; any other of its errors is not about that
        return None


def take_columns(
    table: Any,  # noqa: ANN401 - pyarrow has no types
    layout: Layout,
    where: Callable[[int], str],
    *,
    bounds: bool = False,
) -> Block:
    """A block from a table of 32-bit floats, whose groups, if any, are 64-bit integers; with the bounds filled in."""
    labels = fill_bounds(fill(table, layout.labels)) if bounds else fill(table, layout.labels)
    return Block(
        labels[:, 0] if len(layout.labels) == 1 else labels,
        fill(table, layout.features),
        None if layout.weight is None else fill(table, (layout.weight,))[:, 0],
        None if layout.group is None else column_of(table.column(layout.group)),
        where,
    )
