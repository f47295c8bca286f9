"""`python -m trainbox.health --watch`: monitors the GPUs while the job runs, and reports new faults.

It prints Xids and double-bit errors as they occur, and values that have become worse; the supervisor and the agent of
the job read them. `dmesg`, where Xids are logged, is not readable in a container of SageMaker; NVML's events are.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from trainbox.clock import Clock
from trainbox.diagnostics.finding import Finding
from trainbox.diagnostics.monitor_protocol import MonitorServer
from trainbox.health import report
from trainbox.health.gpus import Place, check_gpu, classify_event, find_newly_bad, values_by_place
from trainbox.health.nvml import Event, EventsLost, Gpus, NvmlMissing, open_gpus
from trainbox.log_lines import emit

#: Fields that are read periodically: those of the hard checks.
_READ = frozenset({"recovery_action", "ecc_uncorrected", "remapped", "pages_pending"})
WAIT_MS = 100
READ_SECONDS = 10.0


class GpuUpdate(msgspec.Struct, frozen=True):
    """New findings."""

    findings: tuple[Finding, ...] = ()
    #: Whether this answers a request: the GPUs have been read, and all earlier events were reported.
    answers: bool = False


class GpuMonitor:
    """Monitors the GPUs of a host.

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
        #: Values that were bad at the start, and places that have been reported.
        self._before = values_by_place(self._bad())
        self._told: set[Place] = set()

    def updates(
        self, *, is_asked: Callable[[], bool] = lambda: False, wait_ms: int = WAIT_MS, seconds: float = READ_SECONDS
    ) -> Iterator[GpuUpdate]:
        """Yield updates without an end: of events at once, of readings periodically.

        Args:
            is_asked: Whether a process has requested a reading.
            wait_ms: The longest time between two updates, which may be empty.
            seconds: Interval of the readings.
        """
        read_at = self._clock() + seconds
        asked = False
        for event in self.gpus.events(wait_ms):
            if isinstance(event, Event):
                yield GpuUpdate((classify_event(self.host, event),))
                read_at = 0.0  # read now: the event may have changed the state of the GPU
                continue
            if isinstance(event, EventsLost):
                emit(
                    f"health: GPU events are no longer available; GPUs are still read every {seconds:g} s: {event.why}"
                )
            if asked or self._clock() >= read_at:
                read_at = self._clock() + seconds
                yield GpuUpdate(self.read(), answers=asked)
                asked = False
            else:
                asked = is_asked()  # answered in the next update: pending events go first
                yield GpuUpdate()

    def read(self) -> tuple[Finding, ...]:
        """Return the findings that have become worse, each once."""
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
    """Monitor the GPUs until SIGTERM or SIGINT, then read them a last time; return at once without NVML.

    Args:
        host: The name of this host.
        directory: Where the supervisor and the agent of the job read the findings; None without a job.

    Returns:
        0.
    """
    stops: list[int] = []
    last: list[int] = []  # signals after which the next answer is the last one
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stops.append(number))
    parent = os.getppid()
    with contextlib.ExitStack() as stack:
        # Opened first: requests from now on are answered as soon as NVML is loaded.
        server = stack.enter_context(MonitorServer(directory)) if directory else None
        try:
            monitor = GpuMonitor(host, open_gpus())
        except NvmlMissing as missing:
            emit(f"health: nothing to watch: {missing}")
            return 0

        def is_asked() -> bool:
            last.extend(stops)
            return bool(last) or (server is not None and server.is_asked())

        for update in monitor.updates(is_asked=is_asked):
            report.print_lines(update.findings)
            if server:
                for finding in update.findings:
                    server.tell(finding)
                if update.answers:
                    server.answer()
            if (last and update.answers) or os.getppid() != parent:
                break
    return 0
