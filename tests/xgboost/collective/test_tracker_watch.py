"""XGBoost's tracker dies or hangs: the job ends on all hosts, with a reason that names it."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.parties import Party
from tests.support.trees import is_alive
from tests.xgboost.collective.test_cluster import HEAD, ON_AND_ON
from trainbox.comm import Members, join
from trainbox.errors import TrainingError
from trainbox.xgboost.collective.tracker_process import Tracker, TrackerWatch

#: All but the last member wait in XGBoost for it.
LATE = """
from trainbox.xgboost.collective import group as cluster
init = cluster.xgb_collective.init
def late(**arguments):
    ready()
    if communicator.rank == 2: time.sleep(600)
    init(**arguments)
cluster.xgb_collective.init = late
"""
HAPPENS = {"while all train": ON_AND_ON, "while they join": LATE + ON_AND_ON.replace("ready()", "pass")}
LIMIT = 3


def find_tracker(party: Party) -> int:
    """The process id of the leader's tracker."""
    leader = party.pid("algo-1")
    children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    (tracker,) = (pid for pid in children if b"tracker.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(tracker)


KILLED, FROZEN = (signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, f"made no progress for {LIMIT} s")


@pytest.mark.process
@pytest.mark.parametrize(
    ("moment", "fault", "words"),
    [
        pytest.param("while they join", *KILLED, id="killed-while they join"),
        pytest.param("while they join", *FROZEN, id="frozen-while they join"),
        pytest.param("while all train", *KILLED, id="killed-while all train", marks=pytest.mark.long),
        pytest.param("while all train", *FROZEN, id="frozen-while all train", marks=pytest.mark.long),
    ],
)
def test_a_tracker_that_fails_ends_the_job_on_all_members_and_is_named(
    moment: str, fault: signal.Signals, words: str
) -> None:
    with Party(3, HAPPENS[moment], head=HEAD + "RAISING = None", limit=LIMIT) as party:
        party.start().until_ready()
        tracker = find_tracker(party)
        os.kill(tracker, fault)
        ended = party.finish()
    reason = f"the XGBoost tracker on algo-1 {words}"
    leader = ended.pop("algo-1")
    assert leader.code == TrainingError.exit_code, leader.stderr
    assert leader.error == f"trainbox.errors.TrainingError: {reason}"
    for one in ended.values():
        assert one.code == leader.code, one.stderr
        assert one.error == f"trainbox.errors.PeerError: algo-1 has given up: {reason}"
    assert not is_alive(tracker)


def watched(fault: signal.Signals | None, clock: Callable[[], float], limit: float) -> list[str]:
    """With what a watch ends its process, whose clock is not ours."""
    ends: list[str] = []

    def end(error: TrainingError, _thread: int, before: Callable[[], None]) -> None:
        before()
        ends.append(error.message)

    with (
        join(Members(("algo-1",), "algo-1", "127.0.0.1"), timeout=0, limit=limit, port=0) as communicator,
        Tracker("localhost", 2, 10) as tracker,
    ):
        if fault is not None:
            os.kill(tracker.pid, fault)
        watch = TrackerWatch(tracker, communicator, end=end, clock=clock)
        with watch:
            while fault is not None and not ends:
                time.sleep(0.001)
    return ends


@pytest.mark.process
@pytest.mark.parametrize("stopped", [0.0, 3600.0])
def test_a_frozen_tracker_is_named_after_the_limit_of_silence_in_which_this_process_itself_ran(stopped: float) -> None:
    steps = itertools.count()
    ends = watched(signal.SIGSTOP, lambda: (step := next(steps)) / 8 + stopped * (step > 4), 1.0)
    assert ends == ["the XGBoost tracker on algo-1 made no progress for 1 s"]
    assert next(steps) >= 8


@pytest.mark.process
def test_a_tracker_that_dies_is_named_without_a_limit_of_silence() -> None:
    assert watched(signal.SIGKILL, time.monotonic, 0) == ["the XGBoost tracker on algo-1 was killed by SIGKILL"]


@pytest.mark.process
def test_a_tracker_that_answers_is_left_alone() -> None:
    assert watched(None, time.monotonic, 1.0) == []
