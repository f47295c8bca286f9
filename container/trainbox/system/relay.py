"""Child output becomes ours byte for byte, by whole lines, so that no metric line is ever cut in two.

sagemaker-training splits at whatever a read returns, which turns `print('loss:', 0.5)` into three lines and breaks
characters in half (its `process.watch`).
"""

import os
import select

#: A line longer than this is passed on in pieces: a script that never ends a line must not fill the memory.
LONGEST_LINE_BYTES = 1024 * 1024
#: How much of the end of a stream is kept to find the reason of a failure in; a deep traceback is some 10 kB.
TAIL_BYTES = 64 * 1024


class Lines:
    """Collects what one stream writes and gives it back by whole lines."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._tail = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived; return what may go out: everything up to the last newline."""
        end = chunk.rfind(b"\n") + 1
        if not end and len(self._pending) + len(chunk) > LONGEST_LINE_BYTES:
            end = len(chunk)
        if not end:
            self._pending += chunk
            return b""
        ready = bytes(self._pending) + chunk[:end]
        self._pending = bytearray(chunk[end:])
        return self._remember(ready)

    def close(self) -> bytes:
        """The last line, which has no newline; empty where the stream ended with one."""
        ready = bytes(self._pending)
        self._pending.clear()
        return self._remember(ready)

    def end(self) -> bytes:
        """The end of all that was written, an open line included."""
        return bytes((self._tail + self._pending)[-TAIL_BYTES:])

    def _remember(self, ready: bytes) -> bytes:
        self._tail += ready[-TAIL_BYTES:]
        if len(self._tail) > 2 * TAIL_BYTES:  # not at every line: each cut copies the tail
            del self._tail[:-TAIL_BYTES]
        return ready


class Sink:
    """A file descriptor of ours that lines go to; once nobody reads it, what comes is dropped and the job goes on."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lost: OSError | None = None
        self.ends_line = True

    def write(self, data: bytes) -> None:
        """Write everything, waiting for a slow reader."""
        if not data or self.lost:
            return
        self.ends_line = data.endswith(b"\n")
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:  # whoever started us made the descriptor non-blocking
                select.select([], [self.descriptor], [])
            except OSError as error:  # the reader is gone, or the disk behind the descriptor is full
                self.lost = error
                return

    def end_line(self) -> None:
        """Begin a new line if the last one is open, before somebody else writes here."""
        if not self.ends_line:
            self.write(b"\n")
