"""libsvm: `label[:weight] [qid:N] index:value …`, a row a line, comments after `#`.

The column of a value is its index as it stands, as XGBoost's loader has it: a file that counts from 1 leaves column 0
without values, and a model's feature numbers are those of the file. What a row does not name is missing.

A block of lines becomes three small CSVs, which Arrow parses: labels with weights, groups, and pairs. The pairs need
not be moved for it: blanks become line ends, colons commas, and what stands before the pairs becomes blank lines, which
Arrow skips.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from trainbox.channels.arrays import column_of
from trainbox.channels.blocks import Block, check
from trainbox.channels.compressed import MOST_COLUMNS, Positions, Sparse, ascends, sort_rows
from trainbox.channels.sources import Source
from trainbox.channels.streams import Lines, Stream, first_lines, read_lines
from trainbox.channels.tokens import first_bad_line

_COMMENT = re.compile(rb"#[^\n]*")
_INDENT = re.compile(rb"(?m)^ +")
_GAP = re.compile(rb" {2,}")
_OTHER_BLANKS = (b"\t", b"\r")
_TO_BLANKS = bytes.maketrans(b"".join(_OTHER_BLANKS), b"  ")
_LINE_END, _BLANK, _COLON, _COMMA = b"\n :,"
_QID = b"qid:"


class _Heads(msgspec.Struct, frozen=True, eq=False):
    """Where the rows of a text begin and end, byte by byte; a line without anything in it is no row."""

    lines: Positions  # the row's line, from 0
    starts: Positions
    label_ends: Positions
    pairs: Positions  # where the label and the group are over
    ends: Positions


def look(stream: Stream, path: Path) -> Source | None:
    """A source for a file with a line in it; nothing is consumed."""
    return Source(path, stream.shown, "libsvm", None) if first_lines(stream, most=1) else None


def read(stream: Stream, *, size: int) -> Iterator[Block]:
    """The rows, block by block; each block is as wide as its widest row.

    Raises:
        DataError: With file and line.
    """
    for lines in read_lines(stream, size=size):
        block = _parse(lines, stream.shown)
        if block is None:
            raise first_bad_line(lines, stream.shown)
        check(block)
        if len(block.labels):
            yield block
        del block, lines  # so that there is one block in memory, not two


def _parse(lines: Lines, shown: str) -> Block | None:
    """A block of lines; None where anything is wrong with it."""
    text = _plain(lines.content)
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
    return Block(
        labels[0],
        features,
        labels[1] if len(labels) > 1 else None,
        groups[0] if groups else None,
        lambda row: f"{shown}:{lines.number + int(heads.lines[row])}",
    )


def _plain(content: bytes) -> bytes:
    """The same lines with one blank between two tokens, none before the first, and a line end after the last."""
    if b"\r" in content:
        content = content.replace(b"\r\n" if b"\n" in content else b"\r", b"\n")
    if b"#" in content:
        content = _COMMENT.sub(b"", content)
    if any(blank in content for blank in _OTHER_BLANKS):
        content = content.translate(_TO_BLANKS)
    content = content if content.endswith(b"\n") else content + b"\n"
    bytes_ = np.frombuffer(content, np.uint8)
    blanks = np.flatnonzero(bytes_ == _BLANK)
    if (bytes_[blanks - 1] <= _BLANK).any():  # the first of all is compared with the last line end
        content = _GAP.sub(b" ", _INDENT.sub(b"", content))
    return content


def _find_heads(content: npt.NDArray[np.uint8], gaps: Positions, *, has_groups: bool) -> _Heads | None:
    """Where labels and groups lie; None where some rows have a group and others have none, or for a control byte."""
    kinds = content[gaps]
    ends = gaps[kinds == _LINE_END]
    if len(ends) + np.count_nonzero(kinds == _BLANK) != len(gaps):  # a NUL is a hole in a file, and no gap in a row
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
    """All positions from each start to before its end."""
    lengths = ends - starts
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def _read_labels(content: npt.NDArray[np.uint8], colons: Positions, heads: _Heads) -> list[Any] | None:
    """The labels; the weights too, where each row has one."""
    weighted = np.searchsorted(colons, heads.label_ends) > np.searchsorted(colons, heads.starts)
    if weighted.any() and not weighted.all():
        return None
    kinds = [pa.float32()] * (2 if weighted.any() else 1)
    return _read_csv(content[_spans(heads.starts, heads.label_ends + 1)], kinds, len(heads.starts))


def _read_groups(content: npt.NDArray[np.uint8], heads: _Heads) -> list[Any] | None:
    numbers = _spans(heads.label_ends + 1 + len(_QID), heads.pairs + 1)
    return _read_csv(content[numbers], [pa.int64()], len(heads.starts))


def _read_pairs(content: npt.NDArray[np.uint8], counts: Positions) -> Sparse | None:
    """The pairs; None where one is malformed, or comes twice in a row."""
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
    if not ascends(columns, starts):
        values, columns = sort_rows(values, columns, starts, width)
        if not ascends(columns, starts):
            return None
    return Sparse(values, columns.astype(np.int32, copy=False), counts, width)


def _read_csv(content: npt.NDArray[np.uint8], kinds: Sequence[Any], rows: int) -> list[Any] | None:
    """Columns of numbers; None where there is anything else, or another number of rows."""
    names = [str(i) for i in range(len(kinds))]
    if (content == _LINE_END).all():  # Arrow refuses to read nothing
        return [np.empty(0, kind.to_pandas_dtype()) for kind in kinds] if rows == 0 else None
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(pa.py_buffer(content)),
            read_options=pa.csv.ReadOptions(column_names=names),
            parse_options=pa.csv.ParseOptions(quote_char=False),
            convert_options=pa.csv.ConvertOptions(column_types=dict(zip(names, kinds, strict=True)), null_values=[]),
        )
    except pa.ArrowInvalid:  # the content; any other of its errors is not about that
        return None
    if table.num_rows != rows or any(column.null_count for column in table.columns):
        return None
    return [column_of(column) for column in table.columns]
