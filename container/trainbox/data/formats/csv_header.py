"""Inspect the first lines of CSV: the delimiter, the header, comments before the rows, and signs of other formats."""

import csv
import re
from collections.abc import Sequence

import msgspec

from trainbox.contract.text import short
from trainbox.data.formats.byte_stream import ByteStream, peek_head
from trainbox.data.formats.cell_types import (
    NUMBER,
    are_column_names,
    classify_cell,
    guess_delimiter,
    hint_for_cell,
    is_value,
)
from trainbox.data.formats.libsvm import ROW_SYNTAX
from trainbox.data.formats.row_block import Location, RowError
from trainbox.data.formats.schema import ColumnSpec, SourceInfo
from trainbox.errors import DataError

#: Excel's line that names the delimiter.
_DELIMITER_LINE = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)
DELIMITERS = ",;\t|"
#: A first row of 0,1,2,… longer than this is probably a header.
_COUNTING = 3
#: Pairs after a first word: libsvm, but for a label or an index that is not a number.
_PAIRS = re.compile(rf"\s*(?P<label>[^\s:,;|]+)(?:[ \t]+[^\s:,;|]+:{NUMBER.pattern})+\s*")
_QUOTED = re.compile(rf"'{NUMBER.pattern}'", re.ASCII)
#: Of a line: label and some pairs.
_LOOKED_AT = 4096


class Preamble(msgspec.Struct, frozen=True):
    """The first lines of a file without comments and other lines before its rows."""

    lines: tuple[tuple[int, str], ...]
    #: The number of lines before the first of them.
    skipped: int
    #: Named by the file itself; empty if it names none.
    delimiter: str
    #: The number of comments among the lines.
    comments: int


def skip_preamble(lines: Sequence[tuple[int, str]]) -> Preamble:
    """Skip comments (#) and a line `sep=;`, unless there are no other lines."""
    rows = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    named = _DELIMITER_LINE.fullmatch(rows[0][1]) if len(rows) > 1 else None
    # Cells may begin with #, such as colours: then all lines do, and have several cells.
    kept = rows[1:] if named else rows
    if not kept and all(any(sign in line for sign in ",;\t|") for _, line in lines):
        kept = list(lines)
    return Preamble(
        lines=tuple(kept),
        skipped=kept[0][0] - 1 if kept else 0,
        delimiter=named[1] if named else "",
        comments=len(lines) - len(rows) if rows or not kept else 0,
    )


def inspect(stream: ByteStream, columns: ColumnSpec) -> SourceInfo | None:
    """Inspect the first two rows without consuming them; None if there is no row.

    Raises:
        DataError: The first line is neither a row of numbers nor a header.
    """
    preamble = skip_preamble(peek_head(stream))
    if not preamble.lines:
        return None
    shown = stream.shown
    # If there is a second line, it is not a header.
    (number, first), (_, second) = preamble.lines[0], preamble.lines[:2][-1]
    delimiter = columns.delimiter or preamble.delimiter or _delimiter_of(second, columns, shown)
    cells = tuple(cell.strip() for cell in _split(first, delimiter, f"{shown}:{number}"))
    following = _split(second, delimiter, shown)
    lines = LeadingLines(f"{shown}:{number}", first, second, cells, following, delimiter)
    lines.reject_malformed(is_guessed=columns.delimiter is None)
    notes, header = [*_about_comments(preamble, shown), *lines.notes()], ""
    if columns.header is not None:
        header = first if columns.header else ""
    elif not all(is_value(cell, columns.missing) for cell in cells):
        is_row = columns.texts and _has_texts(cells, following, columns)
        if not is_row and not _names_numbers(cells, following, columns):
            _require_header(cells, columns, Location(number, f"{shown}:{number}"))
        header = "" if is_row else first
    elif not cells[0] and list(cells[1:]) == [str(i) for i in range(len(cells) - 1)]:
        raise _index_error(f"{shown}:{number}", columns)
    elif len(cells) > _COUNTING and list(cells) == [str(i) for i in range(len(cells))]:
        notes += [
            f"{shown}:{number}: 0,1,2,… is taken for a row; if it is a data frame's header, write with header=False"
        ]
    return SourceInfo(
        shown,
        "CSV",
        len(cells),
        cells if header else None,
        delimiter,
        skip=number if header else preamble.skipped,
        header=header,
        row_bytes=len(second),
        note="; ".join(notes),
    )


def _about_comments(preamble: Preamble, shown: str) -> list[str]:
    return [f"{shown}: lines that begin with # are comments and are skipped"] if preamble.comments else []


def _names_numbers(cells: Sequence[str], following: Sequence[str], columns: ColumnSpec) -> bool:
    """Return whether a first line with words and numbers is a header, judged by the next line."""
    if list(following) == list(cells):  # the only line: a row taken for a header would be lost silently
        return False
    is_like = columns.texts or all(is_value(cell.strip(), columns.missing) for cell in following)
    if len(following) != len(cells) or not is_like:
        return False
    words = [cell for cell in cells if not is_value(cell, columns.missing)]
    numbers = [cell for cell in cells if is_value(cell, columns.missing)]
    return bool(numbers) and are_column_names(cells, words, numbers)


def _split(line: str, delimiter: str, where: str) -> list[str]:
    if delimiter == " ":
        line = " ".join(line.split())
    if delimiter not in line and '"' not in line:
        return [line]  # it may be longer than `csv` allows a cell to be
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{where} is not a row of CSV: {error}", hint="is this CSV, and its quotes closed?") from error


def _has_texts(cells: Sequence[str], following: Sequence[str], columns: ColumnSpec) -> bool:
    """Return whether a first line with words and numbers is a row, judged by the labels of this and the next line."""
    if not any(_is_number(cell, columns) for cell in cells):
        return False
    words = [place for place, cell in enumerate(cells) if not is_value(cell, columns.missing)]
    below = following if len(following) == len(cells) else cells
    if _names_by_counting(cells, columns) and all(_is_number(below[place], columns) for place in words):
        return False
    if words[0] >= columns.labels or len(following) != len(cells):
        return True
    is_label = not any(_is_number(following[place], columns) for place in words if place < columns.labels)
    return is_label and not _names_by_counting(cells, columns)


def _is_number(cell: str, columns: ColumnSpec) -> bool:
    return cell.strip() not in columns.missing and classify_cell(cell) != "text"


def _names_by_counting(cells: Sequence[str], columns: ColumnSpec) -> bool:
    """Return whether the numbers among names are those that a data frame gives to unnamed columns."""
    numbers = [cell for cell in cells if _is_number(cell, columns)]
    counted = [[str(first + place) for place in range(len(numbers))] for first in (0, 1)]
    return len(numbers) >= _COUNTING and numbers in counted


def _require_header(cells: Sequence[str], columns: ColumnSpec, place: Location) -> None:
    numbers = [cell for cell in cells if is_value(cell, columns.missing) and cell not in columns.missing]
    word = next(place for place, cell in enumerate(cells) if not is_value(cell, columns.missing))
    names = [cell for cell in cells[1:] if not is_value(cell, columns.missing)]
    if cells[0] in {"", "Unnamed: 0"} and (not numbers or are_column_names(cells[1:], names, numbers)):
        raise _index_error(place.text, columns)
    hint = hint_for_cell(cells[word], columns.missing) if numbers else ""
    if not numbers:
        return
    what = "is not a number"
    other = "if this line is a header, give every column a name that is not a number, or leave the header out"
    if word < columns.labels:
        what = "is not a number, and the label must be one"
        other = "encode the labels as numbers: 0 and 1, or 0, 1, 2, … for several classes"
    raise RowError(
        f"{place}: column {word + 1}: {cells[word]!r} {what}",
        hint=hint or other,
        row=place.number,
        column=word + 1,
        value=cells[word],
    )


def _index_error(where: str, columns: ColumnSpec) -> DataError:
    return DataError(
        f"{where}: the header does not name the first column, which looks like a data frame's index",
        hint="the first column must be the label: write with index=False"
        if columns.labels
        else "write with index=False",
    )


def _delimiter_of(line: str, columns: ColumnSpec, shown: str) -> str:
    """Return the delimiter that splits a line into numbers, or else into most cells."""
    split = {delimiter: _split(line, delimiter, shown) for delimiter in DELIMITERS}
    numeric = [
        delimiter
        for delimiter, cells in split.items()
        if len(cells) > 1 and all(is_value(cell.strip(), columns.missing) for cell in cells)
    ]
    if numeric:
        return numeric[0]
    split[" "] = line.split()
    for delimiter, cells in split.items():
        decimal = [cell.strip().replace(",", ".") for cell in cells]
        if delimiter != "," and len(cells) > 1 and all(is_value(cell, columns.missing) for cell in decimal):
            if all(is_value(cell.strip(), columns.missing) for cell in cells):
                return delimiter  # blanks; the others take precedence
            raise DataError(f"{shown} has decimal commas: {short(line)}", hint="write numbers with a decimal point")
    most = max(DELIMITERS, key=lambda delimiter: len(split[delimiter]))
    return most if len(split[most]) > 1 or len(split[" "]) == 1 else " "


class LeadingLines(msgspec.Struct, frozen=True):
    """The first non-blank line and the next one, whole and split; twice the same if there is only one."""

    where: str
    first: str
    second: str
    cells: Sequence[str]
    following: Sequence[str]
    delimiter: str

    def reject_malformed(self, *, is_guessed: bool) -> None:
        """Reject lines that are not rows of a table, or would be read as other rows.

        Args:
            is_guessed: Whether the delimiter is detected rather than given.

        Raises:
            DataError: With what to do.
        """
        self._reject_wrapped()
        if is_guessed:
            self._reject_libsvm()
            self._reject_doubled()
        if len(self.cells) == 1:
            self._reject_one_column(is_guessed=is_guessed)

    def notes(self) -> list[str]:
        """Describe what is read and may not be intended."""
        ends = [len(cells) > 1 and not cells[-1].strip() for cells in (self.cells, self.following)]
        if not all(ends):
            return []
        return [
            f"{self.where}: lines end with a delimiter: column {len(self.cells)}, after it, is a feature without values"
        ]

    def _reject_wrapped(self) -> None:
        """Reject brackets around rows, and single quotes around numbers."""
        for signs in ("()", "[]", "{}"):
            if all(
                line.strip()[:1] == signs[0] and line.strip()[-1:] == signs[1] for line in (self.first, self.second)
            ):
                raise DataError(
                    f"{self.where}: the row {short(self.first)} is in brackets", hint="write CSV without them"
                )
        if all(_QUOTED.fullmatch(cell.strip()) for cell in self.following):
            raise DataError(
                f"{self.where}: numbers are in single quotes: {short(self.second)}",
                hint="quote with double quotes, or not at all",
            )

    def _reject_libsvm(self) -> None:
        for line in (self.first, self.second):
            found = _PAIRS.match(line, 0, _LOOKED_AT)
            if found is not None:
                what = "an index" if NUMBER.fullmatch(found["label"]) else f"the label {short(found['label'])}"
                raise DataError(f"{self.where}: this looks like libsvm, but {what} is not a number", hint=ROW_SYNTAX)

    def _reject_doubled(self) -> None:
        both = (self.cells, self.following)
        has_empty = len(self.cells) > 2 and len(self.cells) % 2 == 1  # noqa: PLR2004 - two columns and what is between them
        if self.delimiter == "|" and has_empty and not any(cell.strip() for cells in both for cell in cells[1::2]):
            raise DataError(
                f"{self.where}: columns are separated by '||': {short(self.first)}",
                hint="separate columns by one character",
            )

    def _reject_one_column(self, *, is_guessed: bool) -> None:
        if len(self.following) > 1:
            raise DataError(
                f"{self.where}: {short(self.first)} is not a header of the {len(self.following)} columns below it",
                hint="remove the line, or start it with # to make it a comment",
            )
        inner = self.second.strip()[1:-1]
        if self.second.strip() == f'"{inner}"' and '"' not in inner and any(sign in inner for sign in ",;\t|"):
            raise DataError(
                f"{self.where}: the whole line is quoted, which makes it one cell: {short(self.second)}",
                hint="remove the quotes around the lines",
            )
        found = guess_delimiter(self.second) if is_guessed else ""
        if found:
            raise DataError(
                f"{self.where}: columns seem to be separated by {found!r}: {short(self.second)}",
                hint=f"set the hyperparameter delimiter to {found!r}, or write CSV with commas",
            )
