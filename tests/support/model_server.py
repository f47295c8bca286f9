"""A small server with SageMaker's hosting contract, for tests of what asks one: sums the cells of each row of CSV."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    """What was asked."""

    body: bytes
    content_type: str
    accept: str
    is_chunked: bool


class Reply(NamedTuple):
    """What is answered."""

    body: bytes
    status: int = 200
    content_type: str = "text/csv"


def sums(request: Request) -> Reply:
    """One sum for each line."""
    lines = request.body.decode().splitlines()
    return Reply("".join(f"{sum(map(float, line.split(','))):g}\n" for line in lines).encode())


class ModelServer(ThreadingHTTPServer):
    """Answers with a function, and remembers the requests.

    Args:
        answer: Gives the reply to a request.
        parameters: The answer to `/execution-parameters`, or None where there is none.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[Request], Reply], parameters: Mapping[str, object] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.parameters = answer, parameters
        self.requests: list[Request] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that has left in the middle is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ModelServer

    def do_GET(self) -> None:
        parameters = self.server.parameters
        if self.path == "/ping":
            self._send(Reply(b""))
        elif self.path == "/execution-parameters" and parameters is not None:
            self._send(Reply(json.dumps(parameters).encode(), content_type="application/json"))
        else:
            self._send(Reply(b"", 404))

    def do_POST(self) -> None:
        is_chunked = self.headers["Transfer-Encoding"] == "chunked"
        if is_chunked and getattr(self.server.answer, "by_line", False):
            self._send_by_line()
            return
        body = b"".join(self._chunks()) if is_chunked else self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(body, self.headers["Content-Type"] or "", self.headers["Accept"] or "", is_chunked)
        self.server.requests.append(request)
        self._send(self.server.answer(request))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline() or b"0", 16):  # nothing where the client has left
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send_by_line(self) -> None:
        """Answer each line as it comes, before the rest is read."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        rest = b""
        for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            self._send_chunk(b"".join(line + b"\n" for line in lines))
        with contextlib.suppress(OSError):
            self._send_chunk(rest)
            self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, content: bytes) -> None:
        if content:
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def echo_by_line(request: Request) -> Reply:
    """The lines of the request; a chunked one is answered while it comes."""
    return Reply(request.body)


echo_by_line.by_line = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def serving(
    answer: Callable[[Request], Reply] = sums, parameters: Mapping[str, object] | None = None
) -> Iterator[ModelServer]:
    """Run a server while entered."""
    with ModelServer(answer, parameters) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
