"""Asks an endpoint over HTTP: one connection for each thread, kept open."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, urlsplit

import msgspec

from trainbox.errors import RunError, TrainboxError

#: Of one request; API ModelClientConfig: InvocationsTimeoutInSeconds.
TIMEOUT_SECONDS = 600.0
#: What a kept connection may come to while nobody used it: asked once more on a new one.
_STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
_UNREACHABLE = (OSError, http.client.HTTPException)
_BLOCK_BYTES = 256 * 1024


class EndpointAnswer(msgspec.Struct, frozen=True):
    """What an endpoint answered."""

    status: int
    content_type: str
    body: bytes

    @property
    def is_good(self) -> bool:
        """Whether it is a prediction."""
        return 200 <= self.status < 300  # noqa: PLR2004 - RFC 9110: successful


class _Sender(threading.Thread):
    """Sends a body while its answer is read: a server may answer before it has read all, and stop reading until then.

    Args:
        connection: Its headers are sent.
        chunks: The body; an error of ours that they raise ends the connection.
    """

    def __init__(self, connection: socket.socket, chunks: Iterable[bytes]) -> None:
        super().__init__(daemon=True)
        self._socket, self._chunks = connection, chunks
        self.error: TrainboxError | None = None

    def run(self) -> None:
        with contextlib.suppress(OSError):  # where the server has refused the rest, its answer says why
            try:
                for chunk in filter(None, self._chunks):
                    self._socket.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                self._socket.sendall(b"0\r\n\r\n")
            except TrainboxError as error:
                self.error = error
                self._socket.shutdown(socket.SHUT_RDWR)


class Endpoint:
    """A server that speaks SageMaker's hosting contract.

    Args:
        url: Of the server, or of its `/invocations`.
        timeout: Seconds of one request.

    Raises:
        RunError: It is no URL of HTTP.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT_SECONDS) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self._port = parts.port
        except ValueError as error:
            raise RunError(f"{url!r} is no URL: {error}") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise RunError(f"{url!r} is no URL of HTTP", hint="write it as http://127.0.0.1:8080")
        self._host, self._scheme, self._timeout = parts.hostname, parts.scheme, timeout
        self._prefix = parts.path.rstrip("/").removesuffix("/invocations")
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._is_closed = False
        self.url = f"{parts.scheme}://{parts.netloc}{self._prefix}"

    def get(self, path: str) -> EndpointAnswer:
        """Ask with GET.

        Raises:
            RunError: No answer came.
        """
        return self._request("GET", path, None, {})

    def post(self, path: str, body: bytes, *, content_type: str) -> EndpointAnswer:
        """Ask with POST.

        Raises:
            RunError: No answer came.
        """
        return self._request("POST", path, body, _headers(content_type, ""))

    def invoke(self, body: bytes, *, content_type: str, accept: str, model: str = "") -> EndpointAnswer:
        """Ask for predictions.

        Args:
            body: Of the request.
            content_type: Of the body.
            accept: Of the answer.
            model: Which one, of an endpoint of many.

        Raises:
            RunError: No answer came.
        """
        path = f"/models/{quote(model, safe='')}/invoke" if model else "/invocations"
        return self._request("POST", path, body, _headers(content_type, accept))

    @contextlib.contextmanager
    def invoke_with(self, body: bytes, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """Ask with any headers, on a connection of its own; the answer is read as it comes.

        Raises:
            RunError: No answer came.
        """
        connection = self._connect()
        try:
            try:
                connection.request("POST", f"{self._prefix}/invocations", body, dict(headers))
                response = connection.getresponse()
            except _UNREACHABLE as error:
                raise self._unreachable(error) from error
            yield response
        finally:
            self._close(connection)

    @contextlib.contextmanager
    def invoke_chunked(
        self, chunks: Iterable[bytes], *, content_type: str, accept: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask with a body of any length, which is sent while the answer is read.

        Raises:
            RunError: No answer came.
        """
        connection = self._connect()
        sender: _Sender | None = None
        try:
            connection.putrequest("POST", f"{self._prefix}/invocations")
            for name, value in {**_headers(content_type, accept), "Transfer-Encoding": "chunked"}.items():
                connection.putheader(name, value)
            connection.endheaders()
            sender = _Sender(connection.sock, chunks)
            sender.start()
            yield connection.getresponse()
        except (*_UNREACHABLE, TrainboxError) as error:
            # What ended the body explains an answer that cannot be used.
            found = error if isinstance(error, TrainboxError) else self._unreachable(error)
            raise (sender and sender.error) or found from error
        finally:
            self._close(connection)
            if sender is not None:
                sender.join()
        if sender.error is not None:
            raise sender.error

    def close(self) -> None:
        """Close all connections, for good; a request that another thread waits for fails."""
        self._is_closed = True
        for connection in list(self._open):
            self._close(connection)

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> EndpointAnswer:
        for is_last in (False, True):
            kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
            connection = self._connect() if kept is None or kept not in self._open else kept
            self._local.connection = connection
            try:
                connection.request(method, self._prefix + path, body, headers)
                response = connection.getresponse()
                return EndpointAnswer(response.status, response.getheader("Content-Type", ""), response.read())
            except _UNREACHABLE as error:
                self._close(connection)
                if is_last or connection is not kept or not isinstance(error, _STALE):
                    raise self._unreachable(error) from error
        raise AssertionError("the second try returns or raises")

    def _connect(self) -> http.client.HTTPConnection:
        if self._is_closed:
            raise RunError(f"{self.url} is not asked any more")
        kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        self._open.add(connection)
        return connection

    def _close(self, connection: http.client.HTTPConnection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        connection.close()

    def _unreachable(self, error: BaseException) -> RunError:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return RunError(f"{self.url} does not answer: {why}", hint="'trainbox serve MODEL' starts an endpoint")


def read_lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Read the lines of an answer as they come."""
    while line := response.readline():
        yield line


def read_blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Read an answer as it comes."""
    while block := response.read1(_BLOCK_BYTES):
        yield block


def _headers(content_type: str, accept: str) -> dict[str, str]:
    return {name: value for name, value in (("Content-Type", content_type), ("Accept", accept)) if value}
