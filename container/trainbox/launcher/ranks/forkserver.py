"""The fork server: a process with torch imported forks a rank in milliseconds, where a new Python takes seconds.

It is forked from the agent before the agent has threads, has one thread itself, and never touches a GPU: a CUDA context
does not survive a fork. The agent sends requests through a socket and receives every end as an event; only the server
signals and reaps ranks, so that no signal can reach a process that has reused a rank's id. If agent or server dies, all
ranks die.
"""

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec

from trainbox.errors import INTERNAL_EXIT_CODE
from trainbox.system.procfs import read_stats

#: prctl(2)
_PR_SET_PDEATHSIG = 1
#: Far more than one message: a rank's own variables are a few hundred bytes.
MESSAGE_BYTES = 64 * 1024
#: Processes of multiprocessing and torch that outlive their parent to clean up after it.
_TIDY = (b"multiprocessing.resource_tracker", b"torch_shm_manager")
#: The agent forwards them to the ranks; the server ignores them.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StartRank(msgspec.Struct, frozen=True, tag=True):
    """A request to fork a rank; its stdout and stderr come with the message."""

    local_rank: int
    variables: dict[str, str]


class SignalRank(msgspec.Struct, frozen=True, tag=True):
    """A request to signal a rank, or all processes of its session, which are those it has started."""

    local_rank: int
    number: int
    session: bool = False


class RankStarted(msgspec.Struct, frozen=True, tag=True):
    """The event that a rank runs."""

    local_rank: int
    pid: int


class RankEnded(msgspec.Struct, frozen=True, tag=True):
    """The event that a rank has ended: its exit code, or below 0 the signal that killed it."""

    local_rank: int
    pid: int
    code: int


Request = StartRank | SignalRank
Event = RankStarted | RankEnded


class ForkServer:
    """The fork server as the agent, its parent, sees it.

    Args:
        pid: Its process id.
        channel: The socket for requests and events.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self._code: int | None = None

    def kill(self) -> None:
        """Kill the server, and with it all ranks."""
        if self._code is None:  # not reaped: the id is still its own
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; return its exit code, below 0 for a signal."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent dies; exit at once if it has died already.

    Args:
        parent: Its process id, known before the fork.
        number: The signal.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(INTERNAL_EXIT_CODE)


def fork_server(prepare: Callable[[], None]) -> ForkServer | StartRank:
    """Fork the server from a process without threads.

    Args:
        prepare: What the server imports while the agent goes on.

    Returns:
        In the agent: the server. In each rank: the request to start it. It never returns in the server, which exits
        when the agent does.
    """
    agent = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return ForkServer(pid, ours)
    ours.close()
    die_with(agent)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    prepare()
    gc.collect()
    # Else the first collection of each rank copies every page with an object, 0.3 s and 80 MB: `bench-torch`, kills.
    gc.freeze()
    gc.enable()
    return _Server(theirs).serve()


class _Server:
    """The loop of the fork server."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pid = os.getpid()
        self.ranks: dict[int, int] = {}
        self.wakeup, self._wakeup_end = os.pipe()
        for end in (self.wakeup, self._wakeup_end):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)

    def serve(self) -> StartRank:
        while True:
            ready, _, _ = select.select([self.channel.fileno(), self.wakeup], [], [])
            if self.wakeup in ready:
                os.read(self.wakeup, 4096)
                self._reap()
            if self.channel.fileno() in ready:
                rank = self._answer()
                if rank is not None:
                    return rank

    def _answer(self) -> StartRank | None:
        """Handle a request of the agent; in a rank that was forked for it, return the request."""
        message, descriptors, _, _ = socket.recv_fds(self.channel, MESSAGE_BYTES, 2)
        if not message:  # the agent has ended: a rank must not run without it
            for pid in tuple(self.ranks.values()):
                end_session(pid)
            os._exit(0)
        request: Request = msgspec.json.decode(message, type=Request)
        if isinstance(request, SignalRank):
            self._signal(request)
            return None
        # A stop signal must wait until the rank has the default action back: before that it would be ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        pid = os.fork()
        if not pid:
            self._become_rank(descriptors)
            return request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for descriptor in descriptors:
            os.close(descriptor)
        self.ranks[request.local_rank] = pid
        self._tell(RankStarted(request.local_rank, pid))
        return None

    def _become_rank(self, descriptors: list[int]) -> None:
        die_with(self.pid)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.channel.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in zip((nothing, *descriptors), (0, 1, 2), strict=True):
            os.dup2(source, target)
        for descriptor in (nothing, *descriptors, self.wakeup, self._wakeup_end):
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _signal(self, request: SignalRank) -> None:
        pid = self.ranks.get(request.local_rank)
        if pid is None:
            return
        if request.session:
            end_session(pid, request.number)
        else:
            os.kill(pid, request.number)  # our child, and not reaped: the id is still its own

    def _reap(self) -> None:
        for local_rank, pid in tuple(self.ranks.items()):
            state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is None:
                continue
            code = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
            del self.ranks[local_rank]
            self._tell(RankEnded(local_rank, pid, code))
            if code:  # its data loaders would hold its connections; after a success the supervisor ends what is left
                end_session(pid)
            os.waitpid(pid, 0)  # only now: until here no other process can have its id

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(OSError):  # the agent has ended: the next read shows it
            self.channel.send(msgspec.json.encode(event))


def _note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; without a handler SIGCHLD would not reach the wake-up pipe."""


def end_session(leader: int, number: int = signal.SIGKILL) -> None:
    """Signal every process of a session: what a rank starts may change its process group, but not its session.

    Processes that unlink the shared memory of dead ones are spared; they end when all others have.
    """
    for pid, stat in read_stats():
        with contextlib.suppress(OSError):  # it has ended since
            if stat.session == leader and not _tidies(pid):
                os.kill(pid, number)


def _tidies(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return any(name in command for name in _TIDY)


def flush() -> None:
    """Flush stdout and stderr before a fork: buffered output would be written twice."""
    sys.stdout.flush()
    sys.stderr.flush()
