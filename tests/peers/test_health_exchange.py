"""How hosts tell each other what they found: real sockets, each host a thread."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import pytest

from tests.support.addresses import addresses
from tests.support.timeline import Timeline
from trainbox.contract.peer_key import PeerKey
from trainbox.peers.exchange import Exchange, Spoke, meet
from trainbox.peers.hub import Hub
from trainbox.peers.rounds import OTHER_JOB, OTHER_VERSION, Lost

pytestmark = pytest.mark.process

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


def together(
    hosts: tuple[str, ...],
    act: Callable[[Exchange, str], object],
    *,
    without: tuple[str, ...] = (),
    patience: float = 20,
) -> dict[str, object]:
    """Let all hosts do something at once; what each came to, or the error that it met."""

    def one(host: str) -> object:
        exchange = meet(hosts, host, PORT, "job", key=KEY, patience=patience)
        try:
            exchange.settle(seconds=20)
            return act(exchange, host)
        except Lost as lost:
            return lost
        finally:
            exchange.close()

    there = [host for host in hosts if host not in without]
    with ThreadPoolExecutor(len(there)) as threads:
        return dict(zip(there, threads.map(one, there), strict=True))


def decide(said: Mapping[str, Said], silent: Mapping[str, str]) -> Decided:
    assert all(host == one.who for host, one in said.items())
    return Decided(sum(one.number for one in said.values()), silent)


def agree(exchange: Exchange, host: str, number: int, seconds: float = 20) -> Decided:
    return exchange.agree(Said(host, number), Said, decide, Decided, seconds=seconds, share=Decided.of)


@pytest.mark.process
def test_all_hosts_get_the_same_answer_in_every_round_and_what_is_theirs(hosts: tuple[str, ...]) -> None:
    def act(exchange: Exchange, host: str) -> list[Decided]:
        return [agree(exchange, host, number) for number in (1, 10, 100)]

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

    def act(exchange: Exchange, host: str) -> Decided:
        place = order.index(hosts.index(host))
        assert turns[place].wait(300)
        turns[place + 1].set()
        return agree(exchange, host, 1)

    assert {answer.total for answer in together(hosts, act).values() if isinstance(answer, Decided)} == {4}


def test_one_host_alone_needs_no_network(hosts: tuple[str, ...]) -> None:
    exchange = meet(hosts[:1], hosts[0], PORT, "job", key=KEY, patience=0)
    assert agree(exchange, hosts[0], 5).total == 5


@pytest.mark.process
def test_a_host_that_leaves_between_two_rounds_is_named_in_the_next(hosts: tuple[str, ...]) -> None:
    def act(exchange: Exchange, host: str) -> Decided:
        answer = agree(exchange, host, 1)
        return answer if host == hosts[2] else agree(exchange, host, 10)

    answers = together(hosts, act)
    assert answers.pop(hosts[2]) == Decided(4, {}, hosts[2])
    assert {(one.total, tuple(one.silent.items())) for one in answers.values() if isinstance(one, Decided)} == {
        (30, ((hosts[2], "the connection was closed"),))
    }
    assert len(answers) == 3


@pytest.mark.process
def test_a_host_that_is_silent_in_a_round_is_named_and_may_speak_in_the_next(hosts: tuple[str, ...]) -> None:
    quiet = threading.Event()

    def act(exchange: Exchange, host: str) -> Decided:
        if host == hosts[1]:
            quiet.wait(20)
        first = agree(exchange, host, 1, seconds=0.5)
        if host == hosts[0]:
            assert dict(first.silent) == {hosts[1]: "stopped answering"}
            quiet.set()
        return agree(exchange, host, 10)

    answers = together(hosts, act)
    # What it said too late belongs to a round that is over; its second word is in the second round.
    assert [one.total for one in answers.values() if isinstance(one, Decided)] == [40, 40, 40, 40]


@pytest.mark.process
def test_hosts_that_never_come_are_named(hosts: tuple[str, ...]) -> None:
    answers = together(hosts, lambda exchange, host: agree(exchange, host, 1), without=hosts[2:], patience=1)
    assert {tuple(one.silent.items()) for one in answers.values() if isinstance(one, Decided)} == {
        ((hosts[2], "never arrived"), (hosts[3], "never arrived"))
    }


@pytest.mark.process
@pytest.mark.parametrize("patience", [0.0, 0.5, 900.0])
def test_without_the_first_host_the_others_give_up_when_their_patience_is_over(
    hosts: tuple[str, ...], patience: float
) -> None:
    line = Timeline()
    started = line.now
    with pytest.raises(Lost, match=r"never arrived \(port 29433: Connection refused\)") as lost:
        Spoke(
            hosts,
            hosts[1],
            PORT,
            "job",
            key=KEY,
            patience=patience,
            clock=time.time,
            monotonic=line.clock,
            sleep=line.sleep,
        )
    assert lost.value.host == hosts[0]
    assert patience <= line.now - started < patience + 0.1


@pytest.mark.process
def test_a_host_that_was_itself_stopped_for_as_long_as_all_wait_does_not_blame_the_first(
    hosts: tuple[str, ...],
) -> None:
    line = Timeline()
    pauses = iter([0.05, 700.0])  # the second ends as it is thawed

    def sleep(_seconds: float) -> None:
        line.sleep(next(pauses, 0.05))

    with pytest.raises(Lost) as lost:
        Spoke(hosts, hosts[1], PORT, "job", key=KEY, patience=60, clock=time.time, monotonic=line.clock, sleep=sleep)
    assert lost.value.host == hosts[1]
    assert lost.value.reason.startswith(f"did not run for 690 s; {hosts[0]}: never arrived (port 29433")


@pytest.mark.process
def test_hosts_that_came_while_the_first_was_stopped_are_heard_though_their_time_is_over(
    hosts: tuple[str, ...],
) -> None:
    line = Timeline()
    first = Hub(hosts, PORT, "job", key=KEY, patience=5, clock=time.time, monotonic=line.clock)
    others = [meet(hosts, host, PORT, "job", key=KEY, patience=60) for host in hosts[1:]]
    with contextlib.ExitStack() as stack:
        for exchange in (first, *others):
            stack.callback(exchange.close)
        line.sleep(3600)

        def one(exchange: Exchange, host: str) -> Decided:
            exchange.settle(seconds=60)
            return agree(exchange, host, 1)

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(one, (first, *others), hosts))
    assert [(answer.total, answer.silent) for answer in answers] == [(4, {})] * 4


@pytest.mark.process
def test_a_first_host_that_is_stopped_within_a_round_gives_the_others_as_much_longer(
    hosts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its clock stands still until it jumps, while the other host is still on its way."""
    line = Timeline()
    first = Hub(hosts[:2], PORT, "job", key=KEY, patience=5, clock=time.time, monotonic=line.clock)
    other = meet(hosts[:2], hosts[1], PORT, "job", key=KEY, patience=60)
    with ThreadPoolExecutor(2) as threads:
        decided = threads.submit(agree, first, hosts[0], 1, 20)
        other.settle(seconds=60)
        line.sleep(3600)
        eventually_said = threads.submit(agree, other, hosts[1], 10, 20)
        assert decided.result() == Decided(11, {})
        assert eventually_said.result().total == 11
    for exchange in (first, other):
        exchange.close()
    assert "this process did not run for 3599.0 s" in capsys.readouterr().err


@pytest.mark.process
def test_a_first_host_that_dies_is_named_by_all_others(hosts: tuple[str, ...]) -> None:
    def act(exchange: Exchange, host: str) -> object:
        agree(exchange, host, 1)
        return None if host == hosts[0] else agree(exchange, host, 10)

    answers = together(hosts, act)
    assert [(lost.host, bool(lost.reason)) for lost in answers.values() if isinstance(lost, Lost)] == [
        (hosts[0], True)
    ] * 3


@pytest.mark.process
def test_hosts_of_another_version_are_named_as_such(hosts: tuple[str, ...]) -> None:
    def act(exchange: Exchange, host: str) -> object:
        if host == hosts[3]:
            return exchange.agree(Newer("me"), Newer, lambda *_: Newer(""), Newer, seconds=20, share=lambda one, _: one)
        return agree(exchange, host, 1)

    answers = together(hosts, act)
    newer = answers.pop(hosts[3])
    assert isinstance(newer, Lost)
    assert newer.reason == OTHER_VERSION
    assert {tuple(one.silent.items()) for one in answers.values() if isinstance(one, Decided)} == {
        ((hosts[3], OTHER_VERSION),)
    }


@pytest.mark.process
def test_a_host_of_another_job_is_not_let_in(hosts: tuple[str, ...]) -> None:
    first = meet(hosts[:2], hosts[0], PORT, "job", key=KEY, patience=1)
    other = meet(hosts[:2], hosts[1], PORT, "another job", key=KEY, patience=1)
    try:
        assert agree(first, hosts[0], 1).silent == {hosts[1]: "never arrived"}
        with pytest.raises(Lost, match=OTHER_JOB):
            other.settle(seconds=1)
    finally:
        first.close()
        other.close()


@pytest.mark.process
def test_a_line_without_end_is_cut_off(hosts: tuple[str, ...]) -> None:
    first = meet(hosts[:2], hosts[0], PORT, "job", key=KEY, patience=60)
    with ThreadPoolExecutor(1) as threads:
        stranger = socket.create_connection((hosts[0], PORT), timeout=300)
        flooded = threads.submit(_flood, stranger)
        second = meet(hosts[:2], hosts[1], PORT, "job", key=KEY, patience=20)
        answered = threads.submit(_settle_after, flooded, second, hosts[1])
        assert agree(first, hosts[0], 1, seconds=60) == Decided(2, {})
        assert answered.result() == "cut off"
    for open_one in (first, second, stranger):
        open_one.close()


def _settle_after(flooded: "Future[str]", second: Exchange, host: str) -> str:
    ended = flooded.result()
    second.settle(seconds=30)
    agree(second, host, 1)
    return ended


def _flood(stranger: socket.socket) -> str:
    try:
        for _ in range(40):
            stranger.sendall(b"x" * 1024 * 1024)
    except (ConnectionError, BrokenPipeError):
        return "cut off"
    return "taken"


@pytest.mark.process
def test_clocks_are_set_beside_the_first(hosts: tuple[str, ...]) -> None:
    ahead = {host: 7.0 * place for place, host in enumerate(hosts)}

    def one(host: str) -> float:
        exchange = meet(hosts, host, PORT, "job", key=KEY, patience=20, clock=lambda: time.time() + ahead[host])
        exchange.settle(seconds=20)
        agree(exchange, host, 1)
        exchange.close()
        return exchange.skew

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, hosts)) == pytest.approx([0.0, 7.0, 14.0, 21.0], abs=0.5)
