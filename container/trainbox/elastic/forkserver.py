"""A process that has torch imported and forks a rank of it in milliseconds, where a new Python takes seconds.

It is forked from the agent before that has a thread, has one thread itself, and never touches a GPU: a CUDA context
does not survive a fork. The agent asks through a socket and hears of every end; the server alone signals and reaps
ranks, so that no signal can meet a process that has taken over a rank's number. If either dies, all ranks die.
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
from trainbox.procfs import read_stats

#: prctl(2)
_PR_SET_PDEATHSIG = 1
#: Far more than one message: a rank's own variables are a few hundred bytes.
MESSAGE_BYTES = 64 * 1024
#: Processes of multiprocessing and torch that outlive their parent to clean up behind it.
_TIDY = (b"multiprocessing.resource_tracker", b"torch_shm_manager")
#: For the agent: it passes them on to the ranks, and the server ignores them.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Start(msgspec.Struct, frozen=True, tag=True):
    """Fork a rank; its stdout and stderr come with the message."""

    local_rank: int
    variables: dict[str, str]


class Signal(msgspec.Struct, frozen=True, tag=True):
    """Send a signal to a rank, or to all processes of its session, which are those it has started."""

    local_rank: int
    number: int
    session: bool = False


class Started(msgspec.Struct, frozen=True, tag=True):
    """A rank runs."""

    local_rank: int
    pid: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A rank has ended, with this exit code, or killed by this signal where it is below 0."""

    local_rank: int
    pid: int
    code: int


Request = Start | Signal
Event = Started | Ended


class ForkServer:
    """The server as the agent, its parent, sees it.

    Args:
        pid: Its process id.
        channel: The socket to ask through.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self._code: int | None = None

    def kill(self) -> None:
        """End it, and with it all ranks."""
        if self._code is None:  # not reaped: the number is still its own
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code once it has ended, below 0 for a signal."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send a signal when the parent dies, and leave at once if it has died already.

    Args:
        parent: Its process id, known before the fork.
        number: The signal.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(INTERNAL_EXIT_CODE)


def fork_server(prepare: Callable[[], None]) -> ForkServer | Start:
    """Fork the server from a process without threads.

    Args:
        prepare: What the server imports while the agent goes on.

    Returns:
        In the agent: the server. In each rank: what it was asked to be. It never returns in the server itself, which
        leaves when the agent does.
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
    gc.freeze()  # else the first collection of each rank would copy every page that holds an object
    gc.enable()
    return _Server(theirs).serve()


class _Server:
    """The loop of the server."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pid = os.getpid()
        self.ranks: dict[int, int] = {}
        self.wakeup, self._wakeup_end = os.pipe()
        for end in (self.wakeup, self._wakeup_end):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)

    def serve(self) -> Start:
        while True:
            ready, _, _ = select.select([self.channel.fileno(), self.wakeup], [], [])
            if self.wakeup in ready:
                os.read(self.wakeup, 4096)
                self._reap()
            if self.channel.fileno() in ready:
                rank = self._answer()
                if rank is not None:
                    return rank

    def _answer(self) -> Start | None:
        """Do what the agent asks for; in a rank that was forked for it, return what it is."""
        message, descriptors, _, _ = socket.recv_fds(self.channel, MESSAGE_BYTES, 2)
        if not message:  # the agent is gone: a rank that nobody watches must not go on
            for pid in tuple(self.ranks.values()):
                end_session(pid)
            os._exit(0)
        request: Request = msgspec.json.decode(message, type=Request)
        if isinstance(request, Signal):
            self._signal(request)
            return None
        # A stop that meets the rank before it is back at the default action must wait for that: it would be ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        pid = os.fork()
        if not pid:
            self._become_rank(descriptors)
            return request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for descriptor in descriptors:
            os.close(descriptor)
        self.ranks[request.local_rank] = pid
        self._tell(Started(request.local_rank, pid))
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

    def _signal(self, request: Signal) -> None:
        pid = self.ranks.get(request.local_rank)
        if pid is None:
            return
        if request.session:
            end_session(pid, request.number)
        else:
            os.kill(pid, request.number)  # ours, and not reaped: the number is still its own

    def _reap(self) -> None:
        for local_rank, pid in tuple(self.ranks.items()):
            state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is None:
                continue
            code = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
            del self.ranks[local_rank]
            self._tell(Ended(local_rank, pid, code))
            if code:  # its data loaders would hold on to its connections; what it left on success is the supervisor's
                end_session(pid)
            os.waitpid(pid, 0)  # only now: until here nobody else can have its number

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(OSError):  # the agent is gone: the next read says so
            self.channel.send(msgspec.json.encode(event))


def _note(_number: int, _frame: FrameType | None) -> None:
    """Without a handler SIGCHLD would not reach the wake-up pipe."""


def end_session(leader: int, number: int = signal.SIGKILL) -> None:
    """Signal every process of a session: what a rank starts may have a process group of its own, but stays in it.

    Those that unlink the shared memory of the dead are left to do so; they end when all others have.
    """
    for pid, stat in read_stats():
        with contextlib.suppress(OSError):  # it has ended since
            if stat.session == leader and not _tidies(pid):
                os.kill(pid, number)


def _tidies(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return any(name in command for name in _TIDY)


def flush() -> None:
    """Before a fork: what waits in a buffer would be written twice."""
    sys.stdout.flush()
    sys.stderr.flush()
