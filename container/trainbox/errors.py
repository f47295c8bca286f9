"""Every error trainbox raises on purpose; the class says the exit code and whose fault it is.

    TrainboxError
    ├── ContractError         2   a file or variable that SageMaker gives is malformed
    ├── ProgramError          3   no such program, or its code cannot be fetched, unpacked or started
    ├── RequirementsError     4   pip could not install what the program asks for
    ├── PeerError             5   another host of the job is lost; one that failed gives its own code
    ├── HyperparameterError   6   a hyperparameter is unknown, of the wrong type or out of range
    ├── DataError             7   a channel is missing, or what lies in it cannot be used
    ├── CheckpointError       8   a checkpoint cannot be written, or belongs to another job than this one
    ├── MetricError           9   a metric is declared or logged in a way nobody could read back
    ├── RunError             10   `trainbox run` was asked for something it cannot do
    ├── TrainingError        11   the loss is not finite, or ranks hold different parameters
    ├── PreflightError       12   the health checks before the script broke
    ├── ResourceError        13   memory, threads or open files do not suffice for what the job asks
    ├── RehearsalError       14   a fault that was to be rehearsed did not happen
    ├── SecretError          15   a secret that the request refers to cannot be had
    ├── ConfigurationError   64   the health checks say that the request or the image must change
    ├── HardwareError        78   the health checks say that a part of the cluster must be repaired
    └── Stopped             143   the job was stopped before there was anything to save

What a *script* does keeps its own exit code (7 stays 7, a signal is 128+n); these codes are for trainbox's own errors.
Anything else that escapes is a defect of trainbox and leaves with 70 (`EX_SOFTWARE`).
"""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from traceback import FrameSummary

#: Of each line that trainbox writes into a log.
PREFIX = "trainbox: "
INTERNAL_EXIT_CODE = 70


class TrainboxError(Exception):
    """Base class of all errors of trainbox.

    A script that does not catch one ends with its exit code, whichever part of trainbox raised it, and however early.

    Args:
        message: What happened, and to which file, key or value.
        hint: What to do about it, in one sentence; shown below the message.
    """

    exit_code: int = INTERNAL_EXIT_CODE
    #: How SageMaker words the cause: the request, code or data of the user, or the algorithm container itself.
    fault: ClassVar[Literal["ClientError", "AlgorithmError", "CONFIGURATION", "HARDWARE"]] = "ClientError"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if sys.excepthook is sys.__excepthook__:  # that of the script, or of a library, stays
            sys.excepthook = end_as_declared

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


def end_as_declared(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Let an error of ours that nobody catches end the script with its own exit code.

    One with a hint says what to do, and in place of a traceback where it happened; `train` does not say it again.
    """
    if isinstance(error, TrainboxError) and error.hint:
        from traceback import extract_tb  # noqa: PLC0415 - four milliseconds that only who fails has

        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.write(last_words(error, extract_tb(trace)))
            sys.stderr.flush()
    else:
        sys.__excepthook__(kind, error, trace)
    if isinstance(error, TrainboxError):
        raise SystemExit(error.exit_code)


def last_words(error: TrainboxError, frames: "Iterable[FrameSummary]") -> str:
    """The lines that stand for a traceback: what happened, what to do, and where; `contract.cause` reads them back.

    Args:
        error: Why the script ends.
        frames: Those that a traceback would have, the innermost last.
    """
    # The class of this module: where others derive from it is of no use to who reads a log.
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)
    place = _place(frames)
    text = f"FAILED: {error.fault}: {name}: {error.message}\nhint: {error.hint}" + (f"\nat {place}" if place else "")
    shown = "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
    return PREFIX + shown.replace("\n", f"\n{PREFIX}") + "\n"


def _place(frames: "Iterable[FrameSummary]") -> str:
    """The innermost line of the script, else of any other code that is no library's: `train.py:14 in main`."""
    script, libraries = Path(sys.argv[0]).absolute().parent, (Path(__file__).parent, Path(contextlib.__file__).parent)
    outside = [
        frame
        for frame in frames
        if not frame.filename.startswith("<")
        and "site-packages" not in frame.filename
        and not any(Path(frame.filename).is_relative_to(library) for library in libraries)
    ]
    own = [frame for frame in outside if Path(frame.filename).is_relative_to(script)]
    if not outside:
        return ""
    frame = (own or outside)[-1]
    path = Path(frame.filename)
    shown = path.relative_to(script) if path.is_relative_to(script) else path
    return f"{shown}:{frame.lineno}" + (f" in {frame.name}" if frame.name != "<module>" else "")


class ContractError(TrainboxError):
    """A file or variable that SageMaker gives is malformed."""

    exit_code = 2


class ProgramError(TrainboxError):
    """There is no such program, or its code cannot be fetched, unpacked or started."""

    exit_code = 3


class RequirementsError(TrainboxError):
    """Pip could not install what the program asks for."""

    exit_code = 4


class PeerError(TrainboxError):
    """Another host of the job cannot be found, or is lost; one that has failed gives its own exit code."""

    exit_code = 5
    fault = "AlgorithmError"

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 0) -> None:
        """As for any error; `exit_code` is that of the host that has failed, 0 where nobody knows it."""
        super().__init__(message, hint=hint)
        self.exit_code = exit_code or type(self).exit_code


class HyperparameterError(TrainboxError):
    """A hyperparameter is unknown, of the wrong type or out of range."""

    exit_code = 6


class DataError(TrainboxError):
    """A channel is missing, or what lies in it cannot be used."""

    exit_code = 7


class CheckpointError(TrainboxError):
    """A checkpoint cannot be written, or belongs to another job than this one."""

    exit_code = 8
    fault = "AlgorithmError"


class MetricError(TrainboxError):
    """A metric is declared or logged in a way nobody could read back."""

    exit_code = 9


class RunError(TrainboxError):
    """`trainbox run` was asked for something it cannot do."""

    exit_code = 10


class TrainingError(TrainboxError):
    """The numbers went wrong: the loss is not finite, or ranks hold different parameters."""

    exit_code = 11
    fault = "AlgorithmError"


class PreflightError(TrainboxError):
    """The health checks before the script broke."""

    exit_code = 12
    fault = "AlgorithmError"


class ResourceError(TrainboxError):
    """Memory, threads or open files do not suffice for what the job asks."""

    exit_code = 13


class RehearsalError(TrainboxError):
    """A fault that was to be rehearsed (`trainbox_drill`, `--kill`, `--freeze`) did not happen."""

    exit_code = 14


class SecretError(TrainboxError):
    """A secret that the request refers to (`{{resolve:secretsmanager:…}}`) cannot be had."""

    exit_code = 15


class ConfigurationError(TrainboxError):
    """The health checks say that the request or the image must change."""

    exit_code = 64
    fault = "CONFIGURATION"


class HardwareError(TrainboxError):
    """The health checks say that a part of the cluster must be repaired."""

    exit_code = 78
    fault = "HARDWARE"


class Stopped(TrainboxError):  # noqa: N818 - SageMaker's own word for this end, and no defect
    """The job was stopped before there was anything to save: before the script, or while it read its data."""

    exit_code = 143
