"""How the sidecar that watches the GPUs of a host reports its findings: in a file, and over a socket on request.

The sidecar may hang in a driver or have ended: a request waits for a limited time, and then reads the file.
"""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Self

import msgspec

from trainbox.diagnostics.finding import Finding

#: How long a fresh look may take; a driver that answers needs some hundredths of it.
LOOK_SECONDS = 2.0
_FILE = "findings.jsonl"
_SOCKET = "look"
_LOOKED = b"\n"


class Seen(msgspec.Struct, frozen=True):
    """The findings of a sidecar since it started."""

    findings: tuple[Finding, ...] = ()
    #: Why it could not be asked to look again; empty where it has looked, or where there is none.
    silence: str = ""


class MonitorServer:
    """The side of the sidecar.

    Args:
        directory: Of the job's processes on this host; it is there.
    """

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / _FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._path = directory / _SOCKET
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._asking: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        for opened in (self._listener, *self._asking):
            opened.close()
        os.close(self._file)

    def tell(self, finding: Finding) -> None:
        """Append a finding, as one line in one write: a reader sees all of it or nothing."""
        os.write(self._file, msgspec.json.encode(finding) + b"\n")

    def is_asked(self) -> bool:
        """Whether a client waits for the sidecar to look again."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._asking.append(self._listener.accept()[0])
        return bool(self._asking)

    def answer(self) -> None:
        """Tell the clients that all findings have been reported."""
        for asking in self._asking:
            with contextlib.suppress(OSError), asking:  # it waits no more
                asking.send(_LOOKED)
        self._asking.clear()


def look(directory: Path, *, seconds: float = LOOK_SECONDS) -> Seen:
    """Ask the sidecar of this host to look again, and return all its findings.

    Args:
        directory: That of the `MonitorServer`, if there is one.
        seconds: How long to wait for it.
    """
    silence = ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            until = time.monotonic() + seconds
            asking.settimeout(seconds)
            asking.connect(str(directory / _SOCKET))
            asking.settimeout(max(0.001, until - time.monotonic()))
            if asking.recv(len(_LOOKED)) != _LOOKED:
                silence = "it has ended"
    except FileNotFoundError:
        silence = ""  # nobody watches here, or no more
    except TimeoutError:
        silence = f"no answer within {seconds:g} s"
    except OSError as error:
        silence = f"{error.strerror}"
    return Seen(read_findings(directory), silence)


def read_findings(directory: Path) -> tuple[Finding, ...]:
    """Return all findings of the sidecar of this host; none if there is no sidecar."""
    try:
        lines = (directory / _FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    return tuple(msgspec.json.decode(line, type=Finding) for line in lines)
