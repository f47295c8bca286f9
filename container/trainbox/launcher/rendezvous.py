"""Rendezvous: agents meet in a store on the first host, the ranks of each attempt in a new store of their own.

The hosts are fixed, so there is nothing to negotiate: at each attempt every host reports that it is ready, and then the
first one publishes where the ranks meet, as JSON (`CoordinationStore`). Elastic's own c10d rendezvous keeps its state
in the store as a pickle, which every agent loads: a program that reaches the store could run code on all hosts.

The ranks' store is new at each attempt because `init_process_group` writes the same keys each time: in a store that is
reused, a fast rank reads the address of a dead one (pytorch #135712; 7 to 9 of 10 restarts failed by it). The agent
serves it, not rank 0: it outlives rank 0, and ranks that end later do not fail for its end.
"""

import datetime as dt
import errno
import socket
import time
from collections.abc import Callable

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistNetworkError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from trainbox.clock import Clock, Sleep, wait_from
from trainbox.comm.sockets import serve_store
from trainbox.errors import PeerError
from trainbox.launcher.coordination import HEARTBEAT_SECONDS, CoordinationStore, HostsLost, StoreAddress

#: Longer than any answer of a live host takes.
STORE_TIMEOUT = dt.timedelta(seconds=20)
#: All hosts were alive and have agreed on the restart: one that does not join within this time is lost.
REJOIN_SECONDS = 40.0
_TRY_SECONDS = 2.0
#: The longest try: a name lookup, a connection, and the pause before the next.
_LONGEST_TRY_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
_READY = "ready"
_WAIT_SECONDS = 0.02
#: The ranks of one host need no name that resolves, and no other host reaches them there.
_HERE = "127.0.0.1"


def open_store(
    hosts: tuple[str, ...], host_rank: int, port: int, *, timeout: float, check: Callable[[], None]
) -> TCPStore:
    """Open the store of the agents: the server on the first host, a client on the others.

    It listens on the address of the first host alone; on 127.0.0.1 if there is no other host.

    Args:
        hosts: All hosts of the job.
        host_rank: The index of this host.
        port: Where the first host listens; one host alone takes any free port.
        timeout: Seconds to wait for the first host.
        check: Called during the wait; raises to end it.

    Raises:
        PeerError: The first host does not answer, or its port is taken.
    """
    if host_rank == 0:
        try:
            return serve_store(meeting_address(hosts), 0 if len(hosts) == 1 else port, timeout=STORE_TIMEOUT)
        except OSError as error:
            is_taken = error.errno == errno.EADDRINUSE
            raise PeerError(
                f"port {port} of {hosts[0]} cannot be opened for the hosts of the job: {error.strerror}",
                hint="set the variable MASTER_PORT to a free port"
                if is_taken
                else f"the name {hosts[0]} must resolve to an address of this host that the other hosts can reach",
            ) from error
    _wait_for(hosts[0], port, timeout, check)
    try:
        return TCPStore(hosts[0], port, is_master=False, timeout=STORE_TIMEOUT)
    except (DistNetworkError, RuntimeError) as error:
        raise PeerError(f"{hosts[0]}:{port} is not the store of this job: {error}") from error


def meeting_address(hosts: tuple[str, ...]) -> str:
    """Pure: return where the stores of a job listen: the first host, or loopback where there is no other host."""
    return _HERE if len(hosts) == 1 else hosts[0]


def _wait_for(host: str, port: int, timeout: float, check: Callable[[], None]) -> None:
    """Wait until the first host listens; torch's own client blocks signals meanwhile, and fills the log."""
    waiting = wait_from(time.monotonic(), timeout)
    while True:
        check()
        waiting = waiting.look(time.monotonic(), pause=_LONGEST_TRY_SECONDS)  # before the try: the last one may succeed
        try:
            socket.create_connection((host, port), timeout=_TRY_SECONDS).close()
        except OSError as error:
            if waiting.is_over:
                raise PeerError(
                    f"no agent answers at {host}:{port} after {timeout:.0f} s: {error.strerror or error}",
                    hint=f"see the log of {host}: it may have failed before its training began",
                ) from error
            time.sleep(_PAUSE_SECONDS)
        else:
            return


class Rendezvous(RendezvousHandler):
    """The rendezvous of all hosts at each attempt; the first host then serves a new store for the ranks.

    Args:
        coordination: All hosts.
        store: Of the agents.
        run_id: Which job.
        first_join: Seconds within which all hosts must join for the first time: some may still be loading their code.
            For a restart it is `REJOIN_SECONDS`.
        clock: The time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        coordination: CoordinationStore,
        store: TCPStore,
        run_id: str,
        *,
        first_join: float,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._coordination = coordination
        self._store = store
        self._run_id = run_id
        self._join_seconds = first_join
        self._clock = clock
        self._sleep = sleep
        self._attempt = 0
        self._server: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all hosts, and return where the ranks find their store.

        Raises:
            HostsLost: A host has not joined, and sends no heartbeats.
            PeerError: A host is alive and has not joined.
        """
        self._coordination.begin(self._attempt)
        place = self._meet()
        keys = PrefixStore(f"elastic {self._attempt}", self._store)
        self._attempt += 1
        self._join_seconds = REJOIN_SECONDS
        hosts = self._coordination.hosts
        return RendezvousInfo(
            keys, hosts.index(self._coordination.host), len(hosts), RendezvousStoreInfo(place.address, place.port)
        )

    def _meet(self) -> StoreAddress:
        coordination, began = self._coordination, self._clock()
        coordination.arrive(_READY)
        look_at = began + HEARTBEAT_SECONDS
        while True:
            if coordination.is_first and coordination.all_at(_READY):
                coordination.publish_store_address(self._open_ranks_store())
            place = coordination.store_address()
            if place is not None:
                return place
            now = self._clock()
            if now - began >= self._join_seconds:
                raise self._missing_hosts()
            if coordination.is_first and now >= look_at:
                look_at = now + HEARTBEAT_SECONDS
                if lost := coordination.lost_after_joining():
                    raise HostsLost(*lost)
            self._sleep(_WAIT_SECONDS)

    def _open_ranks_store(self) -> StoreAddress:
        address = meeting_address(self._coordination.hosts)
        # The store of the last attempt is closed only now: ranks that were slow to exit could use it until here.
        self._server = serve_store(address, 0, timeout=STORE_TIMEOUT)
        return StoreAddress(address, self._server.port)

    def _missing_hosts(self) -> HostsLost | PeerError:
        """Return the error for hosts that have not joined: lost if they send no heartbeats."""
        coordination = self._coordination
        missing = (
            coordination.absent(_READY) or coordination.hosts[:1]
        )  # the first one has not published where the ranks meet
        coordination.silent()
        self._sleep(3 * HEARTBEAT_SECONDS)
        silent = set(coordination.silent(2 * HEARTBEAT_SECONDS))
        if lost := tuple(host for host in missing if host in silent):
            return HostsLost(*lost)
        names = ", ".join(missing)
        return PeerError(
            f"the hosts of the job did not meet: {names} did not join within {self._join_seconds:.0f} s",
            hint=f"see the log of {names}",
        )

    # -- the rest of elastic's interface ---------------------------------------------------------------------------

    def get_backend(self) -> str:
        """Return the name that elastic uses in its events."""
        return "static"

    @property
    def use_agent_store(self) -> bool:
        """Whether the agent serves the store of the ranks."""
        return True

    def num_nodes_waiting(self) -> int:
        """Return 0: hosts agree on a restart before they meet again, and no other host can join."""
        return 0

    def get_run_id(self) -> str:
        """Return the name of the job."""
        return self._run_id

    def is_closed(self) -> bool:
        """Return False: the coordination store tells how a job ends."""
        return False

    def set_closed(self) -> None:
        """Nothing to do."""

    def shutdown(self) -> bool:
        """Nothing to do."""
        return True
