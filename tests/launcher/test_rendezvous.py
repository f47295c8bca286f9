"""How the agent of another host waits for the store of the first one, and how all meet at each attempt."""

import os
import socket
from typing import Any, cast

import pytest

pytest.importorskip("torch")

from torch._C._distributed_c10d import TCPStore

from tests.support.addresses import addresses, free_port
from tests.support.listening import listeners
from trainbox.errors import PeerError
from trainbox.launcher.coordination import LOST_SECONDS, HostsLost, StoreAddress
from trainbox.launcher.rendezvous import REJOIN_SECONDS, Rendezvous, open_store

pytestmark = pytest.mark.process

HOSTS = ("127.0.0.1", "127.0.0.2")
FIRST_JOIN = 600.0


def test_a_first_host_that_never_answers_is_named_with_where_and_why() -> None:
    port = int(free_port())
    with pytest.raises(
        PeerError, match=f"no agent answers at 127.0.0.1:{port} after 0 s: Connection refused"
    ) as raised:
        open_store(HOSTS, 1, port, timeout=0.2, check=lambda: None)
    assert raised.value.hint == "see the log of 127.0.0.1: it may have failed before its training began"


def test_a_first_host_that_comes_late_is_waited_for() -> None:
    port = int(free_port())
    stores: list[TCPStore] = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            stores.append(open_store(HOSTS, 0, port, timeout=0, check=lambda: None))

    checks: list[int] = []
    client = open_store(HOSTS, 1, port, timeout=60, check=check)
    client.set("said", "here")
    assert stores[0].get("said") == b"here"


def test_a_wait_ends_where_its_caller_says_so() -> None:
    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        open_store(HOSTS, 1, int(free_port()), timeout=60, check=check)


def test_a_port_that_is_taken_and_a_name_that_is_not_this_hosts_are_told_apart() -> None:
    port, hosts = free_port(), tuple(addresses(2))
    store = open_store(hosts, 0, port, timeout=0, check=lambda: None)
    assert store.port == port
    with pytest.raises(PeerError, match=f"port {port} of {hosts[0]} cannot be opened .*: Address already in") as taken:
        open_store(hosts, 0, port, timeout=0, check=lambda: None)
    assert taken.value.hint == "set the variable MASTER_PORT to a free port"
    elsewhere = ("192.0.2.1", hosts[1])  # RFC 5737: nobody has it
    with pytest.raises(PeerError, match=r"port .* of 192.0.2.1 cannot be opened .*: Cannot assign") as not_here:
        open_store(elsewhere, 0, port, timeout=0, check=lambda: None)
    assert "must resolve to an address of this host" in not_here.value.hint


# -- a meeting, on a clock that the test moves -------------------------------------------------------------------------


class Others:
    """The coordination of a host, and when the other one comes and stops to show signs of life."""

    def __init__(self, *, is_first: bool, comes: float = 0.0, silent: float = float("inf")) -> None:
        self.now = 1000.0
        self.began = self.now
        self.hosts, self.host, self.is_first = HOSTS, HOSTS[not is_first], is_first
        self.comes, self.silent_from = comes, silent
        self.attempts: list[int] = []
        self.place: StoreAddress | None = None

    def rendezvous(self, store: TCPStore) -> Rendezvous:
        coordination = cast("Any", self)
        return Rendezvous(coordination, store, "job", first_join=FIRST_JOIN, clock=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def waited(self) -> float:
        return self.now - self.began

    def begin(self, attempt: int) -> None:
        self.attempts.append(attempt)
        self.began, self.place = self.now, None

    def arrive(self, place: str) -> None:
        assert place == "ready"

    def absent(self, _place: str) -> tuple[str, ...]:
        return () if self.waited >= self.comes else tuple(host for host in HOSTS if host != self.host)

    def all_at(self, place: str) -> bool:
        return not self.absent(place)

    def publish_store_address(self, place: StoreAddress) -> None:
        assert self.is_first
        self.place = place

    def store_address(self) -> StoreAddress | None:
        if not self.is_first and self.all_at("ready"):
            return StoreAddress("127.0.0.1", 4711)
        return self.place

    def silent(self, seconds: float = LOST_SECONDS) -> tuple[str, ...]:
        is_silent = self.now - 1000.0 >= self.silent_from + seconds
        return tuple(host for host in HOSTS if host != self.host) if is_silent else ()

    def lost_after_joining(self) -> tuple[str, ...]:
        return self.silent() if self.silent_from else ()


@pytest.fixture(scope="module")
def store() -> TCPStore:
    return open_store(("alone",), 0, 0, timeout=0, check=lambda: None)


def test_at_each_attempt_the_first_host_waits_for_all_and_opens_another_store(store: TCPStore) -> None:
    others = Others(is_first=True, comes=30.0)
    rendezvous = others.rendezvous(store)
    found = [rendezvous.next_rendezvous() for _ in range(2)]
    assert others.attempts == [0, 1]
    assert [(one.rank, one.world_size) for one in found] == [(0, 2), (0, 2)]
    places = [one.bootstrap_store_info for one in found]
    assert all(place is not None and place.master_addr == "127.0.0.1" for place in places)
    assert len({place.master_port for place in places if place}) == 2
    assert others.waited == pytest.approx(30.0, abs=0.1)
    with pytest.raises(ConnectionRefusedError):  # the store of an attempt that is over
        socket.create_connection(("127.0.0.1", cast("Any", places[0]).master_port))


def test_another_host_goes_where_the_first_one_says(store: TCPStore) -> None:
    info = Others(is_first=False).rendezvous(store).next_rendezvous()
    place = cast("Any", info.bootstrap_store_info)
    assert (info.rank, place.master_addr, place.master_port) == (1, "127.0.0.1", 4711)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_host_that_never_comes_is_lost_when_the_time_to_start_is_over(store: TCPStore, *, is_first: bool) -> None:
    others = Others(is_first=is_first, comes=float("inf"), silent=0.0)
    with pytest.raises(HostsLost, match=HOSTS[is_first]):
        others.rendezvous(store).next_rendezvous()
    assert others.waited == pytest.approx(FIRST_JOIN + 3, abs=0.2)


def test_a_host_that_lives_and_does_not_come_back_is_named(store: TCPStore) -> None:
    others = Others(is_first=True)
    rendezvous = others.rendezvous(store)
    rendezvous.next_rendezvous()
    others.comes = float("inf")
    with pytest.raises(PeerError, match=f"did not meet: {HOSTS[1]} did not join within {REJOIN_SECONDS:.0f} s"):
        rendezvous.next_rendezvous()


def test_a_host_that_falls_silent_before_the_others_have_come_is_lost_at_once(store: TCPStore) -> None:
    others = Others(is_first=True, comes=float("inf"), silent=100.0)
    with pytest.raises(HostsLost, match=HOSTS[1]):
        others.rendezvous(store).next_rendezvous()
    assert others.waited == pytest.approx(100.0 + LOST_SECONDS, abs=1.1)


def test_the_store_of_one_host_listens_on_loopback_and_that_of_several_on_the_first_ones_address() -> None:
    hosts, port = tuple(addresses(2)), free_port()
    before = listeners(os.getpid())
    alone = open_store(("algo-1",), 0, port, timeout=0, check=lambda: None)
    first = open_store(hosts, 0, port, timeout=0, check=lambda: None)
    found = {(one.address, one.port) for one in listeners(os.getpid()) - before}
    assert found == {("127.0.0.1", alone.port), (hosts[0], first.port)}
    assert first.port == port != alone.port
