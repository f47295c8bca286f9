"""Requests that come whole, and those that do not: the same answers, in their order, with the same notes."""

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.servers import ServeProcess
from tests.support.waiting import LIMIT, eventually
from trainbox.serving.connections import Connections
from trainbox.serving.responder import Response
from trainbox.serving.whole_request import WholeRequest

pytestmark = pytest.mark.process

ONE = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
_ANSWER = re.compile(rb"(HTTP/1\.1 .*?\r\n)\r\n", re.DOTALL)


class Client:
    """One connection, by the byte."""

    def __init__(self, server: ServeProcess) -> None:
        self._connection = socket.create_connection(("127.0.0.1", server.port), LIMIT)
        self._seen = b""
        self.close = self._connection.close

    def send(self, content: bytes) -> None:
        """Send bytes, in one packet."""
        self._connection.sendall(content)

    def answer(self) -> tuple[bytes, bytes]:
        """The head and the body of the next answer; the id of the request is cut off."""
        while (head := _ANSWER.match(self._seen)) is None:
            self._more()
        length = int(head[1].lower().partition(b"content-length: ")[2].split()[0])
        while len(self._seen) < head.end() + length:
            self._more()
        body, self._seen = self._seen[head.end() :][:length], self._seen[head.end() + length :]
        return re.sub(rb"(?<=request-id: )[0-9a-f]{8}-[0-9a-f]+", b"ID", head[1]), body

    def is_closed(self) -> bool:
        """Whether the server has closed it, after all that was answered."""
        return not self._seen and self._connection.recv(1) == b""

    def _more(self) -> None:
        content = self._connection.recv(2**16)
        assert content, f"closed after {self._seen!r}"
        self._seen += content


def request(body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = (b"POST /invocations HTTP/" + version, b"Host: localhost", *headers, b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.fixture(scope="module", name="server")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A server whose model joins requests: it answers whole ones in the turn of the loop in which they come."""
    tree = tmp_path_factory.mktemp("whole")
    (tree / "model").mkdir()
    (tree / "model" / "joins").touch()
    with ServeProcess(tree, ONE) as server:
        yield server.until_ready()


@pytest.fixture
def connect(server: ServeProcess) -> Iterator[Callable[[], Client]]:
    """Makes connections that are closed in the end."""
    with contextlib.ExitStack() as ends:

        def made() -> Client:
            client = Client(server)
            ends.callback(client.close)
            return client

        yield made


def counted(server: ServeProcess) -> int:
    found = re.search(rb'requests_total\{code="2xx"\} (\d+)', server.ask("/metrics").body)
    assert found
    return int(found[1])


def test_a_request_is_answered_with_the_same_bytes_however_it_comes(
    server: ServeProcess, connect: Callable[[], Client]
) -> None:
    client = connect()
    client.send(request(b"fill 3"))
    head, body = client.answer()
    assert body == b"3"
    assert head == b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx-trainbox-request-id: ID\r\n"
    whole = request(b"fill 3")
    ways = {
        "in two parts, the body cut": (whole[:-3], whole[-3:]),
        "in two parts, the head cut": (whole[:20], whole[20:]),
        "in chunks": (
            request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
            b"2\r\nfi\r\n4\r\nll 3\r\n0\r\n\r\n",
        ),
        "in chunks, whole": (
            request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"6\r\nfill 3\r\n0\r\n\r\n",
        ),
        "with a query": (whole.replace(b"/invocations", b"/invocations?a=b"),),
        "with an encoding": (request(b"fill 3", b"Content-Encoding: identity"),),
    }
    for way, parts in ways.items():
        before = counted(server)
        for part in parts[:-1]:
            client.send(part)
            assert server.ask("/ping").status == 200  # what has come is seen meanwhile
        client.send(parts[-1])
        assert client.answer() == (head, body), way
        assert counted(server) == before + 1, way


def test_requests_of_one_packet_are_answered_in_their_order(connect: Callable[[], Client]) -> None:
    client = connect()
    bodies = [b"fill %d" % number for number in range(1, 10)]
    ping = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
    client.send(request(bodies[0]) + ping + b"".join(map(request, bodies[1:])) + request(b"fill 10")[:-4])
    assert client.answer()[1] == b"1"
    assert client.answer() == (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", b"")
    assert [client.answer()[1] for _ in bodies[1:]] == [b"%d" % number for number in range(2, 10)]
    client.send(request(b"fill 10")[-4:])
    assert client.answer()[1] == b"10"


def test_a_header_of_the_client_comes_back_and_a_defect_of_the_model_is_an_answer(
    connect: Callable[[], Client],
) -> None:
    client = connect()
    client.send(request(b"fill 2", b"X-Amzn-SageMaker-Custom-Attributes: mine"))
    assert b"\r\nx-amzn-sagemaker-custom-attributes: mine\r\n" in client.answer()[0]
    client.send(request(b"fill 2", b"Content-Encoding: br"))
    head, _ = client.answer()
    assert head.startswith(b"HTTP/1.1 415 ")
    assert b"\r\nconnection: close\r\n" in head
    client = connect()
    client.send(request(b"raise"))
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"ZeroDivisionError: by nothing" in body
    client.send(request(b""))  # it is answered, too
    assert client.answer()[0].startswith(b"HTTP/1.1 200 ")
    client.send(request(b"fill 4"))
    assert client.answer()[1] == b"4"


@pytest.mark.parametrize("way", [{"version": b"1.0"}, {"headers": (b"Connection: close",)}])
def test_a_connection_ends_where_the_client_asks_for_that(connect: Callable[[], Client], way: dict[str, Any]) -> None:
    client = connect()
    client.send(request(b"fill 5", *way.get("headers", ()), version=way.get("version", b"1.1")))
    head, body = client.answer()
    assert (b"\r\nconnection: close\r\n" in head, body) == (True, b"5")
    assert client.is_closed()


def test_requests_of_many_connections_get_each_its_own_answer_and_one_that_leaves_does_not_matter(
    server: ServeProcess, connect: Callable[[], Client]
) -> None:
    clients = [connect() for _ in range(20)]
    server.ask("/ping")
    for number, client in enumerate(clients):
        client.send(request(b"fill %d" % (number + 1)))
    for client in clients[3:5]:  # their answers are for nobody
        client.close()
    said = [client.answer()[1] for client in (*clients[:3], *clients[5:])]
    assert said == [b"%d" % number for number in (1, 2, 3, *range(6, 21))]
    eventually(
        lambda: b"trainbox_requests_in_flight 0\n" in server.ask("/metrics").body,
        "none is in progress",
        logs=lambda: server.log,
    )


class Noting:
    """An application that notes how it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.asked.append(f"as any: {scope['path']}")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def answer_whole(self, given: list[tuple[bytes, bytes]], body: bytes, whole: WholeRequest) -> bool:
        self.asked.append(f"whole: {len(given)} headers, {body.decode()}")
        if body != b"no":
            whole.answer(Response(200), "", closes=False)
        return body != b"no"


async def _asked(parts: list[bytes]) -> list[str]:
    """How an application is asked for parts of requests: each is sent after an answer."""
    app = Noting()
    connections = Connections(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        connections.add(listener.accept()[0])
        for part in parts:
            writer.write(part)
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert await asyncio.wait_for(reader.read(), LIMIT) == b""
    connections.close_all()
    return app.asked


def test_a_whole_request_takes_no_task_and_the_application_may_refuse_that() -> None:
    asked = asyncio.run(_asked([request(b"1"), request(b"no"), request(b"2"), b"GET /ping HTTP/1.1\r\n\r\n"]))
    assert asked == [
        "whole: 2 headers, 1",
        "whole: 2 headers, no",
        "as any: /invocations",
        "whole: 2 headers, 2",
        "as any: /ping",
    ]


async def _held_up(parts: list[bytes], seconds: list[float]) -> list[bool]:
    """Whether a connection is still open when so many seconds have passed after some parts, the last unanswered."""
    connections, open_ = Connections(Noting()), list[bool]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        connections.add(listener.accept()[0])
        writer.write(parts[0])
        await reader.readuntil(b"\r\n\r\n")
        for part in parts[1:]:
            writer.write(part)
            await asyncio.sleep(0.05)
        now = asyncio.get_running_loop().time()
        for later in seconds:
            connections.close_slow(now + later)
            await asyncio.sleep(0)
            open_.append(len(connections) > 0)
        writer.close()
        await writer.wait_closed()
    return open_


def test_a_connection_that_has_had_a_whole_answer_may_wait_and_a_begun_head_may_not() -> None:
    assert asyncio.run(_held_up([request(b"1")], [1, 11, 74, 76])) == [True, True, True, False]
    assert asyncio.run(_held_up([request(b"1"), request(b"2")[:30]], [1, 10, 12])) == [True, True, False]
