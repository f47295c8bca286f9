"""Pure: of all that failed, which failure was the cause, and whether starting again can help."""

import re
import signal
from collections.abc import Iterable, Sequence

import msgspec

from trainbox.contract.diagnosis import Diagnosis, DiagnosisKind
from trainbox.contract.finding import Finding
from trainbox.contract.verdict import RankFailure
from trainbox.errors import PeerError, RehearsalError
from trainbox.launch.network import Backend

#: Restarts are counted within this many seconds: a job of days may lose a rank now and then.
WINDOW_SECONDS = 600.0
#: Exit codes that say the request or the code is wrong: trainbox's own, and sysexits' EX_USAGE and EX_CONFIG.
FINAL_CODES = frozenset({*range(2, 15), 64, 78})
#: How a rank ends that was asked to stop, or did not stop in time.
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGKILL})
_FINAL_CLASSES = {
    "builtins.ImportError": "an import fails every time",
    "builtins.SyntaxError": "a syntax error stays",
    "torch.OutOfMemoryError": "the batch stays too large for the GPU",
    "trainbox.errors.TrainboxError": "the request or the data stay as they are",
}
#: What a rank raises because another has failed: torch.distributed's own errors (c10d/Utils.hpp), ours, and gloo's,
#: which are RuntimeErrors that name its source file.
_PEER_CLASSES = frozenset(
    {
        *(
            "torch.distributed.DistError",
            "torch._C._DistError",
            "trainbox.torch.checkpoints.exchange.PeerCheckpointError",
            "trainbox.torch.checkpoints.exchange.PeerNotGenuineError",
        ),
        *("builtins.ConnectionError", "builtins.BrokenPipeError"),
    }
)
_INTERRUPT = "builtins.KeyboardInterrupt"
_NCCL_CLASS = "torch.distributed.DistBackendError"
_BACKEND_NAMES = re.compile("nccl|gloo", re.IGNORECASE)
_PEER_WORDS = re.compile(
    "gloo/transport/|Timed out (?:waiting|after)|remote process exited|ncclRemoteError|Process group watchdog",
    re.IGNORECASE,
)
# Two, for a line with both: as one expression it would take the square of the length of a line.
_CONNECTION = re.compile(r"connect(?:ion|FullMesh)?\b", re.IGNORECASE)
_IS_LOST = re.compile("closed by peer|reset by peer|refused|timed? ?out", re.IGNORECASE)


def is_consequence(failure: RankFailure) -> bool:
    """Whether a failure only says that another rank, or the agent, has ended this one."""
    if failure.hung or failure.ended:
        return failure.ended
    if failure.signal:
        # NCCL's watchdog aborts a process whose peers are gone.
        return failure.signal in {signal.SIGABRT, signal.SIGTERM}
    if not failure.family:
        return False
    named = any(name.rpartition(".")[2].startswith("Dist") for name in failure.family if name.startswith("torch."))
    if named or _PEER_CLASSES & set(failure.family):
        return True
    text = failure.cause.text if failure.cause else ""
    return failure.exception == "builtins.RuntimeError" and _is_of_a_peer(text)


def _is_of_a_peer(text: str) -> bool:
    """Whether gloo or NCCL says that another process is gone."""
    if _PEER_WORDS.search(text):
        return True
    lines = ((line, _CONNECTION.search(line)) for line in text.split("\n"))
    return any(found and _IS_LOST.search(line, found.end()) for line, found in lines)


def follows_stop(failure: RankFailure) -> bool:
    """Whether ranks end like this because the job is being stopped, or because others have ended for it."""
    return is_consequence(failure) or failure.signal == signal.SIGINT or _INTERRUPT in failure.family


def find_root(failures: Iterable[RankFailure]) -> RankFailure | None:
    """The failure that the others follow from: one killed from outside, else the first that is no consequence."""
    ordered = sorted(failures, key=lambda failure: (failure.time, failure.rank))
    hung = [failure for failure in ordered if failure.hung]
    killed = [failure for failure in ordered if failure.signal and not is_consequence(failure)]
    raised = [failure for failure in ordered if not is_consequence(failure)]
    return next(iter((*hung, *killed, *raised, *ordered)), None)


def backend_of(failure: RankFailure) -> Backend | None:
    """Whose failure it is, where it is one of NCCL or gloo: by its class, else by the name that such an error gives."""
    if _NCCL_CLASS in failure.family:
        return "nccl"
    # NCCL's watchdog aborts the process; other errors of both are RuntimeErrors.
    if failure.signal != signal.SIGABRT and "builtins.RuntimeError" not in failure.family:
        return None
    named = _BACKEND_NAMES.search(_text(failure))
    return None if named is None else "nccl" if named[0].lower() == "nccl" else "gloo"


def find_faults(findings: Iterable[Finding], root: RankFailure | None, *, stopping: bool) -> tuple[Finding, ...]:
    """The faults of hardware that a failure follows from, whichever rank it was; none where it follows from a stop.

    Args:
        findings: What the GPUs of all hosts have reported.
        root: The first failure among the ranks.
        stopping: Whether the job has been asked to stop.
    """
    if stopping and root is not None and root.signal in _STOPS:
        return ()
    return tuple(finding for finding in findings if finding.is_hard)


def find_victim(failures: Sequence[RankFailure], faults: Sequence[Finding]) -> RankFailure | None:
    """Who died first on the first host with a fault; on any, where nobody did there."""
    return find_root(one for one in failures if one.host == faults[0].host) or find_root(failures)


class History(msgspec.Struct, frozen=True):
    """The restarts of a job so far."""

    #: When they were, in seconds of the monotonic clock of the host that decides.
    restarts: tuple[float, ...] = ()
    last: RankFailure | None = None
    #: The furthest step that any failure came after; -1 where none has said its step.
    farthest: int = -1
    #: Failures in a row that came no further.
    fruitless: int = 0


class Decision(msgspec.Struct, frozen=True):
    """Whether to start again, and if not, why: empty where there is nothing to add."""

    restart: bool
    because: str = ""


def decide(failure: RankFailure, history: History, *, most: int, now: float) -> Decision:
    """Whether all ranks shall start again.

    Args:
        failure: The cause.
        history: What was before.
        most: Restarts allowed within `WINDOW_SECONDS`.
        now: The monotonic clock.
    """
    for name in failure.family:
        if name in _FINAL_CLASSES:
            return Decision(False, _FINAL_CLASSES[name])
    if not failure.signal and failure.code in FINAL_CODES:
        return Decision(False, f"exit code {failure.code} asks for no other try")
    # Without steps nobody knows how far the job came in between: then only what follows soon counts as a repetition.
    comparable = failure.step is not None or recent(history, now)
    if history.last is not None and comparable and _is_same(failure, history.last):
        return Decision(False, "the same happened before the restart, too")
    if failure.step is not None and failure.step <= history.farthest and history.fruitless >= most:
        return Decision(False, f"restarts got no further than step {history.farthest}")
    if len(recent(history, now)) >= most:
        return Decision(False, f"{most} restart(s) within ten minutes did not help" if most else "")
    return Decision(True)


def restarted(history: History, failure: RankFailure, now: float) -> History:
    """What is known at the next failure, once this one has been answered by a restart."""
    step = -1 if failure.step is None else failure.step
    return History(
        (*recent(history, now), now),
        failure,
        farthest=max(step, history.farthest),
        fruitless=0 if step > history.farthest else history.fruitless + 1,
    )


def recent(history: History, now: float) -> tuple[float, ...]:
    """The restarts that still count."""
    return tuple(moment for moment in history.restarts if now - moment < WINDOW_SECONDS)


def _is_same(one: RankFailure, other: RankFailure) -> bool:
    """Whether two failures are one that repeats: the same exception at the same step.

    Where no steps are known, with the same words. What comes from outside may strike twice by chance.
    """
    if one.signal or other.signal or one.hung or other.hung:
        return False
    if one.exception != other.exception or one.code != other.code or one.step != other.step:
        return False
    return one.step is not None or _text(one) == _text(other)


def _text(failure: RankFailure) -> str:
    return failure.cause.text if failure.cause else ""


#: Nobody has failed by itself, and nobody is lost.
ENDED = Diagnosis("peer", "the ranks were ended", PeerError.exit_code)


def diagnose(failure: RankFailure, hints: Iterable[str] = ()) -> Diagnosis:
    """The failure of a rank in one line, `rank 1 was killed by SIGKILL after step 120`, and what else to think of."""
    kind, what = _in_a_line(failure)
    cause, hint = f"rank {failure.rank} {what}", "; ".join(hints)
    return Diagnosis(kind, cause, failure.code, hint=hint, host=failure.host, rank=failure.rank)


def _in_a_line(failure: RankFailure) -> tuple[DiagnosisKind, str]:
    after = "" if failure.step is None else f" after step {failure.step}"
    if failure.hung:
        return "hang", failure.hung
    if failure.signal:
        return "signal", f"was killed by {signal.Signals(failure.signal).name}{after}"
    said = _text(failure).partition("\n")[0] or f"exit code {failure.code}"
    return "script", f"failed{after}: {said}"


def diagnose_stop(number: int, failure: RankFailure | None) -> Diagnosis:
    """Which signal has stopped the job, and what that did to the rank that ended first, if one failed."""
    stopped = f"stopped by {signal.Signals(number).name}"
    if failure is None:
        return Diagnosis("stopped", stopped, 128 + number)
    if failure.ended:
        did = "had no step to save, or did not leave in time, and was ended"
    elif failure.signal == number or _INTERRUPT in failure.family:
        did = "ended at once: it had no handler for it, or not yet"
    else:
        did = "lost its connection to ranks that had ended"
    after = "" if failure.step is None else f" after step {failure.step}"
    return Diagnosis("stopped", f"{stopped}{after}: rank {failure.rank} {did}", 128 + number)


def diagnose_lost(hosts: Sequence[str]) -> Diagnosis:
    """Hosts that do not answer."""
    which, whose = ("host", "its agent") if len(hosts) == 1 else ("hosts", "their agents")
    cause = f"lost {which} {', '.join(hosts)}: no sign of life of {whose} any more"
    return Diagnosis("peer", cause, PeerError.exit_code, host=hosts[0])


def not_rehearsed(missed: Sequence[str]) -> RehearsalError:
    """All ranks have ended well, and drills of the request have not happened.

    Args:
        missed: Which, each with how far its rank came.
    """
    return RehearsalError(
        f"not rehearsed: {'; '.join(missed)}",
        hint="name an earlier step; a script that has no session of trainbox.torch cannot be rehearsed at a step",
    )


def diagnose_pause(seconds: float, host: str) -> Diagnosis:
    """A host that was stopped for so long that the others have gone on without it, in its own words."""
    cause = (
        f"this host did not run for {seconds:.0f} s (stopped or paused from outside), longer than the others wait for a"
        " sign of life"
    )
    return Diagnosis("hang", cause, PeerError.exit_code, host=host)
