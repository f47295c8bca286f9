"""Messages over one connection: whole however they were cut, bounded, and an end in words."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.comm.framing import (
    LARGEST_HEARTBEAT_BYTES,
    Frame,
    FrameReader,
    Header,
    Heartbeat,
    HeartbeatConnection,
    encode_header,
)
from trainbox.comm.sockets import CLOSED, connect, describe, hang_up, listen

MESSAGE = encode_header(3, "gather", 5) + b"hello"


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection in this process."""
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over TCP."""
    with listen("127.0.0.1", 0, backlog=1) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def read_all(reader: FrameReader, *, largest: int = 100) -> list[Frame]:
    """The frames up to the end of the connection."""
    frames = []
    with contextlib.suppress(ConnectionResetError):
        while True:
            if frame := reader.read(largest=largest):
                frames.append(frame)
    return frames


# -- frames ----------------------------------------------------------------------------------------------------------


def test_frames_come_whole_however_they_were_cut_and_nothing_beyond_their_end_is_read() -> None:
    frame = Frame(Header(3, "gather", 5), b"hello")
    for cut in range(1, len(MESSAGE)):
        with pair() as (here, there):
            there.setblocking(False)
            reader = FrameReader(there)
            found: list[Frame] = []
            for part in (MESSAGE[:cut], MESSAGE[cut:] + b"what follows"):
                here.sendall(part)
                with contextlib.suppress(BlockingIOError):
                    while not found:
                        found += [one] if (one := reader.read(largest=5)) else []
            assert found == [frame]
            assert there.recv(100) == b"what follows"


def test_a_frame_without_content_is_complete_with_its_header() -> None:
    with pair() as (here, there):
        here.sendall(encode_header(1, "taken", 0) + MESSAGE)
        here.shutdown(socket.SHUT_WR)
        assert [frame.header.kind for frame in read_all(FrameReader(there))] == ["taken", "gather"]


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        struct.pack("!I", 0),
        struct.pack("!I", 1025) + b"x" * 1025,
        struct.pack("!I", 3) + b"\xc1\xc1\xc1",
        struct.pack("!I", 1) + msgspec.msgpack.encode({}),
        *(
            struct.pack("!I", len(header)) + header
            for header in (
                msgspec.msgpack.encode({"call": 1, "kind": "loudly", "length": 0}),
                msgspec.msgpack.encode({"call": 1, "kind": "gather", "length": -1}),
                msgspec.msgpack.encode({"call": "1", "kind": "gather", "length": 0}),
            )
        ),
    ],
)
def test_what_is_no_frame_is_a_protocol_error(content: bytes) -> None:
    with pair() as (here, there):
        here.sendall(content)
        here.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionAbortedError, match="not a trainbox message"):
            read_all(FrameReader(there))


def test_a_larger_content_is_refused_before_it_is_read() -> None:
    with pair() as (here, there):
        here.sendall(encode_header(1, "gather", 2**62))
        here.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionAbortedError, match=r"message of 4,611.* bytes exceeds the limit of 100 bytes"):
            read_all(FrameReader(there))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_an_error_of_the_connection(content: bytes) -> None:
    for start in (b"", MESSAGE[:6], MESSAGE):
        with pair() as (here, there), contextlib.suppress(OSError):
            here.sendall(start + content)
            here.shutdown(socket.SHUT_WR)
            read_all(FrameReader(there))


# -- heartbeats --------------------------------------------------------------------------------------------------------


def test_heartbeats_that_came_together_are_read_together_and_the_end_after_them() -> None:
    with pair() as (here, there):
        sender, receiver = HeartbeatConnection(here), HeartbeatConnection(there)
        sender.beat()
        sender.send(Heartbeat(gave_up="no rows", exit_code=7))
        here.shutdown(socket.SHUT_WR)
        assert receiver.receive() == [Heartbeat(), Heartbeat(gave_up="no rows", exit_code=7)]
        with pytest.raises(ConnectionResetError, match=CLOSED):
            receiver.receive()


def test_sending_to_one_that_does_not_read_never_waits_and_loses_no_message() -> None:
    with pair() as (here, there):
        sender, receiver = HeartbeatConnection(here), HeartbeatConnection(there)
        number = 0
        while not sender._unsent:
            sender.send(Heartbeat(gave_up=str(number)))
            number += 1
        unsent = len(sender._unsent)
        sender.beat()  # what is unsent goes first: nothing is added to it
        assert len(sender._unsent) <= unsent
        taken: list[Heartbeat] = []
        while len(taken) < number:
            taken += receiver.receive()
            if sender._unsent:
                sender.beat()
        assert taken == [Heartbeat(gave_up=str(n)) for n in range(number)]


@pytest.mark.parametrize(
    "content", [b"\xc1", msgspec.msgpack.encode({"exit_code": 256}), msgspec.msgpack.encode([1]), b"x"]
)
def test_what_is_no_heartbeat_is_a_protocol_error(content: bytes) -> None:
    with pair() as (here, there):
        here.sendall(encode_header(0, "heartbeat", len(content)) + content)
        with pytest.raises(ConnectionAbortedError, match="not a trainbox message"):
            HeartbeatConnection(there).receive()


def test_a_heartbeat_has_a_limit() -> None:
    with pair() as (here, there):
        here.sendall(encode_header(0, "heartbeat", LARGEST_HEARTBEAT_BYTES + 1))
        with pytest.raises(ConnectionAbortedError, match="exceeds the limit of 65,536 bytes"):
            HeartbeatConnection(there).receive()


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_an_end_by_fin_and_one_by_rst_read_the_same() -> None:
    """A process that is killed ends a connection with a RST if it had not read everything."""
    words = []
    for linger in (None, struct.pack("ii", 1, 0)):
        here, there = tcp_pair()
        if linger is not None:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        here.close()
        with there, pytest.raises(ConnectionResetError) as caught:
            read_one(there)
        words.append((describe(caught.value), caught.value.errno))
    assert [said for said, _ in words] == [CLOSED, CLOSED]
    assert words[0][1] != words[1][1]  # they were two kinds of end


def read_one(connection: socket.socket) -> None:
    while FrameReader(connection).read(largest=1) is None:
        pass


@pytest.mark.process
def test_sending_to_one_that_has_hung_up_reads_the_same_too() -> None:
    here, there = tcp_pair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    here.close()
    errors: list[OSError] = []
    with there:
        connection = HeartbeatConnection(there)
        for _ in range(2):  # the first finds the reset, the second a connection without another end
            with pytest.raises((ConnectionResetError, BrokenPipeError)) as caught:
                connection.send(Heartbeat())
            errors.append(caught.value)
    assert [describe(error) for error in errors] == [CLOSED, CLOSED]
    assert isinstance(errors[1], BrokenPipeError)


@pytest.mark.process
def test_closing_with_unread_messages_does_not_tear_off_what_was_sent_last() -> None:
    here, there = tcp_pair()
    with there:
        there.sendall(MESSAGE)
        threading.Event().wait(0.05)  # it has arrived
        here.sendall(MESSAGE)
        hang_up(here)
        assert [frame.content for frame in read_all(FrameReader(there))] == [b"hello"]


@pytest.mark.process
def test_where_no_process_listens_the_client_does_not_talk_to_itself() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", port)
