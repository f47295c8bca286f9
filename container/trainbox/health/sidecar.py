"""`python -m trainbox.health --watch`: prints what the GPUs report, and tells it to whoever else runs the job."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from trainbox.clock import Clock
from trainbox.diagnostics.finding import Finding
from trainbox.diagnostics.monitor_protocol import Post
from trainbox.health import report
from trainbox.health.gpus import Place, check_gpu, classify_event, find_newly_bad, values_by_place
from trainbox.health.nvml import Event, EventsLost, Gpus, NvmlMissing, open_gpus
from trainbox.log_lines import emit

#: What a GPU is read for again and again: the calls behind the hard checks.
_READ = frozenset({"recovery_action", "ecc_uncorrected", "remapped", "pages_pending"})
WAIT_MS = 100
READ_SECONDS = 10.0


class GpuUpdate(msgspec.Struct, frozen=True):
    """What is new."""

    findings: tuple[Finding, ...] = ()
    #: Whether this is the answer: the GPUs have been read, and all that had come before is told.
    answers: bool = False


class GpuMonitor:
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
        self._before = values_by_place(self._bad())
        self._told: set[Place] = set()

    def updates(
        self, *, is_asked: Callable[[], bool] = lambda: False, wait_ms: int = WAIT_MS, seconds: float = READ_SECONDS
    ) -> Iterator[GpuUpdate]:
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
                yield GpuUpdate((classify_event(self.host, event),))
                read_at = 0.0  # a GPU that has just reported something may be bad by now
                continue
            if isinstance(event, EventsLost):
                emit(f"health: the driver reports no more events here; the GPUs are still read: {event.why}")
            if asked or self._clock() >= read_at:
                read_at = self._clock() + seconds
                yield GpuUpdate(self.read(), answers=asked)
                asked = False
            else:
                asked = is_asked()  # answered a turn later: what had come before goes first
                yield GpuUpdate()

    def read(self) -> tuple[Finding, ...]:
        """What has become bad, each once."""
        new = find_newly_bad(self._bad(), self._before, self._told)
        self._told |= values_by_place(new).keys()
        return new

    def _bad(self) -> list[Finding]:
        return [
            finding
            for index in range(self._count)
            for finding in check_gpu(self.host, self.gpus.read(index, _READ), None)
            if finding.is_hard
        ]


def run_sidecar(host: str, directory: Path | None) -> int:
    """Watch until SIGTERM or SIGINT, then look once more and leave. Ends at once where there is nothing to watch.

    Args:
        host: The name of this one.
        directory: Where the supervisor and the agent of the job look for what is found; None without a job.

    Returns:
        0.
    """
    stops: list[int] = []
    last: list[int] = []  # those that the coming answer is the last for
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stops.append(number))
    parent = os.getppid()
    with contextlib.ExitStack() as stack:
        # First: whoever asks from now on is answered, once NVML is there.
        post = stack.enter_context(Post(directory)) if directory else None
        try:
            monitor = GpuMonitor(host, open_gpus())
        except NvmlMissing as missing:
            emit(f"health: nothing to watch: {missing}")
            return 0

        def is_asked() -> bool:
            last.extend(stops)
            return bool(last) or (post is not None and post.is_asked())

        for update in monitor.updates(is_asked=is_asked):
            report.print_lines(update.findings)
            if post:
                for finding in update.findings:
                    post.tell(finding)
                if update.answers:
                    post.answer()
            if (last and update.answers) or os.getppid() != parent:
                break
    return 0
