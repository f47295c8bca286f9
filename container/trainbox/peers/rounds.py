"""What the hosts of a job need for their rounds, on either side: messages, reasons and limits.

In each round every host says one thing, the first host decides something from all of it, and all get the answer.
"""

import socket
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from trainbox.peers.wire import Wire

T = TypeVar("T")
R = TypeVar("R")
#: Given what each host said and why others said nothing; returns what all are told.
Decide = Callable[[Mapping[str, T], Mapping[str, str]], R]
Share = Callable[[R, str], R]

#: Between two looks at the clock, in which a host notices that it was itself stopped.
LOOK_SECONDS = 1.0
#: A host that does not take its answer for so long is frozen; it must not hold up the others.
SEND_SECONDS = 5.0
NEVER_CAME = "never arrived"
STOPPED = "stopped answering"
OTHER_VERSION = "says what this version of trainbox does not understand"
OTHER_JOB = "belongs to another job"
UNPROVED = "cannot prove that it belongs to this job"
TAKEN = "rejects this host: another process has joined under its name"
#: The request or the image must change for these; every other reason is one of the host itself.
OF_CONFIGURATION = frozenset({OTHER_VERSION, OTHER_JOB, UNPROVED, TAKEN})


class Lost(Exception):  # noqa: N818 - it says what happened to the other host
    """The first host does not answer, or no more."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host
        self.reason = reason


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message, of either side."""

    #: The first host's time, asked for and answered.
    clock: float | None = None
    round: int = 0
    value: msgspec.Raw = msgspec.Raw()


class Peer(Wire[Line]):
    """One connection, on which both sides have proved themselves."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, Line)
        connection.settimeout(SEND_SECONDS)
