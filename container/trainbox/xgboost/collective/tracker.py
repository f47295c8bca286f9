"""XGBoost's tracker, the rendezvous of its collective, as a program.

    python tracker.py HOST MEMBERS SECONDS

It writes its address to stdout, answers "!" to each "?" on stdin as a heartbeat, and ends on any other byte. If its
parent has died, it ends a little later: the other members tell it that they leave, and must not find it dying. It is a
separate process because it would end a member's: with SIGABRT, if a member gives up before the last one connects
(XGBoost 3.2, 3.4). Started by its path, it imports nothing else of trainbox.
"""

import json
import os
import signal
import sys
import time

#: Time for the members to notice that their leader has died, and to leave.
_LAST_SECONDS = 0.75


def main(host: str, members: str, seconds: str) -> None:
    """Serve until stdin ends.

    Args:
        host: The address to listen on, which all members can reach.
        members: Their number.
        seconds: The limit for connecting and for leaving.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor's, when the leader has died
    # Neither is needed here; without them the import takes a quarter of its CPU time: `make bench-xgboost` prints it.
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
    """Answer heartbeats until told to end; False if the process that asks is gone."""
    try:
        while (word := os.read(sys.stdin.fileno(), 1)) == b"?":
            os.write(sys.stdout.fileno(), b"!")
    except OSError:
        return False
    return bool(word)


if __name__ == "__main__":
    main(*sys.argv[1:])
