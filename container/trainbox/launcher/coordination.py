"""Coordination of the agents of all hosts through a store on the first host (the control plane of the launcher).

Each attempt has keys of its own. A host that detects a failure raises an alarm; every host ends its ranks and reports;
the first host, whose agent serves the store, publishes the verdict. A heartbeat is a counter that grows every second.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError

from trainbox.clock import AwakeClock, Silence
from trainbox.contract.failures.diagnosis import diagnose_error
from trainbox.diagnostics.verdict import Verdict
from trainbox.errors import PeerError
from trainbox.launcher.attribution import AttemptReport
from trainbox.launcher.hang_rules import RankStatus

T = TypeVar("T")

HEARTBEAT_SECONDS = 1.0
#: A host without a heartbeat for this long is lost; long enough for a network that stalls.
LOST_SECONDS = 20.0
#: A host that was itself paused for so long, within so many seconds from now, may have been declared lost.
_LONG_PAUSE = LOST_SECONDS / 2
_RECENT = 3 * LOST_SECONDS
#: The status of ranks of a host without a heartbeat for longer is too old to compare it with that of others.
_FRESH_SECONDS = 3 * HEARTBEAT_SECONDS
#: How long the first host serves its store to hosts that are alive and have not left it.
LEAVE_SECONDS = 30.0
_WAIT_SECONDS = 0.05


class HostsLost(Exception):  # noqa: N818 - what has happened, not a defect
    """A host does not answer.

    Args:
        hosts: Its name, or theirs.
    """

    def __init__(self, *hosts: str) -> None:
        super().__init__(", ".join(hosts))
        self.hosts = hosts


class JobEndedElsewhere(Exception):  # noqa: N818 - what has happened, not a defect
    """Another host has ended the job.

    Args:
        verdict: How.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.diagnosis.cause)
        self.verdict = verdict


class Alarm(msgspec.Struct, frozen=True):
    """The ranks of all hosts must end: one has failed, or one hangs."""

    host: str
    #: The rank that hangs, and a description of that.
    hanging: int | None = None
    why: str = ""


class StoreAddress(msgspec.Struct, frozen=True):
    """Where the ranks of an attempt find their own store."""

    address: str
    port: int


class CoordinationStore:
    """The store of the agents, as one host uses it.

    Args:
        store: The store.
        hosts: All hosts of the job.
        host_rank: The index of this host.
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
        #: How the job has ended, where a host has ended it outside of the verdict on an attempt.
        self.ended: Verdict | None = None
        self._on_end = on_end
        self._store = PrefixStore("trainbox", store)
        self._round: Store = self._store
        self._silence = Silence[str](AwakeClock(clock))
        self._silent: dict[str, float] = {}
        self._clock = clock
        self._sleep = sleep
        #: Read by `_guard` alone, which never blocks: its pauses are those of the whole process.
        self._awake = AwakeClock(clock)
        self._beats = 0
        self._port = store.port
        self._is_asking = False
        self._closing = threading.Event()
        self.beat()
        # From now on, not from the first rendezvous: a host that waits for another one is not lost itself.
        works = (self._beat_on, self._guard) if len(hosts) > 1 else ()
        self._threads = tuple(threading.Thread(target=work, daemon=True) for work in works)
        for thread in self._threads:
            thread.start()

    def begin(self, attempt: int) -> None:
        """Switch to the keys of an attempt; all hosts do so after the verdict on the attempt before."""
        self._round = PrefixStore(f"attempt {attempt}", self._store)

    # -- heartbeats ------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Send a heartbeat."""
        self._beats += 1
        self._call(lambda: self._store.set(f"alive/{self.host}", str(self._beats)))

    def _beat_on(self) -> None:
        with contextlib.suppress(HostsLost):  # the main thread finds out as well, and reports it
            while not self._closing.wait(HEARTBEAT_SECONDS):
                self._is_asking = True
                self.beat()
                if self.ended is None and self.find_end() is not None:
                    self._on_end()
                self._is_asking = False

    def _guard(self) -> None:
        """Cut the connection to an unresponsive store: reads of torch's client have no timeout.

        The threads share one connection, and a heartbeat waits until the call before it is answered.
        """
        silence = Silence[str](self._awake)
        while not self._closing.wait(HEARTBEAT_SECONDS):
            seconds = silence.seconds({"store": (self._beats, self._is_asking)})["store"]
            if self._is_asking and seconds > LOST_SECONDS:
                _cut(self._port)
                return

    def close(self) -> None:
        """Stop the heartbeats."""
        self._closing.set()
        for thread in self._threads:
            thread.join(LOST_SECONDS)

    def silent(self, seconds: float = LOST_SECONDS) -> tuple[str, ...]:
        """Return the hosts without a new heartbeat for so long, as seen by the calls of this method."""
        beats = {host: self._get(f"alive/{host}", self._store) for host in self.hosts}
        self._silent = self._silence.seconds(beats)
        return tuple(host for host, silent in self._silent.items() if silent > seconds)

    def lost_after_joining(self) -> tuple[str, ...]:
        """Return those of the `silent` hosts that had sent heartbeats before."""
        return tuple(host for host in self.silent() if self._get(f"alive/{host}", self._store) is not None)

    def has_recent_heartbeats(self) -> bool:
        """Whether the heartbeats of all hosts were recent at the last call of `silent`."""
        return all(seconds <= _FRESH_SECONDS for seconds in self._silent.values())

    @property
    def pause(self) -> float:
        """Seconds for which this host itself did not run, if recent and so long that it may have been declared lost."""
        is_recent = self._clock() - self._awake.paused_until < _RECENT
        return self._awake.pause if is_recent and self._awake.pause > _LONG_PAUSE else 0.0

    # -- the end of the job ----------------------------------------------------------------------------------------

    def end(self, verdict: Verdict) -> Verdict:
        """End the job on all hosts; return the verdict of the host that did so first."""
        if self.find_end() is None:
            said = msgspec.json.encode(verdict).decode()
            first = self._call(lambda: self._store.compare_set("ended", "", said))
            self._read_end(first)
        return self.ended or verdict

    def find_end(self) -> Verdict | None:
        """Return how a host has ended the job, if one has."""
        if self.ended is None:
            found = self._get("ended", self._store)
            if found is not None:
                self._read_end(found)
        return self.ended

    def _read_end(self, found: bytes) -> None:
        try:
            self.ended = self._read("ended", found, Verdict)
        except PeerError as error:  # a thread reads it, too: this is how the job ends
            self.ended = Verdict(diagnose_error(error, self.host))

    def leave(self, lost: Sequence[str] = (), *, come_seconds: float = LEAVE_SECONDS) -> None:
        """Report that this host no longer needs the store; the first host serves it until the others have left it.

        Args:
            lost: Hosts that the first host does not wait for.
            come_seconds: How long it waits for hosts that have yet to connect.
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

    def publish_store_address(self, place: StoreAddress) -> None:
        """Publish where the ranks find their store; only the first host does."""
        self._put("place", place)

    def store_address(self) -> StoreAddress | None:
        """Return where the ranks find their store, once it is published."""
        return self._take("place", StoreAddress)

    def publish_statuses(self, statuses: Sequence[RankStatus]) -> None:
        """Publish the status of the ranks of this host."""
        self._put(f"statuses/{self.host}", tuple(statuses))

    def statuses(self) -> list[RankStatus]:
        """Return the status of all ranks, as far as their hosts have published it."""
        found = (self._take(f"statuses/{host}", tuple[RankStatus, ...]) for host in self.hosts)
        return [one for of_host in found for one in of_host or ()]

    def raise_alarm(self, alarm: Alarm) -> None:
        """Raise an alarm for all hosts; the first one stays."""
        if self.alarm() is None:
            self._put("alarm", alarm)

    def alarm(self) -> Alarm | None:
        """Return the alarm that was raised, if any."""
        return self._take("alarm", Alarm)

    def report(self, report: AttemptReport) -> None:
        """Report how the ranks of this host have ended."""
        self._put(f"report/{self.host}", report)

    def reports(self) -> list[AttemptReport]:
        """Return the reports published so far."""
        found = (self._take(f"report/{host}", AttemptReport) for host in self.hosts)
        return [report for report in found if report is not None]

    def publish_verdict(self, verdict: Verdict) -> None:
        """Publish the verdict on the attempt; only the first host does."""
        self._put("verdict", verdict)

    def verdict(self) -> Verdict | None:
        """Return the verdict on the attempt, once it is published."""
        return self._take("verdict", Verdict)

    def arrive(self, barrier: str) -> None:
        """Report that this host has reached a barrier."""
        self._call(lambda: self._round.set(f"{barrier}/{self.host}", "1"))

    def all_at(self, barrier: str) -> bool:
        """Whether every host has reached a barrier."""
        keys = [f"{barrier}/{host}" for host in self.hosts]
        return bool(self._call(lambda: self._round.check(keys)))

    def absent(self, barrier: str) -> tuple[str, ...]:
        """Return the hosts that have not reached a barrier."""
        return tuple(host for host in self.hosts if self._get(f"{barrier}/{host}", self._round) is None)

    def any_at(self, barrier: str) -> bool:
        """Whether any host has reached a barrier."""
        return any(self._call(partial(self._round.check, [f"{barrier}/{host}"])) for host in self.hosts)

    def report_missed(self, drills: tuple[str, ...]) -> None:
        """Report which faults were not injected into ranks of this host, before this host is done."""
        self._put(f"missed/{self.host}", drills)

    def missed(self) -> tuple[str, ...]:
        """Return the faults that were not injected, of all hosts that have reported them."""
        found = (self._take(f"missed/{host}", tuple[str, ...]) for host in self.hosts)
        return tuple(drill for of_host in found for drill in of_host or ())

    # -- the store -------------------------------------------------------------------------------------------------

    def _put(self, key: str, value: object) -> None:
        self._call(lambda: self._round.set(key, msgspec.json.encode(value).decode()))

    def _take(self, key: str, kind: type[T]) -> T | None:
        found = self._get(key, self._round)
        return None if found is None else self._read(key, found, kind)

    def _read(self, key: str, found: bytes, kind: type[T]) -> T:
        """Decode a value as data of one type: another program may have written it."""
        try:
            return msgspec.json.decode(found, type=kind)
        except (ValueError, RecursionError) as error:  # text that is not UTF-8 is no DecodeError
            raise PeerError(
                f"the store of {self.hosts[0]} holds a value for {key!r} that no host of this job has written: {error}",
                hint=f"another program has reached port {self._port} of {self.hosts[0]}: see docs/pytorch.md, Ports",
            ) from None

    def _get(self, key: str, store: Store) -> bytes | None:
        return self._call(lambda: store.get(key) if store.check([key]) else None)

    def _call(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except (DistError, RuntimeError) as error:  # the connection to the store is lost, or the store does not answer
            raise HostsLost(self.hosts[0]) from error


def _cut(port: int) -> None:
    """Shut down the connections of this process to a port: reads that wait for an answer fail."""
    for path in Path("/proc/self/fd").iterdir():
        with (
            contextlib.suppress(OSError, IndexError),
            socket.fromfd(int(path.name), socket.AF_INET, socket.SOCK_STREAM) as connection,
        ):
            if connection.getpeername()[1] == port:
                connection.shutdown(socket.SHUT_RDWR)
