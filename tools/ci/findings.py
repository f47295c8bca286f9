"""What scanners find in an image, and which of it is allowed for how long: tools/ci/allowed-findings.toml."""

import datetime as dt
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.ci.messages import emit, fail

#: As ECR orders them, the worst first.
SEVERITIES = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFORMATIONAL", "UNDEFINED", "UNTRIAGED")
ALLOWED = Path(__file__).with_name("allowed-findings.toml")
#: An exception is looked at again at least twice a year.
LONGEST_DAYS = 184
_SHORTEST_REASON = 20
_LISTED = 20


class Finding(NamedTuple):
    """One vulnerability of one package."""

    names: tuple[str, ...]
    """Its identifiers: of a CVE also those of the advisories that are the same."""
    severity: str
    """One of `SEVERITIES`; empty where the scanner knows none: it counts as the worst."""
    package: str
    version: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.severity or 'unrated'} {self.names[0]} {self.package} {self.version} {self.where}".rstrip()


class Allowed(NamedTuple):
    """A finding that does not fail a build until a day, and why."""

    name: str
    package: str
    reason: str
    until: dt.date


def severities_to_fail_on(mildest: str) -> tuple[str, ...]:
    """SCAN_FAIL_ON and all that is worse; none for NONE."""
    if mildest == "NONE":
        return ()
    if mildest not in SEVERITIES:
        fail(f"SCAN_FAIL_ON: found {mildest!r}", f"one of {', '.join(SEVERITIES)}, NONE")
    return SEVERITIES[: SEVERITIES.index(mildest) + 1]


def read_allowed(path: Path, today: dt.date) -> tuple[Allowed, ...]:
    """The entries of the list; one that has expired, is for longer than allowed or gives no reason ends the build."""
    try:
        entries = tomllib.loads(path.read_text()).get("allowed", [])
    except tomllib.TOMLDecodeError as error:
        fail(f"{path.name} is no TOML: {error}", "see the comment at its top")
    return tuple(_read_entry(path.name, number, entry, today) for number, entry in enumerate(entries, 1))


def _read_entry(file: str, number: int, entry: dict[str, object], today: dt.date) -> Allowed:
    where = f"{file}, entry {number} ({entry.get('id', 'without an id')})"
    if set(entry) != {"id", "package", "reason", "until"}:
        fail(f"{where}: found {', '.join(sorted(entry))}", "an entry has id, package, reason and until, and no more")
    until, reason = entry["until"], str(entry["reason"]).strip()
    if not isinstance(until, dt.date) or isinstance(until, dt.datetime):
        fail(f"{where}: until is {until!r}", "a day without quotes: until = 2027-01-31")
    if len(reason) < _SHORTEST_REASON:
        fail(f"{where}: the reason is {reason!r}", "say why the finding cannot be used against a job")
    if until < today:
        fail(f"{where}: expired on {until}", "update the package, or judge the finding anew and set another day")
    if (until - today).days > LONGEST_DAYS:
        fail(f"{where}: until {until} is more than {LONGEST_DAYS} days away", "set an earlier day")
    return Allowed(str(entry["id"]), str(entry["package"]), reason, until)


def judge(
    findings: Iterable[Finding], failing: Sequence[str], allowed: Iterable[Allowed]
) -> tuple[list[Finding], list[tuple[Finding, Allowed]]]:
    """Those that fail a build, the worst first, and those that would but are allowed."""
    entries = {(each.name, each.package): each for each in allowed}
    bad: list[Finding] = []
    excused: list[tuple[Finding, Allowed]] = []
    for finding in sorted(findings, key=_rank):
        if finding.severity in SEVERITIES and finding.severity not in failing:
            continue
        entry = next((entries[key] for name in finding.names if (key := (name, finding.package)) in entries), None)
        if entry is None:
            bad.append(finding)
        else:
            excused.append((finding, entry))
    return bad, excused


def _rank(finding: Finding) -> tuple[int, str, str]:
    known = finding.severity in SEVERITIES
    return SEVERITIES.index(finding.severity) if known else -1, finding.package, finding.names[0]


def end_on(what: str, findings: Iterable[Finding], failing: Sequence[str]) -> None:
    """Fail on the findings that count, after a line for each of the worst of them."""
    today = dt.datetime.now(dt.UTC).date()
    bad, excused = judge(findings, failing, read_allowed(ALLOWED, today))
    for finding, entry in excused:
        emit(f"allowed until {entry.until}: {finding}: {entry.reason}")
    for finding in bad[:_LISTED]:
        emit(f"  {finding}")
    if bad:
        hint = f"update what has them, or allow them by name, with a reason and a day, in tools/ci/{ALLOWED.name}"
        fail(f"{what}: {len(bad)} findings of {failing[-1]} or worse, or without a rating", hint)
