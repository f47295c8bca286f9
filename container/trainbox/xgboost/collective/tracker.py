"""XGBoost's tracker, which introduces the members of a job to each other, as a program of its own.

    python tracker.py HOST MEMBERS SECONDS

It says on stdout how to reach it, answers "!" to each "?" on stdin as a sign of life, and ends when anything else comes
there. Where whoever started it has died, it ends a little later, for the others tell it that they leave, and must not
find it dying. In the process of a member it would take that along: it ends with SIGABRT where a member has given up
before the last one came (3.2, 3.4). Started by its path, it imports nothing else of trainbox.
"""

import json
import os
import signal
import sys
import time

#: In which the members notice that their leader has died, and leave.
_LAST_SECONDS = 0.75


def main(host: str, members: str, seconds: str) -> None:
    """Serve until stdin ends.

    Args:
        host: The address to listen on, which all members can reach.
        members: How many there are.
        seconds: How long they may take to come, and to leave.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor's, when the leader has died
    # Neither is needed here, and they take four fifths of the time of `import xgboost`.
    sys.modules.update({"sklearn": None, "pandas": None})  # type: ignore[dict-item]  # as Python forbids an import
    from xgboost.tracker import RabitTracker  # noqa: PLC0415 - only now

    tracker = RabitTracker(n_workers=int(members), host_ip=host, sortby="task", timeout=int(seconds))
    tracker.start()
    sys.stdout.write(json.dumps(tracker.worker_args()) + "\n")
    sys.stdout.flush()
    if not answer_until_told_to_end():
        time.sleep(_LAST_SECONDS)
    os._exit(0)  # its threads wait for members that may never leave


def answer_until_told_to_end() -> bool:
    """Give signs of life as long as they are asked for; False where nobody is there any more to ask."""
    try:
        while (word := os.read(sys.stdin.fileno(), 1)) == b"?":
            os.write(sys.stdout.fileno(), b"!")
    except OSError:
        return False
    return bool(word)


if __name__ == "__main__":
    main(*sys.argv[1:])
