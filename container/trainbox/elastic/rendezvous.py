"""How the agents of a job meet in a store on the first host, and the ranks of every attempt in one of their own.

The agents meet by torch elastic's c10d rendezvous. The ranks' store is fresh each time because `init_process_group`
writes the same keys into it at each attempt: in a store that is used again, a fast rank reads the address of a dead one
(pytorch #135712; 7 to 9 of 10 restarts failed by it). It is the agent's, not rank 0's: so it outlives rank 0, and ranks
that end later do not fail for it.
"""

import datetime as dt
import socket
import time
from collections.abc import Callable

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistNetworkError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from trainbox.clock import wait_from
from trainbox.errors import PeerError

#: Longer than any answer of a host that lives.
STORE_SECONDS = 20.0
#: All hosts live and have agreed on the restart: one that does not come within this time is lost.
REJOIN_SECONDS = 40.0
_TRY_SECONDS = 2.0
#: For a try: to look a name up, to connect, and to wait for the next.
_LONGEST_TRY_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
_PORT_KEY = "trainbox/port"
#: The ranks of one host need no name of it that can be looked up.
_HERE = "127.0.0.1"


class JoinTimeout(RendezvousTimeout):
    """At first the others may still be loading their code; a restart has no excuse for being late."""

    def __init__(self, first: float, later: float = REJOIN_SECONDS) -> None:
        super().__init__(last_call=dt.timedelta(seconds=1), close=dt.timedelta(seconds=5))
        self._of_first = dt.timedelta(seconds=first)
        self._of_later = dt.timedelta(seconds=later)
        self.has_met = False

    @property
    def join(self) -> dt.timedelta:
        """The time within which all must have come."""
        return self._of_later if self.has_met else self._of_first


def open_store(
    hosts: tuple[str, ...], host_rank: int, port: int, *, timeout: float, check: Callable[[], None]
) -> TCPStore:
    """The store of the agents: the server on the first host, a client on the others.

    Args:
        hosts: All hosts of the job.
        host_rank: The place of this one.
        port: Where the first host listens; one host alone takes any free port.
        timeout: Seconds to wait for the first host.
        check: Raises if the wait shall end.

    Raises:
        PeerError: The first host does not answer, or its port is taken.
    """
    patience = dt.timedelta(seconds=STORE_SECONDS)
    if host_rank == 0:
        address, port = (_HERE, 0) if len(hosts) == 1 else (hosts[0], port)
        try:
            return TCPStore(address, port, is_master=True, wait_for_workers=False, timeout=patience)
        except (DistNetworkError, RuntimeError) as error:
            raise PeerError(
                f"port {port} of {hosts[0]} cannot be opened for the hosts of the job: {error}",
                hint="the variable MASTER_PORT names another",
            ) from error
    _wait_for(hosts[0], port, timeout, check)
    try:
        return TCPStore(hosts[0], port, is_master=False, timeout=patience)
    except (DistNetworkError, RuntimeError) as error:
        raise PeerError(f"{hosts[0]}:{port} is not the store of this job: {error}") from error


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


class AttemptStores(RendezvousHandler):
    """A rendezvous after which the ranks find a fresh store, served by the agent of the first host.

    Args:
        store: The store of the agents.
        address: Where the first host is reached.
        run_id: Which job.
        inner: How several hosts meet; one alone need not wait for anybody.
        join_timeout: How long `inner` waits.
    """

    def __init__(
        self,
        store: Store,
        address: str,
        run_id: str,
        inner: DynamicRendezvousHandler | None = None,
        join_timeout: JoinTimeout | None = None,
    ) -> None:
        self._store = store
        self._address = address
        self._run_id = run_id
        self._inner = inner
        self._join_timeout = join_timeout
        self._rounds = 0
        self._server: TCPStore | None = None

    def get_backend(self) -> str:
        """Elastic's name of it."""
        return "c10d"

    @property
    def use_agent_store(self) -> bool:
        """Whether ranks are clients of a store that the agent serves."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other hosts, and say where the ranks meet."""
        store, rank, world_size = self._meet()
        meeting_point = PrefixStore(_PORT_KEY, store)
        if rank == 0:
            # The last one goes only now: ranks that were slow to leave have had it until here.
            self._server = TCPStore(self._address, 0, is_master=True, wait_for_workers=False)
            meeting_point.set("port", str(self._server.port))
        port = int(meeting_point.get("port"))
        return RendezvousInfo(store, rank, world_size, RendezvousStoreInfo(self._address, port))

    def _meet(self) -> tuple[Store, int, int]:
        self._rounds += 1
        if self._inner is None:
            return PrefixStore(f"round {self._rounds}", self._store), 0, 1
        info = self._inner.next_rendezvous()
        if self._join_timeout is not None:
            self._join_timeout.has_met = True
        return info.store, info.rank, info.world_size

    def is_closed(self) -> bool:
        """Whether nobody may join any more."""
        return self._inner is not None and bool(self._inner.is_closed())

    def set_closed(self) -> None:
        """Let nobody join any more."""
        if self._inner is not None:
            self._inner.set_closed()

    def num_nodes_waiting(self) -> int:
        """Always none: hosts agree on a restart before they meet again, and no other host can ever come."""
        return 0

    def get_run_id(self) -> str:
        """Which job it is."""
        return self._run_id

    def shutdown(self) -> bool:
        """Stop the heartbeats."""
        return self._inner is None or bool(self._inner.shutdown())


def meeting(store: Store, hosts: tuple[str, ...], host_rank: int, *, run_id: str, first_join: float) -> AttemptStores:
    """The rendezvous of one host, for a job whose hosts are all known.

    Args:
        store: The store of the agents.
        hosts: All hosts.
        host_rank: The place of this one; the ranks follow it.
        run_id: Which job.
        first_join: Seconds until all must have come for the first time.
    """
    if len(hosts) == 1:
        return AttemptStores(store, _HERE, run_id)
    join_timeout = JoinTimeout(first_join)
    inner = DynamicRendezvousHandler.from_backend(
        run_id=run_id,
        store=store,
        backend=C10dRendezvousBackend(store, run_id),
        min_nodes=len(hosts),
        max_nodes=len(hosts),
        local_addr=f"{host_rank:06d}.{hosts[host_rank]}",  # elastic gives out ranks in the order of this text
        timeout=join_timeout,
    )
    return AttemptStores(store, hosts[0], run_id, inner, join_timeout)
