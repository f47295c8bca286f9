"""The listener of `trainbox run`: shows the lines of the hosts, notes, and the line of progress."""

from typing import TextIO, cast

from trainbox.cli.screen.live import Live, Screen
from trainbox.cli.screen.pens import find_pen
from trainbox.cli.screen.remaining import Remaining, find_total
from trainbox.local.metrics.curves import Curves
from trainbox.local.plan import RunPlan
from trainbox.local.run_events.events import (
    Event,
    HostFinished,
    JobFinished,
    LinesWritten,
    MetricLogged,
    NoteGiven,
    TimePassed,
)

_STDOUT = 1
_STDERR = 2


class Terminal:
    """Shows the output of hosts on stdout and notes on stderr.

    Args:
        plan: Of the job.
    """

    def __init__(self, plan: RunPlan) -> None:
        request = plan.request
        self.screen = Screen(_STDOUT)
        #: A metric is that of the first host to log it.
        self._host: dict[str, str] = {}
        self.pen = find_pen(cast("TextIO", self.screen), request.inherited)
        self._live = Live(
            [host.name for host in plan.hosts],
            Curves(),
            out=self.screen,
            notes=Screen(_STDERR),
            pen=self.pen,
            remaining=Remaining(find_total(request.script, request.hyperparameters)),
        )

    def note(self, text: str) -> None:
        """Show a note."""
        self._live.note(text)

    def on_event(self, event: Event) -> None:
        """Show an event."""
        match event:
            case LinesWritten(host, data):
                self._live.output(host, data)
            case MetricLogged(host, name, value, step) if step is not None:
                if self._host.setdefault(name, host) == host:
                    self._live.show(name, value)
            case NoteGiven(text):
                self._live.note(text)
            case TimePassed():
                self._live.tick()
            case HostFinished() | JobFinished():
                self._live.close()
            case _:
                pass
