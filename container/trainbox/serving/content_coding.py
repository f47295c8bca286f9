"""Compressed requests: gzip (RFC 9110, section 8.4), within the limit that a body has without compression.

SageMaker passes no `Content-Encoding` on; those who ask the container directly may send it.
"""

import gzip
import io
import zlib
from collections.abc import Mapping
from http import HTTPStatus

from trainbox.contract.text import short
from trainbox.data.formats.byte_stream import Readable
from trainbox.serving.bodies.request_errors import RequestError

#: The codings of a body that is to be decompressed, and those of one that is not.
_GZIP, _NONE = frozenset({"gzip", "x-gzip"}), frozenset({"", "identity"})
HEADER = "content-encoding"


def is_compressed(headers: Mapping[str, str]) -> bool:
    """Return whether a body must be decompressed.

    Args:
        headers: Of the request, by their names in lower case.

    Raises:
        RequestError: 415: it has another coding.
    """
    coding = headers.get(HEADER, "").strip().lower()
    if coding not in _GZIP | _NONE:
        raise RequestError(
            f"the content encoding {short(coding)} is not supported",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            hint="send gzip, or no Content-Encoding",
        )
    return coding in _GZIP


def decompress(body: bytes, limit: int) -> bytes:
    """Return what gzip has compressed.

    Args:
        body: All of it.
        limit: The most bytes of the result; no more are made.

    Raises:
        RequestError: 400: it is not gzip, or not whole; 413: there is more.
    """
    found = _read(gzip.GzipFile(fileobj=io.BytesIO(body)), limit + 1)
    if len(found) > limit:
        raise RequestError(
            f"the body has {len(body):,} bytes, and more than {limit:,} after decompression: TRAINBOX_MAX_BODY_MB sets"
            " that limit",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    return found


def _read(file: gzip.GzipFile, size: int) -> bytes:
    try:
        return file.read(size)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RequestError(f"the body is not gzip, as its Content-Encoding says: {error}") from error


class DecompressedBody:
    """A body that is decompressed as it is read, where its headers say so.

    Args:
        headers: Of the request, by their names in lower case.
        body: What comes.
    """

    def __init__(self, headers: Mapping[str, str], body: Readable) -> None:
        self._headers = headers
        self._body = body
        self._file: gzip.GzipFile | None = None

    def read(self, size: int, /) -> bytes:
        """Return at most that many bytes; none at the end.

        Raises:
            RequestError: As `is_compressed` and `decompress`, and as the body.
        """
        if self._file is None and not is_compressed(self._headers):
            return self._body.read(size)
        self._file = self._file or gzip.GzipFile(fileobj=self._body)  # type: ignore[call-overload] # it only reads
        return _read(self._file, size)

    def close(self) -> None:
        """Close the body."""
        self._body.close()
