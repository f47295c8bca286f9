"""Tokens of libsvm, one by one: what is wrong with a line that cannot be read as a whole block."""

import re

from trainbox.channels.compressed import MOST_COLUMNS
from trainbox.channels.streams import Lines
from trainbox.contract.text import short
from trainbox.errors import DataError

NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_VALUE = re.compile(rf"{NUMBER.pattern}|[+-]?nan|[+-]?inf(?:inity)?", re.ASCII | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
#: Python converts no more than 4,300 to a number.
_MOST_DIGITS = 4000
_GROUP = re.compile(rf"qid:(-?\d{{1,{_MOST_DIGITS}}})", re.ASCII)
FORM = "a row is label[:weight] [qid:N] index:value …, for example: 1 3:0.5 7:2"

Fault = tuple[str, str]


def first_bad_line(lines: Lines, shown: str) -> DataError:
    """The first row that breaks a rule, with its line and what to do."""
    text = lines.content.decode("utf-8", "replace")
    rows = text.split("\n" if "\n" in text else "\r")
    first: tuple[bool, bool] | None = None
    for number, line in enumerate(rows, start=lines.number):
        row = line.partition("#")[0]
        tokens = row.replace("\t", " ").replace("\r", " ").split(" ")
        tokens = [token for token in tokens if token]
        if not tokens:
            continue
        kind = (":" in tokens[0], len(tokens) > 1 and tokens[1].startswith("qid:"))
        first = first or kind
        fault = _fault_of_bytes(row) or _fault_of_row(tokens) or _difference(kind, first)
        if fault is not None:
            is_last = number == lines.number + len(rows) - 1  # what follows the last line end, if there is one
            hint = f"the file ends here, without a line end: is it whole? {fault[1]}" if is_last else fault[1]
            return DataError(f"{shown}:{number}: {fault[0]}", hint=hint)
    return DataError(f"{shown}: a row after line {lines.number} cannot be read as libsvm", hint=FORM)


def _fault_of_bytes(row: str) -> Fault | None:
    found = _CONTROL.search(row)
    if found is None:
        return None
    return (
        f"column {found.start() + 1} holds the control byte 0x{ord(found[0]):02x}",
        "is the file whole? A copy that was cut off may have holes of zeros",
    )


def _difference(kind: tuple[bool, bool], first: tuple[bool, bool]) -> Fault | None:
    for what, here, there in zip(("a weight", "a qid"), kind, first, strict=True):
        if here != there:
            has, had = ("has", "have none") if here else ("has no", "have one")
            text = f"the row {has} {what.split()[-1] if not here else what}, the rows before {had}"
            return text, f"give {what} to every row, or to none"
    return None


def _fault_of_row(tokens: list[str]) -> Fault | None:
    label, _, weight = tokens[0].partition(":")
    if not NUMBER.fullmatch(label):
        if "," in tokens[0] or ";" in tokens[0]:
            return f"{short(tokens[0])} is no label: this looks like CSV", "set the channel's content type to text/csv"
        return f"the label {short(label)} is not a number", f"encode the labels as numbers; {FORM}"
    if ":" in tokens[0] and not NUMBER.fullmatch(weight):
        return f"the weight {short(weight)} is not a number", FORM
    rest = tokens[1:]
    if rest and rest[0].startswith("qid"):
        if not _GROUP.fullmatch(rest[0]) or abs(int(rest[0][4:])) >= 2**63:
            return f"{short(rest[0])} is no group: it is not an integer", FORM
        rest = rest[1:]
    return _fault_of_pairs(rest)


def _fault_of_pairs(tokens: list[str]) -> Fault | None:
    seen: set[int] = set()
    for token in tokens:
        index, colon, value = token.partition(":")
        if index == "qid":
            return f"{short(token)} stands behind a pair", FORM
        if not colon or not index.isascii() or not index.isdecimal():
            return f"{short(token)} is no index:value", FORM
        if not _VALUE.fullmatch(value):
            return f"{short(token)}: the value is not a number", f"encode text as numbers; {FORM}"
        if len(index) > _MOST_DIGITS or int(index) >= MOST_COLUMNS:
            return (
                f"{short(token)}: the index is larger than {MOST_COLUMNS - 1:,}",
                "number the columns anew, or hash them",
            )
        if int(index) in seen:
            return f"index {int(index)} comes twice in one row", "keep one of the two values"
        seen.add(int(index))
    return None
