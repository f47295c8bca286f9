"""What a person sees: a line for each event, a table at the end, and how to repeat what was found."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tools.fuzz_faults.judge import Finding
from tools.fuzz_faults.plan import Blow, Event, Kind
from tools.fuzz_faults.story import Story

_LONGEST = 600


class Result(msgspec.Struct, frozen=True):
    """An event, judged."""

    story: Story
    findings: tuple[Finding, ...]
    logs: Path


def line(result: Result) -> str:
    """Of one event: number, seed, job, faults, outcome, seconds."""
    event, story = result.story.event, result.story
    hit = sum(len(attempt.hits) for attempt in story.attempts)
    wanted = len(event.faults) + event.twice
    missed = "" if hit == wanted else f" ({hit} of {wanted} came about)"
    ends = ", ".join(f"{attempt.status or 'no record'} {attempt.exit_code}" for attempt in story.attempts)
    outcome = "FOUND " + ", ".join(dict.fromkeys(finding.what for finding in result.findings))
    if not result.findings:
        outcome = "exact"
    what = f"{event.number:4d} seed={event.seed} {event.job.name:13s} {event}{missed}"
    return f"{what}: {ends}: {outcome} ({story.seconds:.1f} s)"


def command(event: Event, load: int) -> str:
    """What repeats an event."""
    return f"make fuzz-faults SEED={event.seed} ONLY={event.number} LOAD={load}"


def table(results: Sequence[Result]) -> str:
    """Faults by kinds of process: how often tried, how many of those exact, how many with a finding."""
    counts: dict[tuple[Blow, Kind], list[int]] = {}
    for result in results:
        for attempt in result.story.attempts:
            for hit in attempt.hits:
                cell = counts.setdefault((hit.fault.blow, hit.fault.kind), [0, 0])
                cell[bool(result.findings)] += 1
    rows = [("fault", "process", "tried", "exact", "found")]
    rows += [(blow, kind, str(sum(cell)), str(cell[0]), str(cell[1])) for (blow, kind), cell in sorted(counts.items())]
    total = [sum(cell[number] for cell in counts.values()) for number in (0, 1)]
    rows.append(("all", "", str(sum(total)), str(total[0]), str(total[1])))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def findings(results: Sequence[Result], load: int) -> str:
    """Each finding with what repeats it, and where its logs are."""
    lines = []
    for result in results:
        if not result.findings:
            continue
        lines += ["", f"event {result.story.event.number}: {result.story.event.job.name}: {result.story.event}"]
        lines += [f"  {finding.what}: {finding.text[:_LONGEST]}" for finding in result.findings]
        lines += [f"  repeat: {command(result.story.event, load)}", f"  logs:   {result.logs}"]
    return "\n".join(lines)
