"""Runs all checks of one host beside each other, and puts together what they said."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from trainbox.contract.finding import Finding
from trainbox.health import gpus, host, probe, versions
from trainbox.health.arithmetic import Measured
from trainbox.health.checks import CHECKS, found, unfinished
from trainbox.health.host import Subject
from trainbox.health.nvml import GpuReading, NvmlMissing, open_gpus
from trainbox.health.probe import Answer, Probe

_UNUSABLE = "torch cannot use this GPU: it must be built for a CUDA that the driver knows, and find free memory"


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a probe."""

    findings: tuple[Finding, ...] = ()
    versions: Mapping[str, str] = {}
    #: How many GPUs NVML shows, and one of them.
    gpus: int | None = None
    gpu: GpuReading | None = None
    #: Why NVML cannot be used; and whether nvidia-ml-py at least is installed.
    no_nvml: str = ""
    installed: bool = True
    measured: Measured | None = None


class HostReport(msgspec.Struct, frozen=True):
    """What one host has found out about itself."""

    findings: tuple[Finding, ...]
    versions: Mapping[str, str] = {}
    #: Gigabytes per second, by device (`gpu3`, `cpu`) and by what was copied.
    bandwidths: Mapping[str, Mapping[str, float]] = {}
    #: Its clock minus that of the first host.
    skew: float = 0.0


def plan_probes(subject: Subject) -> list[Probe]:
    """Everything that is to be checked on this host."""
    versions_probe = _probe(subject, "versions.trainbox", _say_versions)
    return [*_host_probes(subject), versions_probe, *_gpu_probes(subject)]


def longest(subject: Subject) -> float:
    """Seconds after which `check_host` has ended whatever hangs."""
    return max(planned.seconds for planned in plan_probes(subject))


def check_host(subject: Subject) -> HostReport:
    """Everything that one host can find out about itself."""
    answers = probe.run(plan_probes(subject))
    findings: list[Finding] = []
    facts: dict[str, str] = {}
    bandwidths: dict[str, Mapping[str, float]] = {}
    for answer in answers:
        words = [msgspec.json.decode(line, type=Word) for line in answer.lines]
        if answer.probe.work is _read_gpus:
            findings += gpu_findings(subject, words, answer)
        elif answer.broken:
            findings.append(_unfinished(subject, answer, answer.probe.check, answer.probe.device))
        for word in words:
            findings += word.findings
            facts |= word.versions
            if word.measured:
                findings.append(_exact(subject, answer.probe.device, word.measured))
                bandwidths[answer.probe.device] = word.measured.bandwidths
    return HostReport(tuple(findings), facts, bandwidths)


def _probe(
    subject: Subject,
    check: str,
    work: Callable[[], Iterator[Word]] | tuple[str, ...],
    device: str = "",
    environment: tuple[tuple[str, str], ...] = (),
) -> Probe:
    return Probe(check, subject.deadline or CHECKS[check].seconds, work, device, environment)


def _host_probes(subject: Subject) -> Iterator[Probe]:
    for check, device, work in host.plan_checks(subject):
        yield _probe(subject, check, partial(_said, work), device)


def _said(work: host.Work) -> Iterator[Word]:
    for finding in work():
        yield Word(findings=(finding,))


def _say_versions() -> Iterator[Word]:
    yield Word(versions=versions.read_versions())


def _gpu_probes(subject: Subject) -> Iterator[Probe]:
    """NVML where there are GPUs or should be; arithmetic on each, on the processor alone if there is time for it."""
    if subject.machine.gpus or gpus.expected(subject.instance_type):
        yield _probe(subject, "nvml.library", _read_gpus)
    if "torch" not in subject.machine.modules:
        return
    devices = [("cuda", f"gpu{index}") for index in range(subject.machine.gpus)]
    if not devices and subject.stage == "full":
        devices = [("cpu", "cpu")]
    for place, (kind, device) in enumerate(devices):
        # -P: a user's `queue.py` in the working directory is none of the standard library's.
        command = (sys.executable, "-P", "-m", "trainbox.health.arithmetic", kind, subject.stage)
        # In NVML's order, and one alone: `gpu3` is the same GPU in both.
        seen = (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", str(place)))
        yield _probe(subject, "gpu.exact", command, device, seen)


def _read_gpus() -> Iterator[Word]:
    """A word as soon as it is known: what comes before a call that hangs is not lost."""
    try:
        nvml = open_gpus()
    except NvmlMissing as missing:
        yield Word(no_nvml=str(missing), installed=missing.installed)
        return
    count = nvml.count()
    yield Word(gpus=count)
    for index in range(count):
        yield Word(gpu=nvml.read(index))


def _unfinished(subject: Subject, answer: Answer, check: str, device: str) -> Finding:
    return unfinished(check, subject.host, answer.broken, device=device, seconds=answer.probe.seconds)


def gpu_findings(subject: Subject, words: Sequence[Word], answer: Answer) -> Iterator[Finding]:
    """Pure: what NVML said, as far as it came."""
    missing = next((word for word in words if word.no_nvml), None)
    if missing:
        # Without nvidia-ml-py nobody knows anything; without the driver no GPU works.
        hint = "" if missing.installed else "pip install 'trainbox[gpu]'"
        yield found("nvml.library", subject.host, False, missing.no_nvml, soft=not missing.installed, hint=hint)
        return
    count = next((word.gpus for word in words if word.gpus is not None), None)
    if count is not None:
        yield found("nvml.library", subject.host, True, "loaded")
        yield gpus.check_count(subject.host, count, nodes=subject.machine.gpus, instance_type=subject.instance_type)
    readings = [word.gpu for word in words if word.gpu is not None]
    yield from gpus.check_gpus(subject.host, readings)
    if answer.broken:
        check, device = ("nvml.library", "") if count is None else ("nvml.answers", f"gpu{len(readings)}")
        yield _unfinished(subject, answer, check, device)


def _exact(subject: Subject, device: str, measured: Measured) -> Finding:
    if measured.unusable:
        # NVML judges the device; this is more often the build of torch, or a process that holds the memory.
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
