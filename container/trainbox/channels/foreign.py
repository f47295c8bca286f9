"""Files that are no table: what the first bytes of a file say it is, and how its rows become one that is read."""

import json
import re
from pathlib import Path

import msgspec

from trainbox.channels.streams import Stream
from trainbox.errors import DataError

#: A tar has its mark at byte 257; the names of the first members of a zip are within the first kilobytes.
_HEAD_BYTES = 4096
_EXPORT = "write CSV or Parquet, for example with pandas: frame.to_csv('train.csv', index=False)"
_UNPACK = "unpack it: a channel holds the files themselves, each alone packed with gzip at most"
_SAVE_AS = "save the sheet as 'CSV UTF-8'"
_ARRAYS = "write CSV: numpy.savetxt('train.csv', rows, delimiter=',')"
_UTF8 = "write text as UTF-8 (in Excel: 'CSV UTF-8'; in Python: encoding='utf-8')"
_TABLES = "this algorithm reads tables: CSV, libsvm, Parquet or recordio-protobuf"
_AGAIN = "what lies here is an answer or a placeholder: fetch the data itself and upload that"


class Foreign(msgspec.Struct, frozen=True):
    """A kind of file that is not read."""

    what: str
    hint: str


_R = Foreign("an R workspace (.RData)", "write CSV: write.csv(frame, 'train.csv', row.names=FALSE)")
_JSON = Foreign("JSON", "write CSV, for example pandas.read_json(path, lines=True).to_csv('train.csv', index=False)")
_TWICE = Foreign("packed twice", "unpack it once")
#: By the first bytes, after the file is unpacked.
_MAGIC: tuple[tuple[bytes, Foreign], ...] = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Foreign("an Excel workbook (.xls)", _SAVE_AS)),
    (b"\x93NUMPY", Foreign("a NumPy array (.npy)", _ARRAYS)),
    (b"\x89HDF\r\n\x1a\n", Foreign("an HDF5 file", _EXPORT)),
    (b"MATLAB 5.0 MAT-file", Foreign("a MATLAB file (.mat)", _EXPORT)),
    (b"ARROW1\0\0", Foreign("an Arrow or Feather file", _EXPORT)),
    (b"FEA1\0\0\0\0", Foreign("a Feather file", _EXPORT)),
    (b"Obj\x01", Foreign("an Avro file", _EXPORT)),
    (b"SQLite format 3\0", Foreign("an SQLite database", _EXPORT)),
    (b"RDX2\n", _R),
    (b"RDX3\n", _R),
    (b"<stata_dta>", Foreign("a Stata file (.dta)", _EXPORT)),
    (b"$FL2", Foreign("an SPSS file (.sav)", _EXPORT)),
    (b"\x1f\x8b\x08", _TWICE),
    (b"\x28\xb5\x2f\xfd", _TWICE),
    (b"\xfd7zXZ\0", Foreign("packed with xz", "pack it with gzip, bzip2, zstd, lz4 or brotli instead, or not at all")),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Foreign("a RAR archive", _UNPACK)),
    (b"%PDF-", Foreign("a PDF", _EXPORT)),
    (b"\x89PNG\r\n\x1a\n", Foreign("a PNG image", _TABLES)),
    (b"\xff\xd8\xff", Foreign("a JPEG image", _TABLES)),
    (b"GIF8", Foreign("a GIF image", _TABLES)),
    (b"\x7fELF", Foreign("a program", _TABLES)),
    (
        b"version https://git-lfs.github.com/spec/",
        Foreign("a pointer of Git LFS", "run git lfs pull, and upload again"),
    ),
    (b"%%MatrixMarket", Foreign("a Matrix Market file", "write libsvm: sklearn.datasets.dump_svmlight_file")),
    (b"\xff\xfe\0\0", Foreign("not UTF-8 text: it is UTF-32", _UTF8)),
    (b"\xff\xfe", Foreign("not UTF-8 text: it is UTF-16", _UTF8)),
    (b"\xfe\xff", Foreign("not UTF-8 text: it is UTF-16", _UTF8)),
)
#: A zip by the names of its first members; the first that is found counts.
_IN_ZIP: tuple[tuple[re.Pattern[bytes], Foreign], ...] = (
    (re.compile(rb"xl/|\[Content_Types\]\.xml"), Foreign("an Excel workbook (.xlsx)", _SAVE_AS)),
    (re.compile(rb"mimetypeapplication/vnd\.oasis"), Foreign("an OpenDocument file (.ods)", _SAVE_AS)),
    (re.compile(rb"\.npyPK|\.npy"), Foreign("NumPy arrays (.npz)", _ARRAYS)),
    (re.compile(rb"/data\.pkl"), Foreign("a file of torch.save", _EXPORT)),
)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_TAR_AT, _TAR = 257, b"ustar"
#: What is no text soon behind its mark, which names of columns may begin with.
_BINARY = rb".{0,24}?[\x00-\x08\x0b\x0e-\x1f]"
_FORMS: tuple[tuple[re.Pattern[bytes], Foreign], ...] = (
    (
        re.compile(rb"PARE" + _BINARY, re.DOTALL),
        Foreign("encrypted Parquet", "write it without encryption; the bucket itself can encrypt it (SSE-KMS)"),
    ),
    (re.compile(rb"ORC" + _BINARY, re.DOTALL), Foreign("an ORC file", _EXPORT)),
    (re.compile(rb"\x80[\x02-\x05]"), Foreign("a Python pickle", _EXPORT)),
    (
        re.compile(rb"\x78[\x01\x5e\x9c\xda]" + _BINARY, re.DOTALL),
        Foreign("packed with zlib, as joblib packs a pickle", _EXPORT),
    ),
    (
        re.compile(rb"\s*<(?:!doctype|html|\?xml|error>|[a-z]\w{0,40}[^<>\n]{0,200}>\s*<)", re.IGNORECASE),
        Foreign("HTML or XML", _AGAIN),
    ),
    (
        re.compile(rb"(?:\s*%[^\n]*+\n|\s*\n)*+\s*@relation\s", re.IGNORECASE),
        Foreign("an ARFF file (Weka)", _EXPORT),
    ),
)
_BY_NAME = {
    ".tfrecord": Foreign("TFRecord", _EXPORT),
    ".tfrecords": Foreign("TFRecord", _EXPORT),
    ".pkl": Foreign("a Python pickle", _EXPORT),
    ".pickle": Foreign("a Python pickle", _EXPORT),
    ".sas7bdat": Foreign("a SAS file", _EXPORT),
}


def refuse_foreign(stream: Stream, path: Path) -> None:
    """Refuse a file that is clearly none of the formats that are read; nothing is consumed.

    Raises:
        DataError: With what it is, and what to do.
    """
    found = identify(stream.peek(_HEAD_BYTES), path.suffix.lower())
    if found is not None:
        raise DataError(f"{stream.shown} is {found.what}", hint=found.hint)


def identify(head: bytes, suffix: str = "") -> Foreign | None:
    """What a file is, by its first bytes; None where it may be one that is read.

    Args:
        head: Some kilobytes.
        suffix: How its name ends, for what has no mark of its own.
    """
    if not any(head):
        return (
            Foreign("nothing but bytes of zero", "a copy that was cut off may have holes of them: upload it again")
            if head
            else None
        )
    if head.startswith(_ZIP):
        return next((found for name, found in _IN_ZIP if name.search(head)), Foreign("a zip archive", _UNPACK))
    if head[_TAR_AT:].startswith(_TAR):
        return Foreign("a tar archive", _UNPACK)
    found = next((found for magic, found in _MAGIC if head.startswith(magic)), None)
    found = found or _BY_NAME.get(suffix) or next((found for form, found in _FORMS if form.match(head)), None)
    return found or _identify_text(head)


def _identify_text(head: bytes) -> Foreign | None:
    pairs = head[: len(head) // 2 * 2][:64]
    if len(pairs) > 2 and any(pairs) and not (any(pairs[::2]) and any(pairs[1::2])):  # noqa: PLR2004 - one character
        return Foreign("not UTF-8 text: it is UTF-16", _UTF8)
    if _is_json(head.lstrip(b"\xef\xbb\xbf \t\r\n")):
        return _JSON
    return None


def _is_json(text: bytes) -> bool:
    """Whether text begins as JSON does; the names of columns may stand in brackets, too."""
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
