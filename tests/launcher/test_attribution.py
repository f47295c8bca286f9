"""Of all that failed, which failure was the cause, and whether starting again can help."""

import signal

import pytest

from trainbox.diagnostics.cause import Cause
from trainbox.diagnostics.verdict import RankFailure
from trainbox.launcher.attribution import diagnose, diagnose_stop, find_root, follows_stop, is_consequence


def raised(kind: str, text: str = "", *, rank: int = 0, time: float = 0.0, step: int | None = None) -> RankFailure:
    family = (kind, "builtins.Exception")
    cause = Cause(text=f"{kind}: {text}")
    return RankFailure(rank=rank, host="a", code=1, signal=0, cause=cause, family=family, time=time, step=step)


def killed(number: int, *, rank: int = 0, time: float = 0.0, hung: str = "") -> RankFailure:
    return RankFailure(rank=rank, host="a", code=128 + number, signal=number, cause=None, time=time, hung=hung)


def exited(code: int, step: int | None = None) -> RankFailure:
    return RankFailure(rank=0, host="a", code=code, signal=0, cause=None, step=step)


PEER_GONE = raised(
    "builtins.RuntimeError", "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
)


@pytest.mark.parametrize(
    "failure",
    [
        PEER_GONE,
        raised("torch.distributed.DistBackendError", "NCCL error: remote process exited"),
        raised("torch.distributed.DistNetworkError"),
        raised(
            "trainbox.torch.checkpoints.collectives.PeerCheckpointError",
            "rank 0: the checkpoint of step 40 cannot be written",
        ),
        raised("trainbox.torch.checkpoints.collectives.PeerNotGenuineError", "rank 0: the checkpoint is not genuine"),
        killed(signal.SIGABRT),
        killed(signal.SIGTERM),
        RankFailure(0, "a", 137, signal.SIGKILL, None, ended=True),
    ],
)
def test_an_error_about_a_peer_is_a_consequence(failure: RankFailure) -> None:
    assert is_consequence(failure)


@pytest.mark.parametrize(
    "failure",
    [
        raised("builtins.ValueError", "Connection closed by peer"),
        raised("builtins.RuntimeError", "shape mismatch"),
        killed(signal.SIGKILL),
        killed(signal.SIGSEGV),
        killed(signal.SIGTERM, hung="made no progress"),
        exited(3),
    ],
)
def test_any_other_failure_may_be_the_cause(failure: RankFailure) -> None:
    assert not is_consequence(failure)


def test_the_cause_is_what_was_killed_then_what_was_raised_first_then_what_came_first() -> None:
    peer = [PEER_GONE, raised("torch.distributed.DistError", rank=1, time=1.0)]
    late, early = raised("builtins.KeyError", rank=2, time=5.0), raised("builtins.ValueError", rank=3, time=4.0)
    dead = killed(signal.SIGSEGV, rank=4, time=9.0)
    frozen = killed(signal.SIGKILL, rank=5, time=10.0, hung="made no progress")
    assert find_root([]) is None
    assert find_root(peer) is PEER_GONE
    assert find_root([*peer, late, early]) is early
    assert find_root([*peer, late, early, dead]) is dead
    assert find_root([*peer, late, early, dead, frozen]) is frozen
    # A stop ended rank 1, and rank 0, which waited for it, had to be killed.
    stopped = killed(signal.SIGTERM, rank=1, time=1.0)
    assert find_root([RankFailure(0, "a", 137, signal.SIGKILL, None, time=9.0, ended=True), stopped]) is stopped


def test_a_failure_in_one_line() -> None:
    step = RankFailure(1, "a", 137, 9, None, step=120)
    assert diagnose(step).cause == "rank 1 was killed by SIGKILL after step 120"
    assert diagnose(raised("builtins.KeyError", "x\nmore", rank=2)).cause == "rank 2 failed: builtins.KeyError: x"
    assert diagnose(exited(3)).cause == "rank 0 failed: exit code 3"
    assert diagnose(killed(9, rank=3, hung="hangs")).cause == "rank 3 hangs"


def test_after_a_stop_ranks_that_were_ended_or_lost_others_follow_from_it_and_an_error_does_not() -> None:
    killed_by_agent = RankFailure(0, "a", 137, signal.SIGKILL, None, ended=True)
    interrupted = raised("builtins.KeyboardInterrupt")
    for failure in (PEER_GONE, killed(signal.SIGTERM), killed(signal.SIGINT), killed_by_agent, interrupted):
        assert follows_stop(failure)
    for failure in (raised("builtins.ValueError", "while saving"), killed(signal.SIGKILL), killed(signal.SIGSEGV)):
        assert not follows_stop(failure)


def test_of_a_stop_it_is_said_what_it_did_to_the_rank_that_ended_first() -> None:
    number = signal.SIGTERM
    assert diagnose_stop(number, None).cause == "stopped by SIGTERM"
    assert diagnose_stop(number, killed(number, rank=2)).cause == (
        "stopped by SIGTERM: rank 2 ended at once: it had no handler for it, or not yet"
    )
    assert diagnose_stop(number, RankFailure(0, "a", 137, signal.SIGKILL, None, step=7, ended=True)).cause == (
        "stopped by SIGTERM after step 7: rank 0 had no step to save, or did not exit in time, and was killed"
    )
    assert diagnose_stop(number, PEER_GONE).cause.endswith("rank 0 lost its connection to ranks that had ended")
