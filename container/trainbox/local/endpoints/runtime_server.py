"""Answers clients of `sagemaker-runtime` on loopback: what they ask of the AWS API is asked of an endpoint."""

import contextlib
import http.client
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from trainbox.contract.hosting import MOST_BODY_MB
from trainbox.errors import RunError
from trainbox.local.endpoints.endpoint import Endpoint, read_blocks
from trainbox.local.endpoints.runtime_api import (
    ApiAnswer,
    Headers,
    Invocation,
    api_error,
    headers_for_client,
    headers_for_model,
    model_error,
    payload_part,
    read_invocation,
    stream_error,
)
from trainbox.local.endpoints.server_plan import LOOPBACK

#: Of a container on SageMaker: 60 s for an answer, 8 minutes for a stream.
_ANSWER_SECONDS, _STREAM_SECONDS = 60.0, 480.0
_MOST_BYTES = MOST_BODY_MB * 2**20
_SIGNED = "AWS4-HMAC-SHA256 "
_ENDS = (OSError, http.client.HTTPException)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: "RuntimeServer"

    def do_POST(self) -> None:
        """Ask the endpoint, and answer as the API does."""
        length = self.headers.get("content-length", "")
        problem = _find_problem(self.headers.get("authorization", ""), length)
        invocation = read_invocation(self.path)
        if problem is not None or invocation is None:
            self.close_connection = True  # the body is not read
            self._answer(problem or _unknown(self.path))
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError("the client has gone")
        endpoint = self.server.streams if invocation.is_stream else self.server.endpoint
        headers = headers_for_model(self.headers.items(), invocation)
        try:
            with endpoint.invoke_with(body, headers) as response:
                self._relay(response, invocation)
        except RunError as error:
            self._answer(model_error(0, error.message.encode()))

    def _relay(self, response: http.client.HTTPResponse, invocation: Invocation) -> None:
        headers = headers_for_client(response.getheaders(), invocation)
        is_good = 200 <= response.status < 300  # noqa: PLR2004 - RFC 9110: successful
        if is_good and invocation.is_stream:
            self._stream(response, headers)
            return
        try:
            body = response.read()
        except _ENDS as error:
            self._answer(model_error(0, _broken(error).encode()))
            return
        self._answer(ApiAnswer(200, headers, body) if is_good else model_error(response.status, body))

    def _stream(self, response: http.client.HTTPResponse, headers: Headers) -> None:
        """Send each part as it comes."""
        self._send_head(200, {**headers, "transfer-encoding": "chunked"})
        for frame in _frames(response):
            self.wfile.write(f"{len(frame):x}\r\n".encode() + frame + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, answer: ApiAnswer) -> None:
        self._send_head(answer.status, {**answer.headers, "content-length": str(len(answer.body))})
        self.wfile.write(answer.body)

    def _send_head(self, status: int, headers: Headers) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "x-amzn-requestid": str(uuid.uuid4())}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library calls it
        """Log nothing: the endpoint itself logs each request."""


class RuntimeServer(ThreadingTCPServer):
    """A thread for each connection of a client.

    Args:
        port: Of loopback; 0 is any.
        url: Of the endpoint.

    Raises:
        OSError: The port cannot be used.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, url: str) -> None:
        self.endpoint, self.streams = Endpoint(url, _ANSWER_SECONDS), Endpoint(url, _STREAM_SECONDS)
        super().__init__((LOOPBACK, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing to do: the client has gone."""

    def server_close(self) -> None:
        """Close the port, and the connections to the endpoint."""
        super().server_close()
        self.endpoint.close()
        self.streams.close()


@contextlib.contextmanager
def answering_runtime(port: int, url: str) -> Iterator[str]:
    """Answer while entered; yields the `endpoint_url` for clients.

    Args:
        port: Of loopback; 0 is any.
        url: Of the endpoint.

    Raises:
        RunError: The port cannot be used.
    """
    try:
        server = RuntimeServer(port, url)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no port"
        raise RunError(f"port {port} cannot be used: {why}", hint="--runtime-port 0 takes any that is free") from error
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{LOOPBACK}:{server.server_address[1]}"
        finally:
            server.shutdown()


def _find_problem(authorization: str, length: str) -> ApiAnswer | None:
    """Return the answer to a request that no endpoint is asked; None where one is."""
    if not authorization.startswith(_SIGNED):
        return api_error(403, "MissingAuthenticationTokenException", "the request has no AWS signature")
    if not length.isdecimal():
        return api_error(411, "ValidationError", "the request has no Content-Length")
    if int(length) > _MOST_BYTES:
        taken = f"at most {_MOST_BYTES:,} are taken"
        return api_error(413, "ValidationError", f"the body has {int(length):,} bytes, and {taken}")
    return None


def _unknown(path: str) -> ApiAnswer:
    message = f"{path}: this service has InvokeEndpoint and InvokeEndpointWithResponseStream"
    return api_error(404, "UnknownOperationException", message)


def _frames(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield a frame for each part of an answer; the last one is an error where the container has not ended it."""
    try:
        for part in read_blocks(response):
            yield payload_part(part)
    except _ENDS as error:
        yield stream_error(_broken(error))


def _broken(error: Exception) -> str:
    return f"the container has broken off its answer: {error or type(error).__name__}"
