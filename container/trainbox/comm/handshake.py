"""The handshake of every connection between the processes of a job: both sides prove that they know the job's key.

A member connects to the leader. Challenge and response, HMAC-SHA256 over the job, the member, the role of the
connection and a random number (nonce) of each side: a recording of it is useless, and the key itself is never sent.

    member                                  leader
    Hello(job, member, role, nonce)    ->
                                       <-   Challenge(nonce, proof of the leader)
    Proof(proof of the member)         ->
                                       <-   Accepted

A Rejection takes the place of any answer. Each message has a magic number, the version of the protocol, its length in
front, and is msgpack, 4 KiB at most. A reader takes no byte beyond a message: what follows has another framing.

Without a key the proofs prove nothing: only the name of the job keeps jobs apart. With one they prove who opened a
connection; what is sent on it afterwards is neither encrypted nor signed.
"""

import hmac
import os
import socket
import struct
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from trainbox.comm.framing import NOT_OURS
from trainbox.comm.sockets import CLOSED, send_at_once
from trainbox.contract.credentials.peer_key import PeerKey

#: Covers what follows the handshake, too.
PROTOCOL = 2
#: The most that a caller may send in one message before it has proved who it is.
LARGEST_MESSAGE_BYTES = 4096

#: What a connection is for: heartbeats and data of the processes of a script, and the health checks of the hosts.
Role = Literal["heartbeat", "data", "health"]
#: Why a side ends the handshake.
Reason = Literal["job", "member", "taken", "proof", "version"]

_MAGIC = b"tbxp"
_HEADER = struct.Struct("!4sHH")
_NONCE_BYTES = 32
_PROOF_BYTES = 32
#: In place of a key: everybody knows it.
_NO_KEY = b"no key"
_DOMAIN = "trainbox.comm"
_REASONS: Mapping[Reason, str] = {
    "job": "another job listens there",
    "member": "no such member is expected there",
    "taken": "another process has joined under its name",
    "proof": "its proof is invalid: the two have different keys",
    "version": "the two use different versions of the protocol",
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


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The leader accepts the member."""


class Rejection(msgspec.Struct, frozen=True, tag="refusal"):
    """Either side ends the handshake."""

    reason: Reason


Message = Hello | Challenge | Proof | Accepted | Rejection
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Refused(ConnectionAbortedError):  # noqa: N818 - it says what the other side did
    """One side has rejected the other, and the reason is known."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or _REASONS[reason])
        self.reason = reason


class OtherVersion(Refused):
    """The other side uses another version of the protocol."""

    def __init__(self, version: int) -> None:
        super().__init__("version", f"it uses version {version} of the protocol, this process version {PROTOCOL}")


def make_hello(job: str, member: str, role: Role) -> Hello:
    """Return the first message of a member, with a nonce that no other has."""
    return Hello(job, member, role, make_nonce())


def make_nonce() -> bytes:
    """Return random bytes for one handshake."""
    return os.urandom(_NONCE_BYTES)


def prove(side: Literal["leader", "member"], hello: Hello, nonce: bytes, key: PeerKey | None) -> bytes:
    """Return the proof that one side of a handshake knows the key.

    Args:
        side: Whose proof. It is part of the proof, so that nobody can send one back to where it came from.
        hello: Of the member.
        nonce: Of the leader.
        key: Of the job; None where it has none.
    """
    said = (_DOMAIN, PROTOCOL, side, hello.job, hello.member, hello.role, hello.nonce, nonce)
    return hmac.digest(key.secret if key else _NO_KEY, msgspec.msgpack.encode(said), "sha256")


def is_proved(proof: bytes, side: Literal["leader", "member"], hello: Hello, nonce: bytes, key: PeerKey | None) -> bool:
    """Return whether a proof is the one that `prove` gives, in constant time."""
    return hmac.compare_digest(proof, prove(side, hello, nonce, key))


def encode(message: Message) -> bytes:
    """Return the bytes of a message.

    Raises:
        ConnectionAbortedError: It would be too long, because the name of a job or host is.
    """
    body = msgspec.msgpack.encode(message)
    if _HEADER.size + len(body) > LARGEST_MESSAGE_BYTES:
        raise ConnectionAbortedError(f"handshake of {len(body):,} bytes exceeds the limit of {LARGEST_MESSAGE_BYTES}")
    return _HEADER.pack(_MAGIC, PROTOCOL, len(body)) + body


class HandshakeReader:
    """Reads the messages of a handshake from a connection, and nothing that follows them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = bytearray()

    def receive(self) -> Message | None:
        """Read once; None while the message is incomplete.

        Raises:
            OSError: The connection is closed or broken, or the other side is no trainbox process.
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
            raise ConnectionAbortedError("protocol error: not a message of the handshake") from None

    def _missing(self) -> int:
        """Return how many bytes the header lacks, or else the message."""
        if len(self._read) < _HEADER.size:
            return _HEADER.size - len(self._read)
        magic, version, length = _HEADER.unpack_from(self._read)
        if magic != _MAGIC:
            raise ConnectionAbortedError(NOT_OURS)
        if version != PROTOCOL:
            raise OtherVersion(version)
        if not 0 < length <= LARGEST_MESSAGE_BYTES - _HEADER.size:
            raise ConnectionAbortedError(f"handshake of {length:,} bytes exceeds the limit of {LARGEST_MESSAGE_BYTES}")
        return _HEADER.size + int(length) - len(self._read)


class MemberHandshake:
    """The member's side of one handshake, over a connection whose timeout its owner sets.

    Args:
        connection: To the leader; the caller closes it.
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
        self._reader = HandshakeReader(connection)
        self._is_proved = False
        connection.sendall(encode(hello))

    def advance(self) -> bool:
        """Read once and answer; return whether the leader has proved itself and accepts this member.

        Raises:
            Refused: The leader refuses this member, or this member the leader.
            OSError: The connection is broken, or its timeout has passed.
        """
        message = self._reader.receive()
        if isinstance(message, Rejection):
            raise Refused(message.reason)
        if isinstance(message, Challenge) and not self._is_proved:
            if not is_proved(message.proof, "leader", self._hello, message.nonce, self._key):
                self.connection.sendall(encode(Rejection("proof")))
                raise Refused("proof")
            self._is_proved = True
            self.connection.sendall(encode(Proof(prove("member", self._hello, message.nonce, self._key))))
        elif message is not None and not (isinstance(message, Accepted) and self._is_proved):
            raise ConnectionAbortedError("protocol error: a message out of order")
        return isinstance(message, Accepted)
