"""Why a job has failed, as one value: decided by pure functions from facts, carried between processes, told in the end.

Facts are of other types: how a process ended, what its log says, what a check has found, an error that was raised.
Every one of them that ends a job becomes a `Diagnosis`, and `failure.compose` makes the text of one.
"""

from typing import Literal

import msgspec

from trainbox.errors import INTERNAL_EXIT_CODE, PeerError, Stopped, TrainboxError

#: What kind of failure it is. The first four say how a process of the script ended: by itself with a code, by a signal,
#: killed because it hung, or out of memory.
DiagnosisKind = Literal[
    "script",
    "signal",
    "hang",
    "memory",
    "stopped",
    "peer",
    "hardware",
    "configuration",
    "client",
    "algorithm",
    "internal",
]

#: The job as a whole ends for these: all its hosts say the same.
_OF_THE_JOB = frozenset({"hardware", "stopped"})
_KINDS: dict[str, DiagnosisKind] = {
    "ClientError": "client",
    "AlgorithmError": "algorithm",
    "CONFIGURATION": "configuration",
    "HARDWARE": "hardware",
}


class Diagnosis(msgspec.Struct, frozen=True):
    """Why a job has failed, as seen from one of its hosts."""

    kind: DiagnosisKind
    #: What happened, beginning with what rules may match; the first line is enough for a list.
    cause: str
    #: Of the job on the host that it is seen from.
    exit_code: int
    #: The place in the user's code, and which process it was.
    where: str = ""
    #: What to do about it.
    hint: str = ""
    #: Where it happened; empty where the job has no hosts yet, or it was on none in particular.
    host: str = ""
    rank: int | None = None
    #: What of the host: `gpu3`, a directory.
    device: str = ""

    def seen_from(self, host: str) -> "Diagnosis":
        """The same on another host, where it is the failure of a peer unless the job as a whole ends for it.

        The exit code stays: schedulers go by it, whichever host they look at.
        """
        if self.kind in _OF_THE_JOB or self.host in {"", host}:
            return self
        return msgspec.structs.replace(self, kind="peer")


class DiagnosedError(TrainboxError):
    """The job cannot go on, and why is known already.

    Args:
        diagnosis: Why.
    """

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.cause, hint=diagnosis.hint)
        self.diagnosis = diagnosis


def kind_of(error: type[TrainboxError]) -> DiagnosisKind:
    """Return the kind of failure that an error of ours is."""
    return "stopped" if error is Stopped else "peer" if error is PeerError else _KINDS[error.fault]


def diagnose_error(error: TrainboxError, host: str = "") -> Diagnosis:
    """An error of ours that ends the job."""
    if isinstance(error, DiagnosedError):
        return error.diagnosis
    return Diagnosis(
        kind_of(type(error)), f"{error.fault}: {error.message}", error.exit_code, hint=error.hint, host=host
    )


def diagnose_defect(error: Exception) -> Diagnosis:
    """Anything else that ends the job."""
    cause = f"AlgorithmError: {type(error).__name__}: {error}"
    return Diagnosis("internal", cause, INTERNAL_EXIT_CODE, hint="a defect of trainbox: please report it")
