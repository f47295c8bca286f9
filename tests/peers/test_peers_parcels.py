"""How long one member waits for what another hands over: in a time that the test moves."""

import contextlib
import select
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.support.timeline import Timeline
from trainbox.errors import PeerError
from trainbox.peers.parcels import Line


class Waiting(Timeline):
    """Two ends of a line, and an alarm; what nobody sends is waited for in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.here, self.there = socket.socketpair()
        self.alarm, self.ring = socket.socketpair()
        #: How much longer than it was to a wait takes, one after the other: this process is stopped meanwhile.
        self.stops: list[float] = []
        #: What happens at a moment.
        self.events: list[tuple[float, Callable[[], object]]] = []
        self.waits: list[float] = []

    def poll(self, events: Sequence[tuple[int, int]], seconds: float) -> bool:
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
        return bool(poll.poll(0))

    def line(self, *, longest: float, check: Callable[[], None] = lambda: None) -> Line:
        return Line("algo-2", self.here, self.alarm, check, longest=longest, clock=self.clock, poll=self.poll)

    def other(self) -> Line:
        return Line("algo-1", self.there, self.ring, lambda: None, longest=0)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    one = Waiting()
    with contextlib.ExitStack() as stack:
        for end in (one.here, one.there, one.alarm, one.ring):
            stack.enter_context(end)
        yield one


@pytest.mark.parametrize("longest", [0.5, 59.0, 60.0, 61.0, 3600.0])
def test_one_that_lives_and_does_not_come_is_waited_for_so_long(
    waiting: Waiting, longest: float, capsys: pytest.CaptureFixture[str]
) -> None:
    started = waiting.now
    words = f"algo-2 lives, but has not come to what the others do (gather) for {longest:.0f} s"
    with pytest.raises(PeerError) as error:
        waiting.line(longest=longest).receive(1, "gather", largest=100)
    assert error.value.message == words
    assert waiting.now - started == longest
    minutes = [minute for minute in range(60, 3600, 60) if minute < longest]
    assert capsys.readouterr().err.splitlines() == [
        f"trainbox: waiting for algo-2 (gather; {minute} of {longest:g} s)" for minute in minutes
    ]


def test_what_comes_in_the_last_moment_is_taken(waiting: Waiting) -> None:
    waiting.events = [(waiting.now + 3599, lambda: waiting.other().send(1, "gather", b"late"))]
    assert waiting.line(longest=3600).receive(1, "gather", largest=100) == b"late"


@pytest.mark.parametrize("stop", [1.0, 3600.0, 86400.0])
def test_a_stop_of_this_process_is_not_the_others_time(
    waiting: Waiting, stop: float, capsys: pytest.CaptureFixture[str]
) -> None:
    started = waiting.now
    waiting.stops = [0.0, stop]
    with pytest.raises(PeerError, match=r"for 3600 s"):
        waiting.line(longest=3600).receive(1, "gather", largest=100)
    assert waiting.now - started == 3600 + stop
    assert f"this process did not run for {stop:.1f} s" in capsys.readouterr().err


def test_what_has_come_while_this_process_was_stopped_is_taken(waiting: Waiting) -> None:
    waiting.stops = [86400.0]
    waiting.events = [(waiting.now + 60, lambda: waiting.other().send(1, "gather", b"meanwhile"))]
    assert waiting.line(longest=60).receive(1, "gather", largest=100) == b"meanwhile"


def test_an_alarm_ends_the_wait_at_once(waiting: Waiting) -> None:
    def check() -> None:
        raise PeerError("algo-3 is lost")

    started = waiting.now
    waiting.events = [(waiting.now + 7, lambda: waiting.ring.send(b"!"))]
    with pytest.raises(PeerError, match="algo-3 is lost"):
        waiting.line(longest=3600, check=check).receive(1, "gather", largest=100)
    assert waiting.now - started == 7


def test_one_that_takes_nothing_is_waited_for_no_longer_than_one_that_gives_nothing(waiting: Waiting) -> None:
    with pytest.raises(PeerError, match=r"has not come to what the others do \(share\) for 60 s"):
        waiting.line(longest=60).send(1, "share", b"x" * 64 * 1024 * 1024)
