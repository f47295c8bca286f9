"""The listener of `trainbox run`: shows the lines of the hosts, notes, and the line of progress."""

from typing import TextIO, cast

from trainbox.workbench.curves import Curves
from trainbox.workbench.events import Event, HostEnded, JobEnded, LinesWritten, MetricLogged, NoteGiven, TimePassed
from trainbox.workbench.live import Live, Screen
from trainbox.workbench.pens import find_pen
from trainbox.workbench.plan import RunPlan
from trainbox.workbench.remaining import Remaining, find_total

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

    def say(self, text: str) -> None:
        """Show a note."""
        self._live.say(text)

    def on_event(self, event: Event) -> None:
        """Show an event."""
        match event:
            case LinesWritten(host, data):
                self._live.output(host, data)
            case MetricLogged(host, name, value, step) if step is not None:
                if self._host.setdefault(name, host) == host:
                    self._live.show(name, value)
            case NoteGiven(text):
                self._live.say(text)
            case TimePassed():
                self._live.tick()
            case HostEnded() | JobEnded():
                self._live.close()
            case _:
                pass
