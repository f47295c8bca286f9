"""Find the row and cell of a block of CSV that Arrow has rejected, and say what to do about it."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np

from trainbox.contract.text import short
from trainbox.data.formats.byte_stream import LineBlock
from trainbox.data.formats.categories import RowFormat
from trainbox.data.formats.cell_types import (
    BLANKS,
    BOOLEANS,
    INFINITE,
    NOT_A_NUMBER,
    NUMBER,
    Fault,
    classify_cell,
    describe_mixed_column,
    hint_for_cell,
    looks_like_number,
)
from trainbox.data.formats.row_block import BOUNDS_HINT, RowError, fill_bounds, find_bound_faults
from trainbox.data.formats.schema import ColumnSpec, RowSchema

_INTEGER = re.compile(r"-?\d{1,4000}", re.ASCII)  # Python converts no more than 4,300
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_GROUP = np.iinfo(np.int64).max


def find_line_number(lines: LineBlock, skip: int, delimiter: str, row: int) -> int:
    """Return the line number of a row of a block, counted from 0."""
    for index, (number, _) in enumerate(_rows(lines, skip, delimiter)):
        if index == row:
            return number
    return lines.number


def first_bad_row(lines: LineBlock, skip: int, form: RowFormat) -> RowError:
    """Return the error of the first invalid row, with its line and what to do."""
    shown, schema = form.source.shown, form.schema
    deciding: dict[int, str] = {}
    try:
        for number, cells in _rows(lines, skip, form.source.delimiter):
            if len(cells) != schema.width:
                text = f"{len(cells)} columns, the first row has {schema.width}: {short(','.join(cells))}"
                return RowError(f"{shown}:{number}: {text}", hint=_hint_for_width(cells, schema), row=number)
            found = _find_bad_cell(cells, form, deciding)
            if found is not None:
                column, (text, hint) = found
                return RowError(
                    f"{shown}:{number}: {schema.describe(column)}: {text}",
                    hint=hint,
                    row=number,
                    column=column + 1,
                    name=schema.name(column),
                    value=cells[column],
                )
            fault = _fault_of_bounds([cells[column] for column in schema.labels], form)
            if fault is not None:
                return RowError(f"{shown}:{number}: {fault[0]}", hint=fault[1], row=number)
    except csv.Error as error:
        return RowError(f"{shown}: after line {lines.number}: {error}", hint="is this CSV?", row=lines.number)
    return RowError(
        f"{shown}: a row after line {lines.number} cannot be read as numbers",
        hint="write plain decimal numbers",
        row=lines.number,
    )


def _rows(lines: LineBlock, skip: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its first line."""
    text = io.TextIOWrapper(io.BytesIO(lines.content), encoding="utf-8", errors="replace")
    rows = csv.reader(text, delimiter=delimiter)
    before = 0
    for cells in rows:
        number, before = before + 1, rows.line_num
        if cells and number > skip:
            yield lines.number + number - 1, cells


def _find_bad_cell(cells: Sequence[str], form: RowFormat, deciding: dict[int, str]) -> tuple[int, Fault] | None:
    """Return the first invalid cell of a row.

    Args:
        cells: The row.
        form: How rows are parsed.
        deciding: By column, the first cell of this block that decides whether the column is one of texts.
    """
    for column, cell in enumerate(cells):
        fault = _fault_of_text(cell, column, form, deciding) or _fault_of_cell(cell, column, form, deciding)
        if fault is not None:
            return column, fault
    return None


def _fault_of_bounds(cells: Sequence[str], form: RowFormat) -> Fault | None:
    if not form.columns.bounds:
        return None
    numbers = [classify_cell(cell) == "number" and not form.encoder.is_missing(cell.strip(BLANKS)) for cell in cells]
    labels = [float(cell) if is_number else np.nan for cell, is_number in zip(cells, numbers, strict=True)]
    faults = find_bound_faults(fill_bounds(np.array([labels], np.float32)))
    wrong = [fault for fault, rows in faults.items() if rows.any()]
    return (f"{wrong[0]}: {short(','.join(cells))}", BOUNDS_HINT) if wrong else None


def _fault_of_text(cell: str, column: int, form: RowFormat, deciding: dict[int, str]) -> Fault | None:
    """Return what is wrong with a cell where texts are expected."""
    word, encoder = cell.strip(BLANKS), form.encoder
    if encoder.is_missing(word):
        return None
    if encoder.is_text(column):
        return encoder.find_fault(column, cell)
    if encoder.is_undecided(column):
        first = deciding.setdefault(column, word)
        if classify_cell(first) == "text" != classify_cell(word):
            return describe_mixed_column(word, first, form.columns.missing)
    return None


def _hint_for_width(cells: Sequence[str], schema: RowSchema) -> str:
    width = schema.width
    every = "every row must have the same number of columns"
    if len(cells) == width + 1 and not cells[-1].strip():
        return f"{every}: remove the delimiter at the end of the line"
    if schema.names and not schema.names[-1] and len(cells) == width - 1:
        return f"{every}: remove the delimiter at the end of the header"
    if len(cells) == width + 1:
        return f"{every}; row names are not supported: write with index=False (pandas), row.names=FALSE (R)"
    return every


def _is_text(column: int, form: RowFormat, deciding: dict[int, str]) -> bool:
    """Return whether a column is one of texts, by earlier blocks or by this one."""
    first = deciding.get(column, "0")
    begins = classify_cell(first) == "text" and not looks_like_number(first)
    return form.encoder.is_text(column) or (form.encoder.is_undecided(column) and begins)


def _fault_of_cell(cell: str, column: int, form: RowFormat, deciding: dict[int, str]) -> Fault | None:
    number = cell.strip(BLANKS)  # Arrow ignores blanks around a number
    role, missing = form.schema.role(column), form.columns.missing
    is_bound, is_text = role == "label" and form.columns.bounds, _is_text(column, form, deciding)
    if cell in missing or NOT_A_NUMBER.fullmatch(number) or (is_text and number in missing):
        return (f"the {role} is missing", f"remove the row, or give it a {role}") if role and not is_bound else None
    if role == "group":
        return None if _is_group(number) else (f"{short(cell)} is not an integer", "number the groups: 0, 1, 2, …")
    if is_text or number.lower() in BOOLEANS or (is_bound and INFINITE.fullmatch(number)):
        return None
    return _fault_of_number(cell, number, role, form.columns)


def _fault_of_number(cell: str, number: str, role: str, columns: ColumnSpec) -> Fault | None:
    if INFINITE.fullmatch(number) or (NUMBER.fullmatch(number) and abs(float(number)) > _LARGEST):
        return f"{short(cell)} is infinite as a 32-bit float", "leave the cell empty if the value is missing"
    if not NUMBER.fullmatch(number):
        return _not_a_number(cell, role, columns)
    if role == "weight" and float(number) < 0:
        return f"the weight {short(cell)} is negative", "a weight is 0 or more"
    return None


def _is_group(number: str) -> bool:
    return _INTEGER.fullmatch(number) is not None and abs(int(number)) <= _LARGEST_GROUP


def _not_a_number(cell: str, role: str, columns: ColumnSpec) -> Fault:
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
