"""Brings what the hosts of a job have found together, and comes to one diagnosis."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

import msgspec

from trainbox.clock import Clock
from trainbox.contract.diagnosis import Diagnosis
from trainbox.contract.finding import Finding
from trainbox.contract.peer_key import SAME_KEY_HINT
from trainbox.health import versions
from trainbox.health.checks import CHECKS, LEAST_SHARE_OF_MEDIAN, MOST_SKEW_SECONDS, found
from trainbox.health.collectives import RankProgram, check_collectives, choose_backend, possible
from trainbox.health.host import Subject
from trainbox.health.judgement import judge, sum_up
from trainbox.health.local import HostReport, check_host, longest
from trainbox.peers.members import Members
from trainbox.peers.tolerant import OF_CONFIGURATION, UNPROVED, MemberLost, TolerantCommunicator, join_tolerant

#: From the deadline of a check to its end, and to the answer of a host with few processors.
_OVERHEAD_SECONDS = 5.0
#: Everybody has said everything: for one more line.
_LAST_SECONDS = 1.0


class HealthReport(msgspec.Struct, frozen=True):
    """What was found, and what follows from all of it: the findings are all on the first host, the rest on each."""

    findings: tuple[Finding, ...]
    #: All that was found, in a line for the log.
    line: str
    #: Why the job cannot go on; None where it can.
    diagnosis: Diagnosis | None = None

    @property
    def exit_code(self) -> int:
        """0 (go on), 64 (configuration) or 78 (hardware)."""
        return self.diagnosis.exit_code if self.diagnosis else 0

    def of(self, host: str) -> "HealthReport":
        """What concerns one host."""
        own = tuple(finding for finding in self.findings if finding.host == host)
        return HealthReport(own, self.line, self.diagnosis)


def examine(
    subject: Subject, env: Mapping[str, str], *, strict: bool, backend: str | None = None, clock: Clock = time.time
) -> HealthReport:
    """Check this host, and all hosts of its job together.

    Args:
        subject: What to check.
        env: The environment of the program of the ranks.
        strict: Whether warnings count as failures.
        backend: Of the collectives; by default the job's own.
        clock: The time in seconds; a parameter so that a test can plant a skew.
    """
    job = subject.job
    members = Members(
        subject.hosts, subject.host, subject.hosts[0], job.name if job else "", job.peer_key if job else None
    )
    timeout = job.settings.peer_timeout_seconds if job else 0.0
    with ExitStack() as stack:
        # First: it is ready when the host's own checks have ended.
        ranks = stack.enter_context(RankProgram(subject, env)) if possible(subject) else None
        try:
            hosts = stack.enter_context(
                join_tolerant(members, timeout=timeout, port=subject.exchange_port, clock=clock)
            )
        except MemberLost as lost:
            return conclude(check_host(subject).findings, {lost.host: lost.reason}, strict=strict)
        except OSError as error:
            taken = found("host.port", subject.host, False, error.strerror, device=f"port {subject.exchange_port}")
            return conclude((*check_host(subject).findings, taken), {}, strict=strict)
        return _together(subject, hosts, ranks, strict=strict, backend=choose_backend(subject, backend))


def _together(
    subject: Subject, hosts: TolerantCommunicator, ranks: RankProgram | None, *, strict: bool, backend: str
) -> HealthReport:
    """Check each host by itself, then, if they are sound so far, what they can do together."""
    timeout = longest(subject) + _OVERHEAD_SECONDS
    own = check_host(subject)
    try:
        own = msgspec.structs.replace(own, skew=hosts.measure_skew(timeout=timeout))
        decide = partial(compare, strict=strict)
        report = hosts.decide(own, HostReport, decide, HealthReport, timeout=timeout, share=HealthReport.of)
        if ranks is None or report.diagnosis:
            return report
        more = check_collectives(subject, hosts, ranks, backend=backend)
        last = partial(_add, report.findings, more, strict=strict)
        return hosts.decide(own, HostReport, last, HealthReport, timeout=_LAST_SECONDS, share=HealthReport.of)
    except MemberLost as lost:
        report = conclude(own.findings, {lost.host: lost.reason}, strict=strict)
        hosts.leave(report.diagnosis.cause if report.diagnosis else str(lost))
        return report


def _add(
    before: Sequence[Finding],
    more: Sequence[Finding],
    _said: Mapping[str, HostReport],
    _silent: Mapping[str, str],
    *,
    strict: bool,
) -> HealthReport:
    """Who is silent by now has its finding among `more`."""
    return conclude((*before, *more), {}, strict=strict)


def compare(said: Mapping[str, HostReport], silent: Mapping[str, str], *, strict: bool) -> HealthReport:
    """Pure: what all hosts have found, and what shows only beside each other."""
    findings = [finding for report in said.values() for finding in report.findings]
    if len(said) + len(silent) > 1:
        findings += [found("host.arrival", host, True, "here") for host in said]
        findings += [_compare_clock(host, report.skew) for host, report in said.items()]
    findings += versions.compare_versions({host: report.versions for host, report in said.items() if report.versions})
    findings += _compare_bandwidths(said)
    return conclude(findings, silent, strict=strict)


def _compare_clock(host: str, skew: float) -> Finding:
    return found("host.clock", host, abs(skew) <= MOST_SKEW_SECONDS, round(skew, 3), limit=MOST_SKEW_SECONDS)


def _compare_bandwidths(said: Mapping[str, HostReport]) -> Iterator[Finding]:
    """Hold every device against the median of all of the job."""
    measured = [
        (host, device, copied, speed)
        for host, report in said.items()
        for device, of_device in report.bandwidths.items()
        for copied, speed in of_device.items()
    ]
    for host, device, copied, speed in measured:
        least = round(LEAST_SHARE_OF_MEDIAN * median(one[3] for one in measured if one[2] == copied), 2)
        yield found("gpu.bandwidth", host, speed >= least, speed, device=f"{device} {copied}", limit=least)


def conclude(findings: Sequence[Finding], silent: Mapping[str, str], *, strict: bool) -> HealthReport:
    """Put all in the order of the table, the worst of its kind first, and judge it.

    Args:
        findings: Of all hosts that said something.
        silent: Why the others did not.
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
    # A host with another version of trainbox may know other checks.
    ordered = tuple(sorted((*missing, *findings), key=lambda finding: order.get(finding.check, len(order))))
    diagnosis = judge(ordered, strict=strict)
    return HealthReport(ordered, sum_up(ordered, diagnosis), diagnosis)
