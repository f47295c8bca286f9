"""Lines of JSON over one connection, and what has become of it in words."""

import socket
import struct
import threading

import msgspec
import pytest

from trainbox.peers.wire import CLOSED, Wire, connect, describe, listen

pytestmark = pytest.mark.process


class Line(msgspec.Struct, frozen=True):
    number: int


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over TCP."""
    with listen("127.0.0.1", 0, backlog=1) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def test_lines_come_whole_however_they_were_cut() -> None:
    here, there = pair()
    wire = Wire(there, Line)
    with here, there:
        here.sendall(b'{"number":1}\n{"num')
        assert wire.receive() == [Line(1)]
        here.sendall(b'ber":2}')
        assert wire.receive() == []
        here.sendall(b"\n")
        assert wire.receive() == [Line(2)]


def test_an_end_by_fin_and_one_by_rst_read_the_same() -> None:
    """A process that is killed ends a connection with a RST if it had not read everything."""
    words = []
    for linger in (None, struct.pack("ii", 1, 0)):
        here, there = pair()
        if linger is not None:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        here.close()
        with there, pytest.raises(ConnectionResetError) as caught:
            Wire(there, Line).receive()
        words.append((describe(caught.value), caught.value.errno))
    assert [said for said, _ in words] == [CLOSED, CLOSED]
    assert words[0][1] != words[1][1]  # they were two kinds of end


def test_speaking_to_one_that_has_hung_up_reads_the_same_too() -> None:
    here, there = pair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    here.close()
    wire = Wire(there, Line)
    errors: list[OSError] = []
    with there:
        for _ in range(2):  # the first finds the reset, the second a connection without another end
            with pytest.raises((ConnectionResetError, BrokenPipeError)) as caught:
                wire.send(Line(1))
            errors.append(caught.value)
    assert [describe(error) for error in errors] == [CLOSED, CLOSED]
    assert isinstance(errors[1], BrokenPipeError)


def test_a_stranger_is_told_from_a_line() -> None:
    for said, words in ((b"GET / HTTP/1.0\r\n", "another language"), (b"x" * 2000, "without an end")):
        here, there = pair()
        with here, there:
            here.sendall(said)
            with pytest.raises(ConnectionAbortedError, match=words):
                Wire(there, Line, longest=1000).receive()


def test_posting_to_one_that_does_not_read_never_waits_and_loses_no_line() -> None:
    here, there = pair()
    here.setblocking(False)
    wire = Wire(here, Line)
    with here, there:
        number = 0
        while not wire.is_behind:
            wire.post(Line(number))
            number += 1
        taken: list[Line] = []
        reader = Wire(there, Line)
        while len(taken) < number:
            taken += reader.receive()
            wire.flush()
        assert taken == [Line(n) for n in range(number)]


def test_hanging_up_with_unread_lines_does_not_tear_off_what_was_said_last() -> None:
    here, there = pair()
    wire = Wire(here, Line)
    with there:
        there.sendall(b'{"number":7}\n')
        threading.Event().wait(0.05)  # it has arrived
        wire.send(Line(1))
        wire.close()
        reader = Wire(there, Line)
        assert reader.receive() == [Line(1)]
        with pytest.raises(ConnectionResetError, match=CLOSED):
            reader.receive()


def test_where_nobody_listens_the_client_does_not_talk_to_itself() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", port)
