"""Pure: what follows from all that was found on all hosts."""

from collections.abc import Sequence

import msgspec

from trainbox.contract.finding import EXIT_CODES, Finding, Kind, accuse, list_places
from trainbox.health.checks import amount


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
    said = f", {len(warnings)} warning(s): {list_places(warnings)}" if warnings else ""
    return Judgement(0, f"health: sound: {len(findings)} checks on {hosts} host(s){said}")


def _failure(kind: Kind, chosen: Sequence[Finding], bad: Sequence[Finding]) -> str:
    """Begins with fixed words, so that rules on a job's FailureReason can match them."""
    rest = [finding for finding in bad if finding.kind != kind]
    hint = chosen[0].hint
    return accuse([*chosen, *rest], amount) + (f"\nhint: {hint}" if hint else "")
