"""Rounds of hosts some of which are lost: over real sockets, each host a thread, and in a time that the test moves."""

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tests.support.addresses import addresses
from tests.support.timeline import Timeline, poll_at_once
from trainbox.comm import Members
from trainbox.comm.data_connection import DataConnection
from trainbox.comm.framing import encode_header
from trainbox.comm.member_loss import OTHER_JOB, OTHER_VERSION, MemberLost
from trainbox.comm.tolerant import TolerantCommunicator, join_tolerant
from trainbox.contract.credentials.peer_key import PeerKey

PORT = 29433
KEY = PeerKey(bytes(range(32)))


class Said(msgspec.Struct, frozen=True):
    who: str
    number: int


class Newer(msgspec.Struct, frozen=True):
    somebody: str


class Decided(msgspec.Struct, frozen=True):
    total: int
    silent: Mapping[str, str]
    mine: str = ""

    def of(self, host: str) -> "Decided":
        return msgspec.structs.replace(self, mine=host)


@pytest.fixture
def hosts() -> tuple[str, ...]:
    """Addresses that no other test has."""
    return tuple(addresses(4))


def join(
    hosts: tuple[str, ...], host: str, *, job: str = "job", timeout: float = 20, clock: Callable[[], float] = time.time
) -> TolerantCommunicator:
    return join_tolerant(Members(hosts, host, hosts[0], job, KEY), timeout=timeout, port=PORT, clock=clock)


def together(
    hosts: tuple[str, ...],
    act: Callable[[TolerantCommunicator, str], object],
    *,
    without: tuple[str, ...] = (),
    timeout: float = 20,
) -> dict[str, object]:
    """Let all hosts do something at once; what each came to, or the error that it met."""

    def one(host: str) -> object:
        try:
            with join(hosts, host, timeout=timeout) as joined:
                return act(joined, host)
        except (MemberLost, KeyError, SystemExit) as error:
            return error

    there = [host for host in hosts if host not in without]
    with ThreadPoolExecutor(len(there)) as threads:
        return dict(zip(there, threads.map(one, there), strict=True))


def decide(said: Mapping[str, Said], silent: Mapping[str, str]) -> Decided:
    assert all(host == one.who for host, one in said.items())
    return Decided(sum(one.number for one in said.values()), silent)


def agree(joined: TolerantCommunicator, host: str, number: int, timeout: float = 20) -> Decided:
    return joined.decide(Said(host, number), Said, decide, Decided, timeout=timeout, share=Decided.of)


def silent_in(answers: Mapping[str, object]) -> set[tuple[tuple[str, str], ...]]:
    """Who was silent and why, in all answers."""
    return {tuple(one.silent.items()) for one in answers.values() if isinstance(one, Decided)}


# -- over real sockets -------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_all_hosts_get_the_same_answer_in_every_round_and_what_is_theirs(hosts: tuple[str, ...]) -> None:
    def act(joined: TolerantCommunicator, host: str) -> list[Decided]:
        return [agree(joined, host, number) for number in (1, 10, 100)]

    answers = together(hosts, act)
    assert answers == {
        host: [Decided(4 * number, {}, "" if host == hosts[0] else host) for number in (1, 10, 100)] for host in hosts
    }


@pytest.mark.process
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1), (0, 2, 3, 1)])
def test_hosts_that_are_late_in_a_round_are_waited_for(hosts: tuple[str, ...], order: tuple[int, ...]) -> None:
    """Each begins its round when the one before has; the first collects all the time."""
    turns = [threading.Event() for _ in range(5)]
    turns[0].set()

    def act(joined: TolerantCommunicator, host: str) -> Decided:
        place = order.index(hosts.index(host))
        assert turns[place].wait(300)
        turns[place + 1].set()
        return agree(joined, host, 1)

    assert {answer.total for answer in together(hosts, act).values() if isinstance(answer, Decided)} == {4}


def test_one_host_alone_needs_no_network(hosts: tuple[str, ...]) -> None:
    with join(hosts[:1], hosts[0], timeout=0) as joined:
        assert joined.measure_skew(timeout=0) == 0.0
        assert agree(joined, hosts[0], 5).total == 5


@pytest.mark.process
def test_a_host_that_leaves_between_two_rounds_is_named_in_the_next(hosts: tuple[str, ...]) -> None:
    def act(joined: TolerantCommunicator, host: str) -> Decided:
        answer = agree(joined, host, 1)
        return answer if host == hosts[2] else agree(joined, host, 10)

    answers = together(hosts, act)
    assert answers.pop(hosts[2]) == Decided(4, {}, hosts[2])
    assert {one.total for one in answers.values() if isinstance(one, Decided)} == {30}
    assert silent_in(answers) == {((hosts[2], "the connection was closed"),)}
    assert len(answers) == 3


@pytest.mark.process
@pytest.mark.parametrize(
    ("error", "reason"), [(KeyError("x"), "left: KeyError: 'x'"), (SystemExit(143), "left: exit code 143")]
)
def test_a_host_that_leaves_by_an_error_tells_the_others_why(
    hosts: tuple[str, ...], error: BaseException, reason: str
) -> None:
    def act(joined: TolerantCommunicator, host: str) -> Decided:
        answer = agree(joined, host, 1)
        if host == hosts[2]:
            raise error
        return agree(joined, host, 10) if answer else answer

    answers = together(hosts, act)
    assert answers.pop(hosts[2]) is error
    assert silent_in(answers) == {((hosts[2], reason),)}


@pytest.mark.process
def test_a_first_host_that_leaves_by_an_error_tells_the_others_why(hosts: tuple[str, ...]) -> None:
    def act(joined: TolerantCommunicator, host: str) -> Decided:
        agree(joined, host, 1)
        if host == hosts[0]:
            raise KeyError("x")
        return agree(joined, host, 10)

    answers = together(hosts, act)
    lost = [(one.host, one.reason) for one in answers.values() if isinstance(one, MemberLost)]
    assert lost == [(hosts[0], "left: KeyError: 'x'")] * 3


@pytest.mark.process
def test_a_host_that_is_silent_in_a_round_is_named_and_may_speak_in_the_next(hosts: tuple[str, ...]) -> None:
    quiet = threading.Event()

    def act(joined: TolerantCommunicator, host: str) -> Decided:
        if host == hosts[1]:
            quiet.wait(20)
        first = agree(joined, host, 1, timeout=0.5)
        if host == hosts[0]:
            assert dict(first.silent) == {hosts[1]: "stopped answering"}
            quiet.set()
        return agree(joined, host, 10)

    answers = together(hosts, act)
    # What it sent too late belongs to a round that is over; its second value is in the second round.
    assert [one.total for one in answers.values() if isinstance(one, Decided)] == [40, 40, 40, 40]


@pytest.mark.process
def test_hosts_that_never_come_are_named(hosts: tuple[str, ...]) -> None:
    answers = together(hosts, lambda joined, host: agree(joined, host, 1), without=hosts[2:], timeout=1)
    assert silent_in(answers) == {((hosts[2], "never arrived"), (hosts[3], "never arrived"))}


@pytest.mark.process
def test_a_first_host_that_dies_is_named_by_all_others(hosts: tuple[str, ...]) -> None:
    def act(joined: TolerantCommunicator, host: str) -> object:
        agree(joined, host, 1)
        return None if host == hosts[0] else agree(joined, host, 10)

    answers = together(hosts, act)
    lost = [(lost.host, bool(lost.reason)) for lost in answers.values() if isinstance(lost, MemberLost)]
    assert lost == [(hosts[0], True)] * 3


@pytest.mark.process
def test_hosts_of_another_version_are_named_as_such(hosts: tuple[str, ...]) -> None:
    def act(joined: TolerantCommunicator, host: str) -> object:
        if host == hosts[3]:
            return joined.decide(Newer("me"), Newer, lambda *_: Newer(""), Newer, timeout=20, share=lambda one, _: one)
        return agree(joined, host, 1)

    answers = together(hosts, act)
    newer = answers.pop(hosts[3])
    assert isinstance(newer, MemberLost)
    assert newer.reason == OTHER_VERSION
    assert silent_in(answers) == {((hosts[3], OTHER_VERSION),)}


@pytest.mark.process
def test_a_host_of_another_job_is_rejected(hosts: tuple[str, ...]) -> None:
    def lead() -> Decided:
        with join(hosts[:2], hosts[0], timeout=1) as first:
            return agree(first, hosts[0], 1)

    with ThreadPoolExecutor(1) as threads:
        led = threads.submit(lead)
        with pytest.raises(MemberLost, match=OTHER_JOB):
            join(hosts[:2], hosts[1], job="another job", timeout=20)
        assert led.result().silent == {hosts[1]: "never arrived"}


@pytest.mark.process
def test_clocks_are_held_against_the_first(hosts: tuple[str, ...]) -> None:
    ahead = {host: 7.0 * place for place, host in enumerate(hosts)}

    def one(host: str) -> float:
        with join(hosts, host, clock=lambda: time.time() + ahead[host]) as joined:
            skew = joined.measure_skew(timeout=20)
            agree(joined, host, 1)
        return skew

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, hosts)) == pytest.approx([0.0, 7.0, 14.0, 21.0], abs=0.5)


# -- the rendezvous, in a time that the test moves ---------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("timeout", [0.0, 0.5, 900.0])
def test_without_the_first_host_the_others_give_up_when_their_time_is_over(
    hosts: tuple[str, ...], timeout: float
) -> None:
    line = Timeline()
    started = line.now
    with pytest.raises(MemberLost, match=r"never arrived \(port 29433: Connection refused\)") as lost:
        join_in_vain(hosts, timeout, line, itertools.repeat(0.05))
    assert lost.value.host == hosts[0]
    assert timeout <= line.now - started < timeout + 0.1


@pytest.mark.process
def test_a_host_that_was_itself_stopped_for_as_long_as_all_wait_does_not_blame_the_first(
    hosts: tuple[str, ...],
) -> None:
    with pytest.raises(MemberLost) as lost:  # the second pause ends as it is thawed
        join_in_vain(hosts, 60, Timeline(), itertools.chain([0.05, 700.0], itertools.repeat(0.05)))
    assert lost.value.host == hosts[1]
    assert lost.value.reason.startswith(f"did not run for 690 s; {hosts[0]}: never arrived (port 29433")


def join_in_vain(hosts: tuple[str, ...], timeout: float, line: Timeline, pauses: Iterator[float]) -> None:
    members = Members(hosts, hosts[1], hosts[0], "job", KEY)
    join_tolerant(members, timeout=timeout, port=PORT, monotonic=line.clock, sleep=lambda _: line.sleep(next(pauses)))


# -- rounds, in a time that the test moves -----------------------------------------------------------------------------


class Star:
    """A leader, and the other ends of its connections; nothing is waited for but by its clock."""

    def __init__(self, count: int, stack: contextlib.ExitStack) -> None:
        self.line = Timeline()
        self.names = tuple(f"algo-{number}" for number in range(1, count + 1))
        #: By host, what happens at its moments: it sends something, or this process stands still.
        self.events: list[tuple[float, Callable[[], object]]] = []
        self.ends: dict[str, DataConnection] = {}
        connections = {}
        for name in self.names[1:]:
            here, there = socket.socketpair()
            connections[name] = DataConnection(name, here, timeout=5, clock=self.line.clock)
            self.ends[name] = DataConnection("algo-1", there, timeout=5, clock=self.line.clock)
            stack.callback(self.ends[name].close)
        members = Members(self.names, "algo-1", "127.0.0.1")
        self.leader = stack.enter_context(
            TolerantCommunicator(
                members, connections, {}, timeout=0, clock=self.line.clock, monotonic=self.line.clock, poll=self.poll
            )
        )
        self.call = 0

    def poll(self, events: Sequence[tuple[int, int]], seconds: float) -> list[int]:
        """Return who has sent something; else move the clock to the next event, or by so many seconds."""
        if ready := poll_at_once(events, seconds):
            return ready
        until = self.line.now + seconds
        for event in sorted(self.events, key=lambda one: one[0])[:1]:
            if event[0] <= until:
                self.events.remove(event)
                self.line.now = until = max(event[0], self.line.now)
                event[1]()
        self.line.now = max(self.line.now, until)
        return poll_at_once(events, seconds)

    def sends(self, host: str, number: int, *, after: float) -> None:
        content = msgspec.msgpack.encode(Said(host, number))
        self.events.append((self.line.now + after, lambda: self.ends[host].send(self.call, "gather", content)))

    def stands_still(self, seconds: float, *, after: float) -> None:
        self.events.append((self.line.now + after, lambda: self.line.sleep(seconds)))

    def round(self, timeout: float) -> Decided:
        self.call += 1
        return agree(self.leader, "algo-1", 1, timeout)


@pytest.fixture
def star() -> Iterator[Star]:
    with contextlib.ExitStack() as stack:
        yield Star(4, stack)


def test_a_host_that_sends_nothing_is_named_when_the_time_of_the_round_is_over_and_not_before(star: Star) -> None:
    started = star.line.now
    star.sends("algo-2", 10, after=0)
    star.sends("algo-4", 100, after=19.875)
    assert star.round(20) == Decided(111, {"algo-3": "stopped answering"})
    assert star.line.now - started == 20


def test_a_round_is_over_as_soon_as_all_have_spoken(star: Star) -> None:
    started = star.line.now
    for place, name in enumerate(star.names[1:]):
        star.sends(name, 1, after=float(place))
    assert star.round(20) == Decided(4, {})
    assert star.line.now - started == 2


def test_a_host_that_dies_is_named_at_once_and_holds_up_nobody(star: Star) -> None:
    started = star.line.now
    star.ends["algo-3"].close()
    for name in ("algo-2", "algo-4"):
        star.sends(name, 1, after=1)
    assert star.round(20) == Decided(3, {"algo-3": "the connection was closed"})
    assert star.line.now - started == 1


@pytest.mark.parametrize("stop", [1.0, 19.0, 21.0, 86400.0])
def test_when_the_first_host_was_itself_stopped_the_others_have_as_much_longer(
    star: Star, stop: float, capsys: pytest.CaptureFixture[str]
) -> None:
    star.stands_still(1 + stop, after=0)
    star.sends("algo-2", 1, after=stop + 18.5)
    assert star.round(20).silent.keys() == {"algo-3", "algo-4"}
    assert f"this process did not run for {stop:.1f} s" in capsys.readouterr().err


def test_after_a_stop_at_the_end_of_a_round_the_others_have_a_moment_to_be_heard(star: Star) -> None:
    star.stands_still(500, after=19.5)
    star.sends("algo-2", 1, after=520.25)
    assert star.round(20).silent.keys() == {"algo-3", "algo-4"}


@pytest.mark.parametrize(("answers", "waits"), [(0, 300 + 2 * 20 + 5), (1, 30 + 2 * 20 + 5), (3, 30 + 2 * 20 + 5)])
def test_a_first_host_that_freezes_is_named_and_sooner_once_its_rendezvous_is_over(answers: int, waits: int) -> None:
    line = Timeline()

    def poll(_events: object, seconds: float) -> list[int]:
        line.sleep(seconds)
        return []

    here, there = socket.socketpair()
    leader = DataConnection("algo-2", there, timeout=5)
    mine = DataConnection("algo-1", here, timeout=5, clock=line.clock, poll=poll)
    members = Members(("algo-1", "algo-2"), "algo-2", "127.0.0.1")
    joined = TolerantCommunicator(members, {"algo-1": mine}, {}, timeout=300, clock=line.clock, monotonic=line.clock)
    with contextlib.closing(leader), joined:
        for call in range(answers):
            leader.send(call + 1, "scatter", msgspec.msgpack.encode(Decided(call, {})))
            assert agree(joined, "algo-2", 1).total == call
        began = line.now
        with pytest.raises(MemberLost, match="algo-1: stopped answering"):
            agree(joined, "algo-2", 1)
    assert line.now - began == waits


def test_half_a_message_is_none_and_holds_up_nobody(star: Star) -> None:
    star.ends["algo-3"]._connection.sendall(encode_header(1, "gather", 1000) + b"half")
    for name in ("algo-2", "algo-4"):
        star.sends(name, 1, after=0)
    assert star.round(20) == Decided(3, {"algo-3": "stopped answering"})


def test_a_message_that_is_none_of_ours_ends_its_host_alone(star: Star) -> None:
    star.ends["algo-3"]._connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    for name in ("algo-2", "algo-4"):
        star.sends(name, 1, after=0)
    assert star.round(20) == Decided(3, {"algo-3": "protocol error: not a trainbox message"})


def test_a_thousand_rounds_of_late_and_stopped_hosts_accuse_nobody(star: Star) -> None:
    """Each sends in the last moment or at once; the first, or all, stand still for seconds or hours meanwhile."""
    chance = random.Random(7)
    for _ in range(1000):
        stop_at, stop = chance.uniform(0, 18), chance.choice([0.0, 0.0, 0.5, 3.0, 60.0, 7200.0])
        all_stop = chance.random() < 0.5
        star.stands_still(stop, after=stop_at)
        for name in star.names[1:]:
            after = chance.choice([0.0, chance.uniform(0, 18), 18.0])
            star.sends(name, 1, after=after + (stop if all_stop and after > stop_at else 0.0))
        assert star.round(20) == Decided(4, {})
        star.events.clear()
        for name in star.names[1:]:
            assert star.ends[name].receive("scatter", largest=1000).header.call == star.call


@pytest.mark.process
@pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_rounds_of_healthy_hosts_over_sockets_accuse_nobody(hosts: tuple[str, ...], rounds: int) -> None:
    def act(joined: TolerantCommunicator, host: str) -> list[Decided]:
        chance = random.Random(host)
        found = []
        for number in range(rounds):
            time.sleep(chance.choice([0.0, 0.0, 0.001, 0.01]))
            found.append(agree(joined, host, number))
        return found

    answers = together(hosts[:3], act)
    for host, found in answers.items():
        mine = "" if host == hosts[0] else host
        assert found == [Decided(3 * number, {}, mine) for number in range(rounds)]
