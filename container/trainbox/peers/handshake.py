"""The handshake of every connection between the processes of a job: both sides prove that they know the job's key.

A member connects to a leader. Challenge and response, HMAC-SHA256 over the job, the member, what the connection is for
and a random number (nonce) of each side: a recording of it is of no use, and the key itself is never sent.

    member                                  leader
    Hello(job, member, role, nonce)    ->
                                       <-   Challenge(nonce, proof of the leader)
    Proof(proof of the member)         ->
                                       <-   Welcome

A Refusal takes the place of any answer. Each message is a frame: magic number, version of the protocol, length, and the
message in msgpack, 4 KiB at most. A reader takes no byte beyond its frame: what follows belongs to another protocol.

Without a key the proofs prove nothing, and keep hosts apart by the names of their jobs alone. With one they prove who
opened a connection; what is said on it afterwards is neither encrypted nor signed.
"""

import hmac
import os
import socket
import struct
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from trainbox.contract.peer_key import PeerKey
from trainbox.peers.wire import CLOSED, hang_up, send_at_once

PROTOCOL = 1
#: Of a frame: the most that anybody may send before it has proved who it is.
LARGEST_FRAME_BYTES = 4096

#: What a connection is for: signs of life, the members' data, and the rounds of the health checks.
Role = Literal["life", "data", "health"]
#: Why a side ends the handshake.
Reason = Literal["job", "member", "taken", "proof", "version"]

_MAGIC = b"tbxp"
_HEADER = struct.Struct("!4sHH")
_NONCE_BYTES = 32
_PROOF_BYTES = 32
#: In place of a key: everybody knows it.
_NO_KEY = b"no key"
_DOMAIN = "trainbox.peers"
_REASONS: Mapping[Reason, str] = {
    "job": "another job listens there",
    "member": "no such member is expected there",
    "taken": "its name is taken: another process has joined under it",
    "proof": "its proof was refused: the two have different keys",
    "version": "the two speak different versions of the protocol",
}

_Nonce = Annotated[bytes, msgspec.Meta(min_length=_NONCE_BYTES, max_length=_NONCE_BYTES)]
_Mac = Annotated[bytes, msgspec.Meta(min_length=_PROOF_BYTES, max_length=_PROOF_BYTES)]


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Who connects, and what for."""

    job: str
    member: str
    role: Role
    nonce: _Nonce


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """The leader's answer to a Hello."""

    nonce: _Nonce
    proof: _Mac


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """The member's answer to a Challenge."""

    proof: _Mac


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The member is let in."""


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """Either side ends the handshake."""

    reason: Reason


Message = Hello | Challenge | Proof | Welcome | Refusal
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Refused(ConnectionAbortedError):  # noqa: N818 - it says what the other side did
    """The handshake has failed for a reason that can be told."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or _REASONS[reason])
        self.reason = reason


class OtherVersion(Refused):
    """The other side speaks another version of the protocol."""

    def __init__(self, version: int) -> None:
        super().__init__("version", f"it speaks version {version} of the protocol, and this process version {PROTOCOL}")


def say_hello(job: str, member: str, role: Role) -> Hello:
    """Return the first message of a member, with a nonce that no other has."""
    return Hello(job, member, role, make_nonce())


def make_nonce() -> bytes:
    """Return random bytes for one handshake."""
    return os.urandom(_NONCE_BYTES)


def prove(side: Literal["leader", "member"], hello: Hello, nonce: bytes, key: PeerKey | None) -> bytes:
    """Return what proves that one side of a handshake knows the key.

    Args:
        side: Whose proof; it is part of it, so that nobody can send a proof back to where it came from.
        hello: Of the member.
        nonce: Of the leader.
        key: Of the job; None where it has none.
    """
    said = (_DOMAIN, PROTOCOL, side, hello.job, hello.member, hello.role, hello.nonce, nonce)
    return hmac.digest(key.secret if key else _NO_KEY, msgspec.msgpack.encode(said), "sha256")


def is_proved(proof: bytes, side: Literal["leader", "member"], hello: Hello, nonce: bytes, key: PeerKey | None) -> bool:
    """Return whether a proof is the one that `prove` gives, in a time that tells nothing about it."""
    return hmac.compare_digest(proof, prove(side, hello, nonce, key))


def encode(message: Message) -> bytes:
    """Return the frame of a message.

    Raises:
        ConnectionAbortedError: It would be too long, for the name of a job or a host is.
    """
    body = msgspec.msgpack.encode(message)
    if _HEADER.size + len(body) > LARGEST_FRAME_BYTES:
        raise ConnectionAbortedError(f"a greeting of {len(body):,} bytes exceeds the limit of {LARGEST_FRAME_BYTES}")
    return _HEADER.pack(_MAGIC, PROTOCOL, len(body)) + body


class FrameReader:
    """Reads the messages of a handshake from a connection, and nothing that follows them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = bytearray()

    def receive(self) -> Message | None:
        """Read once; None where the message is not complete yet.

        Raises:
            OSError: The connection is closed or broken, or this is no trainbox process.
            OtherVersion: It is one of another version.
        """
        chunk = self._connection.recv(self._missing())
        if not chunk:
            raise ConnectionResetError(CLOSED)
        self._read += chunk
        if self._missing():
            return None
        body = bytes(self._read[_HEADER.size :])
        self._read.clear()
        try:
            return _DECODER.decode(body)
        except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
            raise ConnectionAbortedError("it sent no message of the handshake") from None

    def _missing(self) -> int:
        """How many bytes the header lacks, or else the message."""
        if len(self._read) < _HEADER.size:
            return _HEADER.size - len(self._read)
        magic, version, length = _HEADER.unpack_from(self._read)
        if magic != _MAGIC:
            raise ConnectionAbortedError("it is no trainbox process")
        if version != PROTOCOL:
            raise OtherVersion(version)
        if not 0 < length <= LARGEST_FRAME_BYTES - _HEADER.size:
            raise ConnectionAbortedError(f"a message of {length:,} bytes exceeds the limit of {LARGEST_FRAME_BYTES}")
        return _HEADER.size + int(length) - len(self._read)


class Introduction:
    """The member's side of one handshake, over a connection whose time-out its owner sets.

    Args:
        connection: To the leader; who made it closes it.
        hello: Who connects, and what for.
        key: Of the job; None where it has none.

    Raises:
        OSError: The connection is broken.
    """

    def __init__(self, connection: socket.socket, hello: Hello, key: PeerKey | None) -> None:
        send_at_once(connection)
        self.connection = connection
        self._hello = hello
        self._key = key
        self._reader = FrameReader(connection)
        self._is_proved = False
        connection.sendall(encode(hello))

    def advance(self) -> bool:
        """Read once and answer; return whether the leader has proved itself and lets this member in.

        Raises:
            Refused: The leader refuses this member, or this member the leader.
            OSError: The connection is broken, or a time-out has passed.
        """
        message = self._reader.receive()
        if isinstance(message, Refusal):
            raise Refused(message.reason)
        if isinstance(message, Challenge) and not self._is_proved:
            if not is_proved(message.proof, "leader", self._hello, message.nonce, self._key):
                self.connection.sendall(encode(Refusal("proof")))
                raise Refused("proof")
            self._is_proved = True
            self.connection.sendall(encode(Proof(prove("member", self._hello, message.nonce, self._key))))
        elif message is not None and not (isinstance(message, Welcome) and self._is_proved):
            raise ConnectionAbortedError("it sent a message out of order")
        return isinstance(message, Welcome)

    def close(self) -> None:
        """Hang up; what was said last still arrives."""
        hang_up(self.connection)
