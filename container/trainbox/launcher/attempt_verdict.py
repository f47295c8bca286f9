"""Pure: the verdict on an attempt, from the reports of all hosts: what has failed, and whether ranks start again."""

from collections.abc import Sequence

import msgspec

from trainbox.diagnostics.finding import as_hint, blame
from trainbox.diagnostics.verdict import RankFailure, Verdict
from trainbox.launcher.attribution import (
    ENDED,
    AttemptReport,
    cause_text,
    diagnose,
    diagnose_lost,
    diagnose_stop,
    find_faults,
    find_network_hints,
    find_root,
    find_victim,
    follows_stop,
    is_consequence,
)

#: Restarts are counted within this many seconds: a job of days may lose a rank now and then.
WINDOW_SECONDS = 600.0
#: Exit codes that say the request or the code is wrong: trainbox's own, and sysexits' EX_USAGE and EX_CONFIG.
FINAL_CODES = frozenset({*range(2, 15), 64, 78})
_FINAL_CLASSES = {
    "builtins.ImportError": "a failed import fails again",
    "builtins.SyntaxError": "a restart does not cure a syntax error",
    "torch.OutOfMemoryError": "the batch still does not fit into the memory of the GPU",
    "trainbox.errors.TrainboxError": "the request and the data stay the same",
}


class RestartHistory(msgspec.Struct, frozen=True):
    """The restarts of a job so far."""

    #: When they were, in seconds of the monotonic clock of the host that decides.
    restarts: tuple[float, ...] = ()
    last: RankFailure | None = None
    #: The furthest step that any failure came after; -1 where no rank has reported a step.
    farthest: int = -1
    #: Failures in a row that came no further.
    fruitless: int = 0


class RestartDecision(msgspec.Struct, frozen=True):
    """Whether to start again, and if not, why: empty where there is nothing to add."""

    restart: bool
    because: str = ""


class Ruling(msgspec.Struct, frozen=True):
    """The verdict on an attempt, what the log says about it, and the history for the next one."""

    verdict: Verdict
    history: RestartHistory
    notes: tuple[str, ...] = ()


def rule(
    reports: Sequence[AttemptReport],
    missing: tuple[str, ...],
    history: RestartHistory,
    *,
    max_restarts: int,
    now: float,
) -> Ruling:
    """Decide what follows from the end of an attempt.

    Args:
        reports: How the ranks of each host have ended.
        missing: The hosts without a report.
        history: The restarts before.
        max_restarts: Restarts allowed within `WINDOW_SECONDS`.
        now: The monotonic clock.
    """
    failures = [failure for report in reports for failure in report.failures]
    findings = [finding for report in reports for finding in report.findings]
    root = find_root(failures)
    stopping = next((report.stopping for report in reports if report.stopping), 0)
    faults = find_faults(findings, root, stopping=bool(stopping))
    if faults and (root or missing):
        victim = find_victim(failures, faults)
        followed = diagnose(victim) if victim else diagnose_lost(missing)
        verdict = Verdict(blame(faults, followed=followed), victim, lost=missing)
        return Ruling(verdict, history, ("no restart: the node must be repaired",))
    if root is None or (stopping and follows_stop(root)) or (missing and is_consequence(root)):
        return Ruling(_rule_without_root(root, missing, stopping), history)
    hints = (*find_network_hints(root, reports), *(as_hint(one) for one in findings if one.host == root.host))
    diagnosis = diagnose(root, hints)
    if missing or stopping:
        return Ruling(Verdict(diagnosis, root, lost=missing), history)
    decision = decide(root, history, max_restarts=max_restarts, now=now)
    if not decision.restart:
        note = f"no restart{': ' * bool(decision.because)}{decision.because}"
        return Ruling(Verdict(diagnosis, root), history, (note,))
    history = restarted(history, root, now)
    return Ruling(Verdict(diagnosis, root, restart=True, restarts=len(history.restarts)), history)


def _rule_without_root(root: RankFailure | None, missing: tuple[str, ...], stopping: int) -> Verdict:
    """No rank has failed by itself: the job was stopped, or a host is lost."""
    if stopping:
        return Verdict(diagnose_stop(stopping, root), root, lost=missing)
    return Verdict(diagnose_lost(missing) if missing else ENDED, lost=missing)


def decide(failure: RankFailure, history: RestartHistory, *, max_restarts: int, now: float) -> RestartDecision:
    """Decide whether all ranks start again.

    Args:
        failure: The cause.
        history: The restarts before.
        max_restarts: Restarts allowed within `WINDOW_SECONDS`.
        now: The monotonic clock.
    """
    for name in failure.family:
        if name in _FINAL_CLASSES:
            return RestartDecision(False, _FINAL_CLASSES[name])
    if not failure.signal and failure.code in FINAL_CODES:
        return RestartDecision(False, f"exit code {failure.code} means that a restart cannot help")
    # Without steps it is unknown how far the job came in between: then only a failure soon after is a repetition.
    comparable = failure.step is not None or recent(history, now)
    if history.last is not None and comparable and _is_same(failure, history.last):
        return RestartDecision(False, "the same failure happened before the restart")
    if failure.step is not None and failure.step <= history.farthest and history.fruitless >= max_restarts:
        return RestartDecision(False, f"restarts got no further than step {history.farthest}")
    if len(recent(history, now)) >= max_restarts:
        because = f"{max_restarts} restart(s) within ten minutes did not help" if max_restarts else ""
        return RestartDecision(False, because)
    return RestartDecision(True)


def restarted(history: RestartHistory, failure: RankFailure, now: float) -> RestartHistory:
    """Return the history with one more restart, after this failure."""
    step = -1 if failure.step is None else failure.step
    return RestartHistory(
        (*recent(history, now), now),
        failure,
        farthest=max(step, history.farthest),
        fruitless=0 if step > history.farthest else history.fruitless + 1,
    )


def recent(history: RestartHistory, now: float) -> tuple[float, ...]:
    """Return the times of the restarts that still count."""
    return tuple(moment for moment in history.restarts if now - moment < WINDOW_SECONDS)


def _is_same(one: RankFailure, other: RankFailure) -> bool:
    """Whether two failures are one that repeats: the same exception at the same step.

    Where no steps are known, with the same text. What comes from outside may strike twice by chance.
    """
    if one.signal or other.signal or one.hung or other.hung:
        return False
    if one.exception != other.exception or one.code != other.code or one.step != other.step:
        return False
    return one.step is not None or cause_text(one) == cause_text(other)
