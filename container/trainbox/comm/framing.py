"""Framing: how members cut a TCP connection into messages, once the handshake has passed.

    4 bytes     length of the header, big-endian, at most 1,024
    header      msgpack: the number of the call, what the message is for (its kind), and the length of the content
    content     bytes: msgpack of a declared type, or rows and models as they are

Heartbeats (`HeartbeatConnection`) and data (`data_connection`) use the same frames on connections of their own. What
arrives is decoded as the type that the receiver expects; nothing that comes over the network is code. A reader checks
each length before it takes memory, and never reads beyond the end of a frame.
"""

import contextlib
import io
import socket
import struct
from typing import Annotated, Literal

import msgspec

from trainbox.comm.sockets import CLOSED, send_at_once

#: What a message is for: collectives of members; heartbeats; the time of day and the early end of a health check.
MessageKind = Literal["gather", "send", "taken", "share", "heartbeat", "scatter", "clock", "leave"]

CHUNK_BYTES = 4 * 1024 * 1024
LARGEST_HEARTBEAT_BYTES = 64 * 1024
NOT_OURS = "protocol error: not a trainbox message"
_LARGEST_HEADER_BYTES = 1024
#: Of heartbeats at once: a member that never stops sending must not hold up the others.
_MAX_READS = 256
_SIZE = struct.Struct("!I")
#: Of a process; 0 where it is not known.
ExitCode = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Header(msgspec.Struct, frozen=True):
    """What precedes the content of a message."""

    #: Counts the calls: all members make the same ones in the same order.
    call: int
    kind: MessageKind
    length: Annotated[int, msgspec.Meta(ge=0)]


class Frame(msgspec.Struct, frozen=True):
    """One message."""

    header: Header
    content: bytes


_HEADERS = msgspec.msgpack.Decoder(Header)


def encode_header(call: int, kind: MessageKind, length: int) -> bytes:
    """Return the bytes that precede a content of this length."""
    header = msgspec.msgpack.encode(Header(call, kind, length))
    return _SIZE.pack(len(header)) + header


class FrameReader:
    """Assembles frames from what a connection gives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        #: Of the frame that is read, once it is known.
        self._header: Header | None = None
        #: What has arrived of the size, then of the header, then of the content; and how long that is.
        self._part = io.BytesIO()
        self._wanted = _SIZE.size
        self._is_size = True

    def read(self, *, largest: int) -> Frame | None:
        """Read once; None while the frame is incomplete.

        Args:
            largest: The most bytes of content.

        Raises:
            BlockingIOError: Nothing has arrived.
            OSError: The connection is closed or broken, or what arrives is no frame, or a larger one.
        """
        chunk = self._connection.recv(min(self._wanted - self._part.tell(), CHUNK_BYTES))
        if not chunk:
            raise ConnectionResetError(CLOSED)
        self._part.write(chunk)
        if self._part.tell() < self._wanted:
            return None
        part, self._part = self._part.getvalue(), io.BytesIO()
        if self._header is not None:
            return self._end(self._header, part)
        if self._is_size:
            self._is_size = False
            self._wanted = _check_header_length(_SIZE.unpack(part)[0])
            return None
        self._header = _decode_header(part)
        self._wanted = self._header.length
        if self._wanted > largest:
            raise ConnectionAbortedError(f"message of {self._wanted:,} bytes exceeds the limit of {largest:,} bytes")
        return None if self._wanted else self._end(self._header, b"")

    def _end(self, header: Header, content: bytes) -> Frame:
        self._header, self._wanted, self._is_size = None, _SIZE.size, True
        return Frame(header, content)


def _check_header_length(length: int) -> int:
    if not 0 < length <= _LARGEST_HEADER_BYTES:
        raise ConnectionAbortedError(NOT_OURS)
    return length


def _decode_header(part: bytes) -> Header:
    try:
        return _HEADERS.decode(part)
    except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
        raise ConnectionAbortedError(NOT_OURS) from None


class Loss(msgspec.Struct, frozen=True):
    """A member that is lost, or several that never joined."""

    member: str
    #: What happened to it, as the rest of a sentence.
    why: str
    hint: str = ""
    #: Whether it left because the job is stopped.
    stopped: bool = False
    #: The others leave with the same.
    exit_code: ExitCode = 0
    #: Whether it said so itself.
    reported: bool = False


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message between two members; without content it only says that the sender lives."""

    #: Why the sender leaves.
    gave_up: str = ""
    #: Whether it leaves because the job is stopped.
    stopped: bool = False
    exit_code: ExitCode = 0
    #: Which member the sender has lost; it may be the receiver.
    lost: Loss | None = None
    #: The sender leaves, and all is well.
    goodbye: bool = False


_HEARTBEATS = msgspec.msgpack.Decoder(Heartbeat)


class HeartbeatConnection:
    """The connection for heartbeats with one other member; it never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        send_at_once(connection)
        connection.setblocking(False)
        self.socket = connection
        self._reader = FrameReader(connection)
        self._unsent = bytearray()

    def send(self, message: Heartbeat) -> None:
        """Send a message; what the connection does not take now goes out with the next heartbeat.

        Raises:
            OSError: The connection is gone.
        """
        content = msgspec.msgpack.encode(message)
        self._unsent += encode_header(0, "heartbeat", len(content)) + content
        self._flush()

    def beat(self) -> None:
        """Send a heartbeat, or what is still unsent in its place.

        Raises:
            OSError: The connection is gone.
        """
        if self._unsent:
            self._flush()
        else:
            self.send(Heartbeat())

    def receive(self) -> list[Heartbeat]:
        """Return the messages that have arrived.

        Raises:
            OSError: The connection is gone, or what arrives is no message of ours.
        """
        messages: list[Heartbeat] = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MAX_READS):
                try:
                    frame = self._reader.read(largest=LARGEST_HEARTBEAT_BYTES)
                except ConnectionResetError:
                    if messages:  # the next read finds the end again
                        return messages
                    raise
                if frame is not None:
                    messages.append(_decode_heartbeat(frame.content))
        return messages

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self.socket.send(self._unsent)]


def _decode_heartbeat(content: bytes) -> Heartbeat:
    try:
        return _HEARTBEATS.decode(content)
    except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
        raise ConnectionAbortedError(NOT_OURS) from None
