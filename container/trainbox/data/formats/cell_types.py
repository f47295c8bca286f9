"""Classify a text cell: a number, a boolean, a missing value or text; and hint at how to correct one.

Many programs write missing values, units, dates and separators in ways that are not read as numbers.
"""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Literal

from trainbox.contract.text import short

CellType = Literal["number", "boolean", "text"]
#: Message and hint.
Fault = tuple[str, str]
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
NOT_A_NUMBER = re.compile(r"[+-]?nan", re.IGNORECASE)
INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
#: What pandas writes for a column of bool, as `get_dummies` makes them; in any case.
BOOLEANS = {"true": 1.0, "false": 0.0}
#: Ignored around a number, as by Arrow, and around any other word.
BLANKS = " \t"
#: Markers of missing values that other programs write.
_MISSING_MARKERS = frozenset(
    {
        *("?", "-", "--", "---", ".", "..", "*", "null", "none", "nil", "na", "n/a", "n.a.", "nan", "<na>", "<nan>"),
        *("(null)", "\\n", "missing", "unknown", "undefined", "not available", "not applicable", "no data", "nd"),
        *("#n/a", "#na", "#null!", "#div/0!", "#value!", "#ref!", "#num!", "#name?", "1.#ind", "1.#qnan", "-1.#ind"),
    }
)
_N = NUMBER.pattern
#: Spellings of numbers that are not read.
_NUMBER_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"{_N}\s*[%‰]", re.ASCII), "write the number without a percent sign"),
    (re.compile(r"[$€£¥₹]\s*[\d.,]+|[\d.,]+\s*[$€£¥₹]"), "write the amount without a currency sign"),
    (
        re.compile(r"[+-]?\d{1,3}(?:[,'\u2019 \u00a0\u202f]\d{3})+(?:\.\d*)?"),
        "write thousands without separators, and decimals with a point",
    ),
    (re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d+|[+-]?\d*,\d+"), "write numbers with a decimal point"),
    (re.compile(r"[+-]?0x[0-9a-f]+", re.IGNORECASE), "write plain decimal numbers"),
    (re.compile(r"[+-]?\d+(?:_\d+)+"), "write thousands without separators"),
    (re.compile(r"[+-]?\d*\.?\d*d[+-]?\d+", re.IGNORECASE), "write exponents with e: 1.5e3"),
    (re.compile(r"[\u2212\u2013]\s*[\d.]+"), "write a minus as '-'"),
)
#: Cells that are not numbers and show how the file was written.
_OTHER_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"'.*'", re.DOTALL), "quote with double quotes, or not at all"),
    (
        re.compile(
            r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.{0,40}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.{0,40}|\d{1,2}:\d{2}(?::.*)?"
        ),
        "write a time as seconds, or as parts such as the month and the hour",
    ),
    (
        re.compile(rf"\d+:{_N}", re.ASCII),
        "this looks like libsvm: separate the pairs by blanks, and set the content type to text/libsvm",
    ),
    (re.compile(r"[(\[{].*|.*[)\]}]", re.DOTALL), "write rows without brackets"),
    (re.compile(rf"{_N}\s*#.*", re.ASCII | re.DOTALL), "a comment needs a line of its own, which begins with #"),
)
#: As data frames name columns, also where the numbers are floats.
_NAME_OF_NUMBER = re.compile(r"(?:0|[1-9]\d{0,8})(?:\.0)?", re.ASCII)
_NAME = re.compile(r"[^\W\d].*", re.DOTALL)
#: A longer cell is not an unusual spelling of a number.
_LONGEST = 100
#: At least so many ascending numbers in a line of names are names; fewer only if they count from 0 or 1.
_FEWEST_NAMES = 3


def classify_cell(text: str) -> CellType:
    """Return the type of a cell that is not missing; blanks around it are ignored."""
    word = text.strip(BLANKS)
    if any(pattern.fullmatch(word) for pattern in (NUMBER, NOT_A_NUMBER, INFINITE)):
        return "number"
    return "boolean" if word.lower() in BOOLEANS else "text"


def is_value(text: str, missing: Sequence[str]) -> bool:
    """Return whether a cell is a number, a boolean or a missing value."""
    return text in missing or classify_cell(text) != "text"


def is_missing_marker(cell: str) -> bool:
    """Return whether other programs write this for a missing value."""
    return cell.strip().lower() in _MISSING_MARKERS


def looks_like_number(word: str) -> bool:
    """Return whether people read a word as a number, although it is not read as one here: `1,234`, `50%`, `$5`."""
    return len(word) <= _LONGEST and any(pattern.fullmatch(word) for pattern, _ in _NUMBER_SPELLINGS)


def hint_for_cell(cell: str, missing: Sequence[str]) -> str:
    """Return what to do about a cell that is not a number; empty if nothing is known about it."""
    text = cell.strip()
    if NUMBER.fullmatch(text):
        return "write no blanks but ordinary ones around numbers"
    if len(text) > _LONGEST:
        return ""
    if is_missing_marker(text):
        words = json.dumps([*missing, text], ensure_ascii=False, separators=(",", ":"))
        return f"if {short(text)} stands for a missing value, say so with the hyperparameter missing={words}"
    return next((hint for pattern, hint in (*_NUMBER_SPELLINGS, *_OTHER_SPELLINGS) if pattern.fullmatch(text)), "")


def describe_mixed_column(word: str, example: str, missing: Sequence[str]) -> Fault:
    """Return the message and hint for a number in a column of texts."""
    if is_missing_marker(example):
        return (
            f"{short(word)} is a number, and the rows before have {short(example)}",
            hint_for_cell(example, missing),
        )
    rows = f", and the rows before have texts such as {short(example)}" if example else " in a column of texts"
    return (
        f"{short(word)} is a {'truth value' if classify_cell(word) == 'boolean' else 'number'}{rows}",
        "write either numbers or texts; or name the column in the hyperparameter categorical: then all are texts",
    )


def are_column_names(cells: Sequence[str], words: Sequence[str], numbers: Sequence[str]) -> bool:
    """Return whether the numbers of a first line that also has words are column names, as in `target,0,1,2`.

    Args:
        cells: All cells of the line.
        words: The cells that are not numbers.
        numbers: The cells that are numbers.
    """
    if len(words) + len(numbers) != len(cells) or not all(map(_NAME_OF_NUMBER.fullmatch, numbers)):
        return False
    if not all(_NAME.fullmatch(word) and not is_missing_marker(word) for word in words):
        return False
    values = [int(float(number)) for number in numbers]
    counts = values[0] in {0, 1} and values == list(range(values[0], values[0] + len(values)))
    is_sorted = all(one < other for one, other in itertools.pairwise(values))
    return counts or (is_sorted and len(values) >= _FEWEST_NAMES)


def guess_delimiter(line: str, cells_of: str = r"A-Za-z0-9+\-.\"' \t") -> str:
    """Return an unusual delimiter that splits a line into numbers; empty if there is none."""
    for character in dict.fromkeys(re.sub(f"[{cells_of}]", "", line)):
        cells = [cell.strip() for cell in line.split(character)]
        if len(cells) > 1 and all(not cell or NUMBER.fullmatch(cell) for cell in cells) and any(cells):
            return character
    return ""
