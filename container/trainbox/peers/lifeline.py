"""Signs of life between the leader and each other member, so that all know within a second who is lost.

A thread of its own beats every half second and listens, whatever the main thread does: in a long call of a library
that lets go of the interpreter's lock it still beats, in a process that is stopped it does not. A connection that is
closed without a goodbye is a member that has died; one on which nothing comes is a member that is stopped, or whose
host or network is gone. The leader tells the others who it was; what they say after that is never another name.

Once a member is lost there is nothing left to do: if the main thread, which may sit in a collective that waits for the
dead, does not leave by itself, the thread ends the process.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from trainbox.clock import Clock, describe_missed
from trainbox.errors import PeerError, Stopped
from trainbox.peers.detector import FailureDetector
from trainbox.peers.last_words import LAST_WORDS_SECONDS, end_process
from trainbox.peers.wire import Wire, describe
from trainbox.say import say

BEAT_SECONDS = 0.5
#: What the main thread has to leave by itself once a member is lost.
LEAVE_SECONDS = 1.0
#: What somebody who gives up may say, in characters.
_LONGEST_WHY = 2000
#: Of a `Word`.
LONGEST_WORD_BYTES = 64 * 1024
#: Of a process; 0 where nobody knows it, or where it says that all is well.
ExitCode = Annotated[int, msgspec.Meta(ge=0, le=255)]
#: Given descriptors and seconds, waits for those that can be read from, or are at an end.
Poll = Callable[[Sequence[int], float], list[int]]


class Loss(msgspec.Struct, frozen=True):
    """A member that is lost, or several that never came."""

    member: str
    #: What has become of it, as the rest of a sentence.
    why: str
    hint: str = ""
    #: Whether it left because the job is stopped.
    stopped: bool = False
    #: With which it leaves: the others leave with the same.
    exit_code: ExitCode = 0


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line, of either side; an empty one is a beat."""

    #: Why the speaker leaves.
    gave_up: str = ""
    #: Whether that is a stop of the job.
    stopped: bool = False
    #: With which it leaves.
    exit_code: ExitCode = 0
    #: Whom the speaker has lost; it may be the listener.
    lost: Loss | None = None
    #: The speaker leaves, and all is well.
    goodbye: bool = False


class Lifeline:
    """The signs of life of one member.

    Args:
        me: Its name.
        limit: Seconds after which one of whom nothing is heard is lost.
        clock: The time in seconds.
        poll: Waits for connections, in seconds of that clock.
    """

    def __init__(self, me: str, *, limit: float, clock: Clock = time.monotonic, poll: Poll | None = None) -> None:
        self._me = me
        self._limit = limit
        self._clock = clock
        self._poll = poll or poll_descriptors
        self._detector = FailureDetector(limit=limit, interval=min(BEAT_SECONDS, limit / 4))
        self._main_thread = threading.get_ident()
        self._wires: dict[str, Wire[Word]] = {}
        #: Those that have said goodbye.
        self.left: set[str] = set()
        self._loss: Loss | None = None
        self._said: Loss | None = None
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

    def start(self) -> None:
        """Send and hear signs of life from a thread of its own, until `close`."""
        self._thread.start()

    @property
    def limit(self) -> float:
        """Seconds after which one of whom nothing is heard is lost; infinite where never."""
        return self._limit

    def add(self, member: str, wire: Wire[Word]) -> None:
        """From now on exchange signs of life with another member.

        Args:
            member: Its name.
            wire: The connection; it belongs to the lifeline from now on.
        """
        wire.connection.setblocking(False)
        with self._changed:
            self._wires[member] = wire
            self._detector.hear(member, self._clock())
            if self._loss is not None:
                self._tell(Word(lost=self._loss), member)
        self._stir()

    # -- what the main thread asks ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Go on only if nobody is lost.

        Raises:
            PeerError: Somebody is; the message says who, and how.
            Stopped: Somebody has left because the job is stopped.
        """
        if self._loss is not None:
            raise self.error(self._loss)

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
            return self.error(self._loss or loss)

    def lose_broken(self, member: str, error: OSError) -> PeerError | Stopped:
        """The same for another connection to a member, which has broken."""
        return self.lose(self._broken(member, error))

    def give_up(self, why: str, *, exit_code: int = 0, stopped: bool = False) -> None:
        """Tell the others that this one leaves for a reason of its own, unless somebody is lost already.

        Args:
            why: As the rest of a sentence.
            exit_code: With which it leaves, if that can be said.
            stopped: Whether the job is stopped.
        """
        with self._changed:
            if self._loss is None and not self._leaving:
                why = why[:_LONGEST_WHY] or "without a reason"
                self._tell(Word(gave_up=why, stopped=stopped, exit_code=exit_code))
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
            self._thread.join(LAST_WORDS_SECONDS)
        for wire in self._wires.values():
            wire.close()
        for end_of_pair in (self.alarm, self._ring, self._sleep, self._wake):
            end_of_pair.close()

    def error(self, loss: Loss) -> PeerError | Stopped:
        """What is raised for a loss."""
        if loss.stopped:
            return Stopped(f"{loss.member} {loss.why}")
        if loss.member == self._me:
            return PeerError(
                f"{self._me} is this one: {loss.why.removeprefix('is lost: ')}, and the others have given it up",
                hint="the process was stopped, or its machine was too busy, for longer than trainbox_hang_seconds",
            )
        return PeerError(f"{loss.member} {loss.why}", hint=loss.hint, exit_code=loss.exit_code)

    # -- the thread; in what it calls the lock is held -----------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed and self.turn():
            pass

    def turn(self) -> bool:
        """One turn of the thread: beat, listen, and judge. Gives False once there is nothing left to do."""
        # Whoever was silent at this moment and has sent nothing that is found below was so in truth: this process
        # itself may be stopped between any two of these lines.
        now = self._clock()
        with self._changed:
            turn = self._detector.turn(now, watching=self._is_watching, ends=self._end())
            if turn.beats:
                self._beat()
            sources = {wire.connection.fileno(): member for member, wire in self._wires.items()}
        if turn.absent:
            say(describe_missed(turn.absent))
        ready = self._poll([*sources, self._sleep.fileno()], turn.until - now)
        with self._changed:
            for source in ready:
                self._hear(sources.get(source))
            if self._is_watching:
                for member in self._detector.silent(now):
                    self._lose_silent(member)
            loss = self._loss
        if loss is not None and loss is not self._said:
            self._said = loss
            say(self.error(loss).message)  # whatever becomes of this process now, its log has the name
        if loss is not None and any(now >= moment for moment in self._end()):
            end_process(self.error(loss), self._main_thread)
            return False
        return True

    @property
    def _is_watching(self) -> bool:
        return self._loss is None and not self._leaving

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
            self._lose(self._broken(member, error))
            return
        self._detector.hear(member, self._clock())
        for word in words:
            self._take(member, word)

    def _take(self, member: str, word: Word) -> None:
        if word.goodbye:
            self.left.add(member)
            self._drop(member)
        elif word.gave_up and word.stopped:
            self._lose(Loss(member, f"was {word.gave_up}", stopped=True))
        elif word.gave_up:
            self._lose(Loss(member, f"has given up: {word.gave_up}", _see_log(member), exit_code=word.exit_code))
        elif word.lost is not None:
            self._lose(word.lost, tell=False)

    def _lose_silent(self, member: str) -> None:
        why = f"is lost: nothing has been heard of it for {self._limit:g} s"
        hint = f"the process is stopped, or the host of {member} or its network is gone"
        self._lose(Loss(member, why, hint))

    def _broken(self, member: str, error: OSError) -> Loss:
        """Whom a broken connection speaks about: this one, if it was away for longer than the others wait."""
        absent = self._detector.absence(self._clock())
        if absent:
            return Loss(self._me, f"is lost: it did not run for {absent:.0f} s, and {member} has left meanwhile")
        return Loss(member, f"is lost: {describe(error)}", _see_log(member))

    def _lose(self, loss: Loss, *, tell: bool = True) -> None:
        """The first loss counts: those that follow are of members that leave for it."""
        if self._loss is not None or self._leaving:
            return
        self._loss = loss
        if tell:
            self._tell(Word(lost=loss))
        self._lost_at = self._clock()
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
        self._detector.forget(member)
        self._changed.notify_all()


def _see_log(member: str) -> str:
    return f"the log of {member} says why"


def poll_descriptors(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Which of them can be read from, or are at an end; waits for one for some seconds."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    # Rounded up: to wake too early would be to wait without a pause.
    return [descriptor for descriptor, _ in poll.poll(max(0, int(seconds * 1000) + 1))]
