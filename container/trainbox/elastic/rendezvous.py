"""How the agents of a job meet in a store on the first host, and the ranks of every attempt in one of their own.

The hosts are fixed, so there is nothing to negotiate: at each attempt every host says that it is ready, and then the
first one says where the ranks meet. Both are JSON (`Council`). Elastic's own c10d rendezvous keeps its state in the
store as a pickle, which every agent loads: whoever reaches the store could run code on all hosts.

The ranks' store is fresh each time because `init_process_group` writes the same keys into it at each attempt: in a
store that is used again, a fast rank reads the address of a dead one (pytorch #135712; 7 to 9 of 10 restarts failed by
it). It is the agent's, not rank 0's: so it outlives rank 0, and ranks that end later do not fail for it.
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
from trainbox.elastic.council import BEAT_SECONDS, Council, HostLost, MeetingPlace
from trainbox.errors import PeerError
from trainbox.peers.sockets import serve_store

#: Longer than any answer of a host that lives.
STORE_TIMEOUT = dt.timedelta(seconds=20)
#: All hosts live and have agreed on the restart: one that does not come within this time is lost.
REJOIN_SECONDS = 40.0
_TRY_SECONDS = 2.0
#: For a try: to look a name up, to connect, and to wait for the next.
_LONGEST_TRY_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
_READY = "ready"
_WAIT_SECONDS = 0.02
#: The ranks of one host need no name of it that can be looked up, and nobody else reaches them there.
_HERE = "127.0.0.1"


def open_store(
    hosts: tuple[str, ...], host_rank: int, port: int, *, timeout: float, check: Callable[[], None]
) -> TCPStore:
    """The store of the agents: the server on the first host, a client on the others.

    It listens on the address of the first host alone; on 127.0.0.1 if there is no other host.

    Args:
        hosts: All hosts of the job.
        host_rank: The place of this one.
        port: Where the first host listens; one host alone takes any free port.
        timeout: Seconds to wait for the first host.
        check: Raises if the wait shall end.

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
                hint="the variable MASTER_PORT names another"
                if is_taken
                else f"the name {hosts[0]} must have an address of this host, which the other hosts reach",
            ) from error
    _wait_for(hosts[0], port, timeout, check)
    try:
        return TCPStore(hosts[0], port, is_master=False, timeout=STORE_TIMEOUT)
    except (DistNetworkError, RuntimeError) as error:
        raise PeerError(f"{hosts[0]}:{port} is not the store of this job: {error}") from error


def meeting_address(hosts: tuple[str, ...]) -> str:
    """Pure: where the stores of a job listen: on the first host, or on loopback where there is no other host."""
    return _HERE if len(hosts) == 1 else hosts[0]


def _wait_for(host: str, port: int, timeout: float, check: Callable[[], None]) -> None:
    """Torch's own client waits deaf to signals, and fills the log."""
    waiting = wait_from(time.monotonic(), timeout)
    while True:
        check()
        waiting = waiting.look(time.monotonic(), pause=_LONGEST_TRY_SECONDS)  # before: a last try may still succeed
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
    """All hosts of a job meet at each attempt; after that the ranks find a fresh store, served by the first host.

    Args:
        council: All hosts.
        store: Of the agents.
        run_id: Which job.
        first_join: Seconds until all must have come for the first time: others may still be loading their code. A
            restart has no excuse for being late.
        clock: The time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        council: Council,
        store: TCPStore,
        run_id: str,
        *,
        first_join: float,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._council = council
        self._store = store
        self._run_id = run_id
        self._join_seconds = first_join
        self._clock = clock
        self._sleep = sleep
        self._attempt = 0
        self._server: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other hosts, and say where the ranks meet.

        Raises:
            HostLost: A host has not come, and shows no sign of life.
            PeerError: A host lives and has not come.
        """
        self._council.begin(self._attempt)
        place = self._meet()
        keys = PrefixStore(f"elastic {self._attempt}", self._store)
        self._attempt += 1
        self._join_seconds = REJOIN_SECONDS
        hosts = self._council.hosts
        return RendezvousInfo(
            keys, hosts.index(self._council.host), len(hosts), RendezvousStoreInfo(place.address, place.port)
        )

    def _meet(self) -> MeetingPlace:
        council, began = self._council, self._clock()
        council.arrive(_READY)
        look_at = began + BEAT_SECONDS
        while True:
            if council.is_first and council.all_at(_READY):
                council.appoint(self._open_ranks_store())
            place = council.meeting_place()
            if place is not None:
                return place
            now = self._clock()
            if now - began >= self._join_seconds:
                raise self._who_did_not_come()
            if council.is_first and now >= look_at:
                look_at = now + BEAT_SECONDS
                if lost := council.fallen_silent():
                    raise HostLost(*lost)
            self._sleep(_WAIT_SECONDS)

    def _open_ranks_store(self) -> MeetingPlace:
        address = meeting_address(self._council.hosts)
        # The last one goes only now: ranks that were slow to leave have had it until here.
        self._server = serve_store(address, 0, timeout=STORE_TIMEOUT)
        return MeetingPlace(address, self._server.port)

    def _who_did_not_come(self) -> HostLost | PeerError:
        """Hosts that have not come and have stopped counting are lost."""
        council = self._council
        missing = council.absent(_READY) or council.hosts[:1]  # the first one has not said where the ranks meet
        council.silent()
        self._sleep(3 * BEAT_SECONDS)
        silent = set(council.silent(2 * BEAT_SECONDS))
        if lost := tuple(host for host in missing if host in silent):
            return HostLost(*lost)
        names = ", ".join(missing)
        return PeerError(
            f"the hosts of the job did not meet: {names} did not come within {self._join_seconds:.0f} s",
            hint=f"see the log of {names}",
        )

    # -- what elastic asks for besides -----------------------------------------------------------------------------

    def get_backend(self) -> str:
        """Elastic's name of it, for its events."""
        return "static"

    @property
    def use_agent_store(self) -> bool:
        """Whether ranks are clients of a store that the agent serves."""
        return True

    def num_nodes_waiting(self) -> int:
        """Always none: hosts agree on a restart before they meet again, and no other host can ever come."""
        return 0

    def get_run_id(self) -> str:
        """Which job it is."""
        return self._run_id

    def is_closed(self) -> bool:
        """Never: how a job ends is told by the council."""
        return False

    def set_closed(self) -> None:
        """Nothing to do."""

    def shutdown(self) -> bool:
        """Nothing to do."""
        return True
