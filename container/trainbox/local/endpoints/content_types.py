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
#: What `serve` reads and writes for tables.
INPUT_TYPES = (
    "text/csv",
    "application/json",
    "application/jsonlines",
    "text/libsvm",
    "application/x-recordio-protobuf",
    "application/x-parquet",
    "application/x-npy",
    "application/vnd.apache.arrow.stream",
)
#: For images.
IMAGE_TYPES = ("image/png", "image/jpeg", "application/x-npy")
OUTPUT_TYPES = tuple(name for name in INPUT_TYPES if name != "text/libsvm")


def guess_content_type(path: Path) -> str:
    """Return the media type that a file's name says; empty where it says none."""
    return CONTENT_TYPES.get(path.suffix.lower(), "")


def media_type(header: str) -> str:
    """Return the type of a header without its parameters: `text/csv; charset=utf-8` is `text/csv`."""
    return header.partition(";")[0].strip().lower()
