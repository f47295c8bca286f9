"""Pure: evaluates NVML readings and events of the GPUs of a host."""

from collections.abc import Iterator, Mapping, Sequence

from trainbox.diagnostics.finding import Finding, Value
from trainbox.health import checks
from trainbox.health.checks import found
from trainbox.health.nvml import Event, GpuReading

#: GPUs by instance type: for each family the exceptions by size, then the usual number. Source: AWS, "Amazon EC2
#: accelerated computing instances", specifications.
_FAMILIES: dict[str, tuple[dict[str, int], int]] = {
    "p3": ({"2xlarge": 1, "8xlarge": 4}, 8),
    "p3dn": ({}, 8),
    "p4d": ({}, 8),
    "p4de": ({}, 8),
    "p5": ({"4xlarge": 1}, 8),
    "p5e": ({}, 8),
    "p5en": ({}, 8),
    "p6-b200": ({}, 8),
    "p6-b300": ({}, 8),
    "g4dn": ({"12xlarge": 4, "metal": 8}, 1),
    "g5": ({"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}, 1),
    "g6": ({"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}, 1),
    "g6e": ({"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}, 1),
}
#: NVML_GPU_RECOVERY_ACTION_* of nvml.h.
_ACTIONS = (
    *("none", "GPU reset", "node reboot", "drain P2P", "drain and reset"),
    *("recover the IMEX domain", "bus reset", "system reboot"),
)
#: nvmlClocksEventReason* that slow down a GPU because of a problem, not because of a setting.
_THROTTLES = {0x08: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
_MIB = 1024 * 1024
#: Xids after which a GPU needs a reset, a reboot or a replacement (NVIDIA, "Xid Errors"; classified as in AWS's
#: awsome-distributed-training, gpu-cluster-healthcheck). Others come from programs: a bad address, a killed context.
HARDWARE_XIDS = {
    48: "double-bit ECC error",
    54: "auxiliary power is not connected",
    62: "internal micro-controller halt",
    64: "a row remapping or page retirement has failed",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    95: "uncontained ECC error",
    109: "context switch timeout",
    119: "GSP does not answer",
    120: "GSP error",
    136: "link training has failed",
    140: "unrecovered ECC error",
    143: "GPU initialisation has failed",
    151: "key rotation error",
}
#: Xids caused by a program or its end; an Xid that is in neither table counts as one of these.
PROGRAM_XIDS = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "the GPU stopped processing",
    45: "the driver cleaned up after a process",
    63: "a row remapping or page retirement is recorded",
    92: "many single-bit ECC errors",
    94: "contained ECC error",
}
_PROGRAMS_OWN = "most often the program's own: look for an illegal address in its log"
#: Check and device.
Place = tuple[str, str]


def expected_gpus(instance_type: str) -> int | None:
    """Return the number of GPUs of an instance type (`ml.p5.48xlarge`); None if it is unknown."""
    family, _, size = instance_type.removeprefix("ml.").partition(".")
    if family not in _FAMILIES:
        return None
    sizes, usual = _FAMILIES[family]
    return sizes.get(size, usual)


def check_count(host: str, seen: int, *, nodes: int, instance_type: str) -> Finding:
    """Compare the number of GPUs in NVML with the instance type, or else with the device nodes.

    Args:
        host: The host.
        seen: Number of GPUs in NVML; 0 without NVML.
        nodes: Number of `/dev/nvidia*`.
        instance_type: The instance type of the job, `local` outside SageMaker.
    """
    of_type = expected_gpus(instance_type)
    wanted = nodes if of_type is None else of_type
    return found("nvml.count", host, seen >= wanted, seen, limit=wanted)


def check_gpu(host: str, gpu: GpuReading, most_links: int | None) -> Iterator[Finding]:
    """Yield all findings of one GPU; a value that cannot be read passes, with the reason as hint.

    Args:
        host: The host.
        gpu: The reading.
        most_links: NVLinks that are up on the best GPU of the host.
    """
    device = f"gpu{gpu.index}"
    yield found("nvml.answers", host, not gpu.broken, gpu.broken or "all calls", device=device)
    if gpu.broken:
        return
    links = gpu.nvlinks or 0
    errors = sum((gpu.nvlink_errors or {}).values())
    throttles = [name for bit, name in _THROTTLES.items() if (gpu.throttle or 0) & bit]
    held = sum(size or 0 for _, size in gpu.processes or ())
    foreign = len(gpu.processes or ())
    action = gpu.recovery_action or 0
    rows = (
        ("nvml.recovery_action", "recovery_action", action == 0, _action(action), "none"),
        ("nvml.ecc_uncorrected", "ecc_uncorrected", not gpu.ecc_uncorrected, gpu.ecc_uncorrected, 0),
        ("nvml.row_remap_pending", "remapped", not gpu.remap_pending, _yes(gpu.remap_pending), "no"),
        ("nvml.row_remap_failed", "remapped", not gpu.remap_failed, _yes(gpu.remap_failed), "no"),
        ("nvml.retired_pages", "pages_pending", not gpu.pages_pending, _yes(gpu.pages_pending), "no"),
        ("nvml.throttle", "throttle", not throttles, ", ".join(throttles) or "none", "none"),
        ("nvml.pcie_width", "pcie_width", _is_wide(gpu), gpu.pcie_width, gpu.pcie_width_max),
        ("nvml.nvlink", "nvlinks", links >= (most_links or 0), gpu.nvlinks, most_links),
        ("nvml.nvlink_errors", "nvlink_errors", errors <= checks.MOST_LINK_ERRORS, errors, checks.MOST_LINK_ERRORS),
        ("nvml.processes", "processes", not foreign, f"{foreign} with {held // _MIB} MiB" if foreign else 0, 0),
    )
    for check, field, passes, value, limit in rows:
        if field in gpu.unread:
            yield found(check, host, True, None, device=device, limit=limit, hint=f"skipped: {gpu.unread[field]}")
        else:
            yield found(check, host, passes, value, device=device, limit=limit)


def check_gpus(host: str, gpus: Sequence[GpuReading]) -> Iterator[Finding]:
    """Yield the findings of all GPUs of a host; their NVLinks are compared with each other."""
    most_links = max((gpu.nvlinks for gpu in gpus if gpu.nvlinks is not None), default=None)
    for gpu in gpus:
        yield from check_gpu(host, gpu, most_links)


def _action(action: int) -> str:
    return _ACTIONS[action] if action < len(_ACTIONS) else f"action {action}"


def _yes(value: bool | None) -> str:
    return "yes" if value else "no"


def _is_wide(gpu: GpuReading) -> bool:
    return gpu.pcie_width is None or gpu.pcie_width_max is None or gpu.pcie_width >= gpu.pcie_width_max


def values_by_place(findings: Sequence[Finding]) -> dict[Place, Value]:
    """Return the values of findings by check and device."""
    return {(finding.check, finding.device): finding.value for finding in findings}


def find_newly_bad(bad: Sequence[Finding], before: Mapping[Place, Value], told: set[Place]) -> tuple[Finding, ...]:
    """Return the findings that have become worse since the monitor started.

    Args:
        bad: Findings that do not pass now.
        before: Values that did not pass at the start of the monitor: an earlier job may have caused them.
        told: Places that have been reported already.
    """
    return tuple(
        finding
        for finding in bad
        if (place := (finding.check, finding.device)) not in told
        and (place not in before or _is_more(finding.value, before[place]))
    )


def _is_more(now: Value, before: Value) -> bool:
    """Return whether a count has increased; texts do not increase."""
    return isinstance(now, int) and isinstance(before, int) and now > before


def classify_event(host: str, event: Event) -> Finding:
    """Return the finding of an NVML event: hardware for the Xids of broken GPUs, else transient."""
    device = "" if event.index is None else f"gpu{event.index}"
    if event.xid is None:
        return found("nvml.xid", host, False, "double-bit ECC error", device=device)
    words = HARDWARE_XIDS.get(event.xid)
    if words is not None:
        return found("nvml.xid", host, False, f"Xid {event.xid}: {words}", device=device)
    value = ": ".join(filter(None, [f"Xid {event.xid}", PROGRAM_XIDS.get(event.xid)]))
    return found("nvml.xid", host, False, value, device=device, kind="transient", soft=True, hint=_PROGRAMS_OWN)
