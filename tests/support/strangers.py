"""What somebody can do who reaches the port of a leader and does not belong to the job."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.support.waiting import eventually
from trainbox.comm.handshake import (
    Challenge,
    HandshakeReader,
    Message,
    Proof,
    Rejection,
    Role,
    encode,
    make_hello,
    prove,
)
from trainbox.comm.sockets import listen
from trainbox.contract.credentials.peer_key import PeerKey


def reach(address: str, port: int) -> socket.socket:
    """A connection to somebody who will listen there."""

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection((address, port), timeout=300)
        except ConnectionRefusedError:
            return None

    return eventually(connected, f"port {port} of {address}")


def greet(address: str, port: int, member: str, role: Role, *, job: str = "job", key: PeerKey | None = None) -> bytes:
    """Greet as a member, and prove it as well as this key can; give what came of it, and all that came afterwards."""
    hello = make_hello(job, member, role)
    with reach(address, port) as connection:
        try:
            connection.sendall(encode(hello))
            answer = receive(connection)
            if isinstance(answer, Challenge):
                connection.sendall(encode(Proof(prove("member", hello, answer.nonce, key))))
                answer = receive(connection)
        except ConnectionError as error:
            return str(error).encode()
        said = answer.reason.encode() if isinstance(answer, Rejection) else b"accepted "
        return said + rest(connection)


def receive(connection: socket.socket) -> Message:
    """The next message of a handshake."""
    reader = HandshakeReader(connection)
    while (message := reader.receive()) is None:
        pass
    return message


def rest(connection: socket.socket) -> bytes:
    """All that comes up to the end of a connection."""
    read = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            read += chunk
    return read


class Recorder:
    """Somebody between a member and its leader, who passes everything on and keeps what the member says."""

    def __init__(self, address: str, leader: str, port: int) -> None:
        self._leader = (leader, port)
        self._listener = listen(address, port, backlog=8)
        #: Of each connection, in the order in which they came.
        self.said: list[bytearray] = []
        self._threads: list[threading.Thread] = []
        self._sockets = [self._listener]

    @contextlib.contextmanager
    def at_work(self) -> Iterator["Recorder"]:
        """Pass on until the end of the block."""
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in self._threads:
                thread.join()
            for opened in self._sockets:
                opened.close()

    def _accept(self) -> None:
        while True:
            try:
                member, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(member)
            try:
                leader = socket.create_connection(self._leader, timeout=300)
            except ConnectionRefusedError:  # it does not listen yet; the member will try again
                member.close()
                continue
            self._sockets.append(leader)
            said = bytearray()
            self.said.append(said)
            for source, target, kept in ((member, leader, said), (leader, member, bytearray())):
                thread = threading.Thread(target=_pass_on, args=(source, target, kept))
                self._threads.append(thread)
                thread.start()


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            kept += chunk
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
