"""Pure: attribute the end of an attempt: which of all failures was the root, whose it is, and what to call it."""

import re
import signal
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from trainbox.contract.failures.diagnosis import Diagnosis, DiagnosisKind
from trainbox.diagnostics.finding import Finding
from trainbox.diagnostics.verdict import RankFailure
from trainbox.errors import PeerError, RehearsalError
from trainbox.system.network import Backend, Facts, find_hints

#: How a rank ends that was asked to stop, or did not stop in time.
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGKILL})
#: What a rank raises because another has failed: torch.distributed's own errors (c10d/Utils.hpp), ours, and gloo's,
#: which are RuntimeErrors that name its source file.
_PEER_CLASSES = frozenset(
    {
        *(
            "torch.distributed.DistError",
            "torch._C._DistError",
            "trainbox.torch.checkpoints.collectives.PeerCheckpointError",
            "trainbox.torch.checkpoints.collectives.PeerNotGenuineError",
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

#: No rank has failed by itself, and no host is lost.
ENDED = Diagnosis("peer", "the ranks were ended", PeerError.exit_code)


class AttemptReport(msgspec.Struct, frozen=True):
    """How the ranks of a host have ended."""

    host: str
    failures: tuple[RankFailure, ...] = ()
    #: The signal by which the host was asked to stop, or 0: after one nothing starts again.
    stopping: int = 0
    #: What its GPUs have reported.
    findings: tuple[Finding, ...] = ()
    #: Facts about its network where its ranks could not reach others, and the versions to compare with other hosts'.
    facts: Facts | None = None
    versions: Mapping[str, str] = {}


# ---- which failure is the root ----


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
    return failure.exception == "builtins.RuntimeError" and _names_a_lost_peer(cause_text(failure))


def _names_a_lost_peer(text: str) -> bool:
    """Whether gloo or NCCL says that another process is gone."""
    if _PEER_WORDS.search(text):
        return True
    lines = ((line, _CONNECTION.search(line)) for line in text.split("\n"))
    return any(found and _IS_LOST.search(line, found.end()) for line, found in lines)


def follows_stop(failure: RankFailure) -> bool:
    """Whether ranks end like this because the job is being stopped, or because others have ended for it."""
    return is_consequence(failure) or failure.signal == signal.SIGINT or _INTERRUPT in failure.family


def find_root(failures: Iterable[RankFailure]) -> RankFailure | None:
    """Find the failure that the others follow from: one killed from outside, else the first that is no consequence."""
    ordered = sorted(failures, key=lambda failure: (failure.time, failure.rank))
    hung = [failure for failure in ordered if failure.hung]
    killed = [failure for failure in ordered if failure.signal and not is_consequence(failure)]
    raised = [failure for failure in ordered if not is_consequence(failure)]
    return next(iter((*hung, *killed, *raised, *ordered)), None)


def find_faults(findings: Iterable[Finding], root: RankFailure | None, *, stopping: bool) -> tuple[Finding, ...]:
    """Find the hardware faults that a failure follows from, of whichever rank; none where it follows from a stop.

    Args:
        findings: What the GPUs of all hosts have reported.
        root: The first failure among the ranks.
        stopping: Whether the job has been asked to stop.
    """
    if stopping and root is not None and root.signal in _STOPS:
        return ()
    return tuple(finding for finding in findings if finding.is_hard)


def find_victim(failures: Sequence[RankFailure], faults: Sequence[Finding]) -> RankFailure | None:
    """Find the rank that died first on the first host with a fault; if none did there, on any host."""
    return find_root(one for one in failures if one.host == faults[0].host) or find_root(failures)


def cause_text(failure: RankFailure) -> str:
    """Return what a failed rank said; empty if nothing."""
    return failure.cause.text if failure.cause else ""


# ---- errors of the network ----


def backend_of(failure: RankFailure) -> Backend | None:
    """Tell whether a failure is one of NCCL or gloo: by its class, else by the name in the message."""
    if _NCCL_CLASS in failure.family:
        return "nccl"
    # NCCL's watchdog aborts the process; other errors of both are RuntimeErrors.
    if failure.signal != signal.SIGABRT and "builtins.RuntimeError" not in failure.family:
        return None
    named = _BACKEND_NAMES.search(cause_text(failure))
    return None if named is None else "nccl" if named[0].lower() == "nccl" else "gloo"


def find_network_hints(root: RankFailure, reports: Sequence[AttemptReport]) -> tuple[str, ...]:
    """Where the root is an error of NCCL or gloo: hints from the facts of its host and the versions of all hosts."""
    facts = next((report.facts for report in reports if report.host == root.host), None)
    backend = backend_of(root)
    if facts is None or backend is None:
        return ()
    versions = {report.host: report.versions for report in reports}
    # Several ranks of a host may have failed, some of NCCL and some of gloo: the root decides.
    return find_hints(msgspec.structs.replace(facts, backend=backend, versions=versions))


# ---- diagnoses ----


def diagnose(failure: RankFailure, hints: Iterable[str] = ()) -> Diagnosis:
    """Describe the failure of a rank in one line, `rank 1 was killed by SIGKILL after step 120`, with hints."""
    kind, what = _in_a_line(failure)
    cause, hint = f"rank {failure.rank} {what}", "; ".join(hints)
    return Diagnosis(kind, cause, failure.code, hint=hint, host=failure.host, rank=failure.rank)


def _in_a_line(failure: RankFailure) -> tuple[DiagnosisKind, str]:
    after = "" if failure.step is None else f" after step {failure.step}"
    if failure.hung:
        return "hang", failure.hung
    if failure.signal:
        return "signal", f"was killed by {signal.Signals(failure.signal).name}{after}"
    said = cause_text(failure).partition("\n")[0] or f"exit code {failure.code}"
    return "script", f"failed{after}: {said}"


def diagnose_stop(number: int, failure: RankFailure | None) -> Diagnosis:
    """Name the signal that stopped the job, and what it did to the rank that ended first, if one failed."""
    stopped = f"stopped by {signal.Signals(number).name}"
    if failure is None:
        return Diagnosis("stopped", stopped, 128 + number)
    if failure.ended:
        did = "had no step to save, or did not exit in time, and was killed"
    elif failure.signal == number or _INTERRUPT in failure.family:
        did = "ended at once: it had no handler for it, or not yet"
    else:
        did = "lost its connection to ranks that had ended"
    after = "" if failure.step is None else f" after step {failure.step}"
    return Diagnosis("stopped", f"{stopped}{after}: rank {failure.rank} {did}", 128 + number)


def diagnose_lost(hosts: Sequence[str]) -> Diagnosis:
    """Name hosts that do not answer."""
    which, whose = ("host", "its agent") if len(hosts) == 1 else ("hosts", "their agents")
    cause = f"lost {which} {', '.join(hosts)}: no sign of life from {whose}"
    return Diagnosis("peer", cause, PeerError.exit_code, host=hosts[0])


def diagnose_pause(seconds: float, host: str) -> Diagnosis:
    """Say that this host was paused for so long that the others have gone on without it."""
    cause = (
        f"this host did not run for {seconds:.0f} s (stopped or paused from outside), longer than the others wait for a"
        " sign of life"
    )
    return Diagnosis("hang", cause, PeerError.exit_code, host=host)


def not_rehearsed(missed: Sequence[str]) -> RehearsalError:
    """Make the error for a job whose ranks ended well though faults of the request were not injected.

    Args:
        missed: The faults, each with how far its rank came.
    """
    return RehearsalError(
        f"not rehearsed: {'; '.join(missed)}",
        hint="name an earlier step; a script that has no session of trainbox.torch cannot be rehearsed at a step",
    )
