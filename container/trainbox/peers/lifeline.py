"""Signs of life between the leader and each other member, so that all know within a second who is lost.

A thread of its own beats every half second and listens, whatever the main thread does: in a long call of a library
that lets go of the interpreter's lock it still beats, in a process that is stopped it does not. A connection that is
closed without a goodbye is a member that has died; one on which nothing comes is a member that is stopped, or whose
host or network is gone. The leader tells the others who it was; what they say after that is never another name.

Once a member is lost there is nothing left to do: if the main thread, which may sit in a collective that waits for the
dead, does not leave by itself, the thread ends the process.
"""

import contextlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from trainbox.errors import PeerError, Stopped, TrainboxError
from trainbox.peers.wire import Wire, describe
from trainbox.say import say

BEAT_SECONDS = 0.5
#: What the main thread has to leave by itself once a member is lost.
LEAVE_SECONDS = 1.0
#: What a process that is being ended may take for its last words: whoever reads them may be slow.
_LAST_WORDS_SECONDS = 0.5
#: What somebody who gives up may say, in characters.
_LONGEST_WHY = 2000
#: Of a `Word`.
LONGEST_WORD_BYTES = 64 * 1024


class Loss(msgspec.Struct, frozen=True):
    """A member that is lost, or several that never came."""

    member: str
    #: What has become of it, as the rest of a sentence.
    why: str
    hint: str = ""
    #: Whether it left because the job is stopped.
    stopped: bool = False


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line, of either side; an empty one is a beat."""

    #: The greeting: which job, who speaks, and what the connection is for.
    job: str = ""
    member: str = ""
    role: Literal["", "life", "data"] = ""
    #: Why the speaker leaves.
    gave_up: str = ""
    #: Whether that is a stop of the job.
    stopped: bool = False
    #: Whom the speaker has lost; it may be the listener.
    lost: Loss | None = None
    #: The speaker leaves, and all is well.
    goodbye: bool = False


class Lifeline:
    """The signs of life of one member.

    Args:
        me: Its name.
        limit: Seconds after which one of whom nothing is heard is lost.
    """

    def __init__(self, me: str, *, limit: float) -> None:
        self._me = me
        self._limit = limit
        self._beat_seconds = min(BEAT_SECONDS, limit / 4)
        self._main_thread = threading.get_ident()
        self._wires: dict[str, Wire[Word]] = {}
        self._heard: dict[str, float] = {}
        #: Those that have said goodbye.
        self.left: set[str] = set()
        self._loss: Loss | None = None
        self._lost_at = 0.0
        #: This one leaves: what becomes of the others does not matter any more.
        self._leaving = False
        self._closed = False
        self._changed = threading.Condition()
        #: Can be read from as soon as somebody is lost: for whoever waits for something else as well.
        self.alarm, self._ring = socket.socketpair()
        self._sleep, self._wake = socket.socketpair()
        for end_of_pair in (self._ring, self._wake, self._sleep):
            end_of_pair.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="lifeline", daemon=True)

    @property
    def limit(self) -> float:
        """Seconds after which one of whom nothing is heard is lost; infinite where never."""
        return self._limit

    def add(self, member: str, wire: Wire[Word], words: Sequence[Word] = ()) -> None:
        """From now on exchange signs of life with another member.

        Args:
            member: Its name.
            wire: The connection; it belongs to the lifeline from now on.
            words: What has come on it behind the greeting.
        """
        wire.connection.setblocking(False)
        with self._changed:
            self._wires[member] = wire
            self._heard[member] = time.monotonic()
            if self._loss is not None:
                self._tell(Word(lost=self._loss), member)
            for word in words:
                self._take(member, word)
        if not self._thread.is_alive():
            self._thread.start()
        self._stir()

    # -- what the main thread asks ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Go on only if nobody is lost.

        Raises:
            PeerError: Somebody is; the message says who, and how.
            Stopped: Somebody has left because the job is stopped.
        """
        if self._loss is not None:
            raise self._error(self._loss)

    def wait(self, seconds: float) -> None:
        """The same, but wait for bad news: after something has broken, word of it is on its way.

        Raises:
            PeerError: As for `check`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._loss is not None, seconds)
        self.check()

    def lose(self, loss: Loss) -> PeerError | Stopped:
        """Tell all others of a loss that has shown elsewhere than here; gives the error to raise."""
        with self._changed:
            self._lose(loss)
            return self._error(self._loss or loss)

    def give_up(self, why: str, *, stopped: bool = False) -> None:
        """Tell the others that this one leaves for a reason of its own, unless somebody is lost already."""
        with self._changed:
            if self._loss is None and not self._leaving:
                self._tell(Word(gave_up=why[:_LONGEST_WHY] or "without a reason", stopped=stopped))
                self._leaving = True

    def await_goodbyes(self, seconds: float) -> tuple[str, ...]:
        """Wait until all others have left; gives those that have not by then.

        Raises:
            PeerError: One is lost instead.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._loss is not None or not self._wires, seconds)
        self.check()
        return tuple(self._wires)

    def await_end(self, seconds: float) -> None:
        """Wait until all others are gone, however they left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wires, seconds)

    def say_goodbye(self, seconds: float) -> None:
        """Leave, and wait until the others have heard it, for a connection is lost with its container.

        Raises:
            PeerError: A member was lost before.
        """
        with self._changed:
            self.check()
            self._leaving = True
            self._tell(Word(goodbye=True))
            for wire in self._wires.values():
                with contextlib.suppress(OSError):
                    wire.connection.shutdown(socket.SHUT_WR)
            self._changed.wait_for(lambda: not self._wires, seconds)

    def close(self) -> None:
        """Let go of all."""
        with self._changed:
            self._leaving = self._closed = True
        self._stir()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS_SECONDS)
        for wire in self._wires.values():
            wire.close()
        for end_of_pair in (self.alarm, self._ring, self._sleep, self._wake):
            end_of_pair.close()

    # -- the thread; below here the lock is held ---------------------------------------------------------------------

    def _run(self) -> None:
        beat_at = 0.0
        said: Loss | None = None
        while not self._closed:
            # Whoever was silent at this moment and has sent nothing that is found below was so in truth: this process
            # itself may be stopped between any two of these lines.
            before = time.monotonic()
            with self._changed:
                if before >= beat_at:
                    self._beat()
                    beat_at = before + self._beat_seconds
                sources = {wire.connection.fileno(): member for member, wire in self._wires.items()}
                until = min([beat_at, *self._silences().values(), *self._end()])
            ready = _poll([*sources, self._sleep.fileno()], until)
            with self._changed:
                for source in ready:
                    self._hear(sources.get(source))
                self._judge(before)
                loss = self._loss
            if loss is not None and loss is not said:
                said = loss
                say(self._error(loss).message)  # whatever becomes of this process now, its log has the name
            if loss is not None and any(before >= moment for moment in self._end()):
                end_process(self._error(loss), self._main_thread)
                return

    def _end(self) -> list[float]:
        """When this process is to be ended, if it is."""
        return [] if self._loss is None or self._leaving else [self._lost_at + LEAVE_SECONDS]

    def _stir(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"!")

    def _hear(self, member: str | None) -> None:
        if member is None:
            with contextlib.suppress(OSError):
                self._sleep.recv(64)
            return
        if member not in self._wires:
            return
        try:
            words = self._wires[member].receive()
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(member)
            self._lose(Loss(member, f"is lost: {describe(error)}", _see_log(member)))
            return
        self._heard[member] = time.monotonic()
        for word in words:
            self._take(member, word)

    def _take(self, member: str, word: Word) -> None:
        if word.goodbye:
            self.left.add(member)
            self._drop(member)
        elif word.gave_up and word.stopped:
            self._lose(Loss(member, f"was {word.gave_up}", stopped=True))
        elif word.gave_up:
            self._lose(Loss(member, f"has given up: {word.gave_up}", _see_log(member)))
        elif word.lost is not None:
            self._lose(word.lost, tell=False)

    def _silences(self) -> dict[str, float]:
        """When each of the others will have been silent for too long."""
        if self._loss is not None or self._leaving:
            return {}
        return {member: self._heard[member] + self._limit for member in self._wires}

    def _judge(self, moment: float) -> None:
        for member, until in self._silences().items():
            if moment >= until:
                why = f"is lost: nothing has been heard of it for {self._limit:g} s"
                hint = f"the process is stopped, or the host of {member} or its network is gone"
                self._lose(Loss(member, why, hint))

    def _lose(self, loss: Loss, *, tell: bool = True) -> None:
        """The first loss counts: those that follow are of members that leave for it."""
        if self._loss is not None or self._leaving:
            return
        self._loss = loss
        if tell:
            self._tell(Word(lost=loss))
        self._lost_at = time.monotonic()
        self._changed.notify_all()
        self._ring.send(b"!")

    def _tell(self, word: Word, *members: str) -> None:
        for member in members or tuple(self._wires):
            with contextlib.suppress(OSError):  # it shows when it is read from
                self._wires[member].post(word)

    def _beat(self) -> None:
        for wire in self._wires.values():
            with contextlib.suppress(OSError):
                if wire.is_behind:
                    wire.flush()
                else:
                    wire.post(Word())

    def _drop(self, member: str) -> None:
        self._wires.pop(member).close()
        self._changed.notify_all()

    def _error(self, loss: Loss) -> PeerError | Stopped:
        if loss.stopped:
            return Stopped(f"{loss.member} {loss.why}")
        if loss.member == self._me:
            return PeerError(
                f"{self._me} is this one: {loss.why.removeprefix('is lost: ')}, and the others have given it up",
                hint="the process was stopped, or its machine was too busy, for longer than trainbox_hang_seconds",
            )
        return PeerError(f"{loss.member} {loss.why}", hint=loss.hint)


def _see_log(member: str) -> str:
    return f"the log of {member} says why"


def _poll(descriptors: Sequence[int], until: float) -> list[int]:
    """Which of them can be read from, or are at an end; waits for one until a moment of the monotonic clock."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    left = until - time.monotonic()
    # Rounded up: to wake too early would be to wait without a pause.
    return [descriptor for descriptor, _ in poll.poll(max(0, int(left * 1000) + 1))]


def end_process(error: TrainboxError, thread: int, before: Callable[[], None] | None = None) -> None:
    """End this process at once, with an error that its main thread had no chance to raise.

    It is written as the traceback would have been that Python prints, for that is where the supervisor looks.

    Args:
        error: Why.
        thread: The main thread.
        before: What to do just before the end, which takes no time: the main thread may break where it waits for that.
    """
    speaker = threading.Thread(target=_speak, args=(error, thread), daemon=True)
    speaker.start()
    speaker.join(_LAST_WORDS_SECONDS)
    if before is not None:
        before()
    os._exit(error.exit_code)


def _speak(error: TrainboxError, thread: int) -> None:
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - there is no other way to see where a thread is
    stack = traceback.format_stack(frame) if frame is not None else []
    lines = ["Traceback (most recent call last):\n", *stack, *traceback.format_exception_only(error)]
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, "".join(lines).encode())
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
