"""Cells of CSV, one by one: what is a number, and what is wrong with a row that Arrow has refused."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from trainbox.channels.layout import Layout
from trainbox.channels.odd import hint_for_cell
from trainbox.channels.sources import Source
from trainbox.channels.streams import Lines
from trainbox.channels.table import Columns
from trainbox.contract.text import short
from trainbox.errors import DataError

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"-?\d{1,4000}", re.ASCII)  # Python converts no more than 4,300
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_GROUP = np.iinfo(np.int64).max
_NOT_A_NUMBER = re.compile(r"[+-]?nan", re.IGNORECASE)
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)


def is_cell(text: str, missing: Sequence[str]) -> bool:
    """Whether a cell is a number, or stands for a missing value."""
    return text in missing or any(kind.fullmatch(text) for kind in (_NUMBER, _NOT_A_NUMBER, _INFINITE))


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


def first_bad_row(lines: Lines, skip: int, form: Form) -> DataError:
    """The first row that breaks a rule, with its line and what to do."""
    source = form.source
    try:
        for number, cells in _rows(lines, skip, source.delimiter):
            fault = _fault_of_row(cells, form.layout, form.columns)
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


def _fault_of_row(cells: Sequence[str], layout: Layout, columns: Columns) -> tuple[str, str] | None:
    """What is wrong with a row, and what to do."""
    if len(cells) != layout.width:
        found = f"{len(cells)} columns, the first row has {layout.width}: {short(','.join(cells))}"
        return found, _hint_for_width(cells, layout.width)
    for column, cell in enumerate(cells):
        fault = _fault_of_cell(cell, column, layout, columns.missing)
        if fault is not None:
            return f"{layout.describe(column)}: {fault[0]}", fault[1]
    return None


def _hint_for_width(cells: Sequence[str], width: int) -> str:
    every = "every row must have the same number of columns"
    if len(cells) == width + 1 and not cells[-1].strip():
        return f"{every}: remove the delimiter at the end of the line"
    if len(cells) == width + 1:
        return f"{every}; names of rows are none: write with index=False (pandas), row.names=FALSE (R)"
    return every


def _fault_of_cell(cell: str, column: int, layout: Layout, missing: Sequence[str]) -> tuple[str, str] | None:
    number = cell.strip(" \t")  # Arrow takes blanks around a number, and around nothing else
    role = layout.role(column)
    if cell in missing or _NOT_A_NUMBER.fullmatch(number):
        return (f"the {role} is missing", f"remove the row, or give it a {role}") if role else None
    if role == "group":
        return None if _is_group(number) else (f"{short(cell)} is not an integer", "number the groups: 0, 1, 2, …")
    if _INFINITE.fullmatch(number) or (_NUMBER.fullmatch(number) and abs(float(number)) > _LARGEST):
        return f"{short(cell)} is infinite as a 32-bit float", "leave the cell empty if the value is missing"
    if not _NUMBER.fullmatch(number):
        return _not_a_number(cell, role, missing)
    if role == "weight" and float(number) < 0:
        return f"the weight {short(cell)} is negative", "a weight is 0 or more"
    return None


def _is_group(number: str) -> bool:
    return _INTEGER.fullmatch(number) is not None and abs(int(number)) <= _LARGEST_GROUP


def _not_a_number(cell: str, role: str, missing: Sequence[str]) -> tuple[str, str]:
    hint = hint_for_cell(cell, missing)
    if hint:
        return f"{short(cell)} is not a number", hint
    if role == "label":
        return (
            f"{short(cell)} is not a number, and the label must be one",
            "encode the labels as numbers: 0 and 1, or 0, 1, 2, … for several classes",
        )
    words = ", ".join(text or "an empty cell" for text in missing)
    return f"{short(cell)} is not a number", f"encode text as numbers; a missing value is {words or 'nothing here'}"
