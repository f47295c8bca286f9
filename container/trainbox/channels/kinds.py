"""What format the files of a channel have: what the channel's content type says, or their names and first bytes."""

import re
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.channels.streams import COMPRESSED, Stream, first_lines, lines_in_head
from trainbox.contract.text import short
from trainbox.errors import DataError

Kind = Literal["CSV", "libsvm", "Parquet", "recordio-protobuf"]

CONTENT_TYPES: dict[str, Kind] = {
    "csv": "CSV",
    "text/csv": "CSV",
    "libsvm": "libsvm",
    "text/libsvm": "libsvm",
    "text/x-libsvm": "libsvm",
    "parquet": "Parquet",
    "application/x-parquet": "Parquet",
    "recordio-protobuf": "recordio-protobuf",
    "application/x-recordio-protobuf": "recordio-protobuf",
}
_BY_NAME: dict[str, Kind] = {
    ".parquet": "Parquet",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
    ".svmlight": "libsvm",
    ".pbr": "recordio-protobuf",
    ".rec": "recordio-protobuf",
    ".recordio": "recordio-protobuf",
}
PARQUET_MAGIC = b"PAR1"
RECORDIO_MAGIC = (0xCED7230A).to_bytes(4, "little")
_MOST_DIGITS = 4000  # Python converts no more than 4,300
_UTF8 = {"utf-8", "utf8", "us-ascii", "ascii"}
_FLOAT = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
#: Of a line: label, weight and the first pair fit.
_LOOKED_AT = 4096
#: A label and at least one pair; text after the pair is looked at by the reader.
_LIBSVM = re.compile(rf"\s*{_FLOAT}(?::{_FLOAT})?[ \t]+(?:qid:\d+|\d+:[^\s:]+)(?:\s|$)", re.ASCII)
#: A row of libsvm without a feature; CSV of one column looks the same.
_BARE = re.compile(rf"\s*{_FLOAT}(?::{_FLOAT})?\s*(?:#.*)?", re.ASCII)


class ContentType(msgspec.Struct, frozen=True):
    """A content type, as far as it says how to read."""

    text: str
    kind: Kind
    #: `label_size` of CSV: how many of the leading columns are labels.
    labels: int | None = None


def read_content_type(text: str) -> ContentType:
    """Read `text/csv;label_size=1;charset=utf-8` and the like, whatever their case.

    Raises:
        DataError: It is not known, or a parameter of it has a value that cannot be followed.
    """
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    kind = CONTENT_TYPES.get(name)
    if kind is None:
        raise DataError(
            f"the content type {text!r} is not known", hint=f"give one of {', '.join(CONTENT_TYPES)}, or none"
        )
    given = {key.strip(): value.strip(" \"'") for key, _, value in (part.partition("=") for part in parameters)}
    charset = given.get("charset", "utf-8")
    if charset not in _UTF8:
        raise DataError(f"the content type {text!r} names the charset {charset!r}", hint="write text as UTF-8")
    size = given.get("label_size")
    if size is None or kind != "CSV":
        return ContentType(text, kind)
    if not size.isdecimal() or len(size) > _MOST_DIGITS or int(size) < 1:
        raise DataError(
            f"the content type {text!r}: label_size is {size!r}, expected a number of columns, 1 or more",
            hint="training needs labels; write text/csv;label_size=1",
        )
    return ContentType(text, kind, int(size))


def kind_by_name(path: Path) -> Kind | None:
    """What the name of a file says about its format."""
    suffix = Path(path.stem).suffix if path.suffix.lower() in COMPRESSED else path.suffix
    return _BY_NAME.get(suffix.lower())


def kind_by_content(stream: Stream) -> Kind:
    """What the first bytes or the first row say; CSV where nothing speaks for another format."""
    if stream.peek(4) == PARQUET_MAGIC:
        return "Parquet"
    if stream.peek(4) == RECORDIO_MAGIC:
        return "recordio-protobuf"
    return "libsvm" if any(_is_libsvm(line) for _, line in _telling_line(stream)) else "CSV"


def _telling_line(stream: Stream) -> list[tuple[int, str]]:
    """The first line that is no comment and more than a label: it says whether a text is CSV or libsvm."""
    rows = ((number, line) for number, line in lines_in_head(stream) if not line.lstrip().startswith("#"))
    return list(islice(((number, row) for number, row in rows if not _BARE.fullmatch(row, 0, _LOOKED_AT)), 1))


def refuse_another_kind(stream: Stream, said: ContentType) -> None:
    """Refuse what is clearly of another format than the channel's content type says.

    Raises:
        DataError: With the first row that says so.
    """
    start = stream.peek(4)
    binary: dict[bytes, Kind] = {PARQUET_MAGIC: "Parquet", RECORDIO_MAGIC: "recordio-protobuf"}
    if start in binary:
        if binary[start] != said.kind:
            raise _contradiction(stream.shown, "", binary[start], said)
        return
    if said.kind not in {"CSV", "libsvm"}:
        if start:
            lines = first_lines(stream, most=1)
            text = f": it begins with {short(lines[0][1])}" if lines else ""
            raise _contradiction(stream.shown, text, kind_by_content(stream), said)
        return
    for number, line in _telling_line(stream):
        if said.kind == "CSV" and _is_libsvm(line):
            raise _contradiction(f"{stream.shown}:{number}", f": {short(line)}", "libsvm", said)
        if said.kind == "libsvm" and _is_csv(line):
            raise _contradiction(f"{stream.shown}:{number}", f": {short(line)}", "CSV", said)


def _is_libsvm(line: str) -> bool:
    return _LIBSVM.match(line, 0, _LOOKED_AT) is not None


def _is_csv(line: str) -> bool:
    """Whether a line has what libsvm never has, and CSV mostly; tabs and blanks may separate either."""
    return ":" not in line and "#" not in line and any(delimiter in line for delimiter in ",;|")


def _contradiction(where: str, what: str, found: Kind, said: ContentType) -> DataError:
    types = " or ".join(name for name, kind in CONTENT_TYPES.items() if kind == found and "/" in name)
    return DataError(
        f"{where} is {found}, but the channel's content type is {said.text!r}{what}",
        hint=f"set the channel's content type to {types}, or put other files there",
    )
