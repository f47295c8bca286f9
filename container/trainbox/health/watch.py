"""What the GPUs report while the job runs: Xids and double-bit errors as they come, and what becomes bad since.

`dmesg`, where Xids are logged, cannot be read in a container of SageMaker; NVML's events can.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from trainbox.clock import Clock
from trainbox.contract.finding import Finding, Value
from trainbox.health.checks import found
from trainbox.health.gpus import check_gpu
from trainbox.health.nvml import Deaf, Event, Gpus
from trainbox.say import say

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
#: Those that say what a program did, or what comes of its end; any other that is not above is one of these, too.
PROGRAM_XIDS = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "the GPU stopped processing",
    45: "the driver tidied up after a process",
    63: "a row remapping or page retirement is recorded",
    92: "many single-bit ECC errors",
    94: "contained ECC error",
}
_PROGRAMS_OWN = "most often the program's own: look for an illegal address in its log"
#: What a GPU is read for again and again: the calls behind the hard checks.
_READ = frozenset({"recovery_action", "ecc_uncorrected", "remapped", "pages_pending"})
WAIT_MS = 100
READ_SECONDS = 10.0

#: Check and device.
Place = tuple[str, str]


class Turn(msgspec.Struct, frozen=True):
    """What is new."""

    findings: tuple[Finding, ...] = ()
    #: Whether this is the answer: the GPUs have been read, and all that had come before is told.
    answers: bool = False


class Watch:
    """The GPUs of a host over time.

    Args:
        host: Its name.
        gpus: NVML.
        clock: The time in seconds.
    """

    def __init__(self, host: str, gpus: Gpus, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self.host = host
        self.gpus = gpus
        self._count = gpus.count()
        #: What was bad already; and what has been told.
        self._before = values(self._bad())
        self._told: set[Place] = set()

    def turns(
        self, *, is_asked: Callable[[], bool] = lambda: False, wait_ms: int = WAIT_MS, seconds: float = READ_SECONDS
    ) -> Iterator[Turn]:
        """Without an end: listen, and read now and then.

        Args:
            is_asked: Whether somebody waits for the GPUs to be read again at once.
            wait_ms: After about this time the caller has its turn in any case.
            seconds: How often they are read unasked.
        """
        read_at = self._clock() + seconds
        asked = False
        for event in self.gpus.events(wait_ms):
            if isinstance(event, Event):
                yield Turn((judge_event(self.host, event),))
                read_at = 0.0  # a GPU that has just reported something may be bad by now
                continue
            if isinstance(event, Deaf):
                say(f"health: the driver reports no more events here; the GPUs are still read: {event.why}")
            if asked or self._clock() >= read_at:
                read_at = self._clock() + seconds
                yield Turn(self.read(), answers=asked)
                asked = False
            else:
                asked = is_asked()  # answered a turn later: what had come before goes first
                yield Turn()

    def read(self) -> tuple[Finding, ...]:
        """What has become bad, each once."""
        new = newly_bad(self._bad(), self._before, self._told)
        self._told |= values(new).keys()
        return new

    def _bad(self) -> list[Finding]:
        return [
            finding
            for index in range(self._count)
            for finding in check_gpu(self.host, self.gpus.read(index, _READ), None)
            if finding.is_hard
        ]


def values(findings: Sequence[Finding]) -> dict[Place, Value]:
    """What was found, by where."""
    return {(finding.check, finding.device): finding.value for finding in findings}


def newly_bad(bad: Sequence[Finding], before: Mapping[Place, Value], told: set[Place]) -> tuple[Finding, ...]:
    """Pure: of what is bad now what was not, or was less.

    Args:
        bad: What does not pass now.
        before: What did not pass when the watch began: another job may have left it.
        told: Of what more is not to be said.
    """
    return tuple(
        finding
        for finding in bad
        if (place := (finding.check, finding.device)) not in told
        and (place not in before or _is_more(finding.value, before[place]))
    )


def _is_more(now: Value, before: Value) -> bool:
    """Counts grow; words do not."""
    return isinstance(now, int) and isinstance(before, int) and now > before


def judge_event(host: str, event: Event) -> Finding:
    """Pure: what an event says about the GPU."""
    device = "" if event.index is None else f"gpu{event.index}"
    if event.xid is None:
        return found("nvml.xid", host, False, "double-bit ECC error", device=device)
    words = HARDWARE_XIDS.get(event.xid)
    if words is not None:
        return found("nvml.xid", host, False, f"Xid {event.xid}: {words}", device=device)
    value = ": ".join(filter(None, [f"Xid {event.xid}", PROGRAM_XIDS.get(event.xid)]))
    return found("nvml.xid", host, False, value, device=device, kind="transient", soft=True, hint=_PROGRAMS_OWN)
