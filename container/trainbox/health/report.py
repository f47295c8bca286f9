"""The health report: evaluates the findings of all hosts, and prints and writes them.

Findings are printed as JSON lines or as a table, and written to `output/data/health`.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

from trainbox.atomic_write import write
from trainbox.comm.member_loss import OF_CONFIGURATION, UNPROVED
from trainbox.contract.credentials.peer_key import SAME_KEY_HINT
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import compose
from trainbox.contract.text import visible
from trainbox.diagnostics.finding import Finding, blame, list_places
from trainbox.health.checks import CHECKS, LEAST_SHARE_OF_MEDIAN, MOST_SKEW_SECONDS, amount, found
from trainbox.health.host import ABSENT

_PREFIX = "versions."
DIRECTORY = "health"
_HEADS = ("STATUS", "CHECK", "WHERE", "FOUND", "LIMIT", "WHAT TO DO")


class HostChecks(msgspec.Struct, frozen=True):
    """Results of the checks that one host runs alone."""

    findings: tuple[Finding, ...]
    versions: Mapping[str, str] = {}
    #: GB/s by device (`gpu3`, `cpu`) and direction of the copy.
    bandwidths: Mapping[str, Mapping[str, float]] = {}
    #: Its clock minus that of the first host, in seconds.
    skew: float = 0.0


class HealthReport(msgspec.Struct, frozen=True):
    """Findings and diagnosis of a job; the first host has the findings of all hosts, the others their own."""

    findings: tuple[Finding, ...]
    #: Summary for the log.
    line: str
    #: Why the job cannot start; None if it can.
    diagnosis: Diagnosis | None = None

    @property
    def exit_code(self) -> int:
        """0 (healthy), 64 (configuration) or 78 (hardware)."""
        return self.diagnosis.exit_code if self.diagnosis else 0

    def for_host(self, host: str) -> "HealthReport":
        """Return the report with the findings of one host."""
        own = tuple(finding for finding in self.findings if finding.host == host)
        return HealthReport(own, self.line, self.diagnosis)


def compare_hosts(reports: Mapping[str, HostChecks], silent: Mapping[str, str], *, strict: bool) -> HealthReport:
    """Pure: evaluate the findings of all hosts and the comparisons between hosts."""
    findings = [finding for report in reports.values() for finding in report.findings]
    if len(reports) + len(silent) > 1:
        findings += [found("host.arrival", host, True, "here") for host in reports]
        findings += [_compare_clock(host, report.skew) for host, report in reports.items()]
    findings += compare_versions({host: report.versions for host, report in reports.items() if report.versions})
    findings += _compare_bandwidths(reports)
    return evaluate(findings, silent, strict=strict)


def _compare_clock(host: str, skew: float) -> Finding:
    return found("host.clock", host, abs(skew) <= MOST_SKEW_SECONDS, round(skew, 3), limit=MOST_SKEW_SECONDS)


def _compare_bandwidths(reports: Mapping[str, HostChecks]) -> Iterator[Finding]:
    """Compare every device with the median of all devices of the job."""
    measured = [
        (host, device, copied, speed)
        for host, report in reports.items()
        for device, of_device in report.bandwidths.items()
        for copied, speed in of_device.items()
    ]
    for host, device, copied, speed in measured:
        least = round(LEAST_SHARE_OF_MEDIAN * median(one[3] for one in measured if one[2] == copied), 2)
        yield found("gpu.bandwidth", host, speed >= least, speed, device=f"{device} {copied}", limit=least)


def compare_versions(versions: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Compare the versions of every host with the most common ones; the first host decides a tie.

    Args:
        versions: By host and component.
    """
    for check in CHECKS:
        component = check.removeprefix(_PREFIX)
        if component == check or not versions:
            continue
        had = {host: of_host.get(component, ABSENT) for host, of_host in versions.items()}
        common = Counter(had.values()).most_common(1)[0][0]  # ties: the version of the first host
        example = next(host for host, version in had.items() if version == common)
        for host, version in had.items():
            same = version == common
            limit = common if same else f"{common} on {example}"
            yield found(check, host, same, version, limit=limit)


def evaluate(findings: Sequence[Finding], silent: Mapping[str, str], *, strict: bool) -> HealthReport:
    """Sort the findings in the order of the table and derive the diagnosis.

    Args:
        findings: Of all hosts that replied.
        silent: Why the others did not reply.
        strict: Whether warnings count as failures.
    """
    missing = [
        found(
            "host.arrival",
            host,
            False,
            reason,
            kind="configuration" if reason in OF_CONFIGURATION else None,
            hint=SAME_KEY_HINT if reason == UNPROVED else "",
        )
        for host, reason in silent.items()
    ]
    order = {name: place for place, name in enumerate(CHECKS)}
    # A host with another version of trainbox may have other checks.
    ordered = tuple(sorted((*missing, *findings), key=lambda finding: order.get(finding.check, len(order))))
    diagnosis = diagnose(ordered, strict=strict)
    return HealthReport(ordered, summarize(ordered, diagnosis), diagnosis)


def diagnose(findings: Sequence[Finding], *, strict: bool = False) -> Diagnosis | None:
    """Return why the job cannot start, the same on all hosts; None if it can.

    Args:
        findings: Those of all hosts, in the order of the report.
        strict: Whether warnings count as failures; transient findings never do.
    """
    against = ("fail", "warn") if strict else ("fail",)
    bad = [finding for finding in findings if finding.status in against and finding.kind != "transient"]
    # A wrong configuration may cause what looks like a hardware fault.
    bad.sort(key=lambda finding: finding.kind != "configuration")
    return blame(bad, amount) if bad else None


def summarize(findings: Sequence[Finding], diagnosis: Diagnosis | None) -> str:
    """Return the summary for the log."""
    if diagnosis is not None:
        return f"health: NOT sound: {compose(diagnosis)}"
    warnings = [finding for finding in findings if finding.status != "pass"]
    hosts = len({finding.host for finding in findings})
    told = f", {len(warnings)} warning(s): {list_places(warnings)}" if warnings else ""
    return f"health: sound: {len(findings)} checks on {hosts} host(s){told}"


def print_lines(findings: Sequence[Finding]) -> None:
    """Print one line of JSON for each finding on stdout."""
    sys.stdout.write("".join(msgspec.json.encode(finding).decode() + "\n" for finding in findings))
    sys.stdout.flush()


def print_table(findings: Sequence[Finding]) -> None:
    """Print a table: failures and warnings one by one, passed checks in one row each."""
    rows = [tuple(map(visible, row)) for row in _rows(findings)]
    try:
        from rich.console import Console  # noqa: PLC0415 - optional: an image may not have it
        from rich.table import Column, Table  # noqa: PLC0415
    except ModuleNotFoundError:
        widths = [max(len(row[column]) for row in (_HEADS, *rows)) for column in range(len(_HEADS))]
        for row in (_HEADS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(*(Column(head, overflow="fold") for head in _HEADS), box=None, padding=(0, 2, 0, 0), header_style="")
    for row in rows:
        table.add_row(*row, style={"fail": "red", "warn": "yellow"}.get(row[0]))
    Console(markup=False, emoji=False, highlight=False).print(table)


def _rows(findings: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    for finding in findings:
        if finding.status != "pass":
            where = f"{finding.host} {finding.device}".rstrip()
            value, limit = amount(finding.check, finding.value), amount(finding.check, finding.limit)
            yield (finding.status, finding.check, where, value, limit, f"{finding.kind}: {finding.hint}")
    for check in CHECKS:
        passed = [finding for finding in findings if finding.check == check and finding.status == "pass"]
        if passed:
            hosts = {finding.host for finding in passed}
            devices = {finding.device for finding in passed if finding.device}
            where = f"{len(hosts)} hosts" if len(hosts) > 1 else passed[0].host
            where += f" {', '.join(sorted(devices))}" if devices else ""
            yield ("pass", check, where, _common(check, passed), "", next((one.hint for one in passed if one.hint), ""))


def _common(check: str, passed: Sequence[Finding]) -> str:
    values = {amount(check, finding.value) for finding in passed}
    return values.pop() if len(values) == 1 else ""


def write_report(directory: Path, host: str, report: HealthReport) -> None:
    """Write `HOST.json`; the file of the first host has the findings of all hosts.

    Raises:
        OSError: It cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / f"{host}.json", msgspec.json.format(msgspec.json.encode(report)))
