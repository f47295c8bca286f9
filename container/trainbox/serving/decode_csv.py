"""CSV of a request: a quick way for plain numbers, and the reader of training for all else.

A line of plain numbers is an array of JSON without its brackets, and `msgspec` reads that ten times as fast as anything
that reads CSV. JSON's numbers are fewer than CSV's (no `+1`, `.5`, `007`), so what it refuses may still be CSV: the
reader of training decides then, and says row, column, name and value. Both give the same 32-bit floats.
"""

from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.data.formats import BodyReader, ByteStream, Rows, open_body, stream_from
from trainbox.data.formats.row_block import join_features
from trainbox.errors import DataError
from trainbox.serving.features import FeaturePlan, Floats, check_codes, check_count, order_of, translate

#: Up to this many bytes a list of Python's floats is quicker than Arrow.
QUICK_BYTES = 128 * 1024
_NUMBERS = msgspec.json.Decoder(list[float])
_CELLS = msgspec.json.Decoder(list[float | None])
_LARGEST = 3.4028234e38
_SMALLEST = 1.1754944e-38
#: No smaller number than this square's root is too large for 32 bits.
_LARGE_SQUARE = 1e76
#: Without an exponent a tiny number has many.
_ZEROS = b"0" * 16
#: Longer cells on average are not what programs write.
_LONGEST_CELL = 32
#: The 29 bits that a 64-bit float has and a 32-bit one has not, and the middle between two of the latter.
_LOW_BITS, _MIDDLE = 0x1FFFFFFF, 0x10000000


def decode_csv(body: bytes, plan: FeaturePlan, header: bool | None) -> Floats:
    """Return the rows of a body of CSV.

    Args:
        body: The bytes.
        plan: What the model expects.
        header: Whether the first line is a header; None: detected.

    Raises:
        RequestError: With row, column, name and value of the first cell that cannot be used.
    """
    if plan.is_plain and header is not True and len(body) <= QUICK_BYTES:
        rows = _read_quickly(body, plan)
        if rows is not None:
            check_codes(plan, rows)
            return rows
    blocks = list(read_blocks(stream_from(body, "body"), plan, header))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.empty((0, plan.count), np.float32)])


# ---- plain numbers ----


def _read_quickly(body: bytes, plan: FeaturePlan) -> Floats | None:
    """Read lines of plain numbers; None for anything else."""
    text = body.replace(b"\r\n", b"\n") if b"\r" in body else body
    text = text[:-1] if text.endswith(b"\n") else text
    if b"\n" in text:
        lines = text.split(b"\n")
        commas = plan.count - 1
        if any(line.count(b",") != commas for line in lines):
            return None
        count, text = len(lines), b",".join(lines)
    else:
        count = 1
    if len(text) > _LONGEST_CELL * count * plan.count or b"\r" in text:
        return None
    if b"-0," in text or text[-2:] == b"-0":  # JSON has no negative zero that is a whole number
        return None
    values = _parse(text, plan, is_missing=b",," in text or text[-1:] == b",")
    if values is None or len(values) != count * plan.count:
        return None
    rows = _round_exactly(values, text)
    return None if rows is None else rows.reshape(count, plan.count)


def _parse(text: bytes, plan: FeaturePlan, *, is_missing: bool) -> npt.NDArray[np.float64] | None:
    try:
        if not is_missing:
            return np.array(_NUMBERS.decode(b"[%b]" % text))
        # A first cell that is missing may be the corner of a data frame's header; a word is for the reader of training.
        if text[:1] == b"," or b"n" in text or "" not in plan.columns.missing:
            return None
        text = text.replace(b",,", b",null,").replace(b",,", b",null,")
        return np.array(_CELLS.decode(b"[%b%b]" % (text, b"null" if text[-1:] == b"," else b"")), np.float64)
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
    if has_exponents or not values.dot(values) < _LARGE_SQUARE:  # which a missing value makes false, too
        sizes = np.abs(values)
        if np.count_nonzero(sizes >= _LARGEST) or np.count_nonzero((sizes < _SMALLEST) & (sizes > 0)):
            return None
    return values.astype(np.float32)


# ---- the reader of training ----


def read_blocks(
    stream: ByteStream,
    plan: FeaturePlan,
    header: bool | None,
    *,
    size: int | None = None,
) -> Iterator[Floats]:
    """Yield the rows of CSV of any length, block by block, in the order of the model.

    Raises:
        RequestError: With row, column, name and value of the first cell that cannot be used.
    """
    columns = msgspec.structs.replace(plan.columns, header=header)
    try:
        reader = open_body(stream, "CSV", columns, coding=plan.coding, names=plan.names or None, size=size)
        order = _order_of_columns(reader, plan)
        for block in reader.blocks:
            rows = _features(block)
            rows = rows if order is None else np.ascontiguousarray(rows[:, order])
            check_codes(plan, rows, lambda row, block=block: block.where(row).number)  # type: ignore[misc]
            yield rows
    except DataError as error:
        raise translate(plan, error) from error


def _order_of_columns(reader: BodyReader, plan: FeaturePlan) -> list[int] | None:
    if reader.names is not None:
        return order_of(plan, reader.names)
    if reader.width:
        check_count(plan, reader.width, "the body")
    return None


def _features(block: Rows) -> Floats:
    rows = join_features([block])
    if not isinstance(rows, np.ndarray):
        raise TypeError("rows of CSV are dense")
    return rows
