"""How long one member waits for what another sends: in a time that the test moves."""

import contextlib
import select
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.support.timeline import Timeline
from trainbox.comm.data_connection import DataConnection, Overdue
from trainbox.comm.framing import Frame, Header, MessageKind
from trainbox.errors import PeerError


class Waiting(Timeline):
    """Two ends of a connection, and an alarm; what nobody sends is waited for in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.here, self.there = socket.socketpair()
        self.alarm, self.ring = socket.socketpair()
        #: How much longer than it was to a wait takes, one after the other: this process is stopped meanwhile.
        self.stops: list[float] = []
        #: What happens at a moment.
        self.events: list[tuple[float, Callable[[], object]]] = []
        self.waits: list[float] = []

    def poll(self, events: Sequence[tuple[int, int]], seconds: float) -> list[int]:
        self.waits.append(seconds)
        until = self.now + seconds
        coming = [event for event in self.events if event[0] <= until]
        self.now = coming[0][0] if coming else until
        self.now += self.stops.pop(0) if self.stops else 0.0
        for event in coming[:1]:
            self.events.remove(event)
            event[1]()
        poll = select.poll()
        for descriptor, kind in events:
            poll.register(descriptor, kind)
        return [descriptor for descriptor, _ in poll.poll(0)]

    def connection(self, *, timeout: float, check: Callable[[], None] = lambda: None) -> DataConnection:
        return DataConnection(
            "algo-2", self.here, timeout=timeout, alarm=self.alarm, check=check, clock=self.clock, poll=self.poll
        )

    def send(self, kind: MessageKind, content: bytes) -> None:
        """The other end sends something."""
        DataConnection("algo-1", self.there, timeout=0).send(1, kind, content)


def sent(kind: MessageKind, content: bytes) -> Frame:
    return Frame(Header(1, kind, len(content)), content)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    one = Waiting()
    with contextlib.ExitStack() as stack:
        for end in (one.here, one.there, one.alarm, one.ring):
            stack.enter_context(end)
        yield one


@pytest.mark.parametrize("timeout", [0.5, 59.0, 60.0, 61.0, 3600.0])
def test_one_that_lives_and_does_not_come_is_waited_for_so_long(
    waiting: Waiting, timeout: float, capsys: pytest.CaptureFixture[str]
) -> None:
    started = waiting.now
    words = f"algo-2 is alive but has not reached gather for {timeout:.0f} s; the other processes are waiting"
    with pytest.raises(Overdue) as error:
        waiting.connection(timeout=timeout).receive("gather", largest=100)
    assert error.value.message == words
    assert waiting.now - started == timeout
    minutes = [minute for minute in range(60, 3600, 60) if minute < timeout]
    assert capsys.readouterr().err.splitlines() == [
        f"trainbox: waiting for algo-2 (gather; {minute} of {timeout:g} s)" for minute in minutes
    ]


def test_what_comes_in_the_last_moment_is_taken(waiting: Waiting) -> None:
    waiting.events = [(waiting.now + 3599, lambda: waiting.send("gather", b"late"))]
    assert waiting.connection(timeout=3600).receive("gather", largest=100) == sent("gather", b"late")


@pytest.mark.parametrize("stop", [1.0, 3600.0, 86400.0])
def test_a_stop_of_this_process_is_not_the_others_time(
    waiting: Waiting, stop: float, capsys: pytest.CaptureFixture[str]
) -> None:
    started = waiting.now
    waiting.stops = [0.0, stop]
    with pytest.raises(Overdue, match=r"for 3600 s"):
        waiting.connection(timeout=3600).receive("gather", largest=100)
    assert waiting.now - started == 3600 + stop
    assert f"this process did not run for {stop:.1f} s" in capsys.readouterr().err


def test_what_has_come_while_this_process_was_stopped_is_taken(waiting: Waiting) -> None:
    waiting.stops = [86400.0]
    waiting.events = [(waiting.now + 1, lambda: waiting.send("gather", b"meanwhile"))]
    assert waiting.connection(timeout=60).receive("gather", largest=100) == sent("gather", b"meanwhile")


def test_an_alarm_ends_the_wait_at_once(waiting: Waiting) -> None:
    def check() -> None:
        raise PeerError("algo-3 is lost")

    started = waiting.now
    waiting.events = [(waiting.now + 7, lambda: waiting.ring.send(b"!"))]
    with pytest.raises(PeerError, match="algo-3 is lost"):
        waiting.connection(timeout=3600, check=check).receive("gather", largest=100)
    assert waiting.now - started == 7


def test_one_that_takes_nothing_is_waited_for_no_longer_than_one_that_gives_nothing(waiting: Waiting) -> None:
    with pytest.raises(Overdue, match=r"has not reached share for 60 s"):
        waiting.connection(timeout=60).send(1, "share", b"x" * 64 * 1024 * 1024)


def test_what_has_arrived_is_read_before_the_reason_to_leave(waiting: Waiting) -> None:
    """A member that fails after a collective has sent its data first: both are there when this one wakes up."""

    def check() -> None:
        raise PeerError("algo-2 has given up: no rows")

    def fail() -> None:
        waiting.send("gather", b"the last values")
        waiting.ring.send(b"!")

    waiting.events = [(waiting.now + 7, fail)]
    connection = waiting.connection(timeout=3600, check=check)
    assert connection.receive("gather", largest=100) == sent("gather", b"the last values")
    with pytest.raises(PeerError, match="algo-2 has given up: no rows"):
        connection.receive("gather", largest=100)


def test_a_wait_tells_how_long_this_process_itself_did_not_run(waiting: Waiting) -> None:
    connection = waiting.connection(timeout=60)
    waiting.stops = [0.0, 600.0]
    with pytest.raises(Overdue):
        connection.receive("gather", largest=100)
    assert connection.wait.patience.missed_in_all == 600.0
    connection.allow(60)
    assert connection.wait.patience.missed_in_all == 0.0
