"""Runs all checks of this host in parallel, then the checks between hosts; all hosts get the same diagnosis."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import msgspec

from trainbox.clock import Clock
from trainbox.comm.member_loss import MemberLost
from trainbox.comm.members import Members
from trainbox.comm.tolerant import TolerantCommunicator, join_tolerant
from trainbox.diagnostics.finding import Finding
from trainbox.health import gpus, host, probe
from trainbox.health.arithmetic import Measured
from trainbox.health.checks import CHECKS, found, unfinished
from trainbox.health.collectives import RankProgram, can_run_collectives, check_collectives, choose_backend
from trainbox.health.host import Subject
from trainbox.health.nvml import GpuReading, NvmlMissing, open_gpus
from trainbox.health.probe import Probe, ProbeResult
from trainbox.health.report import HealthReport, HostChecks, compare_hosts, evaluate

_UNUSABLE = "torch cannot use this GPU: install torch for a CUDA version that the driver supports, and free GPU memory"
#: From the timeout of a check to the reply of its host, which may have few CPUs.
_OVERHEAD_SECONDS = 5.0
#: Timeout of the final report; all hosts are ready for it.
_LAST_SECONDS = 1.0


class ProbeMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a probe."""

    findings: tuple[Finding, ...] = ()
    versions: Mapping[str, str] = {}
    #: Number of GPUs in NVML, and the reading of one.
    gpus: int | None = None
    gpu: GpuReading | None = None
    #: Why NVML cannot be used, and whether nvidia-ml-py is installed.
    no_nvml: str = ""
    installed: bool = True
    measured: Measured | None = None


def plan_probes(subject: Subject) -> list[Probe]:
    """Return the probes of all checks of this host."""
    versions_probe = _probe(subject, "versions.trainbox", _report_versions)
    return [*_host_probes(subject), versions_probe, *_gpu_probes(subject)]


def longest_deadline(subject: Subject) -> float:
    """Return the seconds after which `check_host` has killed every probe that hangs."""
    return max(planned.seconds for planned in plan_probes(subject))


def check_host(subject: Subject) -> HostChecks:
    """Run all checks that this host can run alone."""
    answers = probe.run(plan_probes(subject))
    findings: list[Finding] = []
    facts: dict[str, str] = {}
    bandwidths: dict[str, Mapping[str, float]] = {}
    for answer in answers:
        messages = [msgspec.json.decode(line, type=ProbeMessage) for line in answer.lines]
        if answer.probe.work is _read_gpus:
            findings += gpu_findings(subject, messages, answer)
        elif answer.broken:
            findings.append(_unfinished(subject, answer, answer.probe.check, answer.probe.device))
        for message in messages:
            findings += message.findings
            facts |= message.versions
            if message.measured:
                findings.append(_exact(subject, answer.probe.device, message.measured))
                bandwidths[answer.probe.device] = message.measured.bandwidths
    return HostChecks(tuple(findings), facts, bandwidths)


def _probe(
    subject: Subject,
    check: str,
    work: Callable[[], Iterator[ProbeMessage]] | tuple[str, ...],
    device: str = "",
    environment: tuple[tuple[str, str], ...] = (),
) -> Probe:
    return Probe(check, subject.deadline or CHECKS[check].seconds, work, device, environment)


def _host_probes(subject: Subject) -> Iterator[Probe]:
    for check, device, work in host.plan_checks(subject):
        yield _probe(subject, check, partial(_as_messages, work), device)


def _as_messages(work: host.Work) -> Iterator[ProbeMessage]:
    for finding in work():
        yield ProbeMessage(findings=(finding,))


def _report_versions() -> Iterator[ProbeMessage]:
    yield ProbeMessage(versions=host.read_versions())


def _gpu_probes(subject: Subject) -> Iterator[Probe]:
    """Yield NVML if there are or should be GPUs, and the arithmetic of each GPU; of the CPU only with --full."""
    if subject.machine.gpus or gpus.expected_gpus(subject.instance_type):
        yield _probe(subject, "nvml.library", _read_gpus)
    if "torch" not in subject.machine.modules:
        return
    devices = [("cuda", f"gpu{index}") for index in range(subject.machine.gpus)]
    if not devices and subject.stage == "full":
        devices = [("cpu", "cpu")]
    for place, (kind, device) in enumerate(devices):
        # -P: a user's `queue.py` in the working directory must not hide that of the standard library.
        command = (sys.executable, "-P", "-m", "trainbox.health.arithmetic", kind, subject.stage)
        # One GPU, in the order of NVML: `gpu3` is the same GPU in both.
        seen = (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", str(place)))
        yield _probe(subject, "gpu.exact", command, device, seen)


def _read_gpus() -> Iterator[ProbeMessage]:
    """Yield each reading at once, so that a call that hangs does not lose earlier ones."""
    try:
        nvml = open_gpus()
    except NvmlMissing as missing:
        yield ProbeMessage(no_nvml=str(missing), installed=missing.installed)
        return
    count = nvml.count()
    yield ProbeMessage(gpus=count)
    for index in range(count):
        yield ProbeMessage(gpu=nvml.read(index))


def _unfinished(subject: Subject, answer: ProbeResult, check: str, device: str) -> Finding:
    return unfinished(check, subject.host, answer.broken, device=device, seconds=answer.probe.seconds)


def gpu_findings(subject: Subject, messages: Sequence[ProbeMessage], answer: ProbeResult) -> Iterator[Finding]:
    """Pure: return the findings of the NVML readings, complete or not."""
    missing = next((message for message in messages if message.no_nvml), None)
    if missing:
        # Without nvidia-ml-py nothing is known about the GPUs; without the driver no GPU works.
        hint = "" if missing.installed else "pip install 'trainbox[gpu]'"
        yield found("nvml.library", subject.host, False, missing.no_nvml, soft=not missing.installed, hint=hint)
        return
    count = next((message.gpus for message in messages if message.gpus is not None), None)
    if count is not None:
        yield found("nvml.library", subject.host, True, "loaded")
        yield gpus.check_count(subject.host, count, nodes=subject.machine.gpus, instance_type=subject.instance_type)
    readings = [message.gpu for message in messages if message.gpu is not None]
    yield from gpus.check_gpus(subject.host, readings)
    if answer.broken:
        check, device = ("nvml.library", "") if count is None else ("nvml.answers", f"gpu{len(readings)}")
        yield _unfinished(subject, answer, check, device)


def _exact(subject: Subject, device: str, measured: Measured) -> Finding:
    if measured.unusable:
        # NVML checks the device; the cause is more often the build of torch, or a process that holds the memory.
        return found(
            "gpu.exact",
            subject.host,
            False,
            measured.unusable,
            device=device,
            kind="configuration",
            soft=True,
            hint=_UNUSABLE,
        )
    if measured.failed:
        return found("gpu.exact", subject.host, False, measured.failed, device=device, limit=0)
    return found("gpu.exact", subject.host, measured.wrong == 0, measured.wrong, device=device, limit=0)


def examine(
    subject: Subject, env: Mapping[str, str], *, strict: bool, backend: str | None = None, clock: Clock = time.time
) -> HealthReport:
    """Check this host, and all hosts of its job together.

    Args:
        subject: What to check.
        env: The environment of the program of ranks.
        strict: Whether warnings count as failures.
        backend: Of the collectives; by default the job's own.
        clock: The time in seconds; a test passes another one to create a skew.
    """
    job = subject.job
    members = Members(
        subject.hosts, subject.host, subject.hosts[0], job.name if job else "", job.peer_key if job else None
    )
    timeout = job.settings.peer_timeout_seconds if job else 0.0
    with ExitStack() as stack:
        # Started first: it imports torch while the checks of the host run.
        ranks = stack.enter_context(RankProgram(subject, env)) if can_run_collectives(subject) else None
        try:
            hosts = stack.enter_context(
                join_tolerant(members, timeout=timeout, port=subject.exchange_port, clock=clock)
            )
        except MemberLost as lost:
            return evaluate(check_host(subject).findings, {lost.host: lost.reason}, strict=strict)
        except OSError as error:
            taken = found("host.port", subject.host, False, error.strerror, device=f"port {subject.exchange_port}")
            return evaluate((*check_host(subject).findings, taken), {}, strict=strict)
        return _examine_together(subject, hosts, ranks, strict=strict, backend=choose_backend(subject, backend))


def _examine_together(
    subject: Subject, hosts: TolerantCommunicator, ranks: RankProgram | None, *, strict: bool, backend: str
) -> HealthReport:
    """Check each host alone, then, if all are healthy so far, run the collectives."""
    timeout = longest_deadline(subject) + _OVERHEAD_SECONDS
    own = check_host(subject)
    try:
        own = msgspec.structs.replace(own, skew=hosts.measure_skew(timeout=timeout))
        decide = partial(compare_hosts, strict=strict)
        report = hosts.decide(own, HostChecks, decide, HealthReport, timeout=timeout, share=HealthReport.for_host)
        if ranks is None or report.diagnosis:
            return report
        more = check_collectives(subject, hosts, ranks, backend=backend)
        last = partial(_add, report.findings, more, strict=strict)
        return hosts.decide(own, HostChecks, last, HealthReport, timeout=_LAST_SECONDS, share=HealthReport.for_host)
    except MemberLost as lost:
        report = evaluate(own.findings, {lost.host: lost.reason}, strict=strict)
        hosts.leave(report.diagnosis.cause if report.diagnosis else str(lost))
        return report


def _add(
    before: Sequence[Finding],
    more: Sequence[Finding],
    _reports: Mapping[str, HostChecks],
    _silent: Mapping[str, str],
    *,
    strict: bool,
) -> HealthReport:
    """Add findings; unresponsive hosts are reported in `more`."""
    return evaluate((*before, *more), {}, strict=strict)
