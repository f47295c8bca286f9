"""Heartbeats between the leader and each member, so that all know soon which member is lost, and why.

A thread sends a heartbeat every half second and listens, whatever the main thread does: in a long call of a library
that releases the interpreter's lock it still beats; in a process that is stopped it does not. The leader tells the
others who was lost; what they say after that never names another member.

What is noticed, and when:

- A connection that closes without a goodbye: its member died. Noticed at once.
- No heartbeat for `limit` seconds (the setting `trainbox_hang_seconds`; infinite where it is 0): its process is
  stopped, or its host or network is gone. Time in which this process itself did not run is nobody's silence.
- A report: its member leaves for a reason of its own (an error, a stop), which the others pass on.

Once a member is lost, the main thread should leave. If it does not, since it may be in a collective that waits for the
dead, the thread ends the process with the loss as its error:

- `LEAVE_SECONDS` (1 s) after a death or a silence: the main thread has nothing to add.
- `REPORT_LEAVE_SECONDS` (3 s) after a report: the main thread may be about to raise the same error, with more detail.
- `CLEANUP_SECONDS` (10 s) after the main thread has said that it leaves by an error of its own: it removes files.
"""

import contextlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from trainbox.clock import Clock, describe_missed
from trainbox.comm.data_connection import Poll, poll_events
from trainbox.comm.failure_detector import FailureDetector
from trainbox.comm.framing import Heartbeat, HeartbeatConnection, Loss
from trainbox.comm.sockets import describe, hang_up
from trainbox.errors import PeerError, Stopped, TrainboxError, last_words
from trainbox.log_lines import emit

BEAT_SECONDS = 0.5
LEAVE_SECONDS = 1.0
REPORT_LEAVE_SECONDS = 3.0
CLEANUP_SECONDS = 10.0
#: Time for a process that is ended to write its error: its reader may be slow.
WRITE_SECONDS = 0.5
#: Of the reason of a member that leaves, in characters.
_LONGEST_REASON = 2000


class HeartbeatMonitor:
    """Sends and receives the heartbeats of one member, and knows who is lost.

    Args:
        me: Its name.
        limit: Seconds without a heartbeat after which another member is lost; infinite where never.
        clock: The time in seconds.
        poll: Waits for connections, in seconds of that clock.
    """

    def __init__(self, me: str, *, limit: float, clock: Clock = time.monotonic, poll: Poll | None = None) -> None:
        self._me = me
        self.limit = limit
        self._clock = clock
        self._poll = poll or poll_events
        self._detector = FailureDetector(limit=limit, interval=min(BEAT_SECONDS, limit / 4))
        self._main_thread = threading.get_ident()
        self._connections: dict[str, HeartbeatConnection] = {}
        #: Members that have said goodbye.
        self.left: set[str] = set()
        self._loss: Loss | None = None
        self._said: Loss | None = None
        #: When the thread ends this process after a loss.
        self._end_at = float("inf")
        #: This member leaves: what happens to the others does not matter any more.
        self._leaving = False
        self._closed = False
        self._changed = threading.Condition()
        #: Can be read from as soon as a member is lost: for a main thread that waits for something else as well.
        self.alarm, self._ring = socket.socketpair()
        self._sleep, self._wake = socket.socketpair()
        for end_of_pair in (self._ring, self._wake, self._sleep):
            end_of_pair.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Send and receive heartbeats in a thread, until `close`."""
        self._thread.start()

    def add(self, member: str, connection: socket.socket) -> None:
        """Exchange heartbeats with another member from now on.

        Args:
            member: Its name.
            connection: It belongs to the monitor from now on.
        """
        heartbeats = HeartbeatConnection(connection)
        with self._changed:
            self._connections[member] = heartbeats
            self._detector.hear(member, self._clock())
            if self._loss is not None:
                self._tell(Heartbeat(lost=self._loss), member)
        self._stir()

    # -- for the main thread ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Return only if no member is lost.

        Raises:
            PeerError: One is; the message says which, and how.
            Stopped: One has left because the job is stopped.
        """
        if self._loss is not None:
            raise self.error(self._loss)

    def wait(self, seconds: float) -> None:
        """After an error, wait for the failure report that explains it.

        Raises:
            PeerError, Stopped: As for `check`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._loss is not None, seconds)
        self.check()

    def lose(self, loss: Loss) -> PeerError | Stopped:
        """Tell all others of a loss that was noticed elsewhere; return the error to raise."""
        with self._changed:
            self._lose(loss)
            return self.error(self._loss or loss)

    def lose_broken(self, member: str, error: OSError) -> PeerError | Stopped:
        """Do the same for another connection to a member, which has broken."""
        return self.lose(self._broken(member, error))

    def give_up(self, why: str, *, exit_code: int = 0, stopped: bool = False, own: bool = True) -> None:
        """Tell the others why this member leaves, unless a member is lost already.

        Args:
            why: As the rest of a sentence.
            exit_code: The exit code of this process, if it is known.
            stopped: Whether the job is stopped.
            own: Whether the error is this member's own, and not the loss of another.
        """
        with self._changed:
            if self._loss is None and not self._leaving:
                why = why[:_LONGEST_REASON] or "no reason given"
                self._tell(Heartbeat(gave_up=why, stopped=stopped, exit_code=exit_code))
                self._leaving = True
            elif self._loss is not None and own:
                self._end_at = self._clock() + CLEANUP_SECONDS

    def await_goodbyes(self, seconds: float) -> tuple[str, ...]:
        """Wait until all others have left; return those that have not by then.

        Raises:
            PeerError, Stopped: As for `check`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._loss is not None or not self._connections, seconds)
        self.check()
        return tuple(self._connections)

    def await_end(self, seconds: float) -> None:
        """Wait until all others are gone, however they left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, seconds)

    def send_goodbye(self, seconds: float) -> None:
        """Leave, and wait until the others have heard it: a connection is lost with its container.

        Raises:
            PeerError, Stopped: As for `check`.
        """
        with self._changed:
            self.check()
            self._leaving = True
            self._tell(Heartbeat(goodbye=True))
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_WR)
            self._changed.wait_for(lambda: not self._connections, seconds)

    def close(self) -> None:
        """End the thread and close all connections."""
        with self._changed:
            self._leaving = self._closed = True
        self._stir()
        if self._thread.is_alive():
            self._thread.join(WRITE_SECONDS)
        for connection in self._connections.values():
            hang_up(connection.socket)
        for end_of_pair in (self.alarm, self._ring, self._sleep, self._wake):
            end_of_pair.close()

    def error(self, loss: Loss) -> PeerError | Stopped:
        """Return the error to raise for a loss."""
        if loss.stopped:
            return Stopped(f"{loss.member} {loss.why}")
        if loss.member == self._me:
            return PeerError(
                f"this process ({self._me}) was declared lost by the others: {loss.why.removeprefix('is lost: ')}",
                hint="the process was stopped, or its machine was too busy, for longer than trainbox_hang_seconds",
            )
        return PeerError(f"{loss.member} {loss.why}", hint=loss.hint, exit_code=loss.exit_code)

    # -- the thread; the lock is held in what it calls -----------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed and self.turn():
            pass

    def turn(self) -> bool:
        """Beat, listen and judge once; return False when there is nothing left to do."""
        # Silence is judged as of this moment: this process itself may be stopped between any two of the lines below.
        now = self._clock()
        with self._changed:
            turn = self._detector.turn(now, watching=self._is_watching, ends=self._ends())
            if turn.beats:
                self._beat()
            sources = {connection.socket.fileno(): member for member, connection in self._connections.items()}
        if turn.absent:
            emit(describe_missed(turn.absent))
        events = [(source, select.POLLIN) for source in (*sources, self._sleep.fileno())]
        ready = self._poll(events, max(0.0, turn.until - now))
        with self._changed:
            for source in ready:
                self._hear(sources.get(source))
            if self._is_watching:
                for member in self._detector.silent(now):
                    self._lose_silent(member)
            loss = self._loss
        if loss is not None and loss is not self._said:
            self._said = loss
            emit(self.error(loss).message)  # the log has the name, even if this process is killed now
        if loss is not None and any(now >= moment for moment in self._ends()):
            end_process(self.error(loss), self._main_thread)
            return False
        return True

    @property
    def _is_watching(self) -> bool:
        return self._loss is None and not self._leaving

    def _ends(self) -> list[float]:
        """When this process is to be ended, if it is."""
        return [] if self._loss is None or self._leaving else [self._end_at]

    def _stir(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"!")

    def _hear(self, member: str | None) -> None:
        if member is None:
            with contextlib.suppress(OSError):
                self._sleep.recv(64)
            return
        if member not in self._connections:
            return
        try:
            messages = self._connections[member].receive()
        except OSError as error:
            self._drop(member)
            self._lose(self._broken(member, error))
            return
        self._detector.hear(member, self._clock())
        for message in messages:
            self._take(member, message)

    def _take(self, member: str, message: Heartbeat) -> None:
        if message.goodbye:
            self.left.add(member)
            self._drop(member)
        elif message.gave_up and message.stopped:
            self._lose(Loss(member, f"was {message.gave_up}", stopped=True, reported=True))
        elif message.gave_up:
            why = f"has given up: {message.gave_up}"
            self._lose(Loss(member, why, f"the log of {member} says why", exit_code=message.exit_code, reported=True))
        elif message.lost is not None:
            self._lose(message.lost, tell=False)

    def _lose_silent(self, member: str) -> None:
        why = f"is lost: no heartbeat for {self.limit:g} s"
        hint = f"the process is stopped, or the host of {member} or its network is gone"
        self._lose(Loss(member, why, hint))

    def _broken(self, member: str, error: OSError) -> Loss:
        """Return whom a broken connection speaks about: this member, if it was away for longer than the others wait."""
        absent = self._detector.absence(self._clock())
        if absent:
            return Loss(self._me, f"is lost: it did not run for {absent:.0f} s, and {member} has left meanwhile")
        return Loss(member, f"is lost: {describe(error)}", f"the log of {member} says why")

    def _lose(self, loss: Loss, *, tell: bool = True) -> None:
        """The first loss counts: those that follow are of members that leave for it."""
        if self._loss is not None or self._leaving:
            return
        self._loss = loss
        if tell:
            self._tell(Heartbeat(lost=loss))
        self._end_at = self._clock() + (REPORT_LEAVE_SECONDS if loss.reported else LEAVE_SECONDS)
        self._changed.notify_all()
        self._ring.send(b"!")

    def _tell(self, message: Heartbeat, *members: str) -> None:
        for member in members or tuple(self._connections):
            with contextlib.suppress(OSError):  # it shows when it is read from
                self._connections[member].send(message)

    def _beat(self) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.beat()

    def _drop(self, member: str) -> None:
        hang_up(self._connections.pop(member).socket)
        self._detector.forget(member)
        self._changed.notify_all()


def end_process(error: TrainboxError, thread: int, before: Callable[[], None] | None = None) -> None:
    """End this process at once, with an error that its main thread had no chance to raise.

    It is written as `errors.end_as_declared` would have done it, for that is where the supervisor looks.

    Args:
        error: Why.
        thread: The main thread.
        before: Is called just before the end, and takes no time: the main thread may break where it waits for that.
    """
    writer = threading.Thread(target=_write_error, args=(error, thread), daemon=True)
    writer.start()
    writer.join(WRITE_SECONDS)
    if before is not None:
        before()
    os._exit(error.exit_code)


def _write_error(error: TrainboxError, thread: int) -> None:
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - there is no other way to see where a thread is
    stack = traceback.extract_stack(frame) if frame is not None else []
    if error.hint:
        text = last_words(error, stack)
    else:
        lines = [*traceback.format_list(stack), *traceback.format_exception_only(error)]
        text = "".join(["Traceback (most recent call last):\n", *lines])
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
