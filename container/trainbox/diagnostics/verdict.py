"""What the agents of a distributed job agree on when a rank has failed: why, and whether to go on."""

from pathlib import Path

import msgspec

from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.diagnostics.cause import Cause

_FILE = "verdict.json"


class RankFailure(msgspec.Struct, frozen=True):
    """How one rank ended: the facts by which the cause is found among all that failed."""

    rank: int
    host: str
    #: As a shell gives it: 128 + n for signal n.
    code: int
    #: The number of the signal that killed it, or 0.
    signal: int
    #: What it said: the exception, or its last words.
    cause: Cause | None
    #: The names of the exception's classes, `module.name`, its own first; empty where there was no exception.
    family: tuple[str, ...] = ()
    #: When, in seconds since the epoch.
    time: float = 0.0
    #: Steps that it had finished; None where it does not say.
    step: int | None = None
    #: Why its agent killed it, where it did because it hung.
    hung: str = ""
    #: Whether its agent killed it because it did not leave when it was asked to.
    ended: bool = False

    @property
    def exception(self) -> str:
        """The exception's own class, empty where there was none."""
        return self.family[0] if self.family else ""


class Verdict(msgspec.Struct, frozen=True):
    """The same for all hosts of a job."""

    #: Why the ranks have ended, as it is seen from the host where it happened, with the cause in a line.
    diagnosis: Diagnosis
    #: The failure that the others follow from; None where it was no rank that failed.
    failure: RankFailure | None = None
    #: Hosts that do not answer.
    lost: tuple[str, ...] = ()
    restart: bool = False
    #: Restarts so far, this one included.
    restarts: int = 0

    @property
    def stopped(self) -> int:
        """The signal that has stopped the job, or 0: what else happened followed from it."""
        return self.diagnosis.exit_code - 128 if self.diagnosis.kind == "stopped" else 0


def write_verdict(directory: Path, verdict: Verdict) -> None:
    """Leave it for the supervisor, whole or not at all; memory needs no fsync."""
    part = directory / f".{_FILE}.part"
    part.write_bytes(msgspec.json.encode(verdict))
    part.replace(directory / _FILE)


def read_verdict(directory: Path) -> Verdict | None:
    """What the agent has left; None where it left nothing: all went well, or the agent itself was killed."""
    try:
        return msgspec.json.decode((directory / _FILE).read_bytes(), type=Verdict)
    except FileNotFoundError:
        return None
