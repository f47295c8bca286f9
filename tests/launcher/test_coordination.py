"""What hosts tell each other through their store, by a clock that the test moves: silence, and the end of a job."""

import datetime as dt
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")

from torch._C._distributed_c10d import PrefixStore, TCPStore

from tests.support.waiting import eventually
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.diagnostics.verdict import Verdict
from trainbox.launcher.coordination import LOST_SECONDS, CoordinationStore, HostsLost

pytestmark = pytest.mark.process

HOSTS = ("a", "b")


class Hosts:
    """The store as the first host, whose clock the test moves, sees it, and what the second one has written in it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=dt.timedelta(seconds=20))
        self.first = CoordinationStore(self.store, HOSTS, 0, clock=lambda: self.now)
        self.beats = 0
        self.beat()

    def beat(self) -> None:
        self.beats += 1
        PrefixStore("trainbox", self.store).set("alive/b", str(self.beats))

    def pass_time(self, seconds: int, *, beats: bool) -> tuple[str, ...]:
        """The hosts that are silent after so many looks, a second apart."""
        silent: tuple[str, ...] = ()
        for _ in range(seconds):
            self.now += 1.0
            if beats:
                self.beat()
            self.first.beat()
            silent = self.first.silent()
        return silent


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.first.close()


def test_a_host_is_lost_that_shows_no_sign_of_life_for_the_limit(hosts: Hosts) -> None:
    assert hosts.pass_time(3 * int(LOST_SECONDS), beats=True) == ()
    assert hosts.first.has_recent_heartbeats()
    assert hosts.pass_time(int(LOST_SECONDS), beats=False) == ()
    assert not hosts.first.has_recent_heartbeats(), "its ranks cannot be compared with those of others any more"
    assert hosts.pass_time(1, beats=False) == ("b",)
    assert hosts.pass_time(1, beats=True) == ()


def test_a_host_that_was_stopped_itself_gives_the_others_their_time_anew(hosts: Hosts) -> None:
    hosts.pass_time(1, beats=True)
    hosts.now += 3600.0
    assert hosts.pass_time(int(LOST_SECONDS), beats=False) == ()
    assert hosts.pass_time(2, beats=False) == ("b",)


def test_a_host_knows_that_it_was_stopped_itself_and_for_how_long(hosts: Hosts) -> None:
    hosts.now += 3.0  # a busy machine
    assert hosts.first.pause == 0.0
    hosts.now += 45.0
    eventually(lambda: hosts.first.pause > 0.0, "the guard's look at the clock")
    assert hosts.first.pause >= 45.0


def test_how_the_job_ends_is_what_a_host_has_said_first(hosts: Hosts) -> None:
    assert hosts.first.find_end() is None
    client = TCPStore("127.0.0.1", hosts.store.port, is_master=False, timeout=dt.timedelta(seconds=20))
    woken: list[int] = []
    second = CoordinationStore(client, HOSTS, 1, on_end=lambda: woken.append(1))
    said = hosts.first.end(Verdict(Diagnosis("algorithm", "the fork server was killed", 137, host="a")))
    eventually(lambda: bool(woken), "the other host to hear of it")
    assert second.ended == said == second.end(Verdict(Diagnosis("algorithm", "something later", 1, host="b")))
    assert hosts.first.end(Verdict(Diagnosis("algorithm", "something else", 1))) == said
    second.leave()
    hosts.first.leave()  # all have left: it does not wait
    second.close()


def test_a_store_that_is_gone_means_that_its_host_is_lost(hosts: Hosts) -> None:
    client = TCPStore("127.0.0.1", hosts.store.port, is_master=False, timeout=dt.timedelta(seconds=20))
    second = CoordinationStore(client, HOSTS, 1)
    second.close()
    hosts.first.close()
    del hosts.store, hosts.first._store, hosts.first._round
    with pytest.raises(HostsLost, match="a"):
        second.find_end()
