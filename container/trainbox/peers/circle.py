"""What the members of a job tell each other while they train one model: small values, bytes, and who is lost.

A star: everything goes through the leader, over one TCP connection with each of the others. What arrives is read as
what it is declared to be (msgpack by msgspec, or bytes); nothing that comes over the network is code. The bulk of the
work, the sums of gradients, is the affair of the library that trains, with connections of its own.
"""

import math
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from trainbox.errors import PeerError, Stopped, TrainboxError
from trainbox.peers.door import Door, knock
from trainbox.peers.lifeline import Lifeline
from trainbox.peers.members import Members
from trainbox.peers.parcels import LARGEST_BYTES, Line, Verb
from trainbox.say import say

T = TypeVar("T")

#: Of one value that is gathered, and of all of them together.
_LARGEST_VALUE_BYTES = 16 * 1024 * 1024
_LARGEST_VALUES_BYTES = 256 * 1024 * 1024
#: Word of a loss is on its way when a connection has broken.
_WORD_SECONDS = 3.0
#: How long the leader waits for the others when it is through itself, and any member for its goodbye to be heard.
GOODBYE_SECONDS = 60.0
_HEARD_SECONDS = 5.0
#: How long to wait for a member that lives and does not come to a call: its part of the data may be larger.
LONGEST_SECONDS = 3600.0
#: For the leader, after the longest that it waits for the others.
_MARGIN_SECONDS = 10.0


class Circle:
    """The members, as one of them is connected to the others; a context manager.

    All members make the same calls in the same order, each on its main thread. Leaving the block well says goodbye;
    leaving it by an exception tells the others why, and they raise.

    Args:
        members: All.
        lifeline: The signs of life.
        lines: By member: on the leader to all others, on the others to the leader, and nothing where one is alone.
    """

    def __init__(self, members: Members, lifeline: Lifeline, lines: dict[str, Line]) -> None:
        self.members = members
        self.rank = members.rank
        self.size = members.size
        self._lifeline = lifeline
        self._lines = lines
        self._call = 0

    @property
    def limit(self) -> float:
        """Seconds after which a process of which nothing is heard is lost; infinite where never."""
        return self._lifeline.limit

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.fail(error)
            else:
                self._say_goodbye()
        finally:
            self._lifeline.close()
            for line in self._lines.values():
                line.close()

    # -- what all do together --------------------------------------------------------------------------------------

    def gather(self, value: T, kind: type[T]) -> list[T]:
        """Everybody gets everybody's, by rank; nobody goes on before all have come.

        Args:
            value: A small one: text, numbers (not-a-number, too), bytes, or a `msgspec.Struct` of such.
            kind: Its type, the same on all.

        Raises:
            PeerError: A member is lost, or says something else.
        """
        mine = msgspec.msgpack.encode(value)
        _check_size(mine, _LARGEST_VALUE_BYTES)
        with self._calling():
            if self.members.is_first:
                others = [self._receive(name, "gather", _LARGEST_VALUE_BYTES) for name in self.members.names[1:]]
                together = msgspec.msgpack.encode([mine, *others])
                for name in self._lines:
                    self._send(name, "gather", together)
            else:
                leader = self.members.names[0]
                self._send(leader, "gather", mine)
                together = self._receive(leader, "gather", _LARGEST_VALUES_BYTES)
        values = _decode(self.members.names[0], together, list[bytes])
        if len(values) != self.size:
            raise PeerError(f"{self.members.names[0]} hands over {len(values):,} values for {self.size:,} members")
        return [_decode(name, value, kind) for name, value in zip(self.members.names, values, strict=True)]

    def send_to_first(self, content: bytes, *, largest: int = LARGEST_BYTES) -> list[bytes] | None:
        """Hand bytes to the leader.

        Args:
            content: Of this member; returning means that the leader has it.
            largest: The most bytes that the leader takes from one member.

        Returns:
            On the leader what each member has given, by rank; on the others nothing.

        Raises:
            PeerError: A member is lost, or hands over more.
        """
        _check_size(content, largest)
        with self._calling():
            if not self.members.is_first:
                self._send(self.members.names[0], "send", content)
                self._receive(self.members.names[0], "taken", 0)
                return None
            given = [content]
            for name in self._lines:
                given.append(self._receive(name, "send", largest))
                self._send(name, "taken")
            return given

    def share(self, content: bytes | None, root: int = 0, *, largest: int = LARGEST_BYTES) -> bytes:
        """Everybody gets the bytes of one member.

        Args:
            content: On that member; what the others give does not matter.
            root: Its rank.
            largest: The most bytes that anybody takes.

        Raises:
            PeerError: A member is lost, or hands over more.
        """
        giver = self.members.names[root]
        if self.rank == root:
            if content is None:
                raise ValueError("the member whose bytes are shared gives none")
            _check_size(content, largest)
            shared = content
        with self._calling():
            if self.members.is_first:
                if self.rank != root:
                    shared = self._receive(giver, "share", largest)
                    self._send(giver, "taken")
                for name in self._lines:
                    if name != giver:
                        self._send(name, "share", shared)
            elif self.rank == root:
                self._send(self.members.names[0], "share", shared)
                self._receive(self.members.names[0], "taken", 0)
            else:
                shared = self._receive(self.members.names[0], "share", largest)
        return shared

    # -- who is lost -----------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Tell the others why this one gives up, before it lets go of anything else that they wait for.

        They leave with its exit code. Leaving the block by an exception does the same; the first word counts.
        """
        message = error.message if isinstance(error, TrainboxError) else f"{type(error).__name__}: {error}"
        exit_code = exit_code_of(error)
        if isinstance(error, BrokenPipeError) and _nobody_reads(1):
            message, exit_code = "nobody reads its output any more: its supervisor has ended", 0
        stopped = isinstance(error, Stopped)
        self._lifeline.give_up(" ".join(message.split()), exit_code=exit_code, stopped=stopped)

    def check(self) -> None:
        """Go on only if nobody is lost.

        Raises:
            PeerError: Somebody is; the message says who, and how.
            Stopped: Somebody has left because the job is stopped.
        """
        self._lifeline.check()

    def lost(self, *, seconds: float) -> str | None:
        """Who is lost and how, if anybody is; where something has broken, word of it is on its way.

        Args:
            seconds: How long to wait for that.
        """
        try:
            self._lifeline.wait(seconds)
        except (PeerError, Stopped) as error:
            return error.message
        return None

    def outlast(self, *, seconds: float) -> None:
        """Stay until all others have left, well or not: for a leader that holds what they need for that."""
        self._lifeline.await_end(seconds)

    # -- one call --------------------------------------------------------------------------------------------------

    @contextmanager
    def _calling(self) -> Iterator[None]:
        self._lifeline.check()
        self._call += 1
        yield

    def _send(self, member: str, verb: Verb, content: bytes = b"") -> None:
        try:
            self._lines[member].send(self._call, verb, content)
        except OSError as error:
            raise self._broken(member, error) from None

    def _receive(self, member: str, verb: Verb, largest: int) -> bytes:
        try:
            return self._lines[member].receive(self._call, verb, largest=largest)
        except OSError as error:
            raise self._broken(member, error) from None

    def _broken(self, member: str, error: OSError) -> PeerError | Stopped:
        """A connection for data is gone; the lifeline knows more, if not yet then soon."""
        try:
            self._lifeline.wait(_WORD_SECONDS)
        except (PeerError, Stopped) as lost:
            return lost
        if member in self._lifeline.left:
            return PeerError(
                f"{member} has left, and {self.members.name} still waits for it",
                hint="all members must run the same script with the same hyperparameters",
            )
        return self._lifeline.lose_broken(member, error)

    def _say_goodbye(self) -> None:
        if self.members.is_first:
            slow = self._lifeline.await_goodbyes(GOODBYE_SECONDS)
            if slow:
                say(f"{', '.join(slow)}: no goodbye within {GOODBYE_SECONDS:g} s; {self.members.name} leaves without")
        self._lifeline.say_goodbye(_HEARD_SECONDS)


def exit_code_of(error: BaseException) -> int:
    """With which Python ends for an error that nobody catches; see `errors.end_as_declared` for those of ours."""
    if isinstance(error, TrainboxError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return (error.code or 0) & 0xFF
    return 1


def _nobody_reads(descriptor: int) -> bool:
    """Whether this is a pipe whose last reader has left: poll(2), POLLERR."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _decode(member: str, value: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
        raise PeerError(
            f"{member} says what this version of trainbox does not understand",
            hint="all hosts must run the same image",
        ) from None


def _check_size(content: bytes, largest: int) -> None:
    if len(content) > largest:
        raise PeerError(f"{len(content):,} bytes are to be handed over; at most {largest:,} are taken")


def join(members: Members, *, patience: float, limit: float, port: int, longest: float = LONGEST_SECONDS) -> Circle:
    """Come together; returns once all members are there.

    Args:
        members: All.
        patience: Seconds to wait for the others (the setting `trainbox_peer_timeout_seconds`).
        limit: Seconds after which a member of whom nothing is heard is lost (`trainbox_hang_seconds`); 0 is never.
        port: Where the leader listens (`Job.port`).
        longest: Seconds to wait in one call for a member that lives.

    Raises:
        PeerError: Some never came, and are named; or the leader cannot listen.
    """
    lifeline = Lifeline(members.name, limit=limit or math.inf)
    lines: dict[str, Line] = {}
    with ExitStack() as stack:
        circle = stack.enter_context(Circle(members, lifeline, lines))
        for name, connection in _meet(members, lifeline, port, patience).items():
            lines[name] = Line(name, connection, lifeline.alarm, lifeline.check, longest=patience + _MARGIN_SECONDS)
        circle.gather(members.name, str)
        for line in lines.values():
            # The leader knows who does not come: the others wait for its word.
            line.longest = longest if members.is_first else longest + _MARGIN_SECONDS
        stack.pop_all()
    return circle


def _meet(members: Members, lifeline: Lifeline, port: int, patience: float) -> dict[str, socket.socket]:
    """The connections for data, by member."""
    if members.size == 1:
        return {}
    lifeline.start()
    if not members.is_first:
        return {members.names[0]: knock(members, port, lifeline, patience=patience)}
    with closing(Door(members, port, lifeline)) as door:
        return door.welcome(patience)
