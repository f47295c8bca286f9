"""How tests wait: for an event, with a limit that only what hangs ever meets."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

#: A slower machine is waited for longer: TRAINBOX_TEST_PATIENCE=3 triples every limit.
PATIENCE = float(os.environ.get("TRAINBOX_TEST_PATIENCE", "1"))
#: Longer than anything takes that happens at all.
LIMIT = 240.0 * PATIENCE
_TAIL = 4000
_T = TypeVar("_T")


def eventually(
    predicate: Callable[[], _T | None],
    what: str,
    *,
    logs: Callable[[], str] | None = None,
    ended: Callable[[], bool] | None = None,
    limit: float = LIMIT,
) -> _T:
    """Wait until something is so, and give what it came to.

    Args:
        predicate: Is asked every few milliseconds until its answer is true.
        what: Is waited for, in words.
        logs: What those have written who should bring it about.
        ended: Whether they have ended: then nothing is waited for any more.
        limit: Seconds.

    Raises:
        AssertionError: It never came.
    """
    until = time.monotonic() + limit
    pause = 0.001
    while True:
        over = ended is not None and ended()
        answer = predicate()
        if answer:
            return answer
        if over or time.monotonic() >= until:
            said = f":\n{logs()[-_TAIL:]}" if logs else ""
            how = "whoever was to bring it about has ended" if over else f"waited {limit:.0f} s"
            raise AssertionError(f"{how}, and still not: {what}{said}")
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
