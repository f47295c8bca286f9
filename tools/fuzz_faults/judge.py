"""Pure: what is wrong with a story."""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from tools.fuzz_faults.plan import Fault, Job
from tools.fuzz_faults.story import Attempt, Story

What = Literal["wrong result", "lost result", "no recovery", "hang", "orphan", "left behind", "false reason"]

_INTERNAL = 70
#: The last line of a reason says where it was said, which blames nobody.
_PLACE = re.compile(r"\n?at [^\n]*\([^)\n]*\)")
_HOST = re.compile(r"\balgo-(\d+)")
_RANK = re.compile(r"\brank (\d+)")
_DATA = re.compile(r"part-\d\.csv|cannot be read as numbers|is not a number|channel '?(?:train|validation)")
_NEVER = (
    ("a defect of trainbox", "says that trainbox is defective"),
    ("Stack trace", "is a backtrace"),
    ("does not handle", "says that a script ignores SIGTERM, which it does not"),
)
#: Of `trainbox run` itself: those of scripts come from elsewhere.
_TRACEBACK, _CLI = "Traceback (most recent call last)", "/trainbox/cli.py"
#: How a reason calls processes: to be named only where one of them was hit.
_NAMES: Mapping[str, frozenset[str]] = {
    "tracker": frozenset({"tracker", "supervisor", "script", "run"}),
    "forks the ranks": frozenset({"fork server", "agent", "supervisor", "run"}),
}


class Finding(msgspec.Struct, frozen=True):
    """Something that must not happen."""

    what: What
    text: str


def judge(story: Story, reference: str) -> tuple[Finding, ...]:
    """All that is wrong, each once.

    Args:
        story: What was seen.
        reference: The digest of the model of an undisturbed job.
    """
    found: list[Finding] = []
    for before, attempt in zip((None, *story.attempts), story.attempts, strict=False):
        found += _of_attempt(attempt, before, story)
    found += _of_result(story, reference)
    if not any(attempt.hung for attempt in story.attempts):  # whatever hung was killed in the end
        found += [Finding("left behind", f"{path} stays") for path in story.left_in_memory[:1]]
    return tuple(dict.fromkeys(found))


def _of_result(story: Story, reference: str) -> Iterator[Finding]:
    last = story.attempts[-1]
    if last.status != "Completed" or not last.digest:
        why = last.reason or last.said.strip()[-300:]
        end = f"{last.status or 'without a record'}, exit code {last.exit_code}: {why}"
        yield Finding("no recovery", f"after {len(story.attempts)} attempts: {end}")
    elif last.digest != reference:
        yield Finding("wrong result", f"the model is {last.digest[:40]}, not {reference[:12]}")
    if not story.event.again:
        return
    for number, attempt in enumerate(story.attempts[1:], 2):
        if not attempt.has_archive or attempt.digest != reference:
            yield Finding("lost result", f"the model of attempt 1 is gone, or another, after attempt {number}")


def _of_attempt(attempt: Attempt, before: Attempt | None, story: Story) -> Iterator[Finding]:
    if attempt.hung:
        yield Finding("hang", f"still there after {attempt.allowed:.0f} s: {'; '.join(attempt.hung[:8])}")
    if attempt.orphans:
        yield Finding("orphan", f"{len(attempt.orphans)} outlive trainbox run: {'; '.join(attempt.orphans[:4])}")
    killed = any(hit.fault.kind == "run" and hit.fault.blow == "kill" for hit in attempt.hits)
    if attempt.went_on and killed and not any(hit.has_model for hit in attempt.hits):
        yield Finding("orphan", "the job went on to its end without trainbox run")
    yield from _lost_checkpoints(attempt, before)
    faults = tuple(hit.fault for hit in attempt.hits)
    if faults and not attempt.hung:
        yield from _of_reason(attempt, faults, story.event.job)
        yield from _of_hosts(attempt, faults, story.event.job)
    if not faults and attempt.status != "Completed" and not attempt.hung:
        text = f"an undisturbed attempt ends with {attempt.exit_code}: {attempt.reason or attempt.said.strip()[-300:]}"
        yield Finding("no recovery", text)


def _lost_checkpoints(attempt: Attempt, before: Attempt | None) -> Iterator[Finding]:
    had = dict(before.checkpoints) if before else {}
    for hit in attempt.hits:
        had |= {name: max(step, had.get(name, 0)) for name, step in hit.checkpoints.items()}
    for name, step in had.items():
        if attempt.checkpoints.get(name, -1) < step:
            now = attempt.checkpoints.get(name)
            yield Finding("lost result", f"{name}: the newest valid checkpoint was that of step {step}, now {now}")
    if before is None or attempt.hits:
        return
    for host, steps in attempt.resumed.items():
        newest = before.checkpoints.get(f"checkpoints/{host}", before.checkpoints.get("checkpoints", 0))
        if steps and steps[0] < newest:
            yield Finding("lost result", f"{host} resumes from step {steps[0]}, and there was one of step {newest}")


def _of_reason(attempt: Attempt, faults: tuple[Fault, ...], job: Job) -> Iterator[Finding]:
    if attempt.exit_code == _INTERNAL:
        yield Finding("false reason", f"exit code 70: {attempt.reason or attempt.said.strip()[-300:]}")
    killed = any(fault.kind == "run" and fault.blow in {"kill", "freeze"} for fault in faults)
    if attempt.status == "Failed":
        for why in wrong_with(attempt.reason, faults, job):
            yield Finding("false reason", f"{why}: {attempt.reason}")
    elif _CLI in (traceback := attempt.said.rpartition(_TRACEBACK)[2]):
        yield Finding("false reason", f"trainbox run ends with a traceback: {traceback[-300:]}")
    elif attempt.status in {"", "InProgress"} and not (
        killed or any(fault.kind in {"run", "disk"} for fault in faults)
    ):
        yield Finding("false reason", f"job.json says {attempt.status!r}, exit code {attempt.exit_code}")
    hit = ranks_hit(faults, job)
    for rank in attempt.restarted:
        if rank not in hit:
            yield Finding("false reason", f"the ranks start again for rank {rank}, which was not hit")


def _of_hosts(attempt: Attempt, faults: tuple[Fault, ...], job: Job) -> Iterator[Finding]:
    """What each host says, not only the one that failed first."""
    for host, failure in attempt.failures.items():
        for why in wrong_with(failure.text, faults, job):
            yield Finding("false reason", f"{host} {why}: {failure.text}")
        if failure.had_started and "before the script was started" in failure.text:
            yield Finding("false reason", f"{host} had started its script: {failure.text}")


def wrong_with(reason: str, faults: tuple[Fault, ...], job: Job) -> Iterator[str]:
    """What a reason says that is not so, or fails to say.

    Args:
        reason: Of `job.json`.
        faults: What has come about.
        job: How many hosts and ranks there are.
    """
    text = _PLACE.sub("", reason)
    said = text.removeprefix("AlgorithmError: ").removeprefix("ClientError: ").partition(", exit code:")[0].strip()
    if not said:
        yield "no reason"
    for words, why in _NEVER:
        if words in text:
            yield why
    if _DATA.search(text):
        yield "blames the data"
    if faults and all(fault.blow == "stop" for fault in faults) and "stop" not in text.lower():
        yield "does not say that it was stopped"
    cause = text.partition("\nhint:")[0]
    everything = any(fault.kind in {"run", "disk"} for fault in faults)
    hosts = {fault.host for fault in faults}
    named = {int(number) for number in _HOST.findall(cause)}
    if named and not everything and not named & hosts:
        yield f"names host {sorted(named)}, and {sorted(hosts)} was hit"
    ranks = {int(number) for number in _RANK.findall(cause)}
    if ranks and not everything and not ranks & ranks_hit(faults, job):
        yield f"names rank {sorted(ranks)}, and {sorted(ranks_hit(faults, job))} was hit"
    kinds = {fault.kind for fault in faults}
    for name, fitting in _NAMES.items():
        if name in cause and not fitting & kinds:
            yield f"names the {name}, and {', '.join(sorted(kinds)) or 'nothing'} was hit"


def ranks_hit(faults: tuple[Fault, ...], job: Job) -> set[int]:
    """Global ranks: those hit themselves, and all of a host of which another process was hit."""
    hit: set[int] = set()
    for fault in faults:
        if fault.kind in {"run", "disk"}:
            return set(range(job.hosts * job.ranks))
        first = (fault.host - 1) * job.ranks
        hit |= {first + fault.rank} if fault.kind == "rank" else set(range(first, first + job.ranks))
    return hit
