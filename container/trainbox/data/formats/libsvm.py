"""libsvm: `label[:weight] [qid:N] index:value …`, a row a line, comments after `#`; the label may be left out.

The column of a value is its index as it is, as in XGBoost's loader: column 0 of a file that counts from 1 has no
values, and a model's feature numbers are those of the file. A column that a row does not name is missing.

A block of lines becomes three small CSVs, which Arrow parses: labels with weights, groups, and pairs. The pairs are not
copied for it: blanks become line ends, colons commas, and the bytes before the pairs blank lines, which Arrow skips.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.text import short
from trainbox.data.formats.byte_stream import ByteStream, LineBlock, peek_lines, read_lines
from trainbox.data.formats.cell_types import NUMBER
from trainbox.data.formats.row_block import (
    MOST_COLUMNS,
    Location,
    Positions,
    RowError,
    Rows,
    Sparse,
    column_to_numpy,
    is_sorted,
    sort_columns,
    validate,
)
from trainbox.data.formats.schema import SourceInfo
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

_COMMENT = re.compile(rb"#[^\n]*")
_INDENT = re.compile(rb"(?m)^ +")
_GAP = re.compile(rb" {2,}")
_OTHER_BLANKS = (b"\t", b"\r")
_TO_BLANKS = bytes.maketrans(b"".join(_OTHER_BLANKS), b"  ")
_LINE_END, _BLANK, _COLON, _COMMA = b"\n :,"
_QID = b"qid:"
#: Before a line whose first token is a pair.
_NO_LABEL = re.compile(rb"(?m)^(?=[^ \n]*:)")
_VALUE = re.compile(rf"{NUMBER.pattern}|[+-]?nan|[+-]?inf(?:inity)?", re.ASCII | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
#: Python converts no more than 4,300 to a number.
_MOST_DIGITS = 4000
_GROUP = re.compile(rf"qid:(-?\d{{1,{_MOST_DIGITS}}})", re.ASCII)
ROW_SYNTAX = "a row is label[:weight] [qid:N] index:value …, for example: 1 3:0.5 7:2"


class _Fault(msgspec.Struct, frozen=True):
    """What is wrong with a row, and with which pair."""

    message: str
    hint: str
    index: int | None = None
    value: str | None = None


class _Heads(msgspec.Struct, frozen=True, eq=False):
    """The byte positions of the rows of a text; blank lines are not rows."""

    lines: Positions  # the row's line, from 0
    starts: Positions
    label_ends: Positions
    pairs: Positions  # the end of the label and the group
    ends: Positions


def inspect(stream: ByteStream) -> SourceInfo | None:
    """Inspect the first line without consuming it; None if there is none."""
    return SourceInfo(stream.shown, "libsvm", None) if peek_lines(stream, most=1) else None


def read_rows(stream: ByteStream, *, size: int, labelled: bool = True) -> Iterator[Rows]:
    """Yield the rows, block by block; each block is as wide as its widest row.

    Args:
        stream: The lines.
        size: The number of bytes to parse at a time.
        labelled: Whether rows have a label. If not, a first token with a colon is a pair, and a label or group is
            ignored.

    Raises:
        RowError: With file and line.
    """
    for lines in read_lines(stream, size=size):
        block = _parse(lines, stream.shown, labelled=labelled)
        if block is None:
            raise first_bad_line(lines, stream.shown, labelled=labelled)
        validate(block)
        if len(block):
            yield block
        del block, lines  # so that there is one block in memory, not two


def _parse(lines: LineBlock, shown: str, *, labelled: bool) -> Rows | None:
    """Parse a block of lines; None if anything is wrong with it."""
    text = _plain(lines.content)
    if not labelled:
        text = _NO_LABEL.sub(b"0 ", text)
    content = np.frombuffer(bytearray(text), np.uint8)
    gaps, colons = np.flatnonzero(content <= _BLANK), np.flatnonzero(content == _COLON)
    has_groups = _QID in text
    heads = _find_heads(content, gaps, has_groups=has_groups)
    if heads is None:
        return None
    content[gaps], content[colons] = _LINE_END, _COMMA
    labels = _read_labels(content, colons, heads)
    groups = _read_groups(content, heads) if has_groups else []
    content[_spans(heads.starts, heads.pairs)] = _LINE_END
    counts = np.searchsorted(colons, heads.ends) - np.searchsorted(colons, heads.pairs)
    features = _read_pairs(content, counts)
    if labels is None or groups is None or features is None:
        return None

    def where(row: int) -> Location:
        number = lines.number + int(heads.lines[row])
        return Location(number, f"{shown}:{number}")

    if not labelled:
        return Rows(features, where)
    weights, group = labels[1] if len(labels) > 1 else None, groups[0] if groups else None
    return Rows(features, where, labels[0], weights, group)


def _plain(content: bytes) -> bytes:
    """Separate tokens by one blank, with none before the first and a line end after the last."""
    if b"\r" in content:
        content = content.replace(b"\r\n" if b"\n" in content else b"\r", b"\n")
    if b"#" in content:
        content = _COMMENT.sub(b"", content)
    if any(blank in content for blank in _OTHER_BLANKS):
        content = content.translate(_TO_BLANKS)
    content = content if content.endswith(b"\n") else content + b"\n"
    bytes_ = np.frombuffer(content, np.uint8)
    blanks = np.flatnonzero(bytes_ == _BLANK)
    if (bytes_[blanks - 1] <= _BLANK).any():  # the first byte is compared with the last line end
        content = _GAP.sub(b" ", _INDENT.sub(b"", content))
    return content


def _find_heads(content: npt.NDArray[np.uint8], gaps: Positions, *, has_groups: bool) -> _Heads | None:
    """Locate labels and groups; None if only some rows have a group, or for a control byte."""
    kinds = content[gaps]
    ends = gaps[kinds == _LINE_END]
    if len(ends) + np.count_nonzero(kinds == _BLANK) != len(gaps):  # a NUL is a hole in a file, not a gap in a row
        return None
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    lines = np.flatnonzero(content[starts] != _LINE_END)
    starts, ends = starts[lines], ends[lines]
    first = np.searchsorted(gaps, starts)
    label_ends = pairs = gaps[first]
    if has_groups:
        at = label_ends[:, None] + np.arange(1, 1 + len(_QID))
        if (label_ends == ends).any() or (content.take(at, mode="clip") != np.frombuffer(_QID, np.uint8)).any():
            return None
        pairs = gaps[first + 1]
    return _Heads(lines, starts, label_ends, pairs, ends)


def _spans(starts: Positions, ends: Positions) -> Positions:
    """Return all positions from each start to before its end."""
    lengths = ends - starts
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def _read_labels(content: npt.NDArray[np.uint8], colons: Positions, heads: _Heads) -> list[Any] | None:
    """Parse the labels, and the weights if each row has one."""
    weighted = np.searchsorted(colons, heads.label_ends) > np.searchsorted(colons, heads.starts)
    if weighted.any() and not weighted.all():
        return None
    kinds = [pa.float32()] * (2 if weighted.any() else 1)
    return _read_csv(content[_spans(heads.starts, heads.label_ends + 1)], kinds, len(heads.starts))


def _read_groups(content: npt.NDArray[np.uint8], heads: _Heads) -> list[Any] | None:
    numbers = _spans(heads.label_ends + 1 + len(_QID), heads.pairs + 1)
    return _read_csv(content[numbers], [pa.int64()], len(heads.starts))


def _read_pairs(content: npt.NDArray[np.uint8], counts: Positions) -> Sparse | None:
    """Parse the pairs; None if one is malformed or repeated in a row."""
    pairs = _read_csv(content, [pa.int32(), pa.float32()], int(counts.sum()))
    if pairs is None:
        return None
    columns, values = pairs
    if not len(columns):
        return Sparse(values, columns, counts, 0)
    if columns.min() < 0 or columns.max() >= MOST_COLUMNS:
        return None
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    width = int(columns.max()) + 1
    if not is_sorted(columns, starts):
        values, columns = sort_columns(values, columns, starts, width)
        if not is_sorted(columns, starts):
            return None
    return Sparse(values, columns.astype(np.int32, copy=False), counts, width)


def _read_csv(content: npt.NDArray[np.uint8], types: Sequence[Any], rows: int) -> list[Any] | None:
    """Parse columns of numbers; None for anything else, or another number of rows."""
    names = [str(i) for i in range(len(types))]
    if (content == _LINE_END).all():  # Arrow refuses to read nothing
        return [np.empty(0, each.to_pandas_dtype()) for each in types] if rows == 0 else None
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(pa.py_buffer(content)),
            read_options=pa.csv.ReadOptions(column_names=names),
            parse_options=pa.csv.ParseOptions(quote_char=False),
            convert_options=pa.csv.ConvertOptions(column_types=dict(zip(names, types, strict=True)), null_values=[]),
        )
    except pa.ArrowInvalid:  # the content is invalid; other errors are not about the content
        return None
    if table.num_rows != rows or any(column.null_count for column in table.columns):
        return None
    return [column_to_numpy(column) for column in table.columns]


def first_bad_line(lines: LineBlock, shown: str, *, labelled: bool = True) -> RowError:
    """Return the error of the first invalid row, with its line and what to do."""
    text = lines.content.decode("utf-8", "replace")
    rows = text.split("\n" if "\n" in text else "\r")
    first: tuple[bool, bool] | None = None
    for number, line in enumerate(rows, start=lines.number):
        row = line.partition("#")[0]
        tokens = row.replace("\t", " ").replace("\r", " ").split(" ")
        tokens = [token for token in tokens if token]
        if not tokens:
            continue
        if not labelled and ":" in tokens[0]:
            tokens = ["0", *tokens]
        kind = (":" in tokens[0], len(tokens) > 1 and tokens[1].startswith("qid:"))
        first = first or kind
        fault = _fault_of_bytes(row) or _fault_of_row(tokens) or _difference(kind, first)
        if fault is not None:
            is_last = number == lines.number + len(rows) - 1  # the rest after the last line end, if any
            hint = f"the file ends here, without a line end: is it whole? {fault.hint}" if is_last else fault.hint
            column = None if fault.index is None else fault.index + 1
            message = f"{shown}:{number}: {fault.message}"
            return RowError(message, hint=hint, row=number, column=column, value=fault.value)
    return RowError(
        f"{shown}: a row after line {lines.number} cannot be read as libsvm", hint=ROW_SYNTAX, row=lines.number
    )


def _fault_of_bytes(row: str) -> _Fault | None:
    found = _CONTROL.search(row)
    if found is None:
        return None
    return _Fault(
        f"column {found.start() + 1} holds the control byte 0x{ord(found[0]):02x}",
        "is the file whole? A copy that was cut off may have holes of zeros",
    )


def _difference(kind: tuple[bool, bool], first: tuple[bool, bool]) -> _Fault | None:
    for what, here, there in zip(("a weight", "a qid"), kind, first, strict=True):
        if here != there:
            has, had = ("has", "have none") if here else ("has no", "have one")
            text = f"the row {has} {what.split()[-1] if not here else what}, the rows before {had}"
            return _Fault(text, f"give {what} to every row, or to none")
    return None


def _fault_of_row(tokens: list[str]) -> _Fault | None:
    label, _, weight = tokens[0].partition(":")
    if not NUMBER.fullmatch(label):
        if "," in tokens[0] or ";" in tokens[0]:
            return _Fault(f"{short(tokens[0])} is not a label: this looks like CSV", "set the content type to text/csv")
        return _Fault(f"the label {short(label)} is not a number", f"encode the labels as numbers; {ROW_SYNTAX}")
    if ":" in tokens[0] and not NUMBER.fullmatch(weight):
        return _Fault(f"the weight {short(weight)} is not a number", ROW_SYNTAX)
    rest = tokens[1:]
    if rest and rest[0].startswith("qid"):
        if not _GROUP.fullmatch(rest[0]) or abs(int(rest[0][4:])) >= 2**63:
            return _Fault(f"{short(rest[0])} is not a group: it is not an integer", ROW_SYNTAX)
        rest = rest[1:]
    return _fault_of_pairs(rest)


def _fault_of_pairs(tokens: list[str]) -> _Fault | None:
    seen: set[int] = set()
    for token in tokens:
        index, colon, value = token.partition(":")
        if index == "qid":
            return _Fault(f"{short(token)} follows a pair", ROW_SYNTAX)
        if not colon or not index.isascii() or not index.isdecimal():
            return _Fault(f"{short(token)} is not index:value", ROW_SYNTAX)
        if not _VALUE.fullmatch(value):
            position = int(index) if len(index) <= _MOST_DIGITS else None
            hint = f"encode text as numbers; {ROW_SYNTAX}"
            return _Fault(f"{short(token)}: the value is not a number", hint, position, value)
        if len(index) > _MOST_DIGITS or int(index) >= MOST_COLUMNS:
            return _Fault(
                f"{short(token)}: the index is larger than {MOST_COLUMNS - 1:,}",
                "number the columns anew, or hash them",
            )
        if int(index) in seen:
            return _Fault(f"index {int(index)} is repeated in one row", "keep one of the two values", int(index), value)
        seen.add(int(index))
    return None
