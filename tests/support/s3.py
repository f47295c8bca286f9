"""S3 on loopback, as far as boto3 needs it to list a bucket and to read parts of objects."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

SECRET = "of-nobody+in/particular"
KEY_ID = "AKIAOFNOBODYATALL123"
_PAGE = 2


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, S3)
        path = urlsplit(self.path)
        bucket, _, key = unquote(path.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(path.query).items()}
        if "Authorization" not in self.headers:
            self._error(403, "AccessDenied")
        elif bucket != server.bucket:
            self._error(404, "NoSuchBucket")
        elif not key:
            server.asked.append(("list", query.get("prefix", ""), ""))
            self._list(server, query)
        else:
            server.asked.append(("get", key, self.headers.get("Range", "")))
            self._get(server, key)

    def _list(self, server: "S3", query: dict[str, str]) -> None:
        prefix, most = query.get("prefix", ""), min(int(query.get("max-keys", "1000")), _PAGE)
        keys = sorted(
            key for key in server.objects if key.startswith(prefix) and key > query.get("continuation-token", "")
        )
        shown = keys[:most]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(server.objects[key])}</Size>"
            f"<ETag>{escape(etag(server.objects[key]))}</ETag>"
            "<LastModified>2026-11-29T08:30:00.000Z</LastModified></Contents>"
            for key in shown
        )
        more = len(keys) > len(shown)
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        text = (
            f"<ListBucketResult><Name>{server.bucket}</Name><KeyCount>{len(shown)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )
        self._answer(200, text.encode())

    def _get(self, server: "S3", key: str) -> None:
        content = server.objects.get(key)
        if content is None:
            self._error(404, "NoSuchKey")
            return
        if self.headers.get("If-Match") not in (None, etag(content)):
            self._error(412, "PreconditionFailed")
            return
        first = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        rest = content[first:]
        if key in server.cut_off:
            server.cut_off.remove(key)
            self._answer(206, rest[: len(rest) // 2], length=len(rest))
            self.close_connection = True
            return
        if key in server.slow:
            self._answer(206, rest[: len(rest) // 2], length=len(rest))
            self.wfile.flush()
            server.began.set()
            server.hold.wait()
            self.close_connection = True
            return
        self._answer(206, rest)

    def _error(self, code: int, name: str) -> None:
        self._answer(code, f"<Error><Code>{name}</Code><Message>as the test wants it</Message></Error>".encode())

    def _answer(self, code: int, body: bytes, *, length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
        """Say nothing."""


def etag(content: bytes) -> str:
    """As S3 has it for an object that was uploaded in one piece."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class S3(ThreadingHTTPServer):
    """One bucket, whose pages have two keys."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket = "bucket"
        self.objects: dict[str, bytes] = {}
        #: What was asked for: list or get, of what, and from which byte on.
        self.asked: list[tuple[str, str, str]] = []
        #: Objects whose next answer breaks off in the middle.
        self.cut_off: set[str] = set()
        #: Objects whose answers stand still in the middle, until `hold` is set.
        self.slow: set[str] = set()
        self.began = Event()
        self.hold = Event()

    @property
    def environment(self) -> dict[str, str]:
        """What a shell has that works with it."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.server_address[1]}",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "eu-central-1",
        }

    def gets(self, key: str) -> list[str]:
        """The ranges of an object that were asked for."""
        return [first for what, name, first in self.asked if (what, name) == ("get", key)]


@contextmanager
def s3_served() -> Iterator[S3]:
    """A service that listens until the block ends."""
    with S3() as service:
        thread = Thread(target=service.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield service
        finally:
            service.hold.set()
            service.shutdown()
            thread.join()
