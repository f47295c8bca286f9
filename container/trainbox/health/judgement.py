"""Pure: what follows from all that was found on all hosts."""

from collections.abc import Sequence

import msgspec

from trainbox.health.checks import in_words
from trainbox.health.finding import Finding, Kind

#: In this order: with the configuration wrong, what looks like hardware may follow from it.
EXIT_CODES: dict[Kind, int] = {"configuration": 64, "hardware": 78}
_MOST_FURTHER = 5


class Judgement(msgspec.Struct, frozen=True):
    """What follows, the same on all hosts of the job."""

    #: 0 (go on), 64 (configuration) or 78 (hardware).
    code: int
    #: One line for the log.
    line: str
    #: The text of `output/failure`; empty where the job goes on.
    failure: str = ""


def judge(findings: Sequence[Finding], *, strict: bool = False) -> Judgement:
    """Decide what follows.

    Args:
        findings: Those of all hosts, in the order in which they are to be told.
        strict: Whether warnings count as failures; those that pass by themselves never do.
    """
    against = ("fail", "warn") if strict else ("fail",)
    bad = [finding for finding in findings if finding.status in against and finding.kind != "transient"]
    for kind, code in EXIT_CODES.items():
        chosen = [finding for finding in bad if finding.kind == kind]
        if chosen:
            return Judgement(code, f"health: NOT sound: {_failure(kind, chosen, bad)}", _failure(kind, chosen, bad))
    warnings = [finding for finding in findings if finding.status != "pass"]
    hosts = len({finding.host for finding in findings})
    said = f", {len(warnings)} warning(s): {_list(warnings)}" if warnings else ""
    return Judgement(0, f"health: sound: {len(findings)} checks on {hosts} host(s){said}")


def _failure(kind: Kind, chosen: Sequence[Finding], bad: Sequence[Finding]) -> str:
    """Begins with fixed words, so that rules on a job's FailureReason can match them."""
    first = chosen[0]
    text = f"{kind.upper()} {first.place}: {in_words(first)}"
    rest = [*chosen[1:], *(finding for finding in bad if finding.kind != kind)]
    text += f"; also {_list(rest)}" if rest else ""
    return text + (f"\nhint: {first.hint}" if first.hint else "")


def _list(findings: Sequence[Finding]) -> str:
    more = len(findings) - _MOST_FURTHER
    return ", ".join(finding.place for finding in findings[:_MOST_FURTHER]) + (f" and {more} more" if more > 0 else "")
