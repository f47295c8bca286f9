"""The GPUs' own reports while the job runs: Xids and double-bit errors, as findings.

`dmesg`, where Xids are logged, cannot be read in a container of SageMaker; NVML's events can.
"""

from collections.abc import Iterator

from trainbox.health.checks import found
from trainbox.health.finding import Finding
from trainbox.health.nvml import Event, Gpus

#: Xids after which a GPU needs a reset, a reboot or a replacement (NVIDIA, "Xid Errors"; the sorting of AWS's
#: awsome-distributed-training, gpu-cluster-healthcheck). Others are those of programs: a bad address, a killed context.
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


def watch(host: str, gpus: Gpus, *, wait_ms: int = 1000) -> Iterator[Finding | None]:
    """A finding for each event as it comes; None about once every `wait_ms`, so that the caller can stop."""
    for event in gpus.events(wait_ms):
        yield None if event is None else judge_event(host, event)


def judge_event(host: str, event: Event) -> Finding:
    """Pure: what an event says about the GPU."""
    device = f"gpu{event.index}"
    if event.xid is None:
        return found("nvml.xid", host, False, "double-bit ECC error", device=device)
    words = HARDWARE_XIDS.get(event.xid)
    if words is None:
        hint = "most often the program's own: look for an illegal address in its log"
        return found("nvml.xid", host, False, f"Xid {event.xid}", device=device, kind="transient", soft=True, hint=hint)
    return found("nvml.xid", host, False, f"Xid {event.xid}: {words}", device=device)
