"""Pure: an `Outcome` becomes the reason that a person reads first."""

import signal
from collections.abc import Sequence
from pathlib import Path

from trainbox import errors
from trainbox.contract.cause import Cause, find_cause, find_hint
from trainbox.contract.failure import compose
from trainbox.contract.finding import EXIT_CODES, Finding, accuse, as_hint
from trainbox.contract.hyperparameters import without_secrets
from trainbox.contract.job import Job
from trainbox.contract.verdict import RankFailure, Verdict
from trainbox.launch.plan import AGENT
from trainbox.launch.supervise import Exit, Outcome

_SIGNAL_BASE = 128
_SHELL_CODES = {
    126: "a command could not be executed",
    127: "a command was not found",
}
_SIGNAL_HINTS = {
    signal.SIGKILL: "nothing here sent it: often the kernel, for memory; try a larger instance or a smaller batch",
    signal.SIGSEGV: "a native library crashed; PYTHONFAULTHANDLER is on: see the stack in the log",
    signal.SIGBUS: "often /dev/shm is full: fewer or no data loader workers, or a larger --shm-size with docker",
    signal.SIGILL: "a library was compiled for another processor than this instance has",
}
_HUNG_HINT = "find what sent SIGSTOP, or 'kill -STOP', to it; trainbox_hang_seconds=0 leaves a stopped script alone"
_STOP_HINT = "ask trainbox.stop_requested() in the loop, save a checkpoint and leave"
_MEMORY_HINT = "use an instance with more memory, or a smaller batch, fewer workers or threads"
_MIB = 1024 * 1024


def faults(outcome: Outcome, verdict: Verdict | None) -> tuple[Finding, ...]:
    """The hardware for which a job has failed: as all hosts have agreed, else as the GPUs of this one have reported."""
    failure = outcome.first_failure
    if verdict is not None:
        return verdict.hardware
    if failure is None or _was_stopped(outcome, failure):
        return ()
    return tuple(finding for finding in outcome.findings if finding.is_hard)


def exit_code(outcome: Outcome, verdict: Verdict | None = None) -> int:
    """That of the job on this host."""
    return EXIT_CODES["hardware"] if faults(outcome, verdict) else outcome.code


def explain(outcome: Outcome, job: Job, code_dir: Path, verdict: Verdict | None = None) -> str:
    """Why a failed outcome failed: the cause, where, what to do; the text of the failure file.

    Args:
        outcome: One with a `first_failure`.
        job: The contract: hosts and channels are named, secrets are not.
        code_dir: Where the user's code lies.
        verdict: What the agents of all hosts have found, where ranks were started by one.
    """
    failure = outcome.first_failure
    if failure is None:
        raise ValueError("the outcome has no failure to explain")
    hardware = faults(outcome, verdict)
    if verdict is not None:
        return _of_hardware_in_ranks(verdict, job) if hardware else _of_ranks(verdict, outcome, job)
    if failure.name == AGENT and failure.signal and not hardware:
        return _of_agent(outcome, failure, job)
    said = _said(failure, job, code_dir)
    if hardware:
        cause = _cause_and_hint(outcome, failure, said, job)[0]
        return _of_hardware(hardware, cause, _place(failure, said.where if said else "", job), job)
    soft = [as_hint(finding) for finding in outcome.findings if finding.status != "pass"]
    return _explain(outcome, failure, said, job, soft)


def _of_hardware(hardware: Sequence[Finding], followed: str, where: str, job: Job) -> str:
    cause = f"{accuse(hardware)}\nwhat followed: {followed}"
    return compose(cause, where=where, hint=hardware[0].hint, hidden=job.secrets)


def _of_hardware_in_ranks(verdict: Verdict, job: Job) -> str:
    """The same on all hosts."""
    first = verdict.failure
    if first is None:
        return _of_hardware(verdict.hardware, verdict.reason, "", job)
    exit_ = Exit(f"rank {first.rank}", first.code, first.signal, stderr="", stdout="")
    where = _place(exit_, first.cause.where if first.cause else "", job, host=first.host)
    return _of_hardware(verdict.hardware, verdict.reason, where, job)


def _of_ranks(verdict: Verdict, outcome: Outcome, job: Job) -> str:
    """The host whose rank failed first says why; the others say who it was."""
    first = verdict.failure
    if verdict.stopped:
        hint = "" if first is None or job.settings.program is None else _STOP_HINT
        return compose(verdict.reason, where=_place_of_agent(job, host=verdict.host), hint=hint, hidden=job.secrets)
    if first is None:
        hosts = verdict.lost or (verdict.host,)
        peers = ", ".join(host for host in hosts if host not in {"", job.current_host})
        cause = f"PEER {peers}: {verdict.reason}" if peers else verdict.reason
        hint = "; ".join(verdict.hints)
        return compose(cause, where=_place_of_agent(job), hint=hint, hidden=job.secrets)
    if first.host != job.current_host:
        return compose(
            f"PEER {first.host}: rank {first.rank}: {_short(first)}", where=_place_of_agent(job), hidden=job.secrets
        )
    exit_ = Exit(f"rank {first.rank}", first.code, first.signal, stderr="", stdout="")
    if first.hung:
        stacks = f"the stacks of all ranks are in {job.layout.output_data_dir / 'hang'}"
        hint = "; ".join([stacks, *verdict.hints])
        return compose(verdict.reason, where=_place(exit_, "", job), hint=hint, hidden=job.secrets)
    return _explain(outcome, exit_, first.cause, job, verdict.hints)


def _of_agent(outcome: Outcome, failure: Exit, job: Job) -> str:
    """The agent has ended without a verdict. What it passed on from the ranks says nothing of its own end."""
    if outcome.memory_kills and failure.signal == signal.SIGKILL:
        cause, hint = _out_of_memory(outcome), _MEMORY_HINT
    elif outcome.killed_after_grace and not failure.hung:
        cause, hint = _stopped(outcome, failure, job)
    elif failure.signal == outcome.stopped_by:
        cause, hint = f"stopped by {signal.Signals(failure.signal).name} before the ranks were started", ""
    else:
        what = failure.hung or f"was {_killed(failure.signal, None)}"
        hint = "" if failure.hung else _SIGNAL_HINTS.get(signal.Signals(failure.signal), "")
        cause = f"AlgorithmError: the agent, which starts the ranks, {what}; its ranks ended with it"
    return compose(cause, where=_place(failure, f"the ranks of {job.current_host}", job), hint=hint, hidden=job.secrets)


def _short(failure: RankFailure) -> str:
    if failure.hung:
        return failure.hung
    if failure.signal:
        return f"killed by {signal.Signals(failure.signal).name}"
    return failure.cause.text if failure.cause else f"exit code {failure.code}"


def _place_of_agent(job: Job, *, host: str = "") -> str:
    return f"the ranks of {host or job.current_host}"


def _explain(outcome: Outcome, failure: Exit, said: Cause | None, job: Job, hints: Sequence[str]) -> str:
    if failure.hung:
        said, cause, hint = None, f"{_who(failure)} {failure.hung}", _HUNG_HINT
    else:
        cause, hint = _cause_and_hint(outcome, failure, said, job)
    hint = "; ".join(filter(None, [hint, *hints]))
    if said:
        cause = _as_sagemaker_words_it(cause, said.exception)
    return compose(cause, where=_place(failure, said.where if said else "", job), hint=hint, hidden=job.secrets)


def _as_sagemaker_words_it(cause: str, exception: str) -> str:
    """An error of ours that a script let pass says whose fault it is, as the supervisor's own do."""
    module, _, name = exception.rpartition(".")
    kind = getattr(errors, name, None) if module == errors.__name__ else None
    if not (isinstance(kind, type) and issubclass(kind, errors.TrainboxError)):
        return cause
    return f"{kind.fault}: {cause.removeprefix(f'{module}.')}"


def _said(failure: Exit, job: Job, code_dir: Path) -> Cause | None:
    """What the process said about its end: a traceback on either stream, else last words, on stderr if there are any.

    Secrets are left out first: what is found may be cut.
    """
    logs = (without_secrets(stream, job.secrets) for stream in (failure.stderr, failure.stdout))
    causes = [cause for log in logs if (cause := find_cause(log, code_dir))]
    return next((cause for cause in causes if cause.exception), causes[0] if causes else None)


def _cause_and_hint(outcome: Outcome, failure: Exit, said: Cause | None, job: Job) -> tuple[str, str]:
    number = failure.code - _SIGNAL_BASE
    if outcome.memory_kills and (number == signal.SIGKILL or not (said and said.exception)):
        return _out_of_memory(outcome), _MEMORY_HINT
    if _was_stopped(outcome, failure):
        return _stopped(outcome, failure, job)
    if number in _signal_numbers():
        hint = find_hint(said, sorted(job.channels)) if said and number == signal.SIGABRT else ""  # C++ gives up so
        return _killed(number, said), hint or _SIGNAL_HINTS.get(signal.Signals(number), "")
    if said is None:
        return f"exit code {failure.code}, and the script said nothing on stderr or stdout", ""
    if outcome.memory_kills:  # what the script raised may only be that one of its workers is gone
        return said.text, f"{_out_of_memory(outcome)}; {_MEMORY_HINT}"
    hint = find_hint(said, sorted(job.channels))
    if not hint and failure.code in _SHELL_CODES:
        hint = f"exit code {failure.code}: {_SHELL_CODES[failure.code]}"
    return said.text, hint


def _who(failure: Exit) -> str:
    return "the script" if failure.name == "script" else f"the script of {failure.name}"


def _killed(number: int, said: Cause | None) -> str:
    return f"killed by {signal.Signals(number).name}" + (f"; its last words: {said.text}" if said else "")


def _signal_numbers() -> set[int]:
    return {int(number) for number in signal.Signals}


def _out_of_memory(outcome: Outcome) -> str:
    limit = f" (limit {outcome.memory_limit / _MIB:,.0f} MiB)" if outcome.memory_limit else ""
    return f"out of memory: the kernel killed a process of this job{limit}"


def _was_stopped(outcome: Outcome, failure: Exit) -> bool:
    return bool(outcome.stopped_by) and failure.code - _SIGNAL_BASE in {outcome.stopped_by, signal.SIGKILL}


def _stopped(outcome: Outcome, failure: Exit, job: Job) -> tuple[str, str]:
    name = signal.Signals(outcome.stopped_by).name
    hint = _STOP_HINT
    if outcome.killed_after_grace:
        return f"stopped: the script did not leave in time after {name} and was killed", hint
    if failure.signal == signal.SIGKILL:
        return f"stopped: {name} had come when SIGKILL ended the script", _SIGNAL_HINTS[signal.SIGKILL]
    if failure.signal:
        ended = f"stopped: {name} ended the script {outcome.seconds:.1f} s after its start"
        if job.settings.program is None:  # a bundled script handles it as long as there is something to save
            return f"{ended}, while it was starting or leaving", ""
        return f"{ended}: it had no handler for it, or not yet", hint
    return f"stopped by {name}", hint


def _place(failure: Exit, where: str, job: Job, *, host: str = "") -> str:
    """`train.py:14 in main (exit code 1, rank 3, algo-2)`."""
    details = [f"exit code {failure.code}"]
    if failure.name != "script":
        details.append(failure.name)
    if len(job.hosts) > 1:
        details.append(host or job.current_host)
    return f"{where or 'the script'} ({', '.join(details)})"
