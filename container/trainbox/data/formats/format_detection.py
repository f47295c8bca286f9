"""Detect the format of data from its content type, name or first bytes; reject files that are not tables."""

import json
import re
from itertools import islice
from pathlib import Path

import msgspec

from trainbox.contract.text import short
from trainbox.data.formats.byte_stream import COMPRESSION_SUFFIXES, ByteStream, peek_head, peek_lines
from trainbox.data.formats.cell_types import NUMBER
from trainbox.data.formats.schema import Format
from trainbox.errors import DataError

CONTENT_TYPES: dict[str, Format] = {
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
_FORMAT_BY_SUFFIX: dict[str, Format] = {
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
_BINARY_MAGIC: dict[bytes, Format] = {PARQUET_MAGIC: "Parquet", RECORDIO_MAGIC: "recordio-protobuf"}
_MOST_DIGITS = 4000  # Python converts no more than 4,300
_UTF8_NAMES = {"utf-8", "utf8", "us-ascii", "ascii"}
_FLOAT = NUMBER.pattern
#: Of a line: label, weight and the first pair fit.
_LOOKED_AT = 4096
#: A label and at least one pair; the reader checks what follows the pair.
_LIBSVM = re.compile(rf"\s*{_FLOAT}(?::{_FLOAT})?[ \t]+(?:qid:\d+|\d+:[^\s:]+)(?:\s|$)", re.ASCII)
#: A row of libsvm without a feature; CSV of one column looks the same.
_LABEL_ALONE = re.compile(rf"\s*{_FLOAT}(?::{_FLOAT})?\s*(?:#.*)?", re.ASCII)


class ContentType(msgspec.Struct, frozen=True):
    """A content type, as far as it affects reading."""

    text: str
    format: Format
    #: `label_size` of CSV: how many of the leading columns are labels.
    labels: int | None = None
    #: `header` of CSV (RFC 4180): `present` or `absent`.
    header: bool | None = None


def read_content_type(text: str) -> ContentType:
    """Parse a content type such as `text/csv;label_size=1;charset=utf-8`, in any case.

    Raises:
        DataError: It is unknown, or a parameter has an unsupported value.
    """
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    found = CONTENT_TYPES.get(name)
    if found is None:
        raise DataError(
            f"the content type {text!r} is not known", hint=f"give one of {', '.join(CONTENT_TYPES)}, or none"
        )
    given = {key.strip(): value.strip(" \"'") for key, _, value in (part.partition("=") for part in parameters)}
    charset = given.get("charset", "utf-8")
    if charset not in _UTF8_NAMES:
        raise DataError(f"the content type {text!r} names the charset {charset!r}", hint="write text as UTF-8")
    size = given.get("label_size")
    header = {"present": True, "absent": False}.get(given.get("header", ""))
    if found != "CSV":
        return ContentType(text, found)
    if size is not None and (not size.isdecimal() or len(size) > _MOST_DIGITS):
        raise DataError(
            f"the content type {text!r}: label_size is {size!r}, expected a number of columns",
            hint="write text/csv;label_size=1",
        )
    return ContentType(text, found, None if size is None else int(size), header)


def format_from_name(path: Path) -> Format | None:
    """Return the format that the name of a file says; None if it says none."""
    suffix = Path(path.stem).suffix if path.suffix.lower() in COMPRESSION_SUFFIXES else path.suffix
    return _FORMAT_BY_SUFFIX.get(suffix.lower())


def format_from_content(stream: ByteStream) -> Format:
    """Detect the format from the first bytes or the first row; CSV if nothing indicates another."""
    binary = _BINARY_MAGIC.get(stream.peek(4))
    if binary is not None:
        return binary
    return "libsvm" if any(_is_libsvm(line) for _, line in _deciding_line(stream)) else "CSV"


def _deciding_line(stream: ByteStream) -> list[tuple[int, str]]:
    """Return the first line that is not a comment and has more than a label: it decides between CSV and libsvm."""
    rows = ((number, line) for number, line in peek_head(stream) if not line.lstrip().startswith("#"))
    return list(islice(((number, row) for number, row in rows if not _LABEL_ALONE.fullmatch(row, 0, _LOOKED_AT)), 1))


def reject_format_mismatch(stream: ByteStream, declared: ContentType) -> None:
    """Reject data that is clearly of another format than the channel's content type says.

    Raises:
        DataError: With the first row that shows it.
    """
    start = stream.peek(4)
    binary = _BINARY_MAGIC.get(start)
    if binary is not None:
        if binary != declared.format:
            raise _mismatch(stream.shown, "", binary, declared)
        return
    if declared.format not in {"CSV", "libsvm"}:
        if start:
            lines = peek_lines(stream, most=1)
            text = f": it begins with {short(lines[0][1])}" if lines else ""
            raise _mismatch(stream.shown, text, format_from_content(stream), declared)
        return
    for number, line in _deciding_line(stream):
        if declared.format == "CSV" and _is_libsvm(line):
            raise _mismatch(f"{stream.shown}:{number}", f": {short(line)}", "libsvm", declared)
        if declared.format == "libsvm" and _is_csv(line):
            raise _mismatch(f"{stream.shown}:{number}", f": {short(line)}", "CSV", declared)


def _is_libsvm(line: str) -> bool:
    return _LIBSVM.match(line, 0, _LOOKED_AT) is not None


def _is_csv(line: str) -> bool:
    """Return whether a line has a delimiter that libsvm never has; tabs and blanks may separate either."""
    return ":" not in line and "#" not in line and any(delimiter in line for delimiter in ",;|")


def _mismatch(where: str, what: str, found: Format, declared: ContentType) -> DataError:
    types = " or ".join(name for name, other in CONTENT_TYPES.items() if other == found and "/" in name)
    return DataError(
        f"{where} is {found}, but the channel's content type is {declared.text!r}{what}",
        hint=f"set the channel's content type to {types}, or put other files there",
    )


# ---- files that are not tables ----

#: A tar has its magic number at byte 257; the names of the first members of a zip are within the first kilobytes.
_HEAD_BYTES = 4096
_EXPORT = "write CSV or Parquet, for example with pandas: frame.to_csv('train.csv', index=False)"
_UNPACK = "unpack it: a channel holds the files themselves, each alone packed with gzip at most"
_SAVE_AS = "save the sheet as 'CSV UTF-8'"
_ARRAYS = "write CSV: numpy.savetxt('train.csv', rows, delimiter=',')"
_WRITE_UTF8 = "write text as UTF-8 (in Excel: 'CSV UTF-8'; in Python: encoding='utf-8')"
_TABLES = "this algorithm reads tables: CSV, libsvm, Parquet or recordio-protobuf"
_WRITE_R = "write CSV: write.csv(frame, 'train.csv', row.names=FALSE)"
_WRITE_JSON = "write CSV, for example pandas.read_json(path, lines=True).to_csv('train.csv', index=False)"


class UnsupportedFile(msgspec.Struct, frozen=True):
    """A kind of file that is not read."""

    what: str
    hint: str


_UTF16 = UnsupportedFile("not UTF-8 text: it is UTF-16", _WRITE_UTF8)
_ZIP = r"PK(?:\x03\x04|\x05\x06|\x07\x08)"
#: Binary bytes soon after a magic number of letters, which names of columns may begin with.
_BINARY = r".{0,24}?[\x00-\x08\x0b\x0e-\x1f]"
#: By the first bytes, after the file is decompressed; the first pattern that matches counts.
_SIGNATURES: tuple[tuple[str, str, str], ...] = (
    (_ZIP + r".*?(?:xl/|\[Content_Types\]\.xml)", "an Excel workbook (.xlsx)", _SAVE_AS),
    (_ZIP + r".*?mimetypeapplication/vnd\.oasis", "an OpenDocument file (.ods)", _SAVE_AS),
    (_ZIP + r".*?\.npy", "NumPy arrays (.npz)", _ARRAYS),
    (_ZIP + r".*?/data\.pkl", "a file of torch.save", _EXPORT),
    (_ZIP, "a zip archive", _UNPACK),
    (r".{257}ustar", "a tar archive", _UNPACK),
    (r"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", _SAVE_AS),
    (r"\x93NUMPY", "a NumPy array (.npy)", _ARRAYS),
    (r"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (r"MATLAB 5\.0 MAT-file", "a MATLAB file (.mat)", _EXPORT),
    (r"ARROW1\0\0", "an Arrow or Feather file", _EXPORT),
    (r"FEA1\0\0\0\0", "a Feather file", _EXPORT),
    (r"Obj\x01", "an Avro file", _EXPORT),
    (r"SQLite format 3\0", "an SQLite database", _EXPORT),
    (r"RDX[23]\n", "an R workspace (.RData)", _WRITE_R),
    (r"<stata_dta>", "a Stata file (.dta)", _EXPORT),
    (r"\$FL2", "an SPSS file (.sav)", _EXPORT),
    (r"\x1f\x8b\x08|\x28\xb5\x2f\xfd", "packed twice", "unpack it once"),
    (r"\xfd7zXZ\0", "packed with xz", "pack it with gzip, bzip2, zstd, lz4 or brotli instead, or not at all"),
    (r"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (r"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (r"%PDF-", "a PDF", _EXPORT),
    (r"\x89PNG\r\n\x1a\n", "a PNG image", _TABLES),
    (r"\xff\xd8\xff", "a JPEG image", _TABLES),
    (r"GIF8", "a GIF image", _TABLES),
    (r"\x7fELF", "a program", _TABLES),
    (r"version https://git-lfs\.github\.com/spec/", "a pointer of Git LFS", "run git lfs pull, and upload again"),
    (r"%%MatrixMarket", "a Matrix Market file", "write libsvm: sklearn.datasets.dump_svmlight_file"),
    (r"\xff\xfe\0\0", "not UTF-8 text: it is UTF-32", _WRITE_UTF8),
    (r"\xff\xfe|\xfe\xff", _UTF16.what, _UTF16.hint),
    (
        r"PARE" + _BINARY,
        "encrypted Parquet",
        "write it without encryption; the bucket itself can encrypt it (SSE-KMS)",
    ),
    (r"ORC" + _BINARY, "an ORC file", _EXPORT),
    (r"\x80[\x02-\x05]", "a Python pickle", _EXPORT),
    (r"\x78[\x01\x5e\x9c\xda]" + _BINARY, "packed with zlib, as joblib packs a pickle", _EXPORT),
    (
        r"(?i:\s*<(?:!doctype|html|\?xml|error>|[a-z]\w{0,40}[^<>\n]{0,200}>\s*<))",
        "HTML or XML",
        "this is a response or a placeholder: fetch the data itself and upload that",
    ),
    (r"(?i:(?:\s*%[^\n]*+\n|\s*\n)*+\s*@relation\s)", "an ARFF file (Weka)", _EXPORT),
)
_PATTERNS = tuple(
    (re.compile(pattern.encode(), re.DOTALL), UnsupportedFile(what, hint)) for pattern, what, hint in _SIGNATURES
)
_UNSUPPORTED_BY_SUFFIX = {
    ".tfrecord": UnsupportedFile("TFRecord", _EXPORT),
    ".tfrecords": UnsupportedFile("TFRecord", _EXPORT),
    ".pkl": UnsupportedFile("a Python pickle", _EXPORT),
    ".pickle": UnsupportedFile("a Python pickle", _EXPORT),
    ".sas7bdat": UnsupportedFile("a SAS file", _EXPORT),
}


def reject_unsupported(stream: ByteStream, suffix: str = "") -> None:
    """Reject a file that is clearly not of a supported format, without consuming it.

    Raises:
        DataError: With what it is, and what to do.
    """
    found = identify_unsupported(stream.peek(_HEAD_BYTES), suffix.lower())
    if found is not None:
        raise DataError(f"{stream.shown} is {found.what}", hint=found.hint)


def identify_unsupported(head: bytes, suffix: str = "") -> UnsupportedFile | None:
    """Identify an unsupported file by its first bytes; None if it may be of a supported format.

    Args:
        head: Some kilobytes.
        suffix: The end of its name, for formats without a magic number.
    """
    if not any(head):
        return (
            UnsupportedFile(
                "nothing but bytes of zero", "a copy that was cut off may have holes of them: upload it again"
            )
            if head
            else None
        )
    found = next((found for pattern, found in _PATTERNS if pattern.match(head)), None)
    return found or _UNSUPPORTED_BY_SUFFIX.get(suffix) or _identify_text(head)


def _identify_text(head: bytes) -> UnsupportedFile | None:
    pairs = head[: len(head) // 2 * 2][:64]
    if len(pairs) > 2 and any(pairs) and not (any(pairs[::2]) and any(pairs[1::2])):  # noqa: PLR2004 - one character
        return _UTF16
    if _is_json(head.lstrip(b"\xef\xbb\xbf \t\r\n")):
        return UnsupportedFile("JSON", _WRITE_JSON)
    return None


def _is_json(text: bytes) -> bool:
    """Return whether text begins like JSON; names of columns may be in brackets, too."""
    if text.startswith(b"{"):
        return text[1:].lstrip().startswith((b'"', b"}"))
    if not text.startswith(b"["):
        return False
    if text[1:].lstrip().startswith((b"{", b"[")):
        return True
    try:
        return isinstance(json.loads(text.split(b"\n", 1)[0]), list)
    except (ValueError, RecursionError):
        return False
