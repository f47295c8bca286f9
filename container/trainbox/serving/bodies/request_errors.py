"""Say what is wrong with a request: an HTTP status, and the row, column, name and value at fault."""

from http import HTTPStatus

import msgspec

from trainbox.contract.text import printable
from trainbox.errors import DataError

#: Of a value or message, in characters: an answer is read by a person.
_LONGEST = 1_000


class RequestError(DataError):
    """A request that cannot be answered.

    Args:
        message: What happened, with the place in words.
        status: The HTTP status.
        hint: What to do about it.
        row: The number of the line, row or record, from 1.
        column: The number of the column, from 1.
        name: The name of the column.
        value: The text of the cell.
        redacted: The message without anything that the request holds; by default the message holds nothing of it.
        is_name_given: Whether the name is one that the request holds, and the model does not know.
    """

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        hint: str = "",
        row: int | None = None,
        column: int | None = None,
        name: str = "",
        value: str | None = None,
        redacted: str = "",
        is_name_given: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.row = row
        self.column = column
        self.name = name
        self.value = value
        self.redacted = redacted
        self.is_name_given = is_name_given


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a request that cannot be used."""

    error: str
    row: int | None = None
    column: int | None = None
    name: str = ""
    value: str | None = None
    hint: str = ""
    id: str = ""


def encode_error(error: RequestError, *, shows_values: bool = True, request_id: str = "") -> bytes:
    """Return an error as JSON; what is not known is left out.

    Args:
        error: What is wrong.
        shows_values: Whether what the request holds may be repeated.
        request_id: The id of the request, which its log line has, too.
    """
    hides = not shows_values and bool(error.redacted)
    body = _Body(
        _cut(error.redacted if hides else error.message),
        error.row,
        error.column,
        "" if error.is_name_given and not shows_values else _cut(error.name),
        _cut(error.value) if shows_values and error.value is not None else None,
        "" if hides else _cut(error.hint),
        request_id,
    )
    return msgspec.json.encode(body)


def _cut(text: str) -> str:
    return printable(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")


def describe_place(row: int | None, column: int | None, name: str) -> str:
    """Describe where a fault is, such as `row 2, column 5 ('age')`; "the body" where nothing is known."""
    parts = [f"row {row}"] if row is not None else []
    if column is not None:
        parts.append(f"column {column}" + (f" ({name!r})" if name else ""))
    return ", ".join(parts) or "the body"
