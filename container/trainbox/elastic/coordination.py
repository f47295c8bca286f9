"""What the agents of all hosts tell each other through their store, so that all come to one verdict.

Every attempt of the ranks has its own keys. Whoever sees trouble raises the alarm; everybody ends its ranks and
reports; the first host, whose agent serves the store, judges. A host shows that it lives by counting up every second.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError

from trainbox.clock import AwakeClock, Silence
from trainbox.contract.diagnosis import diagnose_error
from trainbox.contract.finding import Finding
from trainbox.contract.verdict import RankFailure, Verdict
from trainbox.elastic.hang_rules import Standing
from trainbox.errors import PeerError
from trainbox.launch.network import Facts

T = TypeVar("T")

BEAT_SECONDS = 1.0
#: A host that has not counted for this long is lost; long enough for a network that stalls.
LOST_SECONDS = 20.0
#: A host that was itself stopped for so long, and within so many seconds from now, may be the one that was given up.
_LONG_PAUSE = LOST_SECONDS / 2
_RECENT = 3 * LOST_SECONDS
#: What is known of the ranks of a host that has been silent for longer is too old to compare it with that of others.
_FRESH_SECONDS = 3 * BEAT_SECONDS
#: How long the first host serves its store to hosts that live and have not said that they need it no more.
LEAVE_SECONDS = 30.0
_WAIT_SECONDS = 0.05


class HostLost(Exception):  # noqa: N818 - what has happened, not a defect
    """A host does not answer.

    Args:
        hosts: Its name, or theirs.
    """

    def __init__(self, *hosts: str) -> None:
        super().__init__(", ".join(hosts))
        self.hosts = hosts


class Alarm(msgspec.Struct, frozen=True):
    """The ranks of all hosts must end: one has failed, or one hangs."""

    host: str
    #: The rank that hangs, and what is said of it.
    hanging: int | None = None
    why: str = ""


class MeetingPlace(msgspec.Struct, frozen=True):
    """Where the ranks of an attempt find their store."""

    address: str
    port: int


class Report(msgspec.Struct, frozen=True):
    """How the ranks of a host have ended."""

    host: str
    failures: tuple[RankFailure, ...] = ()
    #: The signal by which it has been asked to stop, or 0: after one nothing starts again.
    stopping: int = 0
    #: What its GPUs have reported.
    findings: tuple[Finding, ...] = ()
    #: Where ranks of this host could not reach others: what may be the reason; and what is held against other hosts.
    facts: Facts | None = None
    versions: Mapping[str, str] = {}


class Council:
    """The store as one host uses it.

    Args:
        store: That of the agents.
        hosts: All hosts of the job.
        host_rank: The place of this one.
        on_end: Called by a thread when another host has ended the job; `ended` says how.
        clock: The time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        store: TCPStore,
        hosts: tuple[str, ...],
        host_rank: int,
        *,
        on_end: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.hosts = hosts
        self.host = hosts[host_rank]
        self.is_first = host_rank == 0
        #: How the job has ended, where a host said so outside of the verdict on an attempt.
        self.ended: Verdict | None = None
        self._on_end = on_end
        self._store = PrefixStore("trainbox", store)
        self._round: Store = self._store
        self._silence = Silence[str](AwakeClock(clock))
        self._silent: dict[str, float] = {}
        self._clock = clock
        self._sleep = sleep
        #: Asked by `_guard` alone, which never waits for anybody: its pauses are those of the whole process.
        self._awake = AwakeClock(clock)
        self._beats = 0
        self._port = store.port
        self._is_asking = False
        self._closing = threading.Event()
        self.beat()
        # From now on, not from the first meeting: a host that waits for one that never comes is not lost itself.
        works = (self._beat_on, self._guard) if len(hosts) > 1 else ()
        self._threads = tuple(threading.Thread(target=work, daemon=True) for work in works)
        for thread in self._threads:
            thread.start()

    def begin(self, attempt: int) -> None:
        """Leave the keys of the attempt before; all hosts do it once they have heard the verdict on that."""
        self._round = PrefixStore(f"attempt {attempt}", self._store)

    # -- signs of life ---------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Show that this host lives."""
        self._beats += 1
        self._call(lambda: self._store.set(f"alive/{self.host}", str(self._beats)))

    def _beat_on(self) -> None:
        with contextlib.suppress(HostLost):  # the main thread finds out as well, and says so
            while not self._closing.wait(BEAT_SECONDS):
                self._is_asking = True
                self.beat()
                if self.ended is None and self.find_end() is not None:
                    self._on_end()
                self._is_asking = False

    def _guard(self) -> None:
        """Cut the connection to a store that answers no more: a read of torch's client has no limit of its own.

        The threads share one connection, and a beat waits until the call before it is answered.
        """
        silence = Silence[str](self._awake)
        while not self._closing.wait(BEAT_SECONDS):
            seconds = silence.seconds({"store": (self._beats, self._is_asking)})["store"]
            if self._is_asking and seconds > LOST_SECONDS:
                _cut(self._port)
                return

    def close(self) -> None:
        """End the signs of life."""
        self._closing.set()
        for thread in self._threads:
            thread.join(LOST_SECONDS)

    def silent(self, seconds: float = LOST_SECONDS) -> tuple[str, ...]:
        """Hosts that have shown no new sign of life for so long, as far as it has been looked for by calls of this."""
        beats = {host: self._get(f"alive/{host}", self._store) for host in self.hosts}
        self._silent = self._silence.seconds(beats)
        return tuple(host for host, silent in self._silent.items() if silent > seconds)

    def fallen_silent(self) -> tuple[str, ...]:
        """Those of `silent` that have come: they had shown signs of life before."""
        return tuple(host for host in self.silent() if self._get(f"alive/{host}", self._store) is not None)

    def hears_all(self) -> bool:
        """Whether every host has shown a sign of life a moment ago, by the last call of `silent`."""
        return all(seconds <= _FRESH_SECONDS for seconds in self._silent.values())

    @property
    def pause(self) -> float:
        """Seconds for which this host itself did not run, lately and so long that others may have given it up."""
        is_recent = self._clock() - self._awake.paused_until < _RECENT
        return self._awake.pause if is_recent and self._awake.pause > _LONG_PAUSE else 0.0

    # -- the end of the job ----------------------------------------------------------------------------------------

    def end(self, verdict: Verdict) -> Verdict:
        """End the job on all hosts; the verdict of the host that said so first."""
        if self.find_end() is None:
            said = msgspec.json.encode(verdict).decode()
            first = self._call(lambda: self._store.compare_set("ended", "", said))
            self._hear_end(first)
        return self.ended or verdict

    def find_end(self) -> Verdict | None:
        """How a host has ended the job, if one has."""
        if self.ended is None:
            found = self._get("ended", self._store)
            if found is not None:
                self._hear_end(found)
        return self.ended

    def _hear_end(self, found: bytes) -> None:
        try:
            self.ended = self._read("ended", found, Verdict)
        except PeerError as error:  # a thread hears of it, too: it is how the job ends
            self.ended = Verdict(diagnose_error(error, self.host))

    def leave(self, lost: Sequence[str] = (), *, come_seconds: float = LEAVE_SECONDS) -> None:
        """Report that this host needs the store no more; the first host serves it until the others do, or are gone.

        Args:
            lost: Hosts that are not waited for.
            come_seconds: For how long hosts that have yet to come are.
        """
        self._call(lambda: self._store.set(f"left/{self.host}", "1"))
        began = self._clock()
        while self.is_first and (stayed := self._clock() - began) < LEAVE_SECONDS:
            may_come = stayed < come_seconds
            here = [host for host in self.hosts if may_come or self._get(f"alive/{host}", self._store)]
            awaited = [host for host in here if host not in {*lost, *self.silent()}]
            if self._call(partial(self._store.check, [f"left/{host}" for host in awaited])):
                return
            self._sleep(_WAIT_SECONDS)

    # -- one attempt -----------------------------------------------------------------------------------------------

    def appoint(self, place: MeetingPlace) -> None:
        """Say where the ranks meet; only the first host does."""
        self._put("place", place)

    def meeting_place(self) -> MeetingPlace | None:
        """Where the ranks meet, once it has been said."""
        return self._take("place", MeetingPlace)

    def publish(self, standings: Sequence[Standing]) -> None:
        """Say where the ranks of this host are."""
        self._put(f"standings/{self.host}", tuple(standings))

    def standings(self) -> list[Standing]:
        """Where all ranks are, as far as their hosts have said it."""
        found = (self._take(f"standings/{host}", tuple[Standing, ...]) for host in self.hosts)
        return [one for of_host in found for one in of_host or ()]

    def raise_alarm(self, alarm: Alarm) -> None:
        """The first one stays."""
        if self.alarm() is None:
            self._put("alarm", alarm)

    def alarm(self) -> Alarm | None:
        """What has been raised."""
        return self._take("alarm", Alarm)

    def report(self, report: Report) -> None:
        """Say how the ranks of this host have ended."""
        self._put(f"report/{self.host}", report)

    def reports(self) -> list[Report]:
        """All that have come."""
        found = (self._take(f"report/{host}", Report) for host in self.hosts)
        return [report for report in found if report is not None]

    def judge(self, verdict: Verdict) -> None:
        """Say what is to be done; only the first host does."""
        self._put("verdict", verdict)

    def verdict(self) -> Verdict | None:
        """What is to be done, once it has been said."""
        return self._take("verdict", Verdict)

    def arrive(self, place: str) -> None:
        """Say that this host has come to a place."""
        self._call(lambda: self._round.set(f"{place}/{self.host}", "1"))

    def all_at(self, place: str) -> bool:
        """Whether every host has come there."""
        keys = [f"{place}/{host}" for host in self.hosts]
        return bool(self._call(lambda: self._round.check(keys)))

    def absent(self, place: str) -> tuple[str, ...]:
        """The hosts that have not come there."""
        return tuple(host for host in self.hosts if self._get(f"{place}/{host}", self._round) is None)

    def any_at(self, place: str) -> bool:
        """Whether any host has come there."""
        return any(self._call(partial(self._round.check, [f"{place}/{host}"])) for host in self.hosts)

    def tell_missed(self, drills: tuple[str, ...]) -> None:
        """Say which faults of this host's ranks have not happened, before this host is done."""
        self._put(f"missed/{self.host}", drills)

    def missed(self) -> tuple[str, ...]:
        """Those of all hosts that have said so."""
        found = (self._take(f"missed/{host}", tuple[str, ...]) for host in self.hosts)
        return tuple(drill for of_host in found for drill in of_host or ())

    # -- the store -------------------------------------------------------------------------------------------------

    def _put(self, key: str, value: object) -> None:
        self._call(lambda: self._round.set(key, msgspec.json.encode(value).decode()))

    def _take(self, key: str, kind: type[T]) -> T | None:
        found = self._get(key, self._round)
        return None if found is None else self._read(key, found, kind)

    def _read(self, key: str, found: bytes, kind: type[T]) -> T:
        """What comes through the store is data, of one type, whoever has written it."""
        try:
            return msgspec.json.decode(found, type=kind)
        except (ValueError, RecursionError) as error:  # text that is not UTF-8 is no DecodeError
            raise PeerError(
                f"the store of {self.hosts[0]} holds for {key!r} what no host of this job has written: {error}",
                hint=f"another program has reached port {self._port} of {self.hosts[0]}: see docs/pytorch.md, Ports",
            ) from None

    def _get(self, key: str, store: Store) -> bytes | None:
        return self._call(lambda: store.get(key) if store.check([key]) else None)

    def _call(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except (DistError, RuntimeError) as error:  # the store's connection is gone, or does not answer
            raise HostLost(self.hosts[0]) from error


def _cut(port: int) -> None:
    """Shut the connections of this process to a port down, which ends what waits for an answer with an error."""
    for path in Path("/proc/self/fd").iterdir():
        with (
            contextlib.suppress(OSError, IndexError),
            socket.fromfd(int(path.name), socket.AF_INET, socket.SOCK_STREAM) as connection,
        ):
            if connection.getpeername()[1] == port:
                connection.shutdown(socket.SHUT_RDWR)
