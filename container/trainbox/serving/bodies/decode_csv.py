"""CSV of a request: a quick way for plain numbers, and the reader of training for all else.

A line of plain numbers is an array of JSON without its brackets, and `msgspec` reads that ten times as fast as anything
that reads CSV. JSON's numbers are fewer than CSV's (no `+1`, `.5`, `007`), so what it refuses may still be CSV: the
reader of training decides then, and says row, column, name and value. Both give the same 32-bit floats.
"""

import csv
import itertools
import struct
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.text import short, some
from trainbox.data.formats import BodyReader, ByteStream, Rows, inspect, open_body, stream_from
from trainbox.data.formats.byte_stream import peek_lines
from trainbox.data.formats.cell_types import is_value
from trainbox.data.formats.csv_header import DELIMITERS
from trainbox.data.formats.row_block import join_features
from trainbox.errors import DataError
from trainbox.serving.bodies.features import FeaturePlan, Floats, check_codes, check_count, order_of, translate
from trainbox.serving.bodies.request_errors import RequestError

#: Up to this many bytes a list of Python's floats is quicker than Arrow.
QUICK_BYTES = 512 * 1024
#: Larger ones are parsed in blocks: there is one of them in memory beside the body and its rows.
_BLOCK_BYTES = 1024 * 1024
_CELLS = msgspec.json.Decoder(list[float | None])
_END = b",null,"
_LARGEST = 3.4028234e38
_SMALLEST = 1.1754944e-38
#: No smaller number than this square's root is too large for 32 bits.
_LARGE_SQUARE = 1e76
#: Longer ones BLAS would multiply in several threads.
_MOST_QUICK = 4096
#: Without an exponent a tiny number has many.
_ZEROS = b"0" * 16
#: Of lines with texts.
_MOST_LINES = 256
#: Longer cells on average are not what programs write.
_LONGEST_CELL = 32
#: The 29 bits that a 64-bit float has and a 32-bit one has not, and the middle between two of the latter.
_LOW_BITS, _MIDDLE = 0x1FFFFFFF, 0x10000000


class CsvRows(msgspec.Struct, frozen=True, eq=False):
    """The rows of a body of CSV."""

    rows: Floats
    has_header: bool = False


def decode_csv(body: bytes, plan: FeaturePlan, header: bool | None) -> CsvRows:
    """Return the rows of a body of CSV.

    Args:
        body: The bytes.
        plan: What the model expects.
        header: Whether the first line is a header; None: detected.

    Raises:
        RequestError: With row, column, name and value of the first cell that cannot be used.
    """
    if plan.is_plain and (header is not True or plan.refuses_header) and len(body) <= QUICK_BYTES:
        rows = _read_quickly(body, plan)
        if rows is not None:
            check_codes(plan, rows)
            return CsvRows(rows)
    reader = open_csv(stream_from(body, "body"), plan, header, size=_BLOCK_BYTES)
    return CsvRows(_join(reader.blocks, len(body), plan.count), reader.has_header)


def _join(blocks: Iterator[Floats], size: int, count: int) -> Floats:
    """Join blocks of rows as they come: beside the whole there is one of them in memory."""
    first = next(blocks, None)
    if first is None:
        return np.empty((0, count), np.float32)
    second = next(blocks, None)
    if second is None:
        return first
    # What is never written takes no memory.
    rows, end = np.empty((len(first) * (size // _BLOCK_BYTES + 2), first.shape[1]), np.float32), 0
    for block in itertools.chain((first, second), blocks):
        if end + len(block) > len(rows):  # later rows are shorter
            rows = np.concatenate([rows[:end], np.empty_like(rows), block])
        rows[end : end + len(block)] = block
        end += len(block)
    return rows[:end]


# ---- plain numbers ----


def _read_quickly(body: bytes, plan: FeaturePlan) -> Floats | None:
    """Read lines of plain numbers, and texts with codes; None for anything else."""
    text = body.replace(b"\r\n", b"\n") if b"\r" in body else body
    text = text[:-1] if text.endswith(b"\n") else text
    if plan.words:
        return _read_words(text, plan)
    if b"\r" in text:
        return None
    # A null after each line, so that the numbers of each can be counted.
    cells, empty = text.replace(b"\n", _END), list[int]()
    try:
        found = _CELLS.decode(b"[%b]" % cells)
    except msgspec.DecodeError:
        filled = _fill(cells, plan)
        if filled is None:
            return None
        found, empty = filled
    ends = (len(cells) - len(text)) // (len(_END) - 1)
    values = _without_ends(found, ends, plan.count)
    if values is None or _may_have_negative_zero(values, cells):
        return None
    rows = _shaped(values, text, plan)
    if empty and rows is not None:
        places = np.array(empty)
        rows.ravel()[places - places // (plan.count + 1)] = np.nan
    return rows


def _without_ends(cells: list[float | None], ends: int, width: int) -> npt.NDArray[np.float64] | None:
    """Return the numbers of lines; None unless each line but the last ends with a null, and there is no other."""
    if len(cells) != width * (ends + 1) + ends:
        return None
    if ends:
        if cells[width :: width + 1] != [None] * ends:
            return None
        del cells[width :: width + 1]
    try:  # a third of the time of `np.array`
        return np.frombuffer(struct.pack(f"{len(cells)}d", *cells))
    except struct.error:
        return None


def _may_have_negative_zero(values: npt.NDArray[np.float64], cells: bytes) -> bool:
    """Return whether any number is written as -0: JSON has no whole negative zero. To search many bytes takes long."""
    return (len(values) < _MOST_QUICK or not values.all()) and (b"-0," in cells or cells[-2:] == b"-0")


def _read_words(text: bytes, plan: FeaturePlan) -> Floats | None:
    """Read lines of numbers and texts; None if any needs another look."""
    lines = text.split(b"\n")
    if len(lines) > _MOST_LINES or b'"' in text or b"-0," in text or b"-0\n" in text or text[-2:] == b"-0":
        return None
    found: list[bytes] = []
    for line in lines:
        cells = line.split(b",")
        if len(cells) != plan.count:
            return None
        for place, codes in plan.words.items():
            code = codes.get(cells[place])
            if code is None:
                return None
            cells[place] = code
        found += [cell or b"null" for cell in cells]
    if lines[0] == ",".join(plan.names).encode():
        return None
    joined = b",".join(found)
    try:
        values = np.array(_CELLS.decode(b"[%b]" % joined), np.float64)
    except msgspec.DecodeError:
        return None
    return _shaped(values, joined, plan)


def _shaped(values: npt.NDArray[np.float64], text: bytes, plan: FeaturePlan) -> Floats | None:
    if len(text) > _LONGEST_CELL * len(values):
        return None
    rows = _round_exactly(values, text)
    return None if rows is None else rows.reshape(-1, plan.count)


def _fill(cells: bytes, plan: FeaturePlan) -> tuple[list[float | None], list[int]] | None:
    """Return the cells with 0 for those that are empty, and which these are; None if they need another look."""
    # A first cell that is empty may be the corner of a data frame's header.
    if cells[:1] == b"," or "" not in plan.columns.missing:
        return None
    empty = [place for place, cell in enumerate(cells.split(b",")) if not cell]
    if not empty:
        return None
    text = cells.replace(b",,", b",0,").replace(b",,", b",0,") + (b"0" if cells[-1:] == b"," else b"")
    try:
        return _CELLS.decode(b"[%b]" % text), empty
    except msgspec.DecodeError:
        return None


def _round_exactly(values: npt.NDArray[np.float64], text: bytes) -> Floats | None:
    """Round numbers that were parsed as 64-bit floats as if they had been parsed as 32-bit ones; None if it may differ.

    It may if the 64-bit float is just in the middle of two 32-bit ones, as it may have been rounded to be there; near
    0, where the middle has other bits; and for what is infinite or nearly so.
    """
    if b"\0\0\0" in values.tobytes():  # or else no number is in the middle
        bits = values.view(np.int64)
        if np.count_nonzero((bits & _LOW_BITS) == _MIDDLE):
            return None
    has_exponents = b"e" in text or b"E" in text or _ZEROS in text
    if has_exponents or len(values) > _MOST_QUICK or not values.dot(values) < _LARGE_SQUARE:  # false for NaN, too
        sizes = np.abs(values)
        if np.count_nonzero(sizes >= _LARGEST) or np.count_nonzero((sizes < _SMALLEST) & (sizes > 0)):
            return None
    return values.astype(np.float32)


# ---- the reader of training ----


class CsvReader(msgspec.Struct, frozen=True, eq=False):
    """CSV whose first lines have been inspected."""

    has_header: bool
    #: The rows in the order of the model, block by block; once.
    blocks: Iterator[Floats]


def open_csv(stream: ByteStream, plan: FeaturePlan, header: bool | None, *, size: int | None = None) -> CsvReader:
    """Inspect the first lines of CSV of any length; its rows are then read in bounded memory.

    Args:
        stream: The bytes, decompressed.
        plan: What the model expects.
        header: Whether the first line is a header; None: detected.
        size: The number of bytes to parse at a time.

    Raises:
        RequestError: The first lines cannot be used; `blocks` raises it for the first cell that cannot.
    """
    try:
        known = None if header and plan.refuses_header else header
        columns = msgspec.structs.replace(plan.columns, header=_detect_header(stream, plan) if known is None else known)
        source = inspect(stream, "CSV", columns)
        if source is not None and source.names is None:
            check_count(plan, source.width or 0, "the first row", 1)
        names = plan.names or None
        reader = open_body(stream, "CSV", columns, coding=plan.coding, names=names, size=size, source=source)
        if reader.names is not None and plan.refuses_header and not header:
            raise _refused(reader.names)
        order = None if reader.names is None else order_of(plan, reader.names)
        return CsvReader(reader.names is not None, _read(reader, plan, order))
    except DataError as error:
        raise translate(plan, error) from error


def _detect_header(stream: ByteStream, plan: FeaturePlan) -> bool | None:
    """Return whether the first line is a header, by the names and texts that the model knows; None if these differ."""
    lines = peek_lines(stream, most=1)
    if not lines or not (plan.names or plan.codes):
        return None
    for delimiter in plan.columns.delimiter or DELIMITERS:
        try:
            cells = [cell.strip() for cell in next(csv.reader([lines[0][1]], delimiter=delimiter))]
        except csv.Error:
            return None
        if plan.names and set(cells) == set(plan.names):
            return True
        if plan.codes and len(cells) == plan.count and all(_fits(cell, plan, at) for at, cell in enumerate(cells)):
            return False
    return None


def _fits(cell: str, plan: FeaturePlan, place: int) -> bool:
    codes = plan.codes.get(place)
    return cell in plan.columns.missing or (is_value(cell, ()) if codes is None else cell in codes)


def _refused(names: tuple[str, ...]) -> RequestError:
    return RequestError(
        f"the first line is a header: {some([short(name) for name in names])}",
        hint="a batch transform job joins each line with its answer: leave the header out, or say that there is one,"
        " which is answered with an empty line: Content-Type: text/csv; header=present",
        row=1,
        redacted="the first line is a header",
    )


def _read(reader: BodyReader, plan: FeaturePlan, order: list[int] | None) -> Iterator[Floats]:
    try:
        for block in reader.blocks:
            rows = _features(block)
            rows = rows if order is None else np.ascontiguousarray(rows[:, order])
            check_codes(plan, rows, lambda row, block=block: block.where(row).number)  # type: ignore[misc]
            yield rows
    except DataError as error:
        raise translate(plan, error) from error


def _features(block: Rows) -> Floats:
    rows = join_features([block])
    if not isinstance(rows, np.ndarray):
        raise TypeError("rows of CSV are dense")
    return rows
