"""Content types of requests, and the choice of an answer's content type by `Accept` (RFC 9110, section 12.5.1)."""

import functools
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal

import msgspec

from trainbox.contract.text import short, some
from trainbox.serving.bodies.request_errors import RequestError

InputFormat = Literal["CSV", "JSON", "JSON Lines", "libsvm", "recordio-protobuf", "Parquet", "NumPy", "Arrow", "image"]
OutputFormat = Literal["CSV", "JSON", "JSON Lines", "recordio-protobuf", "Parquet", "NumPy", "Arrow"]

#: The names of content types, the one to recommend first.
INPUT_TYPES: Mapping[str, InputFormat] = {
    "text/csv": "CSV",
    "application/json": "JSON",
    "application/jsonlines": "JSON Lines",
    "application/x-ndjson": "JSON Lines",
    "application/x-jsonlines": "JSON Lines",
    "text/libsvm": "libsvm",
    "text/x-libsvm": "libsvm",
    "application/x-recordio-protobuf": "recordio-protobuf",
    "application/x-parquet": "Parquet",
    "application/vnd.apache.parquet": "Parquet",
    "application/x-npy": "NumPy",
    "application/vnd.apache.arrow.stream": "Arrow",
}
IMAGE_TYPES: Mapping[str, InputFormat] = {
    "application/x-image": "image",
    "image/png": "image",
    "image/jpeg": "image",
    "application/x-npy": "NumPy",
}
OUTPUT_TYPES: Mapping[str, OutputFormat] = {
    "text/csv": "CSV",
    "application/json": "JSON",
    "application/jsonlines": "JSON Lines",
    "application/x-ndjson": "JSON Lines",
    "application/x-jsonlines": "JSON Lines",
    "application/x-recordio-protobuf": "recordio-protobuf",
    "application/x-parquet": "Parquet",
    "application/vnd.apache.parquet": "Parquet",
    "application/x-npy": "NumPy",
    "application/vnd.apache.arrow.stream": "Arrow",
}
#: What clients send where the caller has named nothing.
_UNCHOSEN = {
    "application/octet-stream": "the SageMaker SDK sends this where no serializer is given, such as CSVSerializer(); ",
    "application/x-www-form-urlencoded": "with curl, name it: --header 'Content-Type: text/csv'; ",
    "multipart/form-data": "with curl, send the file as it is: --data-binary @FILE, and not --form; ",
}
_UTF8_NAMES = {"utf-8", "utf8", "us-ascii", "ascii"}
#: A parameter's value may be in quotes, which may hold commas and semicolons.
_PARAMETER = re.compile(r';\s*([^\s=;,"]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^;,"]*)))?\s*')
_RANGE = re.compile(r'\s*([^\s;,"]*)\s*')
_LONGEST = 1_000


class InputType(msgspec.Struct, frozen=True):
    """The content type of a request, as far as it affects reading."""

    format: InputFormat
    #: Whether the first line of CSV is a header; None: detected.
    header: bool | None = None
    #: What libsvm's first index is.
    index_base: int = 0


class OutputType(msgspec.Struct, frozen=True):
    """What an answer is to be."""

    #: Its content type.
    name: str
    format: OutputFormat
    #: What it holds, if the request says so.
    outputs: tuple[str, ...] = ()


@functools.lru_cache(maxsize=256)
def read_input_type(text: str, *, takes_images: bool = False) -> InputType:
    """Parse the content type of a request; parameters that do not affect reading are ignored.

    Args:
        text: The header; an empty one is CSV.
        takes_images: Whether the model takes images instead of rows.

    Raises:
        RequestError: 415: it is not known.
    """
    known = IMAGE_TYPES if takes_images else INPUT_TYPES
    if not text.strip() and not takes_images:
        return InputType("CSV")
    name, parameters, end = _read_media_range(text[:_LONGEST])
    format_ = known.get(name)
    charset = parameters.get("charset", "utf-8").lower()
    if format_ is None or end < len(text.rstrip()):
        raise _unsupported(f"the content type {short(text)} is not supported", known, _UNCHOSEN.get(name, ""))
    if charset not in _UTF8_NAMES and format_ in {"CSV", "JSON", "JSON Lines", "libsvm"}:
        raise _unsupported(f"the charset {short(charset)} is not supported: text is UTF-8", known)
    header = {"present": True, "absent": False}.get(parameters.get("header", "").lower())
    base = parameters.get("index_base", "0")
    if base not in {"0", "1"}:
        raise _unsupported(f"the content type says index_base={short(base)}; it is 0 or 1", known)
    return InputType(format_, header if format_ == "CSV" else None, int(base))


def _unsupported(message: str, known: Mapping[str, InputFormat], why: str = "") -> RequestError:
    hint = f"{why}send one of {', '.join(known)}"
    return RequestError(message, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE, hint=hint)


@functools.lru_cache(maxsize=256)
def choose_output_type(accept: str, default: str) -> OutputType:
    """Choose the content type of an answer.

    Args:
        accept: The header; an empty one is `*/*`.
        default: The content type where the header leaves it open.

    Raises:
        RequestError: 406: the header allows none that there is.
    """
    best: OutputType | None = None
    most = 0.0
    at = 0
    while at < len(accept.rstrip()):
        name, parameters, at = _read_media_range(accept[: 8 * _LONGEST], at)
        at = at + 1 if accept[at : at + 1] == "," else len(accept)
        found = _match(name, default)
        quality = _quality(parameters.get("q", "1"))
        if found is not None and quality > most:
            names = tuple(part.strip().lower() for part in parameters.get("output", "").split(",") if part.strip())
            best, most = OutputType(found, OUTPUT_TYPES[found], names), quality
    if not accept.strip():
        best = OutputType(default, OUTPUT_TYPES[default])
    if best is None:
        raise RequestError(
            f"none of the content types {short(accept, 200)} can be given",
            status=HTTPStatus.NOT_ACCEPTABLE,
            hint=f"accept one of {some(tuple(OUTPUT_TYPES), 20)}, or */*",
        )
    return best


def _match(name: str, default: str) -> str | None:
    """Return the content type that a media range stands for; None if there is none."""
    if name in OUTPUT_TYPES:
        return name
    if name in {"*/*", "*"}:
        return default
    if name.endswith("/*"):
        return next((known for known in (default, *OUTPUT_TYPES) if known.startswith(name[:-1])), None)
    return None


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", text) else 0.0


def _read_media_range(text: str, at: int = 0) -> tuple[str, dict[str, str], int]:
    """Return a content type or range in lower case, its parameters, and where it ends."""
    found = _RANGE.match(text, at)
    name = found[1].lower() if found else ""
    at = found.end() if found else at
    parameters: dict[str, str] = {}
    while parameter := _PARAMETER.match(text, at):
        quoted = parameter[2]
        value = (parameter[3] or "").strip(" \t'") if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        parameters.setdefault(parameter[1].lower(), value)
        at = parameter.end()
    return name, parameters, at
