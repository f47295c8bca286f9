"""The one place that knows how uvicorn is given a connection that is there already.

Its `Server` takes whole listeners alone, which the kernel shares among workers unfairly: of four connections of a proxy
one worker got all. What its own code does with each connection it accepts is not documented; where a version does it
otherwise, each worker listens for itself (SO_REUSEPORT), and says so.
"""

import asyncio
import contextlib
import inspect
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
import uvicorn.lifespan.off  # what its configuration loads: here, before the fork
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from trainbox.log_lines import emit
from trainbox.serving.whole_request import AnswerWhole, WholeRequest

#: SageMaker's proxy closes before that.
KEEP_ALIVE_SECONDS = 75
#: What the head of a request may take, in time and in bytes.
HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
_TICK_SECONDS = 0.01
_WRITE_SECONDS = 0.002
_EXPECTED: tuple[str, ...] = ("config", "server_state", "app_state")
_GIVEN = inspect.signature(HttpToolsProtocol).parameters
_CONTINUE = b"HTTP/1.1 100 "
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b'content-length: 52\r\n\r\n{"error": "the head of the request is over 64 KiB"}\n'
)


class _HeadWithBody:
    """A transport that sends the head of an answer together with what comes next: one packet, one call of the kernel.

    Args:
        transport: What sends.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        #: Send a head and a body that are together already.
        self.write_whole = transport.write
        self._head = b""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a transport has
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, or keep the head of an answer: uvicorn writes its body next, if only an empty one."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(_CONTINUE):
            self._head = data
            return
        self.write_whole(data)

    def close(self) -> None:
        """Send what was kept, and close."""
        if self._head:
            self.write(b"")
        self._transport.close()


class _Protocol(HttpToolsProtocol):
    """Uvicorn's own, which bounds neither the head of a request nor how long it takes to come."""

    head_bytes = 0
    head_since = 0.0
    #: Called when no request is in progress; None as long as that does not matter.
    on_idle: Callable[["_Protocol"], None] | None = None
    #: When a request was answered that has come whole, until the next one comes: uvicorn would set a timer each time.
    idle_since = 0.0
    answer_whole: AnswerWhole | None = None
    #: What has come of the body of a request that may have come whole.
    parts: list[bytes] | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - any of asyncio's
        super().connection_made(_HeadWithBody(transport))  # type: ignore[arg-type] # it is used as one
        if self.on_idle is not None:
            self.loop.call_soon(self.on_idle, self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.on_idle is not None:
            self.on_idle(self)

    def wait_for_next(self) -> None:
        """Let the client take its time: it has had an answer before, from another worker."""
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        self.idle_since = 0.0
        super().data_received(data)
        if self.parts is not None:
            self._begin_late()
        if self.cycle is not before or (before is not None and not before.response_complete):
            self.head_bytes = 0
            self.head_since = 0.0
            return
        self.head_bytes += len(data)
        if self.head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    # -- requests that come whole ----------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        if self.answer_whole is None or self.url != b"/invocations" or not self._can_be_whole():
            super().on_headers_complete()
        else:
            self.parts = []

    def _can_be_whole(self) -> bool:
        if not self.is_between or self.pipeline or self.flow.write_paused or self.expect_100_continue:
            return False
        parser = self.parser
        return parser.get_method() == b"POST" and parser.should_keep_alive() and not parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        if self.parts is None:
            super().on_body(body)
        else:
            self.parts.append(body)

    def on_message_complete(self) -> None:
        if self.parts is not None:
            whole, before = WholeRequest(self), self.cycle
            self.cycle = whole  # type: ignore[assignment] # it is used as one
            if self.answer_whole is not None and self.answer_whole(self.headers, b"".join(self.parts), whole):
                self.parts = None
                return
            self.cycle = before
            self._begin_late()
        super().on_message_complete()

    def _begin_late(self) -> None:
        """Have uvicorn begin with a request that has not come whole, or is special."""
        parts, self.parts = self.parts or [], None
        super().on_headers_complete()
        for part in parts:
            super().on_body(part)

    def end_whole(self, content: bytes, *, closes: bool) -> None:
        """Send the answer to a request that has come whole."""
        self.transport.write_whole(content)  # type: ignore[attr-defined] # of ours
        if closes:
            self.transport.close()
        if closes or self.pipeline or self.on_idle is not None:
            self.on_response_complete()
        else:
            self.idle_since = self.loop.time()

    # -- what is between requests ----------------------------------------------------------------------------------

    @property
    def waits_for_head(self) -> bool:
        """Whether a request has begun, or must begin, and is not there."""
        return self.is_between and self.timeout_keep_alive_task is None and not self.idle_since

    @property
    def is_between(self) -> bool:
        """Whether there is no request in progress."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_idle(self) -> bool:
        """Whether nothing has come of a next request, either, and nothing is to come of the last one."""
        if not self.is_between or (self.cycle is not None and self.cycle.more_body):
            return False
        return not self.head_bytes and not self.pipeline and not self.transport.is_closing()


class _Server(uvicorn.Server):
    """Uvicorn's own, which leaves the signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any, http: Any) -> uvicorn.Config:  # noqa: ANN401 - uvicorn's own types are private
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def can_be_given() -> bool:
    """Return whether this version of uvicorn can be given connections."""
    return all(name in _GIVEN for name in _EXPECTED)


class Connections:
    """The connections of a worker.

    Args:
        app: The ASGI application that answers.
        number: Of the worker; the first says what must be said once.
    """

    def __init__(self, app: Any, *, number: int = 0) -> None:  # noqa: ANN401 - uvicorn's own types are private
        self._app = app
        self._answer_whole: AnswerWhole | None = getattr(app, "answer_whole", None)
        self._config = _config(app, _Protocol)
        self._config.load()
        self._server: uvicorn.Server | None = None
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a bad request is answered, and is no error of ours
        self._state = ServerState()
        self._give_back: Callable[[int], bool] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.can_be_given = can_be_given()
        if not self.can_be_given and number == 0:
            emit(f"uvicorn {uvicorn.__version__} cannot be given connections: each worker listens (SO_REUSEPORT)")

    def __len__(self) -> int:
        return len(self._state.connections)

    @property
    def has_idle(self) -> bool:
        """Whether any waits for a request, or is only coming."""
        known = tuple(self._state.connections)
        return bool(self._tasks) or any(isinstance(protocol, _Protocol) and protocol.is_idle for protocol in known)

    def add(self, connection: socket.socket, *, is_kept: bool = False) -> None:
        """Serve a connection that was accepted elsewhere.

        Args:
            connection: The socket.
            is_kept: It may have been answered before, by a worker that has given it back.
        """
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        make = self._make_kept if is_kept else self._make
        task = loop.create_task(loop.connect_accepted_socket(make, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _make(self) -> _Protocol:
        protocol = _Protocol(config=self._config, server_state=self._state, app_state={})
        protocol.answer_whole = self._answer_whole
        if self._give_back is not None:
            protocol.on_idle = self._give_idle
        return protocol

    def _make_kept(self) -> _Protocol:
        protocol = self._make()
        protocol.wait_for_next()
        return protocol

    def give_back(self, give: Callable[[int], bool]) -> None:
        """Give back the connections that wait for a request, and each of the others when it has been answered.

        Args:
            give: Takes a descriptor that it may not keep; whether it could.
        """
        self._give_back = give
        for protocol in tuple(self._state.connections):
            if isinstance(protocol, _Protocol):
                protocol.on_idle = self._give_idle
                self._give_idle(protocol)

    def _give_idle(self, protocol: _Protocol) -> None:
        """Give back a connection; what comes meanwhile stays in the kernel, for the next who reads."""
        if self._give_back is None or not protocol.is_idle:
            return
        protocol.transport.pause_reading()
        is_written = not protocol.transport.get_write_buffer_size()
        if is_written and self._give_back(protocol.transport.get_extra_info("socket").fileno()):
            protocol.transport.abort()  # closes this descriptor of it; the connection goes on
        else:
            asyncio.get_running_loop().call_later(_WRITE_SECONDS, self._give_idle, protocol)

    async def listen(self, address: str, port: int) -> None:
        """Accept connections here: the way back where they cannot be given."""
        self._server = _Server(_config(self._app, "httptools"))
        listener = socket.create_server((address, port), reuse_port=True)
        self._tasks.add(asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener])))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_TICK_SECONDS)
        self._state = self._server.server_state

    def close_slow(self, now: float) -> None:
        """Close those that take too long to send the head of a request, or to begin with it."""
        for protocol in tuple(self._state.connections):
            if not isinstance(protocol, _Protocol):
                continue
            if protocol.idle_since and now - protocol.idle_since > KEEP_ALIVE_SECONDS:
                protocol.timeout_keep_alive_handler()
            if not protocol.waits_for_head:
                continue
            protocol.head_since = protocol.head_since or now
            if now - protocol.head_since > HEAD_SECONDS:
                protocol.transport.close()

    def close_all(self) -> None:
        """Close those that wait, and the others once they have been answered."""
        if self._server is not None:
            self._server.should_exit = True
        for protocol in tuple(self._state.connections):
            protocol.shutdown()
