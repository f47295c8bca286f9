"""Cells of CSV, one by one: what is a number, and what is wrong with a row that Arrow has refused."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from trainbox.channels.bounds import HINT, fill_bounds, find_faults
from trainbox.channels.layout import Layout
from trainbox.channels.odd import hint_for_cell, spells_number
from trainbox.channels.sources import Source
from trainbox.channels.spelling import BLANKS, FLAGS, INFINITE, NOT_A_NUMBER, NUMBER, kind_of
from trainbox.channels.streams import Lines
from trainbox.channels.table import Columns
from trainbox.channels.words import Words, number_among_texts
from trainbox.contract.text import short
from trainbox.errors import DataError

_INTEGER = re.compile(r"-?\d{1,4000}", re.ASCII)  # Python converts no more than 4,300
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_GROUP = np.iinfo(np.int64).max


def is_cell(text: str, missing: Sequence[str]) -> bool:
    """Whether a cell is a number, or a truth value, or stands for a missing value."""
    return text in missing or kind_of(text) != "text"


def line_of(lines: Lines, skip: int, delimiter: str, row: int) -> int:
    """The number of the line of a block's row, counted from 0."""
    for index, (number, _) in enumerate(_rows(lines, skip, delimiter)):
        if index == row:
            return number
    return lines.number


class Form(msgspec.Struct, frozen=True):
    """How the rows of a file are written."""

    source: Source
    layout: Layout
    columns: Columns
    #: What the rows before have told of columns with words.
    words: Words


def first_bad_row(lines: Lines, skip: int, form: Form) -> DataError:
    """The first row that breaks a rule, with its line and what to do."""
    source = form.source
    told: dict[int, str] = {}
    try:
        for number, cells in _rows(lines, skip, source.delimiter):
            fault = _fault_of_row(cells, form, told)
            if fault is not None:
                return DataError(f"{source.shown}:{number}: {fault[0]}", hint=fault[1])
    except csv.Error as error:
        return DataError(f"{source.shown}: after line {lines.number}: {error}", hint="is this CSV?")
    return DataError(
        f"{source.shown}: a row after line {lines.number} cannot be read as numbers", hint="write plain decimal numbers"
    )


def _rows(lines: Lines, skip: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows with something in them, each with the number of the line on which it begins."""
    text = io.TextIOWrapper(io.BytesIO(lines.content), encoding="utf-8", errors="replace")
    rows = csv.reader(text, delimiter=delimiter)
    before = 0
    for cells in rows:
        number, before = before + 1, rows.line_num
        if cells and number > skip:
            yield lines.number + number - 1, cells


def _fault_of_row(cells: Sequence[str], form: Form, told: dict[int, str]) -> tuple[str, str] | None:
    """What is wrong with a row, and what to do.

    Args:
        cells: The row.
        form: How rows are written.
        told: By column the first cell of these lines that has told whether the column is one of texts.
    """
    layout = form.layout
    if len(cells) != layout.width:
        found = f"{len(cells)} columns, the first row has {layout.width}: {short(','.join(cells))}"
        return found, _hint_for_width(cells, layout)
    for column, cell in enumerate(cells):
        fault = _fault_of_word(cell, column, form, told) or _fault_of_cell(cell, column, form, told)
        if fault is not None:
            return f"{layout.describe(column)}: {fault[0]}", fault[1]
    return _fault_of_bounds([cells[column] for column in layout.labels], form) if form.columns.bounds else None


def _fault_of_bounds(cells: Sequence[str], form: Form) -> tuple[str, str] | None:
    numbers = [kind_of(cell) == "number" and not form.words.is_missing(cell.strip(BLANKS)) for cell in cells]
    labels = [float(cell) if is_number else np.nan for cell, is_number in zip(cells, numbers, strict=True)]
    wrong = [fault for fault, rows in find_faults(fill_bounds(np.array([labels], np.float32))).items() if rows.any()]
    return (f"{wrong[0]}: {short(','.join(cells))}", HINT) if wrong else None


def _fault_of_word(cell: str, column: int, form: Form, told: dict[int, str]) -> tuple[str, str] | None:
    """What is wrong with a cell where texts are expected."""
    word, words = cell.strip(BLANKS), form.words
    if words.is_missing(word):
        return None
    if words.is_text(column):
        return words.fault(column, cell)
    if words.is_open(column):
        first = told.setdefault(column, word)
        if kind_of(first) == "text" != kind_of(word):
            return number_among_texts(word, first, form.columns.missing)
    return None


def _hint_for_width(cells: Sequence[str], layout: Layout) -> str:
    width = layout.width
    every = "every row must have the same number of columns"
    if len(cells) == width + 1 and not cells[-1].strip():
        return f"{every}: remove the delimiter at the end of the line"
    if layout.names and not layout.names[-1] and len(cells) == width - 1:
        return f"{every}: remove the delimiter at the end of the header"
    if len(cells) == width + 1:
        return f"{every}; names of rows are none: write with index=False (pandas), row.names=FALSE (R)"
    return every


def _is_text(column: int, form: Form, told: dict[int, str]) -> bool:
    """Whether a column is one of texts, by the rows before or by these."""
    first = told.get(column, "0")
    begins = kind_of(first) == "text" and not spells_number(first)
    return form.words.is_text(column) or (form.words.is_open(column) and begins)


def _fault_of_cell(cell: str, column: int, form: Form, told: dict[int, str]) -> tuple[str, str] | None:
    number = cell.strip(BLANKS)  # Arrow takes blanks around a number
    role, missing = form.layout.role(column), form.columns.missing
    is_bound, is_text = role == "label" and form.columns.bounds, _is_text(column, form, told)
    if cell in missing or NOT_A_NUMBER.fullmatch(number) or (is_text and number in missing):
        return (f"the {role} is missing", f"remove the row, or give it a {role}") if role and not is_bound else None
    if role == "group":
        return None if _is_group(number) else (f"{short(cell)} is not an integer", "number the groups: 0, 1, 2, …")
    if is_text or number.lower() in FLAGS or (is_bound and INFINITE.fullmatch(number)):
        return None
    return _fault_of_number(cell, number, role, form.columns)


def _fault_of_number(cell: str, number: str, role: str, columns: Columns) -> tuple[str, str] | None:
    if INFINITE.fullmatch(number) or (NUMBER.fullmatch(number) and abs(float(number)) > _LARGEST):
        return f"{short(cell)} is infinite as a 32-bit float", "leave the cell empty if the value is missing"
    if not NUMBER.fullmatch(number):
        return _not_a_number(cell, role, columns)
    if role == "weight" and float(number) < 0:
        return f"the weight {short(cell)} is negative", "a weight is 0 or more"
    return None


def _is_group(number: str) -> bool:
    return _INTEGER.fullmatch(number) is not None and abs(int(number)) <= _LARGEST_GROUP


def _not_a_number(cell: str, role: str, columns: Columns) -> tuple[str, str]:
    hint = hint_for_cell(cell, columns.missing)
    if hint:
        return f"{short(cell)} is not a number", hint
    if role == "label":
        return (
            f"{short(cell)} is not a number, and the label must be one",
            "encode the labels as numbers: 0 and 1, or 0, 1, 2, … for several classes",
        )
    words = ", ".join(text or "an empty cell" for text in columns.missing)
    texts = ", or name the column in the hyperparameter categorical" if columns.texts and not role else ""
    return (
        f"{short(cell)} is not a number",
        f"encode text as numbers{texts}; a missing value is {words or 'nothing here'}",
    )
