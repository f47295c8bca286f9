"""Pure: what follows from all that was found on all hosts."""

from collections.abc import Sequence

from trainbox.contract.diagnosis import Diagnosis
from trainbox.contract.failure import compose
from trainbox.contract.finding import Finding, blame, list_places
from trainbox.health.checks import amount


def judge(findings: Sequence[Finding], *, strict: bool = False) -> Diagnosis | None:
    """Why the job cannot go on, the same on all its hosts; None where it can.

    Args:
        findings: Those of all hosts, in the order in which they are to be told.
        strict: Whether warnings count as failures; those that pass by themselves never do.
    """
    against = ("fail", "warn") if strict else ("fail",)
    bad = [finding for finding in findings if finding.status in against and finding.kind != "transient"]
    # With the configuration wrong, what looks like hardware may follow from it.
    bad.sort(key=lambda finding: finding.kind != "configuration")
    return blame(bad, amount) if bad else None


def sum_up(findings: Sequence[Finding], diagnosis: Diagnosis | None) -> str:
    """What was found, for the log."""
    if diagnosis is not None:
        return f"health: NOT sound: {compose(diagnosis)}"
    warnings = [finding for finding in findings if finding.status != "pass"]
    hosts = len({finding.host for finding in findings})
    said = f", {len(warnings)} warning(s): {list_places(warnings)}" if warnings else ""
    return f"health: sound: {len(findings)} checks on {hosts} host(s){said}"
