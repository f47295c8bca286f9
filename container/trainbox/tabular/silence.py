"""How long another process has shown no progress, in the time of the one that waits for it."""


class Silence:
    """Counts the seconds without a sign of progress.

    A process that was stopped, and goes on, must not blame another for that time: of a wait that took longer than it
    should only that long counts.

    Args:
        limit: Seconds of silence that are too many.
        longest: Seconds that one wait takes.
    """

    def __init__(self, limit: float, *, longest: float) -> None:
        self._limit = limit
        self._longest = longest
        self._seconds = 0.0

    def waited(self, seconds: float, *, heard: bool) -> bool:
        """Take in one more wait, and whether something was heard in it; whether the silence is too long now."""
        self._seconds = 0.0 if heard else self._seconds + min(seconds, self._longest)
        return self._seconds >= self._limit
