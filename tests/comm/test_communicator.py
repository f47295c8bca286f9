"""What members tell each other, over real sockets; each is a thread here: those that die are in test_loss.py."""

import errno
import itertools
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest

from tests.support.addresses import addresses
from tests.support.timeline import Timeline
from trainbox.comm import Communicator, Members, communicator, heartbeat, join, rendezvous, sockets
from trainbox.comm.framing import FrameReader, Heartbeat
from trainbox.comm.handshake import MemberHandshake, Role, make_hello
from trainbox.contract.credentials.peer_key import PeerKey
from trainbox.errors import DataError, PeerError

PORT = 29472
KEY = PeerKey(bytes(range(32)))
MIB = 1024 * 1024

Act = Callable[[Communicator], object]


class Report(msgspec.Struct, frozen=True):
    member: str
    rows: int
    lowest: float
    digest: bytes = b""


def until_listening(leader: Members) -> None:
    """Wait until the leader listens; a connection on which nothing comes disturbs nobody."""
    while True:
        try:
            socket.create_connection((leader.address, PORT), timeout=300).close()
        except ConnectionRefusedError:
            time.sleep(0.005)
        else:
            return


@pytest.fixture
def three() -> tuple[Members, ...]:
    """The members of a job, each as it sees them, at an address that no other test has."""
    (leader,) = addresses(1)
    names = ("algo-1", "algo-2", "algo-3")
    return tuple(Members(names, name, leader, "job", KEY) for name in names)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PeerError]]:
    """What would have ended a process that does not leave by itself: here they are all one."""
    errors: list[PeerError] = []
    monkeypatch.setattr(heartbeat, "end_process", lambda error, _thread: errors.append(error))
    yield errors
    for thread in threading.enumerate():
        if thread.name == "heartbeat":
            thread.join(300)
            assert not thread.is_alive()


pytestmark = [pytest.mark.process, pytest.mark.usefixtures("ended")]


def together(
    members: tuple[Members, ...], act: Act, *, limit: float = 20, timeout: float = 20, call_timeout: float = 60
) -> dict[str, object]:
    """Let all members do something at once; what each came to, or the error that it met."""

    def one(member: Members) -> object:
        try:
            with join(member, timeout=timeout, limit=limit, port=PORT, call_timeout=call_timeout) as joined:
                return act(joined)
        except (PeerError, DataError, KeyError) as error:
            return error

    with ThreadPoolExecutor(len(members)) as threads:
        return dict(zip([member.name for member in members], threads.map(one, members), strict=True))


def nothing(_: Communicator) -> None:
    """Come, and leave."""


def said(answers: dict[str, object]) -> dict[str, str]:
    """The messages of errors."""
    return {name: str(answer).partition("\n")[0] for name, answer in answers.items()}


@pytest.mark.process
def test_everybody_gets_everybodys_values_by_rank(three: tuple[Members, ...]) -> None:
    def act(joined: Communicator) -> list[Report]:
        mine = Report(joined.members.name, joined.rank, math.inf if joined.rank else -0.5, bytes([joined.rank, 255]))
        return joined.gather(mine, Report)

    expected = [
        Report(name, rank, math.inf if rank else -0.5, bytes([rank, 255]))
        for rank, name in enumerate(("algo-1", "algo-2", "algo-3"))
    ]
    assert together(three, act) == {member.name: expected for member in three}


@pytest.mark.process
def test_a_number_that_is_none_stays_none_of_the_others(three: tuple[Members, ...]) -> None:
    answers = together(three, lambda joined: joined.gather(math.nan, float))
    assert all(isinstance(values, list) and all(map(math.isnan, values)) for values in answers.values())


@pytest.mark.process
def test_bytes_of_all_go_to_the_first_by_rank_whoever_came_first(three: tuple[Members, ...]) -> None:
    def act(joined: Communicator) -> object:
        return joined.send_to_first(bytes([joined.rank]) * joined.rank * 9 * MIB)

    with ThreadPoolExecutor(1) as threads:
        early = threads.submit(together, (three[0], three[2]), act)
        until_listening(three[0])
        answers = {**together(three[1:2], act), **early.result()}
    assert answers["algo-2"] is answers["algo-3"] is None
    assert answers["algo-1"] == [b"", b"\1" * 9 * MIB, b"\2" * 18 * MIB]


@pytest.mark.process
@pytest.mark.parametrize("root", [0, 2])
def test_bytes_of_one_go_to_all(three: tuple[Members, ...], root: int) -> None:
    content = os.urandom(9 * MIB + 1)
    answers = together(three, lambda joined: joined.share(content if joined.rank == root else None, root))
    assert all(answer == content for answer in answers.values())


@pytest.mark.process
def test_many_calls_of_all_kinds_in_one_order(three: tuple[Members, ...]) -> None:
    def act(joined: Communicator) -> list[object]:
        found: list[object] = []
        for number in range(20):
            found.append(joined.gather(number, int))
            joined.send_to_first(b"x" * number)
            found.append(joined.share(str(number).encode() if joined.rank == number % 3 else None, number % 3))
        return found

    expected = [answer for number in range(20) for answer in ([number] * 3, str(number).encode())]
    assert set(map(str, together(three, act).values())) == {str(expected)}


def test_one_member_alone_needs_no_socket() -> None:
    alone = Members(("algo-1",), "algo-1", "not.an.address.invalid")
    with join(alone, timeout=0, limit=0, port=0) as joined:
        assert (joined.rank, joined.size) == (0, 1)
        assert joined.gather(Report("algo-1", 1, 0.0), Report) == [Report("algo-1", 1, 0.0)]
        assert joined.send_to_first(b"mine") == [b"mine"]
        assert joined.share(b"mine") == b"mine"
        assert joined.lost(seconds=0) is None
        joined.check()
        with pytest.raises(PeerError, match="message of 1,001 bytes exceeds the limit of 1,000 bytes"):
            joined.share(b"x" * 1001, largest=1000)


@pytest.mark.process
def test_more_bytes_than_are_taken_are_refused(three: tuple[Members, ...]) -> None:
    def act(joined: Communicator) -> object:
        return joined.send_to_first(b"x" * 1001 * (joined.rank > 0), largest=1000 if joined.rank == 0 else 2000)

    words = said(together(three, act))
    assert words["algo-1"] == "algo-2: message of 1,001 bytes exceeds the limit of 1,000 bytes"
    assert words["algo-3"] == f"algo-1 has given up: {words['algo-1']}"


@pytest.mark.process
def test_members_that_make_different_calls_are_told_so(three: tuple[Members, ...]) -> None:
    def act(joined: Communicator) -> object:
        return joined.send_to_first(b"x") if joined.rank == 2 else joined.gather(1, int)

    words = said(together(three, act))
    assert words["algo-1"] == "algo-3 is in its call 2 (send), this process in call 2 (gather)"
    assert words["algo-2"] == f"algo-1 has given up: {words['algo-1']}"


@pytest.mark.process
def test_a_member_of_another_version_is_named(three: tuple[Members, ...]) -> None:
    def act(joined: Communicator) -> object:
        if joined.rank == 2:
            return joined.gather("text", str)
        return joined.gather(Report("me", 1, 0.0), Report)

    words = said(together(three, act))
    reason = "algo-3 sent a value that this version of trainbox cannot read"
    # Its own finding, or the other's, whichever comes first.
    assert words["algo-1"] in {reason, f"algo-2 has given up: {reason}"}
    assert words["algo-2"] in {reason, f"algo-1 has given up: {reason}"}


# -- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError("channel train: no rows", hint="look there"), "channel train: no rows"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_one_that_gives_up_is_named_with_its_reason(
    three: tuple[Members, ...], rank: int, error: Exception, words: str
) -> None:
    def act(joined: Communicator) -> object:
        if joined.rank == rank:
            raise error
        return joined.gather(1, int)

    answers = together(three, act)
    assert answers.pop(f"algo-{rank + 1}") is error
    codes = {answer.exit_code for answer in answers.values() if isinstance(answer, PeerError)}
    assert codes == {error.exit_code if isinstance(error, DataError) else 1}
    assert set(said(answers).values()) == {f"algo-{rank + 1} has given up: {words}"}


@contextmanager
def without_readers() -> Iterator[None]:
    """Nobody reads what this process writes, as where its supervisor was killed."""
    kept, (reader, writer) = os.dup(1), os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(writer)
        os.close(kept)


def test_one_whose_supervisor_is_gone_says_so(three: tuple[Members, ...]) -> None:
    def act(joined: Communicator) -> object:
        if joined.rank == 1:
            joined.fail(BrokenPipeError(errno.EPIPE, "Broken pipe"))
            raise DataError("as it leaves")
        return joined.gather(1, int)

    with without_readers():
        words = said(together(three, act))
    why = "algo-2 has given up: its supervisor has ended: nobody reads its output"
    assert words["algo-1"] == words["algo-3"] == why


@pytest.mark.process
def test_a_reason_can_be_given_before_anything_else_is_let_go(three: tuple[Members, ...]) -> None:
    """As `cluster.collective` does it: whoever finds the collective broken has heard why by then."""
    heard = threading.Event()
    come = threading.Barrier(3)  # one that is still joining would raise the loss from there, and set nothing

    def act(joined: Communicator) -> object:
        come.wait(20)
        if joined.rank == 1:
            joined.fail(DataError("first"))
            heard.wait(20)
            raise DataError("second")
        try:
            return joined.lost(seconds=20)
        finally:
            if joined.rank == 2:
                heard.set()

    words = said(together(three, act))
    # Who has heard it and leaves as if nothing had happened is told once more.
    assert words["algo-1"] == words["algo-3"] == "algo-2 has given up: first"


@pytest.mark.process
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_leaving_one_after_the_other_is_no_loss(three: tuple[Members, ...], order: tuple[int, ...]) -> None:
    """Each leaves when the one before has closed its connections, or, of the leader, when it waits for the others."""
    turns = [threading.Event() for _ in range(4)]
    turns[0].set()

    def leave(member: Members) -> object:
        place = order.index(member.rank)
        with join(member, timeout=20, limit=20, port=PORT) as joined:
            joined.gather(1, int)
            assert turns[place].wait(300)
            if member.is_first:  # it only leaves when the others have
                turns[place + 1].set()
        turns[place + 1].set()
        return "left"

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(leave, three)) == {"left"}


@pytest.mark.process
def test_a_leader_that_is_through_does_not_wait_for_ever(
    three: tuple[Members, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(communicator, "SHUTDOWN_SECONDS", 0.2)
    gone = threading.Event()

    def act(member: Members) -> object:
        with join(member, timeout=20, limit=20, port=PORT) as joined:
            joined.gather(1, int)
            if joined.rank == 2:
                assert gone.wait(300)  # the leader has left, and this one has not
        if member.is_first:
            gone.set()
        return None

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(act, three)) == {None}
    assert "algo-3 did not disconnect within 0.2 s: leaving without" in capsys.readouterr().err


@pytest.mark.process
def test_who_calls_one_that_has_left_is_told_so(three: tuple[Members, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communicator, "SHUTDOWN_SECONDS", 0.2)
    monkeypatch.setattr(communicator, "REPORT_SECONDS", 0.2)

    gone = threading.Event()

    def act(member: Members) -> object:
        try:
            with join(member, timeout=20, limit=20, port=PORT) as joined:
                if joined.rank:
                    assert gone.wait(300)
                    return joined.gather(1, int)
        except PeerError as error:
            return error.message
        gone.set()
        return None

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(act, three)) == [
            None,
            "algo-1 has left, but algo-2 is still waiting for it",
            "algo-1 has left, but algo-3 is still waiting for it",
        ]


@pytest.mark.process
def test_one_that_lives_but_does_not_come_is_waited_for_so_long_and_no_longer(three: tuple[Members, ...]) -> None:
    done = threading.Event()

    def act(joined: Communicator) -> object:
        if joined.rank == 1:
            done.wait(20)
        try:
            return joined.gather(1, int)
        finally:
            done.set()

    words = said(together(three, act, call_timeout=0.5))
    assert words["algo-1"].startswith("algo-2 is alive but has not reached gather for ")
    assert words["algo-2"] == f"algo-1 has given up: {words['algo-1']}"


# -- coming ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_those_that_never_come_are_named_by_all_that_did(three: tuple[Members, ...]) -> None:
    words = said(together(three[:2], nothing, timeout=0.5))
    assert set(words.values()) == {"algo-3 did not join (within 0.5 s)"}


@pytest.mark.process
def test_a_leader_that_never_comes_is_named_with_its_port(three: tuple[Members, ...]) -> None:
    words = said(together(three[1:], nothing, timeout=0.3))
    assert words["algo-2"].startswith("algo-1 did not join (within 0.3 s; port 29472 of 127.")
    assert "Connection refused" in words["algo-2"]


@pytest.mark.process
def test_a_leader_that_comes_late_is_waited_for(three: tuple[Members, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()
    connect = sockets.connect

    def try_to_connect(host: str, port: int) -> socket.socket:
        try:
            return connect(host, port)
        except OSError:
            tried.set()
            raise

    monkeypatch.setattr(rendezvous, "connect", try_to_connect)
    with ThreadPoolExecutor(1) as threads:
        early = threads.submit(together, three[1:], lambda joined: joined.gather(joined.rank, int))
        assert tried.wait(300)
        late = together(three[:1], lambda joined: joined.gather(joined.rank, int))
        assert {**late, **early.result()} == {member.name: [0, 1, 2] for member in three}


@pytest.mark.parametrize("timeout", [0.0, 0.5, 30.0])
def test_a_leader_that_never_comes_is_waited_for_so_long_and_not_in_silence(
    three: tuple[Members, ...], timeout: float, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Timeline()
    started = line.now
    words = connect_in_vain(three[1], timeout, line, itertools.repeat(0.05))
    assert words.startswith(f"algo-1 did not join (within {timeout:g} s; port {PORT} of {three[0].address}: Connection")
    assert timeout <= line.now - started < timeout + 0.1
    said = [text for text in capsys.readouterr().err.splitlines() if "waiting" in text]
    assert said == [f"trainbox: waiting for algo-1 ({seconds} of 30 s)" for seconds in (10, 20) if seconds < timeout]


def test_one_that_was_stopped_for_as_long_as_all_wait_does_not_blame_the_leader(
    three: tuple[Members, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = connect_in_vain(three[1], 30, Timeline(), itertools.chain([0.05, 700.0], itertools.repeat(0.05)))
    assert words == (
        "this process (algo-2) was declared lost by the others: it did not run for 690 s during the rendezvous"
    )
    assert "trainbox: this process did not run for 690.0 s" in capsys.readouterr().err


def connect_in_vain(member: Members, timeout: float, line: Timeline, pauses: Iterator[float]) -> str:
    """What a member says whose leader is not there, and how long its pauses are in truth."""
    monitor = heartbeat.HeartbeatMonitor(member.name, limit=20)
    try:
        with pytest.raises(PeerError) as error:
            rendezvous.connect_to_leader(
                member, PORT, monitor, timeout=timeout, clock=line.clock, sleep=lambda _: line.sleep(next(pauses))
            )
    finally:
        monitor.close()
    return error.value.message


def test_a_leader_that_was_stopped_lets_in_who_came_late_for_that(
    three: tuple[Members, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its clock stands still, and has jumped by an hour when it is looked at next."""
    line = Timeline()
    monitor = heartbeat.HeartbeatMonitor("algo-1", limit=20)
    with ThreadPoolExecutor(3) as threads:
        accepted = threads.submit(rendezvous.accept_members, three[0], PORT, monitor, timeout=5, clock=line.clock)
        until_listening(three[0])
        line.sleep(3600)
        others = [threads.submit(connected, member) for member in three[1:]]
        came = accepted.result()
        assert list(came) == ["algo-2", "algo-3"]
        for connection in [*came.values(), *[other.result() for other in others]]:
            connection.close()
        monitor.close()
    assert re.search(r"trainbox: this process did not run for 3(599|600).0 s", capsys.readouterr().err)


def connected(member: Members) -> socket.socket:
    monitor = heartbeat.HeartbeatMonitor(member.name, limit=20)
    try:
        return rendezvous.connect_to_leader(member, PORT, monitor, timeout=60)
    finally:
        monitor.close()


@pytest.mark.process
def test_two_jobs_on_one_machine_do_not_mix(three: tuple[Members, ...]) -> None:
    """Where both want the same port, the second finds it taken, and its members are not let in by the first."""
    others = tuple(msgspec.structs.replace(member, job="another") for member in three)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(together, three[:2], lambda joined: joined.gather("first", str))
        until_listening(three[0])
        words = said(together(others, lambda joined: joined.gather("another", str), timeout=0.5))
        assert words["algo-1"].startswith(f"port {PORT} of {three[0].address} cannot be opened")
        assert {words[name].partition(" (")[0] for name in ("algo-2", "algo-3")} == {"algo-1 did not join"}
        last = together(three[2:], lambda joined: joined.gather("first", str))
        assert {**first.result(), **last} == {member.name: ["first"] * 3 for member in three}


@pytest.mark.process
def test_one_that_dies_while_others_are_still_to_come_is_named_at_once(three: tuple[Members, ...]) -> None:
    with ThreadPoolExecutor(1) as threads:
        leader = threads.submit(together, three[:1], nothing, timeout=1000)  # longer than a test may take
        until_listening(three[0])
        proved(three[1], "heartbeat").close()
        assert said(leader.result()) == {"algo-1": "algo-2 is lost: the connection was closed"}


@pytest.mark.process
def test_a_port_that_is_taken_is_said_to_be(three: tuple[Members, ...]) -> None:
    with socket.create_server((three[0].address, PORT)):
        words = said(together(three[:1], nothing))
    assert words["algo-1"].startswith(f"port {PORT} of {three[0].address} cannot be opened")
    assert "in use" in words["algo-1"]


@pytest.mark.process
def test_whoever_has_a_members_name_already_is_not_let_in_again(
    three: tuple[Members, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again, came = threading.Event(), threading.Event()
    add = heartbeat.HeartbeatMonitor.add

    def add_and_tell(monitor: heartbeat.HeartbeatMonitor, *given: Any) -> None:
        add(monitor, *given)
        came.set()

    monkeypatch.setattr(heartbeat.HeartbeatMonitor, "add", add_and_tell)

    def act(joined: Communicator) -> object:
        again.wait(20)
        return joined.gather(1, int)

    with ThreadPoolExecutor(2) as threads:
        two = threads.submit(together, three[:2], act)
        assert came.wait(300)
        twin = said(together(three[1:2], act, timeout=0.3))["algo-2"]
        last = threads.submit(together, three[2:], act)
        again.set()
        assert {**two.result(), **last.result()} == {member.name: [1, 1, 1] for member in three}
    assert twin == (
        f"algo-1 rejects algo-2: another process has joined under its name (port {PORT} of {three[0].address})"
    )
    said_by_leader = capsys.readouterr().err
    assert said_by_leader.count("rejected a second connection that claims to be algo-2") == 1
    assert "rejected a second connection that claims to be algo-2, from 127.0.0.1\n" in said_by_leader


# -- silence ---------------------------------------------------------------------------------------------------------


def proved(member: Members, role: Role) -> socket.socket:
    """A connection to the leader on which a member has proved itself."""
    while True:
        try:
            connection = socket.create_connection((member.address, PORT), timeout=300)
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    handshake = MemberHandshake(connection, make_hello(member.job, member.name, role), member.key)
    while not handshake.advance():
        pass
    return connection


class Silent:
    """A member that has come, and says nothing more."""

    def __init__(self, members: Members) -> None:
        self.connections = [proved(members, "heartbeat"), proved(members, "data")]

    def heard(self) -> list[Heartbeat]:
        """Everything that it was told, up to the end of the connection."""
        reader, told = FrameReader(self.connections[0]), []
        with suppress(ConnectionResetError):
            while True:
                if frame := reader.read(largest=MIB):
                    told.append(msgspec.msgpack.decode(frame.content, type=Heartbeat))
        return told

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@pytest.mark.process
def test_one_of_whom_nothing_is_heard_is_lost_after_the_limit_and_is_told(three: tuple[Members, ...]) -> None:
    """Over real connections; when that is, is arithmetic: test_heartbeat."""
    with ThreadPoolExecutor(1) as threads:
        others = threads.submit(together, three[:2], nothing, limit=1)
        silent = Silent(three[2])
        words = said(others.result())
        assert set(words.values()) == {"algo-3 is lost: no heartbeat for 1 s"}
        assert "algo-3" in [told.lost.member for told in silent.heard() if told.lost is not None]
        silent.close()


def test_a_process_that_does_not_leave_by_itself_is_ended(
    three: tuple[Members, ...], ended: list[PeerError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "REPORT_LEAVE_SECONDS", 0.2)
    left = threading.Event()
    come = threading.Barrier(3)  # one that is still joining would raise the loss from there, and leave by itself

    def act(joined: Communicator) -> object:
        come.wait(20)
        if joined.rank == 1:
            raise DataError("no rows")
        if joined.rank == 2:
            left.wait(20)  # as in a collective that waits for the one that is gone
        if joined.rank == 0:
            joined.lost(seconds=20)
            joined.fail(DataError("as it lets go of what it has"))
        while joined.rank == 0 and not ended:
            time.sleep(0.01)
        left.set()
        joined.check()
        return None

    words = said(together(three, act))
    assert {str(error).partition("\n")[0] for error in ended} == {"algo-2 has given up: no rows"}
    assert words["algo-1"] == words["algo-3"] == "algo-2 has given up: no rows"
