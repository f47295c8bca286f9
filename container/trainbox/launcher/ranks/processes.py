"""The ranks of this host as the agent sees them: start through the fork server, relay output, signal, note ends."""

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping

import msgspec

from trainbox.clock import AwakeClock
from trainbox.errors import Stopped, TrainboxError
from trainbox.launcher.hang_rules import HangLimits
from trainbox.launcher.ranks.forkserver import (
    MESSAGE_BYTES,
    Event,
    ForkServer,
    RankEnded,
    RankStarted,
    Request,
    SignalRank,
    StartRank,
)
from trainbox.system.procfs import LOOK_SECONDS, StoppedProcesses, is_stopped, process_state
from trainbox.system.relay import Lines, Sink

_READ_BYTES = 256 * 1024
_MOST_READS = 64
_TURN_SECONDS = 0.1
#: How long the kernel may take to end a process after SIGKILL: one with much pinned memory needs seconds.
_KILL_SECONDS = 30.0


#: Without limits the agent waits for the fork server for as long as it takes.
_NO_LIMITS = HangLimits(step=0.0, long=0.0)
_KILLED = "nothing here sent it: often the kernel, for memory; try a larger instance or a smaller batch"


class ForkServerLost(TrainboxError):  # noqa: N818 - what has happened
    """The fork server has ended, and all ranks with it."""

    fault = "AlgorithmError"
    exit_code = 128 + signal.SIGKILL  # that of the ranks, which the kernel kills


class RankStuck(TrainboxError):  # noqa: N818 - what has happened
    """A rank does not end after SIGKILL: it waits inside the kernel."""

    fault = "AlgorithmError"


def stopped_early(number: int) -> Stopped:
    """Make the error for a stop before the ranks run: there is nothing to save."""
    return Stopped(f"stopped by {signal.Signals(number).name} before the ranks were started")


class RankProcess:
    """The process of one rank, and its two output streams."""

    def __init__(self) -> None:
        self.streams = (Lines(), Lines())
        self.pid = 0
        #: The exit code once it has ended, below 0 for a signal; and when, in seconds since the epoch.
        self.code: int | None = None
        self.ended_at = 0.0
        #: Signals sent to end it: a rank that dies of one has not failed.
        self.asked: set[int] = set()
        self.why_killed = ""

    def last_words(self) -> tuple[str, str]:
        """Return the last output: of stderr, and of stdout."""
        out, err = (stream.end().decode(errors="replace") for stream in self.streams)
        return err, out


class RankProcesses:
    """All ranks of this host, by local rank, and the server that forks them.

    Args:
        server: The fork server.
        sinks: Where the output of the ranks goes.
        limits: How long the server may be stopped, and may take to start a rank.
        clock: The time in seconds.
    """

    def __init__(
        self,
        server: ForkServer,
        sinks: tuple[Sink, Sink],
        *,
        limits: HangLimits = _NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server
        self.channel = server.channel
        self.sinks = sinks
        self.all: dict[int, RankProcess] = {}
        #: Why no rank can be started or signalled, once the server has ended.
        self.lost: ForkServerLost | None = None
        self._limits = limits
        self._all_time = clock
        self._clock = AwakeClock(clock)
        self._stopped = StoppedProcesses(self._clock)
        self._look_at = 0.0
        self._why_ended = ""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.channel, selectors.EVENT_READ)
        #: The signal that asked this host to stop; each rank gets it once.
        self.stop_signal = 0
        self.stop_at = float("inf")

    # -- requests to the server ------------------------------------------------------------------------------------

    def start(self, local_rank: int, variables: Mapping[str, str]) -> int:
        """Start a rank and wait until it runs.

        Returns:
            Its process id.

        Raises:
            ForkServerLost: The fork server has ended, or has not answered in time and was ended.
            Stopped: This host was asked to stop before this rank ran.
        """
        if self.lost:
            raise self.lost
        if self.is_stopping():
            raise stopped_early(self.stop_signal)
        rank = self.all[local_rank] = RankProcess()
        read_ends, write_ends = zip(os.pipe(), os.pipe(), strict=True)
        request = msgspec.json.encode(StartRank(local_rank, dict(variables)))
        with contextlib.suppress(OSError):  # the server has ended: the next turn reports it
            socket.send_fds(self.channel, [request], write_ends)
        for end in write_ends:
            os.close(end)
        for end, lines, sink in zip(read_ends, rank.streams, self.sinks, strict=True):
            os.set_blocking(end, False)
            self._selector.register(end, selectors.EVENT_READ, (lines, sink))
        began = self._clock()
        while not rank.pid and rank.code is None:  # the first one waits for the server's imports, on a cold disk long
            self.turn(_TURN_SECONDS)
            if self._limits.step and self._clock() - began > max(self._limits.step, self._limits.long):
                self._end_server(f"did not start a rank within {self._clock() - began:.0f} s")
            if self.is_stopping() and not rank.pid:  # it does not wait for the imports: it ends with the server
                rank.code = -self.stop_signal
                raise stopped_early(self.stop_signal)
        if self.lost:
            raise self.lost
        if self.is_stopping():  # it came during the start
            self._stop(local_rank)
        return rank.pid

    def send(self, local_rank: int, number: int, *, session: bool = False) -> None:
        """Signal a rank, or with `session` also all processes it has started."""
        if self.all[local_rank].code is None:
            self._ask(SignalRank(local_rank, number, session))

    def kill(self, local_rank: int, why: str) -> None:
        """Kill a rank that hangs, and keep the reason."""
        self.all[local_rank].why_killed = why
        self.send(local_rank, signal.SIGKILL, session=True)

    def stop(self, number: int) -> None:
        """Forward a stop signal to the main process of each rank, once. A signal handler calls this."""
        if not self.stop_signal:
            self.stop_signal = number
            self.stop_at = self._all_time()
            for local_rank in tuple(self.all):
                self._stop(local_rank)

    def is_stopping(self) -> bool:
        """Whether this host has been asked to stop."""
        return bool(self.stop_signal)

    def _stop(self, local_rank: int) -> None:
        if self.all[local_rank].pid:
            self._ask_once(local_rank, self.stop_signal)

    def ask(self, number: int) -> None:
        """Signal the main process of each running rank, unless it has had this signal."""
        for local_rank in self.alive:
            self._ask_once(local_rank, number)

    def _ask_once(self, local_rank: int, number: int) -> None:
        rank = self.all[local_rank]
        if number not in rank.asked:
            rank.asked.add(number)
            self.send(local_rank, number)
            self.send(local_rank, signal.SIGCONT)  # a stopped process handles no signal, and could not save

    def _ask(self, request: Request) -> None:
        with contextlib.suppress(OSError):  # the next turn finds that the server has ended
            self.channel.send(msgspec.json.encode(request))

    # -- events ---------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[int]:
        """The local ranks that are running."""
        return [local_rank for local_rank, rank in self.all.items() if rank.code is None]

    def turn(self, timeout: float) -> None:
        """Relay output and note ends, until an event came or the time is over.

        After the end of the fork server, which ends all ranks, `lost` has the reason.
        """
        self._watch_server()
        until = self._all_time() + timeout
        while True:
            for key, _ in self._selector.select(max(0.0, until - self._all_time())):
                if key.fileobj is not self.channel:
                    self._relay(key)
                else:
                    self._read_event()
                    return
            if self._all_time() >= until or self.lost:
                return

    def _watch_server(self) -> None:
        """End a fork server that was stopped for longer than a step may take: it reports no ends of ranks."""
        now = self._clock()
        if self.lost or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for seconds in self._stopped.find({self.server.pid: self._limits.step}).values():
            self._end_server(f"was stopped for {seconds:.1f} s and was ended")

    def _end_server(self, why: str) -> None:
        self._why_ended = self._why_ended or why
        self.server.kill()

    def _lose(self) -> None:
        """Note that the fork server has ended: the kernel kills all ranks."""
        code = self.server.wait()
        what = self._why_ended or (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        )
        hint = "" if self._why_ended else _KILLED if code == -signal.SIGKILL else "see its last lines in the log"
        self.lost = ForkServerLost(
            f"the fork server (process {self.server.pid}), which starts the ranks, {what}; its ranks ended with it",
            hint=hint,
        )
        self._selector.unregister(self.channel)
        for rank in self.all.values():
            if rank.code is None:
                self._relay_rest(rank)
                rank.asked.add(signal.SIGKILL)
                rank.code = -signal.SIGKILL
                rank.ended_at = time.time()

    def _read_event(self) -> None:
        """Read one event."""
        try:
            message = self.channel.recv(MESSAGE_BYTES)
        except ConnectionResetError:  # it has died before it read the last request
            message = b""
        if not message:
            self._lose()
            return
        event: Event = msgspec.json.decode(message, type=Event)
        rank = self.all[event.local_rank]
        if isinstance(event, RankStarted):
            rank.pid = event.pid
        elif isinstance(event, RankEnded):
            rank.pid = rank.pid or event.pid
            rank.ended_at = time.time()
            self._relay_rest(rank)
            rank.code = event.code

    def _relay(self, key: selectors.SelectorKey) -> bool:
        """Relay what a stream has; return whether there may be more."""
        lines, sink = key.data
        try:
            chunk = os.read(key.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if chunk:
            sink.write(lines.feed(chunk))
            return True
        self._selector.unregister(key.fd)
        os.close(key.fd)
        sink.write(lines.close())
        sink.end_line()  # the next line of another rank must not continue this one
        return False

    def _relay_rest(self, rank: RankProcess) -> None:
        """Relay what a rank wrote before it ended; bounded, since processes it has left behind may go on writing."""
        keys = [key for key in self._selector.get_map().values() if key.data and key.data[0] in rank.streams]
        for key in keys:
            for _ in range(_MOST_READS):
                if not self._relay(key):
                    break

    def end(self, grace: float, number: int = signal.SIGTERM) -> None:
        """End every running rank: signal it, then kill it with all it has started.

        Raises:
            RankStuck: A rank does not end. The agent does not wait for it again.
        """
        self.ask(number)
        self._wait(grace)
        for local_rank in self.alive:
            self.all[local_rank].asked.add(signal.SIGKILL)
            self.send(local_rank, signal.SIGKILL, session=True)
        self._wait(_KILL_SECONDS)
        if self.alive and is_stopped(process_state(self.server.pid)):  # it has read no request
            self._end_server("is stopped, ended no rank and was ended itself")
            self._wait(_KILL_SECONDS)
        stuck = [self.all[local_rank] for local_rank in self.alive]
        if stuck:
            for rank in stuck:
                rank.code = -signal.SIGKILL
            raise RankStuck(
                f"a rank does not end after SIGKILL: process {', '.join(str(rank.pid) for rank in stuck)}",
                hint="it waits inside the kernel for a driver or a file system: the host needs a restart",
            )

    def _wait(self, seconds: float) -> None:
        until = self._all_time() + seconds
        while self.alive and self._all_time() < until:
            self.turn(min(_TURN_SECONDS, until - self._all_time()))

    def forget(self) -> None:
        """Close the streams of ranks that have ended; processes they left behind may hold the other ends."""
        for key in tuple(self._selector.get_map().values()):
            if key.data:
                self._selector.unregister(key.fd)
                os.close(key.fd)
                key.data[1].write(key.data[0].close())
        self.all.clear()
