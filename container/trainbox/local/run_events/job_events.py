"""Turn the output and the state of hosts into events: whole lines, the metrics and findings in them, phases."""

import io
from collections.abc import Sequence

import msgspec

from trainbox.contract.job_spec import MetricDefinition
from trainbox.diagnostics.finding import Finding
from trainbox.local.backends.hosts import StopReason
from trainbox.local.metrics.curves import MARK, Curves
from trainbox.local.metrics.defined_metrics import DefinedMetrics, read_line
from trainbox.local.run_events.events import (
    Event,
    FindingReported,
    HostStarted,
    JobStatus,
    LinesWritten,
    Listener,
    MetricLogged,
    NoteGiven,
    SecondaryJobStatus,
    StatusChanged,
    TimePassed,
)

#: A longer line is sent in pieces.
_LONGEST_LINE_BYTES = 1024 * 1024
#: The beginning of a finding of a health check, which is one line of JSON.
_FINDING = b'{"check":'


class JobEvents:
    """A host listener that sends events to the listener of the job.

    Args:
        listener: That of the job.
        hosts: The names of all hosts.
        curves: Where the metrics go.
        definitions: Metrics that the request defines.
    """

    def __init__(
        self, listener: Listener, hosts: Sequence[str], curves: Curves, definitions: Sequence[MetricDefinition]
    ) -> None:
        self._listener = listener
        self._pending = dict.fromkeys(hosts, b"")
        self._started: set[str] = set()
        self._curves = curves
        self._defined = DefinedMetrics(definitions, self.note)

    def tell(self, event: Event) -> None:
        """Send an event."""
        self._listener.on_event(event)

    def status(self, status: JobStatus, secondary_status: SecondaryJobStatus) -> None:
        """Send a change of the status."""
        self.tell(StatusChanged(status, secondary_status))

    def started(self, host: str) -> None:
        """Send that a host was started; its requirements may have been installed under the same name before."""
        if host not in self._started:
            self._started.add(host)
            self.tell(HostStarted(host))

    def stopping(self, reason: StopReason) -> None:
        """Send that the job is stopping, unless only the other hosts of a failed one are stopped."""
        if reason in ("interrupt", "max-run", "stop-after"):
            self.status("Stopping", "Stopping")

    def note(self, text: str) -> None:
        """Send a note."""
        self.tell(NoteGiven(text))

    def tick(self) -> None:
        """Send that time passed."""
        self.tell(TimePassed())

    def output(self, host: str, data: bytes) -> None:
        """Send the whole lines that a host wrote; keep the rest."""
        if data.endswith(b"\n") and not self._pending[host]:
            self._lines(host, data)  # as almost always, and without a copy
            return
        whole, newline, rest = (self._pending[host] + data).rpartition(b"\n")
        if not newline and len(rest) > _LONGEST_LINE_BYTES:
            whole, rest = rest, b""
        self._pending[host] = rest
        if whole or newline:
            self._lines(host, whole + newline)

    def close(self) -> None:
        """Send the rest, which has no newline."""
        for host, rest in self._pending.items():
            if rest:
                self._lines(host, rest)
        self._pending = dict.fromkeys(self._pending, b"")

    def _lines(self, host: str, data: bytes) -> None:
        self.tell(LinesWritten(host, data))
        if MARK in data or _FINDING in data or self._defined:
            # Iterating splits at newlines alone; `splitlines` would cut a progress bar at each carriage return.
            for line in io.BytesIO(data):
                self._line(host, line)

    def _line(self, host: str, line: bytes) -> None:
        if line.startswith(_FINDING):
            self._finding(host, line)
        for found in read_line(host, line, self._curves, self._defined):
            self.tell(MetricLogged(host, found.name, found.value, found.step))

    def _finding(self, host: str, line: bytes) -> None:
        try:
            finding = msgspec.json.decode(line, type=Finding)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # a line of the script's own
        self.tell(FindingReported(host, finding))
