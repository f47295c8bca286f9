"""Pure: an `Outcome`, and the verdict of the agents where there is one, become a `Diagnosis`."""

import signal
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from trainbox import errors
from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.failures.diagnosis import Diagnosis, DiagnosisKind, kind_of
from trainbox.contract.job import Job
from trainbox.diagnostics.cause import HINT, Cause, find_cause
from trainbox.diagnostics.finding import as_hint, blame
from trainbox.diagnostics.hints import SHARED_MEMORY_HINT, find_hint
from trainbox.diagnostics.verdict import RankFailure, Verdict
from trainbox.supervisor.outcome import Exit, Outcome
from trainbox.supervisor.plan import AGENT

_SIGNAL_BASE = 128
_SHELL_CODES = {
    126: "a command could not be executed",
    127: "a command was not found",
}
_SIGNAL_HINTS = {
    signal.SIGKILL: "nothing here sent it: often the kernel, for memory; try a larger instance or a smaller batch",
    signal.SIGSEGV: "a native library crashed; PYTHONFAULTHANDLER is on: see the stack in the log",
    signal.SIGBUS: f"often {SHARED_MEMORY_HINT}",
    signal.SIGILL: "a library was compiled for another processor than this instance has",
}
_HUNG_HINT = "find what sent it SIGSTOP (kill -STOP); trainbox_hang_seconds=0 leaves a stopped script alone"
_UNREADY_HINT = "its last lines in the log say what it was doing; a model that loads slowly needs a longer timeout"
_STOP_HINT = "ask trainbox.stop_requested() in the loop, save a checkpoint and leave"
_UNHEARD_HINT = f"{_STOP_HINT}; with trainbox.torch a stop is heard from session() on: open it before what takes long"
_MEMORY_HINT = "use an instance with more memory, or a smaller batch, fewer workers or threads"
_MIB = 1024 * 1024


def diagnose(outcome: Outcome, job: Job, code_dir: Path, verdict: Verdict | None = None) -> Diagnosis:
    """Diagnose a failed outcome: the cause, where, what to do, and the exit code of the job on this host.

    Args:
        outcome: One with a `first_failure`.
        job: The contract: hosts and channels are named.
        code_dir: Where the user's code lies.
        verdict: What the agents of all hosts have found, where ranks were started by one.
    """
    failure = outcome.first_failure
    if failure is None:
        raise ValueError("the outcome has no failure to explain")
    if verdict is not None:
        return _of_ranks(verdict, outcome, job)
    stopped = _was_stopped(outcome, failure)
    hardware = [finding for finding in outcome.findings if finding.is_hard and not stopped]
    if failure.name == AGENT and failure.signal and not hardware:
        return _of_agent(outcome, failure, job)
    cause_found = None if failure.hung else _find_cause(failure, job.secrets, code_dir)
    found = _of_process(outcome, failure, cause_found, job)
    if hardware:
        return blame(hardware, followed=found)
    soft = [as_hint(finding) for finding in outcome.findings if finding.status != "pass"]
    return _as_sagemaker_words_it(_with_hints(found, soft), cause_found)


def explain_exit(exit_: Exit, code_dir: Path, *, memory_kills: int = 0, memory_limit: int | None = None) -> Diagnosis:
    """Diagnose the end of a server's child, as `diagnose` does for the script of a job.

    Args:
        exit_: How it ended; with code 0, too: nobody asked it to leave.
        code_dir: Where the user's code lies.
        memory_kills: Processes that the kernel has killed for memory since a child ended before.
        memory_limit: The limit in bytes, if there is one.
    """
    outcome = Outcome((exit_,), 0, False, memory_kills, memory_limit, 0, 0.0)
    killed_here = exit_.hung or exit_.unready
    cause_found = None if killed_here or not exit_.code else _find_cause(exit_, (), code_dir)
    place = _where(cause_found)
    where = f"{place} (exit code {exit_.code}, {exit_.name})" if place else f"{exit_.name} (exit code {exit_.code})"
    if killed_here:
        hint = _HUNG_HINT if exit_.hung else _UNREADY_HINT
        found = Diagnosis("hang", killed_here, exit_.code, where=where, hint=hint)
    elif not exit_.code:
        found = Diagnosis("script", "it exited without being asked to", 1, where=where)
    else:
        kind, cause, hint = _kind_cause_hint(outcome, exit_, cause_found)
        found = _as_sagemaker_words_it(Diagnosis(kind, cause, exit_.code, where=where, hint=hint), cause_found)
    return replace(found, cause=f"{exit_.gave_up}, the last time: {found.cause}") if exit_.gave_up else found


def _of_ranks(verdict: Verdict, outcome: Outcome, job: Job) -> Diagnosis:
    """Diagnose from the verdict: the host whose rank failed first reports why, the others report which rank it was."""
    first, found = verdict.failure, verdict.diagnosis.seen_from(job.current_host)
    if found.kind == "hardware":
        return found if first is None else replace(found, where=_place_of_rank(first, _where(first.cause), job))
    if found.kind == "stopped":
        hint = _UNHEARD_HINT if first and first.signal and not first.ended else _STOP_HINT
        hint = "" if first is None or job.settings.program is None else hint
        return replace(found, where=_place_of_agent(job, host=found.host), hint=hint)
    if first is None:
        peers = ", ".join(host for host in verdict.lost or (found.host,) if host not in {"", job.current_host})
        cause = f"PEER {peers}: {found.cause}" if peers else found.cause
        return replace(found, cause=cause, where=_place_of_agent(job))
    if first.host != job.current_host:
        cause = f"PEER {first.host}: rank {first.rank}: {_short(first)}"
        return replace(found, cause=cause, where=_place_of_agent(job), hint="")
    if first.hung:
        stacks = f"the stacks of all ranks are in {job.layout.output_data_dir / 'hang'}"
        where = _place_of_rank(first, "", job)
        return replace(found, where=where, hint="; ".join(filter(None, [stacks, found.hint])))
    here = replace(_of_process(outcome, _exit_of(first), first.cause, job), rank=first.rank)
    return _as_sagemaker_words_it(_with_hints(here, [found.hint]), first.cause)


def _of_agent(outcome: Outcome, failure: Exit, job: Job) -> Diagnosis:
    """The agent has ended without a verdict. What it passed on from the ranks says nothing of its own end."""
    found = Diagnosis(
        "stopped",
        f"stopped by {signal.Signals(failure.signal).name} before the ranks were started",
        failure.code,
        where=_place(failure, f"the ranks of {job.current_host}", job),
        host=job.current_host,
    )
    if outcome.memory_kills and failure.signal == signal.SIGKILL:
        return replace(found, kind="memory", cause=_out_of_memory(outcome), hint=_MEMORY_HINT)
    if outcome.killed_after_grace and not failure.hung:
        cause, hint = _stopped(outcome, failure, job)
        return replace(found, cause=cause, hint=hint)
    if failure.signal == outcome.stopped_by:
        return found
    what = failure.hung or f"was {_killed(failure.signal, None)}"
    hint = "" if failure.hung else _SIGNAL_HINTS.get(signal.Signals(failure.signal), "")
    cause = f"AlgorithmError: the agent, which starts the ranks, {what}; its ranks ended with it"
    return replace(found, kind="algorithm", cause=cause, hint=hint)


def _exit_of(failure: RankFailure) -> Exit:
    return Exit(f"rank {failure.rank}", failure.code, failure.signal, stderr="", stdout="", hung=failure.hung)


def _short(failure: RankFailure) -> str:
    if failure.hung:
        return failure.hung
    if failure.signal:
        return f"killed by {signal.Signals(failure.signal).name}"
    return failure.cause.text if failure.cause else f"exit code {failure.code}"


def _with_hints(found: Diagnosis, hints: Sequence[str]) -> Diagnosis:
    return replace(found, hint="; ".join(filter(None, [found.hint, *hints])))


def _as_sagemaker_words_it(found: Diagnosis, cause_found: Cause | None) -> Diagnosis:
    """Take the kind of the failure from an error class of trainbox that the script did not catch."""
    error = _error_of_ours(cause_found)
    if error is None:
        return found
    kind = kind_of(error) if found.kind == "script" else found.kind
    cause, _, hint = found.cause.removeprefix(f"{errors.__name__}.").partition(HINT)
    hints = "; ".join(filter(None, [hint, found.hint]))
    return replace(found, kind=kind, cause=f"{error.fault}: {cause}", hint=hints)


def _error_of_ours(cause_found: Cause | None) -> type[errors.TrainboxError] | None:
    module, _, name = cause_found.exception.rpartition(".") if cause_found else ("", "", "")
    error = getattr(errors, name, None) if module == errors.__name__ else None
    return error if isinstance(error, type) and issubclass(error, errors.TrainboxError) else None


def _has_code_of_ours(failure: Exit, cause_found: Cause | None) -> bool:
    """Whether the exit code is that of an error of ours: it may be 128 + n, as a peer's is, without any signal here."""
    error = _error_of_ours(cause_found)
    if error is None or failure.signal:
        return False
    return error is errors.PeerError or failure.code == error.exit_code


def _find_cause(failure: Exit, secrets: Sequence[str], code_dir: Path) -> Cause | None:
    """Find the cause in the output of a process: a traceback on either stream, else its last lines, of stderr if any.

    Secrets are left out first: what is found may be cut.
    """
    logs = (without_secrets(stream, secrets) for stream in (failure.stderr, failure.stdout))
    causes = [cause for log in logs if (cause := find_cause(log, code_dir))]
    return next((cause for cause in causes if cause.exception), causes[0] if causes else None)


def _of_process(outcome: Outcome, failure: Exit, cause_found: Cause | None, job: Job) -> Diagnosis:
    where, host = _place(failure, _where(cause_found), job), job.current_host
    if failure.hung:
        cause = f"{_who(failure)} {failure.hung}"
        return Diagnosis("hang", cause, failure.code, where=where, hint=_HUNG_HINT, host=host)
    kind, cause, hint = _kind_cause_hint(outcome, failure, cause_found, job)
    return Diagnosis(kind, cause, failure.code, where=where, hint=hint, host=host)


def _kind_cause_hint(
    outcome: Outcome, failure: Exit, cause_found: Cause | None, job: Job | None = None
) -> tuple[DiagnosisKind, str, str]:
    channels = sorted(job.channels) if job else []
    number = failure.code - _SIGNAL_BASE
    if outcome.memory_kills and (number == signal.SIGKILL or not (cause_found and cause_found.exception)):
        return "memory", _out_of_memory(outcome), _MEMORY_HINT
    if _was_stopped(outcome, failure):
        return "stopped", *_stopped(outcome, failure, job)
    if number in _signal_numbers() and not _has_code_of_ours(failure, cause_found):
        hint = find_hint(cause_found, channels) if cause_found and number == signal.SIGABRT else ""  # C++ gives up so
        return "signal", _killed(number, cause_found), hint or _SIGNAL_HINTS.get(signal.Signals(number), "")
    if cause_found is None:
        return "script", f"exit code {failure.code}, and the script wrote nothing to stderr or stdout", ""
    if outcome.memory_kills:  # what the script raised may only be that one of its workers is gone
        return "script", cause_found.text, f"{_out_of_memory(outcome)}; {_MEMORY_HINT}"
    hint = find_hint(cause_found, channels)
    if not hint and failure.code in _SHELL_CODES:
        hint = f"exit code {failure.code}: {_SHELL_CODES[failure.code]}"
    return "script", cause_found.text, hint


def _who(failure: Exit) -> str:
    return "the script" if failure.name == "script" else f"the script of {failure.name}"


def _killed(number: int, cause_found: Cause | None) -> str:
    return f"killed by {signal.Signals(number).name}" + (
        f"; its last output: {cause_found.text}" if cause_found else ""
    )


def _signal_numbers() -> set[int]:
    return {int(number) for number in signal.Signals}


def _out_of_memory(outcome: Outcome) -> str:
    limit = f" (limit {outcome.memory_limit / _MIB:,.0f} MiB)" if outcome.memory_limit else ""
    return f"out of memory: the kernel killed a process of this job{limit}"


def _was_stopped(outcome: Outcome, failure: Exit) -> bool:
    return bool(outcome.stopped_by) and failure.code - _SIGNAL_BASE in {outcome.stopped_by, signal.SIGKILL}


def _stopped(outcome: Outcome, failure: Exit, job: Job | None) -> tuple[str, str]:
    name = signal.Signals(outcome.stopped_by).name
    hint = _STOP_HINT
    if outcome.killed_after_grace:
        return f"stopped: the script did not leave in time after {name} and was killed", hint
    if failure.signal == signal.SIGKILL:
        return f"stopped: {name} had come when SIGKILL ended the script", _SIGNAL_HINTS[signal.SIGKILL]
    if failure.signal:
        ended = f"stopped: {name} ended the script {outcome.seconds:.1f} s after its start"
        if job and job.settings.program is None:  # a bundled script handles it as long as there is something to save
            return f"{ended}, while it was starting or leaving", ""
        return f"{ended}: it had no handler for it, or not yet", _UNHEARD_HINT
    return f"stopped by {name}", hint


def _where(cause_found: Cause | None) -> str:
    return cause_found.where if cause_found else ""


def _place_of_agent(job: Job, *, host: str = "") -> str:
    return f"the ranks of {host or job.current_host}"


def _place_of_rank(failure: RankFailure, where: str, job: Job) -> str:
    return _place(_exit_of(failure), where, job, host=failure.host)


def _place(failure: Exit, where: str, job: Job, *, host: str = "") -> str:
    """`train.py:14 in main (exit code 1, rank 3, algo-2)`."""
    details = [f"exit code {failure.code}"]
    if failure.name != "script":
        details.append(failure.name)
    if len(job.hosts) > 1:
        details.append(host or job.current_host)
    return f"{where or 'the script'} ({', '.join(details)})"
