"""Attacks on the port of a leader over real sockets: by somebody without the key, with a recording, or with nothing."""

import contextlib
import errno
import select
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from tests.support.addresses import addresses
from tests.support.parties import Party
from tests.support.strangers import Recorder, greet, reach, rest
from tests.support.timeline import Timeline
from tests.support.trees import Tree
from tests.support.waiting import eventually
from trainbox.comm import Communicator, Members, acceptor, join
from trainbox.comm.acceptor import Acceptor, Arrival
from trainbox.comm.handshake import PROTOCOL, Challenge, Hello, Proof, Rejection, Role, encode, make_nonce
from trainbox.comm.member_loss import TAKEN, UNPROVED, MemberLost
from trainbox.comm.tolerant import join_tolerant
from trainbox.contract.credentials.peer_key import SAME_KEY_HINT, PeerKey
from trainbox.errors import PeerError

pytestmark = pytest.mark.process

PORT = 29474
KEY = PeerKey(bytes(range(32)))
OTHER = PeerKey(bytes(range(1, 33)))
MIB = 1024 * 1024
_MIB_OF_NOTHING = bytes(MIB)
#: What nobody but the members may see.
SHARED = b"the model, or rows of it"


@pytest.fixture
def leader() -> str:
    """An address that no other test has."""
    return addresses(1)[0]


def members(leader: str, *, key: PeerKey | None = KEY, job: str = "job") -> tuple[Members, ...]:
    names = ("algo-1", "algo-2", "algo-3")
    return tuple(Members(names, name, leader, job, key) for name in names)


def rejected(member: str) -> str:
    """What the leader writes about a stranger that has no key."""
    return f"trainbox: rejected a connection that claims to be {member}, from 127.0.0.1: no valid proof"


def exchange_all(joined: Communicator) -> list[object]:
    """Everything that members do: they tell all others, hand to the leader, and get what it shares."""
    told = joined.gather(joined.members.name, str)
    handed = joined.send_to_first(joined.members.name.encode())
    return [told, handed, joined.share(SHARED if joined.rank == 0 else None)]


EXCHANGED = [["algo-1", "algo-2", "algo-3"], None, SHARED]
EXCHANGED_OF_FIRST = [["algo-1", "algo-2", "algo-3"], [b"algo-1", b"algo-2", b"algo-3"], SHARED]


def take_part(member: Members, *, timeout: float = 60) -> object:
    """What a member comes to, or the error that it meets."""
    try:
        with join(member, timeout=timeout, limit=20, port=PORT) as joined:
            return exchange_all(joined)
    except PeerError as error:
        return error


# -- the members of a script -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, OTHER])
def test_a_stranger_with_the_jobs_name_never_joins_reads_or_feeds(
    leader: str, key: PeerKey | None, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = members(leader)
    with ThreadPoolExecutor(3) as threads:
        led = threads.submit(take_part, first)
        said_to_strangers = [
            greet(leader, PORT, "algo-2", "heartbeat", key=key),
            greet(leader, PORT, "algo-2", "data", key=key),
            greet(leader, PORT, "algo-3", "data", key=key),
        ]
        came = [threads.submit(take_part, member) for member in others]
        assert led.result() == EXCHANGED_OF_FIRST
        assert [one.result() for one in came] == [EXCHANGED, EXCHANGED]
    assert said_to_strangers == [b"proof"] * 3
    said = capsys.readouterr().err
    assert said.count(rejected("algo-2")) == 1
    assert said.count(rejected("algo-3")) == 1


def test_a_stranger_that_lies_about_its_proof_is_refused_like_one_without(leader: str) -> None:
    """It answers the challenge with what it has just read: the leader's own proof."""
    with served(members(leader)[0]) as serve:
        hello = Hello("job", "algo-2", "heartbeat", make_nonce())
        connection = reach(leader, PORT)
        with connection:
            connection.sendall(encode(hello))
            serve(until=lambda: answers(connection))
            challenge = connection.recv(4096)
            connection.sendall(encode(Proof(challenge[-32:])))
            assert serve(until=lambda: answers(connection)) == []
            assert rest(connection) == encode(Rejection("proof"))


def test_a_recorded_greeting_is_refused_when_it_is_said_again(leader: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a whole job, to the next start of the same job: the same names, the same key."""
    (between,) = addresses(1)
    first, second, third = members(leader)
    with ThreadPoolExecutor(3) as threads, Recorder(between, leader, PORT).at_work() as recorder:
        led = threads.submit(take_part, first)
        rest_of = [
            threads.submit(take_part, msgspec.structs.replace(second, address=between)),
            threads.submit(take_part, third),
        ]
        assert led.result() == EXCHANGED_OF_FIRST
        assert [one.result() for one in rest_of] == [EXCHANGED, EXCHANGED]
    assert len(recorder.said) == 2
    with ThreadPoolExecutor(3) as threads:
        led = threads.submit(take_part, first)
        for said in recorder.said:
            with reach(leader, PORT) as replayed:
                replayed.sendall(bytes(said))
                answer = rest(replayed)
            assert answer.endswith(encode(Rejection("proof")))
            assert SHARED not in answer
        came = [threads.submit(take_part, member) for member in (second, third)]
        assert led.result() == EXCHANGED_OF_FIRST
        assert [one.result() for one in came] == [EXCHANGED, EXCHANGED]
    assert rejected("algo-2") in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [OTHER, None])
def test_another_key_on_one_host_is_said_on_both_sides(leader: str, wrong: PeerKey | None) -> None:
    first, second, third = members(leader)
    third = msgspec.structs.replace(third, key=wrong)
    with ThreadPoolExecutor(3) as threads:
        led, followed = (threads.submit(take_part, member, timeout=4) for member in (first, second))
        refused = take_part(third, timeout=1000)  # longer than a test may take: it does not wait for that
        errors = [led.result(), followed.result(), refused]
    assert all(isinstance(error, PeerError) for error in errors)
    of_first, of_second, of_third = (error for error in errors if isinstance(error, PeerError))
    assert of_first.message == "algo-3 did not join (within 4 s; rejected without a valid proof: 127.0.0.1 as algo-3)"
    assert of_second.message == of_first.message
    assert of_third.message == (
        f"algo-1 rejects algo-3: its proof is invalid: the two have different keys (port {PORT} of {leader})"
    )
    assert {error.hint for error in (of_first, of_second, of_third)} == {SAME_KEY_HINT}
    assert {error.exit_code for error in (of_first, of_second, of_third)} == {5}


SCRIPT = """
import trainbox.toolkit
from trainbox.comm import find_members, join

def main():
    job = trainbox.current_job()
    members = find_members(job, trainbox.toolkit.current_ranks())
    with join(members, timeout=job.settings.peer_timeout_seconds, limit=20, port=job.port) as communicator:
        communicator.gather(members.name, str)

main()
"""


def test_another_key_on_one_host_is_in_the_failure_file_of_both(tmp_path: Path) -> None:
    """Through the supervisor: the exit code, the two hosts by name, and what to do about it; the keys are in none."""
    hosts = addresses(2)
    keys = [KEY.text, OTHER.text]
    settings = {"MASTER_PORT": str(PORT), "TRAINBOX_PEER_TIMEOUT_SECONDS": "8"}
    with contextlib.ExitStack() as stack:
        trees = [stack.enter_context(Tree(tmp_path / host)) for host in hosts]
        for tree, host in zip(trees, hosts, strict=True):
            tree.hosts(*hosts, current=host).program(SCRIPT)
        # The second before: the first waits for so long alone.
        second, first = (
            tree.start({**settings, "TRAINBOX_PEER_KEY": key})
            for tree, key in zip(reversed(trees), reversed(keys), strict=True)
        )
        runs = [trees[0].finish(first), trees[1].finish(second)]
    assert [run.code for run in runs] == [5, 5]
    failures = [run.failure or "" for run in runs]
    failed, refused = "AlgorithmError: PeerError: ", "its proof is invalid: the two have different keys"
    assert [failure.splitlines()[0] for failure in failures] == [
        f"{failed}{hosts[1]} did not join (within 8 s; rejected without a valid proof: 127.0.0.1 as {hosts[1]})",
        f"{failed}{hosts[0]} rejects {hosts[1]}: {refused} (port {PORT} of {hosts[0]})",
    ]
    assert all(SAME_KEY_HINT in failure for failure in failures)
    assert not [key for key in keys for run in runs if key in run.log + (run.failure or "") + run.stdout.decode()]


def test_without_a_key_jobs_are_kept_apart_by_their_names_and_nothing_more(leader: str) -> None:
    """What `trainbox run` and the log line of the supervisor are there for."""
    assert greet_leader_without_key(leader, job="another") == b"job"
    assert greet_leader_without_key(leader, job="job").startswith(b"accepted")


def greet_leader_without_key(leader: str, *, job: str) -> bytes:
    with ThreadPoolExecutor(2) as threads:
        led = threads.submit(take_part, members(leader, key=None)[0], timeout=1)
        answer = threads.submit(greet, leader, PORT, "algo-2", "heartbeat", job=job)
        assert isinstance(led.result(), PeerError)
        return answer.result()


def test_a_member_of_another_version_is_told_so_on_both_sides(leader: str, capsys: pytest.CaptureFixture[str]) -> None:
    with served(members(leader)[0]) as serve, reach(leader, PORT) as connection:
        connection.sendall(struct.pack("!4sHH", b"tbxp", 7, 3) + b"abc")
        serve(until=lambda: answers(connection))
        assert rest(connection) == encode(Rejection("version"))
    words = f"it uses version 7 of the protocol, this process version {PROTOCOL}"
    assert f"trainbox: rejected a connection from 127.0.0.1: {words}" in capsys.readouterr().err
    with socket.create_server((leader, PORT)) as other, ThreadPoolExecutor(1) as threads:
        refused = threads.submit(take_part, members(leader)[1], timeout=1000)  # longer than a test may take
        newer, _ = other.accept()
        newer.sendall(struct.pack("!4sHH", b"tbxp", 7, 3) + b"abc")
        error = refused.result()
        newer.close()
    assert isinstance(error, PeerError)
    assert error.message == f"algo-1 rejects algo-2: {words} (port {PORT} of {leader})"
    assert error.hint == "all hosts must run the same image"


# -- the hosts of the health checks ------------------------------------------------------------------------------------


class Said(msgspec.Struct, frozen=True):
    who: str


Decided = tuple[dict[str, str], dict[str, str]]


def decide(said: dict[str, Said], silent: dict[str, str]) -> Decided:
    return {host: one.who for host, one in said.items()}, dict(silent)


def one_round(hosts: tuple[str, ...], host: str, *, key: PeerKey | None = KEY, timeout: float = 60) -> object:
    """What a host comes to in one round, or what it says of the first."""
    try:
        with join_tolerant(Members(hosts, host, hosts[0], "job", key), timeout=timeout, port=PORT) as joined:
            return joined.decide(Said(host), Said, decide, Decided, timeout=60, share=lambda decided, _: decided)  # type: ignore[arg-type]
    except MemberLost as lost:
        return (lost.host, lost.reason)


@pytest.mark.parametrize("key", [None, OTHER])
def test_a_stranger_takes_no_part_in_the_health_checks(key: PeerKey | None, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = tuple(addresses(2))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one_round, hosts, hosts[0])
        assert greet(hosts[0], PORT, hosts[1], "health", key=key) == b"proof"
        second = threads.submit(one_round, hosts, hosts[1])
        expected: Decided = ({host: host for host in hosts}, {})
        assert first.result() == expected
        assert second.result() == expected
    assert rejected(hosts[1]) in capsys.readouterr().err


def test_a_proof_for_a_script_is_none_for_the_health_checks(leader: str) -> None:
    """Somebody passes on a challenge of one port to a member that greets at the other."""
    hello = Hello("job", "algo-2", "heartbeat", make_nonce())
    with served(members(leader)[0], roles=frozenset({"health"})) as serve, reach(leader, PORT) as connection:
        connection.sendall(encode(hello))
        assert serve(until=lambda: answers(connection)) == []
        assert rest(connection) == encode(Rejection("member"))


def test_a_host_with_another_key_is_told_from_one_that_never_came() -> None:
    hosts = tuple(addresses(3))
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(one_round, hosts, hosts[0], timeout=2)
        second = threads.submit(one_round, hosts, hosts[1], key=OTHER)
        silent = {hosts[1]: UNPROVED, hosts[2]: "never arrived"}
        assert first.result() == ({hosts[0]: hosts[0]}, silent)
        assert second.result() == (hosts[0], UNPROVED)


def test_who_greets_again_and_again_does_not_hold_up_a_round_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls itself a host that never comes, and leaves every challenge without an answer."""
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.5)
    hosts = tuple(addresses(2))
    over = threading.Event()

    def greet_for_ever() -> int:
        count = 0
        with contextlib.ExitStack() as stack:
            while not over.is_set():
                with contextlib.suppress(ConnectionError):
                    caller = stack.enter_context(socket.create_connection((hosts[0], PORT), timeout=300))
                    caller.sendall(encode(Hello("job", hosts[1], "health", make_nonce())))
                    count += 1
                over.wait(0.05)
        return count

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one_round, hosts, hosts[0], timeout=0.5)
        greeted = threads.submit(greet_for_ever)
        decided = first.result()
        over.set()
        assert greeted.result() > 1
    assert decided == ({hosts[0]: hosts[0]}, {hosts[1]: "never arrived"})


def test_a_host_whose_name_is_taken_is_told_so() -> None:
    hosts = tuple(addresses(3))
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(one_round, hosts, hosts[0])
        twins = [threads.submit(one_round, hosts, hosts[1]) for _ in range(2)]
        done, others = wait(twins, return_when=FIRST_COMPLETED)  # nothing else ends before the third has come
        assert [one.result() for one in done] == [(hosts[0], TAKEN)]
        third = threads.submit(one_round, hosts, hosts[2])
        assert [one.result() for one in others] == [third.result()]
        assert first.result() == third.result()


# -- limits before a proof ---------------------------------------------------------------------------------------------

Serve = Callable[..., list[Arrival]]


@contextlib.contextmanager
def served(
    first: Members, *, roles: frozenset[Role] = frozenset({"heartbeat", "data"}), line: Timeline | None = None
) -> Iterator[Serve]:
    """A leader that takes its turns only when it is told to, until something is so; each takes so many seconds."""
    moved = line or Timeline()
    opened = Acceptor(first, PORT, roles, clock=moved.clock)

    def serve(*, until: Callable[[], bool] = lambda: True, takes: float = 0.0) -> list[Arrival]:
        arrivals: list[Arrival] = []

        def turn() -> bool:
            poll = select.poll()
            for source in opened.sources():
                poll.register(source, select.POLLIN)
            ready = [source for source, _ in poll.poll(10)]
            moved.sleep(takes)
            arrivals.extend(opened.turn(ready))
            return until()

        eventually(turn, "what the leader is to do")
        return arrivals

    with contextlib.closing(opened):
        yield serve


def answers(connection: socket.socket) -> bool:
    """Whether something has come, or the end."""
    return bool(select.select([connection], [], [], 0)[0])


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has hung up; what has come before stays."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("begun", [b"", b"tbxp", encode(Hello("job", "algo-2", "heartbeat", bytes(32)))[:-1]])
def test_who_does_not_prove_itself_within_five_seconds_is_closed(leader: str, begun: bytes) -> None:
    with served(members(leader)[0]) as serve, reach(leader, PORT) as idle:
        idle.sendall(begun)
        serve()
        for _ in range(5):
            serve(takes=1.0)
        assert not is_closed(idle)
        serve(takes=0.1)
        assert is_closed(idle)


def test_a_challenge_that_is_never_answered_ends_at_the_same_time(leader: str) -> None:
    with served(members(leader)[0]) as serve, reach(leader, PORT) as idle:
        serve()
        for _ in range(4):
            serve(takes=1.0)
        idle.sendall(encode(Hello("job", "algo-2", "heartbeat", bytes(32))))
        serve(until=lambda: answers(idle))
        serve(takes=1.0)
        serve(takes=0.1)
        assert len(rest(idle)) == len(encode(Challenge(bytes(32), bytes(32))))


def test_the_time_in_which_the_leader_itself_did_not_run_is_nobodys_fault(leader: str) -> None:
    with served(members(leader)[0]) as serve, reach(leader, PORT) as slow:
        serve()
        serve(takes=3600)
        assert not is_closed(slow)


@pytest.mark.parametrize("start", [b"x", b"tbxp\x00\x01\xff\xff", b"tbxp\x00\x01\x0f\xf8"])
def test_a_flood_is_cut_off_before_it_takes_memory(leader: str, start: bytes) -> None:
    """24 callers with 15 MiB each: what is no greeting, a greeting without end, and one of 4 KiB that is none."""
    with contextlib.ExitStack() as stack:
        serve = stack.enter_context(served(members(leader)[0]))
        floods = [stack.enter_context(reach(leader, PORT)) for _ in range(24)]
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        with ThreadPoolExecutor(24) as threads:
            sent = [threads.submit(flood, one, start) for one in floods]
            serve(until=lambda: all(one.done() for one in sent))
        assert {one.result() for one in sent} == {"cut off"}
        # Of this process: the flood itself is 24 times the same MiB.
        assert tracemalloc.get_traced_memory()[1] - before < 8 * MIB


def flood(connection: socket.socket, start: bytes) -> str:
    try:
        connection.sendall(start)
        for _ in range(15):
            connection.sendall(_MIB_OF_NOTHING)
    except ConnectionError:
        return "cut off"
    return "taken"


def test_of_too_many_callers_the_oldest_make_room_and_a_member_gets_in(
    leader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "MAX_CALLERS", 16)
    with contextlib.ExitStack() as stack:
        serve = stack.enter_context(served(members(leader)[0]))
        idle = [stack.enter_context(reach(leader, PORT)) for _ in range(40)]
        serve(until=lambda: sum(map(is_closed, idle)) == 24)
        assert [is_closed(one) for one in idle] == [True] * 24 + [False] * 16
        with ThreadPoolExecutor(1) as threads:
            met = threads.submit(greet, leader, PORT, "algo-2", "heartbeat", key=KEY)
            came: list[Arrival] = []
            while not came:
                came += serve()
            assert (came[0].member, came[0].role) == ("algo-2", "heartbeat")
            came[0].connection.close()
            assert met.result().startswith(b"accepted")


class Exhausted:
    """A listening socket of a process that may open no more files."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    def close(self) -> None:
        self._listener.close()


def test_without_files_the_oldest_caller_goes_and_the_leader_does_not_spin(
    leader: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = members(leader)[0]
    with contextlib.closing(Acceptor(first, PORT, frozenset({"heartbeat"}))) as opened, contextlib.ExitStack() as stack:
        listening = opened.sources()[0]
        idle = [stack.enter_context(reach(leader, PORT)) for _ in range(2)]
        eventually(lambda: not opened.turn([listening]) and len(opened.sources()) == 3, "two callers")
        monkeypatch.setattr(opened, "_listener", Exhausted(opened._listener))
        for left in (1, 0, 0):
            opened.turn([listening])
            assert len(opened.sources()) == left + (listening in opened.sources())
        assert [is_closed(one) for one in idle] == [True, True]
        assert opened.sources() == []  # nobody is left to make room: it looks away for a turn
        opened.turn([])
        assert opened.sources() == [listening]
    assert capsys.readouterr().err.count("cannot accept a connection (Too many open files)") == 1


#: The leader alone may have so many files; without room for its callers it would never hear of its members.
FEW_FILES = """
import resource
if told["name"] == "algo-1":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
"""


def test_a_member_gets_in_though_idle_strangers_want_more_files_than_there_are() -> None:
    with contextlib.ExitStack() as stack:
        party = stack.enter_context(
            Party(2, "communicator.gather(communicator.rank, int)\nready()", head=FEW_FILES, patience=200)
        )
        party.start("algo-1")
        for _ in range(80):
            stack.enter_context(reach(party.address, party.port))
        ended = party.start("algo-2").finish()
    assert {name: one.code for name, one in ended.items()} == {"algo-1": 0, "algo-2": 0}, ended
