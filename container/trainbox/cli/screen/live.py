"""What a person sees while the hosts run: their lines, and on a terminal one line that says how far they are."""

import io
import os
import select
import sys
import time
from collections.abc import Sequence

from trainbox.cli.screen.pens import Pen
from trainbox.cli.screen.remaining import Remaining
from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.text import coloured, six_digits, visible
from trainbox.local.metrics.curves import MARK, Curves

_REDRAW_SECONDS = 0.1
PREFIX = "trainbox run: "


class Screen:
    """Where bytes go, and text that a pen draws; once nobody reads it, the job goes on without."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.encoding = sys.stdout.encoding
        self.lost = False

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.descriptor)

    def fileno(self) -> int:
        """Its number."""
        return self.descriptor

    def flush(self) -> None:
        """Nothing is held back."""

    def write(self, data: bytes | str) -> None:
        """Write all of it; a reader that has left (`| head`) is remembered in `lost`."""
        rest = memoryview(data if isinstance(data, bytes) else data.encode(self.encoding, errors="replace"))
        while rest and not self.lost:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:
                # Whoever shares this pipe or terminal made it non-blocking.
                select.select([], [self.descriptor], [])
            except OSError:
                self.lost = True


class Live:
    """Shows the lines of the hosts, and where it can redraw, a last line with the progress.

    Args:
        hosts: Their names; with several, each line says whose it is.
        curves: The metrics that the last line shows.
        out: Where the hosts' lines go.
        notes: Where our own lines go.
        pen: What draws there; where it can redraw, metric lines appear in the last line alone.
        remaining: How long the rest of the steps takes.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        curves: Curves,
        *,
        out: Screen,
        notes: Screen,
        pen: Pen,
        remaining: Remaining | None = None,
    ) -> None:
        self._hosts = len(hosts)
        #: The host whose last line has no newline yet.
        self._unended = ""
        self._prefixed = len(hosts) > 1
        self._curves = curves
        self._out = out
        self._notes = notes
        self._redraws = pen.can_redraw
        self._is_terminal = out.isatty() or self._redraws
        self._remaining = remaining or Remaining(None)
        self._started = time.monotonic()
        self._redrawn = 0.0
        self._said_lost = False
        self._line = pen.live(self._progress)

    def output(self, host: str, data: bytes) -> None:
        """Show lines of a host; the last one may have no newline."""
        if host != self._unended:
            self._end_line()
        self._show(host, data)
        self._unended = "" if data.endswith(b"\n") else host

    def note(self, text: str) -> None:
        """One line of our own, on stderr."""
        self._line.hide()  # stderr may be the same terminal
        self._notes.write(f"{PREFIX}{visible(without_secrets(text, ()))}\n")

    def show(self, name: str, value: float) -> None:
        """Have the line of progress show a metric."""
        self._curves.last[name] = value

    def tick(self) -> None:
        """Redraw the line, if there is one and its time has come."""
        if self._out.lost and not self._said_lost:
            self._said_lost = True
            self.note("nobody reads the output any more: the job goes on, and its logs are in the result's directory")
        now = time.monotonic()
        if self._redraws and now - self._redrawn >= _REDRAW_SECONDS:
            self._redrawn = now
            self._line.show()

    def close(self) -> None:
        """End the last line, and take the line of progress away."""
        self._end_line()
        self._line.hide()

    def _end_line(self) -> None:
        if self._unended and not self._is_terminal:  # on a terminal each line was ended as it was shown
            self._out.write(b"\n")
        self._unended = ""

    def _show(self, host: str, lines: bytes) -> None:
        if self._is_terminal or self._prefixed:
            # Iterating splits at newlines alone; `splitlines` would cut a progress bar at each carriage return.
            lines = b"".join(self._shown(host, line) for line in io.BytesIO(lines))
        if not self._is_terminal:
            self._out.write(lines)
        elif lines:
            # What would move the cursor or be obeyed by the terminal is shown: a pipe and the log have the exact bytes.
            text = coloured(lines.decode(self._out.encoding, errors="replace"))
            (self._line.print_above if self._redraws else self._out.write)(text)

    def _shown(self, host: str, line: bytes) -> bytes:
        if self._redraws and MARK in line and self._curves.feed(host, line):
            self._remaining.note(self._curves.last_step)
            return b""
        if self._is_terminal:
            # Of a progress bar only its last state.
            line = line.rstrip(b"\r\n").rpartition(b"\r")[2] + b"\n"
        return f"{host} | ".encode() + line if self._prefixed else line

    def _progress(self) -> str:
        parts = [_clock(time.monotonic() - self._started)]
        if self._prefixed:
            parts.append(f"{self._hosts} hosts")
        if self._curves.last_step is not None:
            parts.append(f"step {self._curves.last_step}")
        seconds = self._remaining.seconds()
        if seconds is not None:
            parts.append(f"ETA {_clock(seconds)}")
        parts += [f"{name} {six_digits(value)}" for name, value in self._curves.last.items()]
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    """A time as a clock shows it, such as 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
