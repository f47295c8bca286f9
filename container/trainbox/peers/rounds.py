"""How long the first host waits in a round of the exchange: pure, over moments that are handed in."""

from collections.abc import Iterable

import msgspec

from trainbox.clock import AFTERWARDS_SECONDS, missed

#: Between two looks at the clock, in which a host notices that it was itself stopped.
LOOK_SECONDS = 1.0


class Round(msgspec.Struct, frozen=True):
    """The deadlines of one round: pure."""

    #: When it began, and how long a host that has come may take.
    started: float
    seconds: float
    #: Until when those that have not come may.
    connect_until: float
    #: When the first host is to look at its clock again at the latest.
    due: float
    #: How long it was itself stopped in this round: those that are waited for have so much more.
    absent: float = 0.0
    #: Nobody is given up before: after a stop all have a moment to be heard.
    not_before: float = float("-inf")

    def look(self, now: float) -> "Round":
        """The same round at a later moment."""
        gap = missed(self.due, now)
        if not gap:
            return msgspec.structs.replace(self, due=now + LOOK_SECONDS)
        return msgspec.structs.replace(
            self, due=now + LOOK_SECONDS, absent=self.absent + gap, not_before=now + AFTERWARDS_SECONDS
        )

    def left(self, now: float, missing: Iterable[float | None]) -> float:
        """How long somebody is still waited for.

        Args:
            now: The time.
            missing: Of each host that has not spoken in this round since when it is here, None if it has not come.
        """
        limits = [self.connect_until if since is None else max(self.started, since) + self.seconds for since in missing]
        return max(max(limits) + self.absent, self.not_before) - now if limits else 0.0
