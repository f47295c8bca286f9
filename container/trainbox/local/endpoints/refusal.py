"""Reads what an endpoint says of a request that it could not answer: trainbox's own JSON, or any text."""

import contextlib
import re

import msgspec

from trainbox.contract.text import visible
from trainbox.errors import DataError
from trainbox.local.endpoints.content_types import media_type
from trainbox.local.endpoints.endpoint import EndpointAnswer
from trainbox.local.endpoints.lines import split_cells, strip_newline

_LONGEST_TEXT = 300
#: Of a line of the request that is shown.
_WIDTH = 100
#: What has a row for each line.
_LINES = frozenset({"text/csv", "application/jsonlines", "application/x-ndjson", "text/libsvm", "text/x-libsvm"})


class RefusedRequest(msgspec.Struct, frozen=True):
    """An error of an endpoint; trainbox says the place, others a text alone."""

    error: str
    row: int | None = None
    column: int | None = None
    name: str = ""
    hint: str = ""
    id: str = ""


class _RefusedByMany(msgspec.Struct, frozen=True):
    """An error of an endpoint of many models."""

    message: str
    hint: str = ""


def read_refusal(answer: EndpointAnswer) -> RefusedRequest:
    """Return what the body of an error says."""
    with contextlib.suppress(msgspec.DecodeError):
        of_many = msgspec.json.decode(answer.body, type=_RefusedByMany)
        return RefusedRequest(of_many.message, hint=of_many.hint)
    try:
        return msgspec.json.decode(answer.body, type=RefusedRequest)
    except msgspec.DecodeError:
        text = re.sub(r"(?:<[^>]*>|\s)+", " ", answer.body[: 8 * _LONGEST_TEXT].decode(errors="replace")).strip()
        return RefusedRequest(text[:_LONGEST_TEXT] or "(no text)")


def in_words(answer: EndpointAnswer, refusal: RefusedRequest) -> str:
    """Return one line for people."""
    return f"the endpoint answered {answer.status}: {refusal.error}"


def point_at(refusal: RefusedRequest, body: bytes, content_type: str) -> tuple[str, ...]:
    """Return the line of a request that is at fault, with a mark below the cell; nothing where it has no lines.

    Args:
        refusal: Of the endpoint.
        body: Of the request.
        content_type: Of the request.
    """
    kind, lines = media_type(content_type), body.split(b"\n")
    row = refusal.row
    if row is None or kind not in _LINES or not 0 < row <= len(lines):
        return ()
    line = strip_newline(lines[row - 1])
    place = f"  row {row:,}" + (f", column {refusal.column:,}" if refusal.column else "")
    head = f"{place}{f' ({refusal.name})' if refusal.name else ''}: "
    start, end = _cell_place(line, refusal.column) if kind == "text/csv" else (0, 0)
    first = max(0, end - _WIDTH)
    shown = visible(line[first : first + _WIDTH].decode(errors="replace"))
    if end == start:
        return (head + shown,)
    before = visible(line[first:start].decode(errors="replace"))
    marked = visible(line[max(first, start) : end].decode(errors="replace"))
    return head + shown, " " * (len(head) + len(before)) + "^" * max(1, len(marked))


def _cell_place(line: bytes, column: int | None) -> tuple[int, int]:
    """Return where a cell of CSV begins and ends; the same place twice where it is not known."""
    try:
        cells = split_cells(line)
    except DataError:
        return 0, 0
    if column is None or not 0 < column <= len(cells):
        return 0, 0
    start = sum(len(cell) + 1 for cell in cells[: column - 1])
    return start, start + max(1, len(cells[column - 1]))
