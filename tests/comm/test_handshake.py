"""How members prove themselves, message by message: a connection here is what is read from it."""

import contextlib
import socket
import struct
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.comm.handshake import (
    LARGEST_MESSAGE_BYTES,
    PROTOCOL,
    Accepted,
    Challenge,
    HandshakeReader,
    Hello,
    MemberHandshake,
    Message,
    OtherVersion,
    Proof,
    Refused,
    Rejection,
    encode,
    is_proved,
    make_hello,
    make_nonce,
    prove,
)
from trainbox.contract.credentials.peer_key import PeerKey

KEY = PeerKey(bytes(range(32)))
OTHER = PeerKey(bytes(range(1, 33)))
NONCE = bytes(32)
HELLO = Hello("job", "algo-2", "heartbeat", NONCE)


class Connection:
    """Gives what it is made of, and keeps what is sent; it has no socket."""

    family = socket.AF_UNIX

    def __init__(self, content: bytes, *, piece: int = 10_000) -> None:
        self.left = content
        self.sent = b""
        self._piece = piece

    def recv(self, size: int) -> bytes:
        taken = self.left[: min(size, self._piece)]
        self.left = self.left[len(taken) :]
        return taken

    def sendall(self, content: bytes) -> None:
        self.sent += content


def as_socket(connection: Connection) -> socket.socket:
    return cast("socket.socket", connection)


def read_all(content: bytes, *, piece: int = 10_000) -> list[Message]:
    """The messages that a reader finds up to the end of the connection."""
    connection, messages = Connection(content, piece=piece), []
    reader = HandshakeReader(as_socket(connection))
    while connection.left:
        if message := reader.receive():
            messages.append(message)
    return messages


# -- proofs ----------------------------------------------------------------------------------------------------------


def test_a_proof_is_of_one_key_one_side_one_member_one_role_one_job_and_both_nonces() -> None:
    proof = prove("member", HELLO, NONCE, KEY)
    assert is_proved(proof, "member", HELLO, NONCE, KEY)
    others = [
        prove("leader", HELLO, NONCE, KEY),
        prove("member", HELLO, NONCE, OTHER),
        prove("member", HELLO, NONCE, None),
        prove("member", HELLO, bytes([1, *NONCE[1:]]), KEY),
        *(
            prove("member", msgspec.structs.replace(HELLO, **change), NONCE, KEY)
            for change in ({"job": "job2"}, {"member": "algo-3"}, {"role": "data"}, {"nonce": bytes([1, *NONCE[1:]])})
        ),
        # What moves from one field into the next is another text.
        prove("member", msgspec.structs.replace(HELLO, job="jobalgo", member="-2"), NONCE, KEY),
    ]
    assert len({proof, *others}) == len(others) + 1
    assert not any(is_proved(other, "member", HELLO, NONCE, KEY) for other in others)


def test_nonces_never_repeat() -> None:
    assert len({make_nonce() for _ in range(100)}) == 100
    assert make_hello("job", "a", "heartbeat").nonce != make_hello("job", "a", "heartbeat").nonce


def test_the_key_is_in_no_message() -> None:
    leader = Connection(encode(Challenge(NONCE, prove("leader", HELLO, NONCE, KEY))) + encode(Accepted()))
    handshake = MemberHandshake(as_socket(leader), HELLO, KEY)
    while not handshake.advance():
        pass
    assert KEY.secret not in leader.sent
    assert KEY.text.encode() not in leader.sent


# -- frames ----------------------------------------------------------------------------------------------------------

MESSAGES: list[Message] = [HELLO, Challenge(NONCE, NONCE), Proof(NONCE), Accepted(), Rejection("taken")]


@pytest.mark.parametrize("piece", [1, 3, 10_000])
def test_messages_come_whole_however_they_were_cut(piece: int) -> None:
    assert read_all(b"".join(map(encode, MESSAGES)), piece=piece) == MESSAGES


def test_a_reader_takes_no_byte_of_what_follows() -> None:
    connection = Connection(encode(Accepted()) + b"what follows")
    reader = HandshakeReader(as_socket(connection))
    while reader.receive() is None:
        pass
    assert connection.left == b"what follows"


@pytest.mark.parametrize("content", [b"GET / HTTP/1.0\r\n\r\n", b'{"job":"job","member":"algo-2"}\n', b"\xff" * 100])
def test_a_stranger_is_told_by_its_first_bytes(content: bytes) -> None:
    connection = Connection(content)
    with pytest.raises(ConnectionAbortedError, match="not a trainbox message"):
        HandshakeReader(as_socket(connection)).receive()
    assert len(content) - len(connection.left) <= 8


def test_another_version_is_named_with_both_numbers() -> None:
    with pytest.raises(OtherVersion, match=f"uses version 7 of the protocol, this process version {PROTOCOL}"):
        read_all(struct.pack("!4sHH", b"tbxp", 7, 3) + b"abc")


@pytest.mark.parametrize("length", [0, LARGEST_MESSAGE_BYTES - 8 + 1, 65535])
def test_a_frame_has_an_end_within_the_limit(length: int) -> None:
    with pytest.raises(ConnectionAbortedError, match="exceeds the limit of 4096"):
        read_all(struct.pack("!4sHH", b"tbxp", PROTOCOL, length) + b"x")


def test_the_longest_greeting_is_taken_and_a_longer_one_is_never_sent() -> None:
    longest = next(
        hello for size in range(4096, 0, -1) if len(framed(hello := Hello("j" * size, "a", "heartbeat", NONCE))) <= 4096
    )
    assert len(encode(longest)) == LARGEST_MESSAGE_BYTES
    assert read_all(encode(longest)) == [longest]
    with pytest.raises(ConnectionAbortedError, match="exceeds the limit of 4096"):
        encode(msgspec.structs.replace(longest, job=longest.job + "j"))


def framed(hello: Hello) -> bytes:
    return bytes(8) + msgspec.msgpack.encode(hello)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        msgspec.msgpack.encode({"type": "hello"}),
        msgspec.msgpack.encode({"type": "hello", "job": "job", "member": "a", "role": "loudly", "nonce": NONCE}),
        msgspec.msgpack.encode({"type": "hello", "job": "job", "member": "a", "role": "heartbeat", "nonce": b"short"}),
        msgspec.msgpack.encode({"type": "proof", "proof": bytes(31)}),
        msgspec.msgpack.encode({"type": "please"}),
    ],
)
def test_what_is_no_message_ends_the_handshake(body: bytes) -> None:
    with pytest.raises(ConnectionAbortedError, match="not a message of the handshake"):
        read_all(struct.pack("!4sHH", b"tbxp", PROTOCOL, len(body)) + body)


@given(st.binary(max_size=300))
def test_no_bytes_of_a_stranger_raise_anything_but_an_error_of_the_connection(content: bytes) -> None:
    for start in (b"", b"tbxp\x00\x02\x00", encode(HELLO)[:20]):
        with contextlib.suppress(OSError):
            read_all(start + content)


# -- the member's side -------------------------------------------------------------------------------------------------


def introduce(*answers: Message, key: PeerKey | None = KEY) -> Connection:
    """Let a member go through a handshake with a leader that says these."""
    connection = Connection(b"".join(map(encode, answers)))
    advance_to_end(MemberHandshake(as_socket(connection), HELLO, key))
    return connection


def advance_to_end(handshake: MemberHandshake) -> None:
    while not handshake.advance():
        pass


def test_a_member_sends_two_messages_and_waits_for_two() -> None:
    """One round trip more than a greeting and an answer take."""
    connection = introduce(Challenge(NONCE, prove("leader", HELLO, NONCE, KEY)), Accepted())
    assert read_all(connection.sent) == [HELLO, Proof(prove("member", HELLO, NONCE, KEY))]


@pytest.mark.parametrize(
    "proof",
    [prove("leader", HELLO, NONCE, OTHER), prove("leader", HELLO, NONCE, None), prove("member", HELLO, NONCE, KEY)],
)
def test_a_leader_that_cannot_prove_itself_is_refused_and_gets_no_proof(proof: bytes) -> None:
    connection = Connection(encode(Challenge(NONCE, proof)))
    handshake = MemberHandshake(as_socket(connection), HELLO, KEY)
    with pytest.raises(Refused, match="its proof is invalid: the two have different keys") as refused:
        advance_to_end(handshake)
    assert refused.value.reason == "proof"
    assert read_all(connection.sent) == [HELLO, Rejection("proof")]


@pytest.mark.parametrize(
    "answers",
    [
        (Accepted(),),
        (HELLO,),
        (Proof(NONCE),),
        (Challenge(NONCE, prove("leader", HELLO, NONCE, KEY)),) * 2,
    ],
)
def test_a_leader_that_leaves_a_step_out_is_not_believed(answers: tuple[Message, ...]) -> None:
    with pytest.raises(ConnectionAbortedError, match="out of order"):
        introduce(*answers)


def test_a_refusal_is_told_by_its_reason() -> None:
    with pytest.raises(Refused, match="another process has joined under its name") as refused:
        introduce(Rejection("taken"))
    assert refused.value.reason == "taken"
