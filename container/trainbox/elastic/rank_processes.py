"""The ranks of this host as the agent sees them: started through the fork server, relayed, signalled, heard to end."""

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping

import msgspec

from trainbox.clock import AwakeClock
from trainbox.elastic.forkserver import MESSAGE_BYTES, Ended, Event, ForkServer, Request, Signal, Start, Started
from trainbox.elastic.hang_rules import Limits
from trainbox.errors import Stopped, TrainboxError
from trainbox.launch.relay import Lines, Sink
from trainbox.procfs import LOOK_SECONDS, StoppedProcesses, is_stopped, process_state

_READ_BYTES = 256 * 1024
_MOST_READS = 64
_TURN_SECONDS = 0.1
#: How long the kernel may take to end a process after SIGKILL: one with much pinned memory needs seconds.
_KILL_SECONDS = 30.0


#: Without limits a fork server is waited for as long as it takes.
_NO_LIMITS = Limits(step=0.0, long=0.0)
_KILLED = "nothing here sent it: often the kernel, for memory; try a larger instance or a smaller batch"


class ServerLost(TrainboxError):  # noqa: N818 - what has happened
    """The fork server has ended, and all ranks with it."""

    fault = "AlgorithmError"
    exit_code = 128 + signal.SIGKILL  # that of the ranks, which the kernel kills


class RankStuck(TrainboxError):  # noqa: N818 - what has happened
    """Not even SIGKILL ends a rank: it waits inside the kernel."""

    fault = "AlgorithmError"


def stopped_early(number: int) -> Stopped:
    """What is said where a stop comes before the ranks run: there is nothing to save."""
    return Stopped(f"stopped by {signal.Signals(number).name} before the ranks were started")


class Rank:
    """One process and its two streams."""

    def __init__(self) -> None:
        self.streams = (Lines(), Lines())
        self.pid = 0
        #: The exit code once it has ended, below 0 for a signal; and when, in seconds since the epoch.
        self.code: int | None = None
        self.ended_at = 0.0
        #: Signals that asked it to end: if it dies of one, it has not failed.
        self.asked: set[int] = set()
        self.why_killed = ""

    def last_words(self) -> tuple[str, str]:
        """The ends of stderr and stdout."""
        out, err = (stream.end().decode(errors="replace") for stream in self.streams)
        return err, out


class Ranks:
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
        limits: Limits = _NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server
        self.channel = server.channel
        self.sinks = sinks
        self.all: dict[int, Rank] = {}
        #: Why no rank can be started or signalled any more, once the server has ended.
        self.lost: ServerLost | None = None
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

    # -- what is asked of the server -------------------------------------------------------------------------------

    def start(self, local_rank: int, variables: Mapping[str, str]) -> int:
        """Fork one rank and wait until it runs.

        Returns:
            Its process id.

        Raises:
            ServerLost: The fork server has ended, or has not answered in time and was ended.
            Stopped: This host was asked to stop before this rank ran.
        """
        if self.lost:
            raise self.lost
        if self.is_stopping():
            raise stopped_early(self.stop_signal)
        rank = self.all[local_rank] = Rank()
        read_ends, write_ends = zip(os.pipe(), os.pipe(), strict=True)
        request = msgspec.json.encode(Start(local_rank, dict(variables)))
        with contextlib.suppress(OSError):  # the server has ended: the next turn says how
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
            if self.is_stopping() and not rank.pid:  # the imports are not waited for: it ends with the server
                rank.code = -self.stop_signal
                raise stopped_early(self.stop_signal)
        if self.lost:
            raise self.lost
        if self.is_stopping():  # it came in the moment of the start
            self._stop(local_rank)
        return rank.pid

    def send(self, local_rank: int, number: int, *, session: bool = False) -> None:
        """Signal a rank, or all that it has started as well."""
        if self.all[local_rank].code is None:
            self._ask(Signal(local_rank, number, session))

    def kill(self, local_rank: int, why: str) -> None:
        """End a rank that hangs, and remember the reason."""
        self.all[local_rank].why_killed = why
        self.send(local_rank, signal.SIGKILL, session=True)

    def stop(self, number: int) -> None:
        """Pass a request to stop on to the main process of each rank, once. A signal handler calls this."""
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
        """Signal the main process of each rank that runs, unless it has had this signal."""
        for local_rank in self.alive:
            self._ask_once(local_rank, number)

    def _ask_once(self, local_rank: int, number: int) -> None:
        rank = self.all[local_rank]
        if number not in rank.asked:
            rank.asked.add(number)
            self.send(local_rank, number)
            self.send(local_rank, signal.SIGCONT)  # one that is stopped hears nothing, and could not save

    def _ask(self, request: Request) -> None:
        with contextlib.suppress(OSError):  # the next turn finds out that the server is gone
            self.channel.send(msgspec.json.encode(request))

    # -- what is heard ---------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[int]:
        """The local ranks that run."""
        return [local_rank for local_rank, rank in self.all.items() if rank.code is None]

    def turn(self, timeout: float) -> None:
        """Pass on output and note ends, until something has ended or the time is over.

        Once the fork server has ended, all ranks have, and `lost` says why.
        """
        self._watch_server()
        until = self._all_time() + timeout
        while True:
            for key, _ in self._selector.select(max(0.0, until - self._all_time())):
                if key.fileobj is not self.channel:
                    self._relay(key)
                else:
                    self._hear()
                    return
            if self._all_time() >= until or self.lost:
                return

    def _watch_server(self) -> None:
        """End a fork server that has been stopped for longer than a step may take: nobody hears of ranks that end."""
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
        """The fork server has ended: the kernel kills all ranks."""
        code = self.server.wait()
        what = self._why_ended or (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        )
        hint = "" if self._why_ended else _KILLED if code == -signal.SIGKILL else "the log has its last words"
        self.lost = ServerLost(
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

    def _hear(self) -> None:
        """Read one event."""
        try:
            message = self.channel.recv(MESSAGE_BYTES)
        except ConnectionResetError:  # it has died before it read what it was told last
            message = b""
        if not message:
            self._lose()
            return
        event: Event = msgspec.json.decode(message, type=Event)
        rank = self.all[event.local_rank]
        if isinstance(event, Started):
            rank.pid = event.pid
        elif isinstance(event, Ended):
            rank.pid = rank.pid or event.pid
            rank.ended_at = time.time()
            self._relay_rest(rank)
            rank.code = event.code

    def _relay(self, key: selectors.SelectorKey) -> bool:
        """Pass on what one stream has; whether there may be more."""
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
        sink.end_line()  # the next line of another rank must not be glued to this last one
        return False

    def _relay_rest(self, rank: Rank) -> None:
        """What a rank wrote before it ended, so that its last words are known; bounded, for what it left may go on."""
        keys = [key for key in self._selector.get_map().values() if key.data and key.data[0] in rank.streams]
        for key in keys:
            for _ in range(_MOST_READS):
                if not self._relay(key):
                    break

    def end(self, grace: float, number: int = signal.SIGTERM) -> None:
        """End every rank that runs: ask, then kill it with all it has started.

        Raises:
            RankStuck: One does not end. It is given up: it is not waited for again.
        """
        self.ask(number)
        self._wait(grace)
        for local_rank in self.alive:
            self.all[local_rank].asked.add(signal.SIGKILL)
            self.send(local_rank, signal.SIGKILL, session=True)
        self._wait(_KILL_SECONDS)
        if self.alive and is_stopped(process_state(self.server.pid)):  # it has heard none of this
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
        """Close the streams of ranks that have ended; what they left behind may hold the other ends."""
        for key in tuple(self._selector.get_map().values()):
            if key.data:
                self._selector.unregister(key.fd)
                os.close(key.fd)
                key.data[1].write(key.data[0].close())
        self.all.clear()
