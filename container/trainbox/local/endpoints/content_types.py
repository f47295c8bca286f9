"""Media types: which one a file has by its name, and what of a header is the type itself."""

from pathlib import Path

#: By the end of a file's name.
CONTENT_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".jsonlines": "application/jsonlines",
    ".ndjson": "application/jsonlines",
    ".libsvm": "text/libsvm",
    ".svm": "text/libsvm",
    ".parquet": "application/x-parquet",
    ".npy": "application/x-npy",
    ".pbr": "application/x-recordio-protobuf",
    ".recordio": "application/x-recordio-protobuf",
    ".arrow": "application/vnd.apache.arrow.stream",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}


def guess_content_type(path: Path) -> str:
    """Return the media type that a file's name says; empty where it says none."""
    return CONTENT_TYPES.get(path.suffix.lower(), "")


def media_type(header: str) -> str:
    """Return the type of a header without its parameters: `text/csv; charset=utf-8` is `text/csv`."""
    return header.partition(";")[0].strip().lower()
