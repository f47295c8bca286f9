"""Pure: deadlines of children, sidecars and leftover processes; `supervise` acts on them."""

import signal
from collections.abc import Set as AbstractSet

import msgspec

#: How long the other processes of a host may take to leave once one has failed: they may be saving.
PEER_GRACE_SECONDS = 30.0
#: How long processes that the script left behind may take to leave after SIGTERM, and to be gone after SIGKILL.
LEFTOVER_GRACE_SECONDS = 5.0
#: What sidecars have for their last words once the children have failed; and how long the kernel may take to end one.
LAST_WORDS_SECONDS = 2.0
KILL_SECONDS = 0.5
#: Between two looks at what the script left behind, as long as nothing new is there.
_LOOK_SECONDS = 0.1
#: Where so many looks found processes that those before had not seen, they fork instead of leaving: no more is asked.
MOST_RENEWALS = 20
NEVER = float("inf")


class Deadline(msgspec.Struct, frozen=True):
    """When the children are killed."""

    kill_at: float = NEVER

    def after_start(self, now: float, limit: float) -> "Deadline":
        """Return the deadline of a job that starts now."""
        return Deadline(now + limit)

    def after_stop(self, now: float, grace: float) -> "Deadline":
        """Return the deadline after a stop: the children have the grace period to save."""
        return Deadline(now + grace)

    def after_failure(self, now: float) -> "Deadline":
        """Return the deadline after a child has failed: the others are stopped, and the earlier deadline holds."""
        return Deadline(min(self.kill_at, now + PEER_GRACE_SECONDS))

    def is_over(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return now >= self.kill_at


def seconds_until(moment: float, now: float) -> float | None:
    """Return how long to wait for events; None is without limit."""
    return None if moment == NEVER else max(0.0, moment - now)


class Stage(msgspec.Struct, frozen=True):
    """A signal for sidecars, and how long to wait for its effect."""

    signal: int
    seconds: float


def sidecar_stages(*, last_words: bool) -> tuple[Stage, ...]:
    """Plan how sidecars are ended.

    Args:
        last_words: Whether they may report findings first: why the children have failed.
    """
    kill = Stage(signal.SIGKILL, KILL_SECONDS)
    return (Stage(signal.SIGTERM, LAST_WORDS_SECONDS), kill) if last_words else (kill,)


class Sweep(msgspec.Struct, frozen=True):
    """What to do about leftover processes at one look."""

    ask: frozenset[int] = frozenset()
    kill: frozenset[int] = frozenset()
    #: Then wait so long; 0 is to look again at once.
    wait: float = 0.0
    #: When the first was killed.
    killing_since: float | None = None


def plan_sweep(
    left: AbstractSet[int],
    known: AbstractSet[int],
    *,
    renewals: int,
    since: float,
    now: float,
    killing_since: float | None = None,
) -> Sweep | None:
    """Plan the end of leftover processes: SIGTERM first, then SIGKILL.

    As long as a look finds processes that the one before had not seen, the next comes at once: one that forks and ends,
    again and again, is caught by being faster.

    Args:
        left: What is there now.
        known: What was there at looks before.
        renewals: How many looks found what those before had not.
        since: When the first look was.
        now: The time.
        killing_since: When the first was killed, if one was: this process may itself be stopped between two looks.

    Returns:
        None when nothing is left to do: all have left, or what is there cannot be ended.
    """
    if not left or (killing_since is not None and now >= killing_since + LEFTOVER_GRACE_SECONDS):
        return None
    kill_from = since + LEFTOVER_GRACE_SECONDS
    if killing_since is None and now < kill_from and renewals <= MOST_RENEWALS:
        return Sweep(ask=frozenset(left - known), wait=min(_LOOK_SECONDS, kill_from - now))
    return Sweep(
        kill=frozenset(left),
        wait=0.0 if left - known else _LOOK_SECONDS,
        killing_since=now if killing_since is None else killing_since,
    )
