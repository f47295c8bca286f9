"""What the agent does about ranks that do not end, and about a fork server that ends or stands still."""

import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.waiting import eventually
from trainbox.errors import Stopped
from trainbox.launcher.hang_rules import HangLimits
from trainbox.launcher.ranks.forkserver import MESSAGE_BYTES, ForkServer, RankStarted
from trainbox.launcher.ranks.processes import ForkServerLost, RankProcesses, RankStuck
from trainbox.system.procfs import process_state
from trainbox.system.relay import Sink

pytestmark = pytest.mark.process


class Server:
    """A process, and at the other end of its channel a thread of this one that answers for it."""

    def __init__(self, answer: Callable[[socket.socket], None], limits: HangLimits) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(["sleep", "1000"])
        self._nowhere = Path(os.devnull).open("wb")  # noqa: SIM115 - `close` closes it
        sink = Sink(self._nowhere.fileno())
        self.ranks = RankProcesses(ForkServer(self.process.pid, ours), (sink, sink), limits=limits)
        self._thread = threading.Thread(target=answer, args=(self.theirs,))
        self._thread.start()
        self._hanging_up = threading.Thread(target=self._hang_up)
        self._hanging_up.start()

    def _hang_up(self) -> None:
        """What the kernel does when a process ends; it stays a zombie, for the ranks to reap."""
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self._thread.join()
        self.theirs.close()

    def close(self) -> None:
        self.ranks.server.kill()
        self._hanging_up.join()
        self.ranks.server.wait()
        self.process.returncode = 0  # it has been reaped
        self.ranks.forget()
        self.ranks.channel.close()
        self._nowhere.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(answer: Callable[[socket.socket], None], *, step: float = 0.0, long: float = 0.0) -> Server:
        servers.append(Server(answer, HangLimits(step=step, long=long)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_a_rank_that_sigkill_does_not_end_is_named_and_waited_for_once(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other end of the channel starts it, and never says that it has ended, as with a process in state D."""
    monkeypatch.setattr("trainbox.launcher.ranks.processes._KILL_SECONDS", 0.3)
    ranks = serve(_start_one).ranks
    ranks.start(0, {})
    with pytest.raises(RankStuck, match="does not end after SIGKILL: process 4711"):
        ranks.end(0.1)
    assert ranks.alive == []
    ranks.end(60.0)  # does not wait
    assert ranks.lost is None


def test_a_fork_server_that_dies_before_it_reads_its_orders_is_named_with_the_signal(
    serve: Callable[..., Server],
) -> None:
    """As where the kernel kills it meanwhile."""
    server = serve(_read_nothing)
    server.process.kill()
    with pytest.raises(
        ForkServerLost, match=rf"the fork server \(process {server.process.pid}\).* was killed by SIGKILL"
    ):
        server.ranks.start(0, {})
    assert server.ranks.lost is not None
    assert "often the kernel" in server.ranks.lost.hint
    with pytest.raises(ForkServerLost, match="SIGKILL"):  # and for the next one there is none, either
        server.ranks.start(1, {})


def test_a_fork_server_that_starts_no_rank_is_ended(serve: Callable[..., Server]) -> None:
    server = serve(_read_nothing, step=0.1, long=0.3)
    with pytest.raises(ForkServerLost, match="which starts the ranks, did not start a rank within 0 s"):
        server.ranks.start(0, {})
    assert server.ranks.server.wait() == -signal.SIGKILL


def test_a_fork_server_that_is_stopped_while_it_imports_has_the_limit_of_a_step(serve: Callable[..., Server]) -> None:
    server = serve(_read_nothing, step=0.3, long=1000.0)
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ForkServerLost, match=r"was stopped for [\d.]+ s and was ended; its ranks ended with it"):
        server.ranks.start(0, {})


def test_a_fork_server_that_is_stopped_while_ranks_run_is_ended_and_they_with_it(serve: Callable[..., Server]) -> None:
    server = serve(_start_one, step=0.3)
    server.ranks.start(0, {})
    server.process.send_signal(signal.SIGSTOP)
    while not server.ranks.lost:
        server.ranks.turn(0.1)
    assert "was stopped for" in str(server.ranks.lost)
    assert server.ranks.all[0].code == -signal.SIGKILL
    assert signal.SIGKILL in server.ranks.all[0].asked, "the rank has not failed by itself"


def test_a_fork_server_may_be_stopped_for_as_long_as_it_takes_where_the_limit_is_0(
    serve: Callable[..., Server],
) -> None:
    server = serve(_start_one)
    server.ranks.start(0, {})
    server.process.send_signal(signal.SIGSTOP)
    for _ in range(30):
        server.ranks.turn(0.05)
    assert server.ranks.lost is None


def test_a_stopped_fork_server_is_not_taken_for_ranks_that_do_not_end(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainbox.launcher.ranks.processes._KILL_SECONDS", 0.3)
    server = serve(_start_one, step=1000.0)
    server.ranks.start(0, {})
    server.process.send_signal(signal.SIGSTOP)
    eventually(lambda: process_state(server.process.pid) == "T", "a stopped server")
    server.ranks.end(0.1)
    assert "is stopped" in str(server.ranks.lost)


def test_a_stop_does_not_wait_for_a_fork_server_that_still_imports(serve: Callable[..., Server]) -> None:
    """It comes when the server has been asked for a rank; nothing starts after it, either."""
    servers: list[Server] = []

    def stop_when_asked(channel: socket.socket) -> None:
        _read_nothing(channel)
        servers[0].ranks.stop(signal.SIGTERM)

    servers.append(server := serve(stop_when_asked))
    with pytest.raises(Stopped, match="stopped by SIGTERM before the ranks were started"):
        server.ranks.start(0, {})
    assert server.ranks.alive == []
    server.ranks.end(60.0)  # does not wait
    with pytest.raises(Stopped):
        server.ranks.start(1, {})


def _read_nothing(channel: socket.socket) -> None:
    select.select([channel], [], [])


def _start_one(channel: socket.socket) -> None:
    _, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    channel.send(msgspec.json.encode(RankStarted(0, 4711)))
