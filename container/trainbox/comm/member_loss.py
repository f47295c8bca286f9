"""Why a host of the tolerant communicator is lost, in words; `MemberLost` names it."""

from collections.abc import Mapping

from trainbox.clock import FROZEN_SECONDS
from trainbox.comm.data_connection import LoggedWait
from trainbox.comm.handshake import Reason
from trainbox.comm.members import Members

NEVER_ARRIVED = "never arrived"
STOPPED_ANSWERING = "stopped answering"
OTHER_VERSION = "sent what this version of trainbox cannot read"
OTHER_JOB = "belongs to another job"
UNPROVED = "cannot prove that it belongs to this job"
TAKEN = "rejects this host: another process has joined under its name"
#: The request or the image must change for these; every other reason is one of the host itself.
OF_CONFIGURATION = frozenset({OTHER_VERSION, OTHER_JOB, UNPROVED, TAKEN})
REFUSALS: Mapping[Reason, str] = {
    "job": OTHER_JOB,
    "member": OTHER_JOB,
    "proof": UNPROVED,
    "taken": TAKEN,
    "version": OTHER_VERSION,
}


class MemberLost(Exception):  # noqa: N818 - it says what happened to the host
    """The leader cannot be reached any more, or this host was away for so long that the leader has gone on."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host
        self.reason = reason


def blame(members: Members, waiting: LoggedWait, timeout: float, reason: str) -> MemberLost:
    """Name the leader, or this host if it was away for as long as the leader waits."""
    absent, leader = waiting.patience.missed_in_all, members.names[0]
    if absent >= max(timeout, FROZEN_SECONDS):
        return MemberLost(members.name, f"did not run for {absent:.0f} s; {leader}: {reason}")
    return MemberLost(leader, reason)
