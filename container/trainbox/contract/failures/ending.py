"""The line by which the supervisor of a host says how it ended, and what `trainbox run` learns from it.

The exit code of a host that was stopped and has saved is 0, as SageMaker wants it, unless the request says otherwise:
only the log tells it from one that has trained to its end.
"""

import re
import signal

_ENDING = re.compile(rb"^trainbox: exit code \d+ after [0-9.]+ s(?:, stopped by (SIG[A-Z0-9]+))?;", re.MULTILINE)


def ending(code: int, seconds: float, stopped_by: int, *, files: int, size: int) -> str:
    """The line.

    Args:
        code: The exit code of the host.
        seconds: How long its processes ran.
        stopped_by: The signal that asked for the end, or 0.
        files: In the model's directory.
        size: Their bytes.
    """
    stopped = f", stopped by {signal.Signals(stopped_by).name}" if stopped_by else ""
    return f"exit code {code} after {seconds:.1f} s{stopped}; model: {files} file(s), {size:,} bytes"


def stop_in(log: bytes) -> str:
    """The name of the signal that stopped a host, by the end of its log; empty where none did."""
    endings = _ENDING.findall(log)
    return endings[-1].decode() if endings else ""
