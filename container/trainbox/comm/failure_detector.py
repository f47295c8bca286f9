"""Failure detector by timeout: which members are silent for too long, and when the next heartbeat is due.

Pure: every moment is a parameter. It has one addition to the textbook: this process may itself have been stopped
(SIGSTOP, a paused container). It notices because it looks at its clock much later than planned. The other members, who
may have been stopped as well, then get that time once more. If it was away for as long as the others wait, a connection
that breaks afterwards says something about this process, not about them.
"""

from collections.abc import Iterable

import msgspec

from trainbox.clock import missed


class Due(msgspec.Struct, frozen=True):
    """What to do now."""

    #: Whether to send a heartbeat.
    beats: bool
    #: When to look again at the latest.
    until: float
    #: How long this process did not run, if that was at least half of the limit.
    absent: float = 0.0


class FailureDetector:
    """The silences of the other members, as one member measures them.

    Args:
        limit: Seconds without a heartbeat after which another member is lost.
        interval: Seconds between two heartbeats.
    """

    def __init__(self, *, limit: float, interval: float) -> None:
        self.limit = limit
        self.interval = interval
        self._heard: dict[str, float] = {}
        self._beat_at = float("-inf")
        self._due = float("inf")
        self._absent = 0.0
        self._absent_until = float("-inf")

    def hear(self, member: str, now: float) -> None:
        """Record that a member was heard; from the first time on it is watched."""
        self._heard[member] = now

    def forget(self, member: str) -> None:
        """Stop watching a member that has left."""
        self._heard.pop(member, None)

    def turn(self, now: float, *, watching: bool, ends: Iterable[float] = ()) -> Due:
        """Return what is due now.

        Args:
            now: The time.
            watching: Whether the silence of the others matters.
            ends: Other moments at which something is due.
        """
        gap = missed(self._due, now, tolerated=self.interval)
        for member in self._heard:
            self._heard[member] = min(now, self._heard[member] + gap)
        absent = gap if gap >= self.limit / 2 else 0.0
        if gap >= self.limit:
            self._absent, self._absent_until = gap, now + self.limit
        beats = now >= self._beat_at
        if beats:
            self._beat_at = now + self.interval
        self._due = min([self._beat_at, *ends, *(self._silences() if watching else ())])
        self._due = max(now, self._due)
        return Due(beats, self._due, absent)

    def silent(self, moment: float) -> tuple[str, ...]:
        """Return the members that had been silent for too long at a moment, given all that was heard by now."""
        return tuple(member for member, heard in self._heard.items() if moment >= heard + self.limit)

    def absence(self, now: float) -> float:
        """Return how long this process did not run, if the others may have declared it lost for that; else 0."""
        return self._absent if now < self._absent_until else 0.0

    def _silences(self) -> list[float]:
        return [heard + self.limit for heard in self._heard.values()]
