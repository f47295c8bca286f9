"""Read how ranks have failed: from their error files, or the last lines of their output."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from trainbox.diagnostics.cause import Cause, find_cause
from trainbox.diagnostics.verdict import RankFailure
from trainbox.launcher.ranks.processes import RankProcess, RankProcesses
from trainbox.launcher.ranks.variables import error_file


class _ExtraInfo(msgspec.Struct, frozen=True):
    py_callstack: str = ""
    timestamp: str = "0"


class _Message(msgspec.Struct, frozen=True):
    message: str = ""
    extraInfo: _ExtraInfo = _ExtraInfo()  # noqa: N815 - torch's name


class _Ours(msgspec.Struct, frozen=True):
    time: float
    family: tuple[str, ...]


class _ErrorFile(msgspec.Struct, frozen=True):
    """Torch elastic's format, with a key of ours."""

    message: _Message
    trainbox: _Ours | None = None


def read_failures(
    ranks: RankProcesses,
    scratch: Path,
    *,
    numbers: Mapping[int, int],
    host: str,
    step: Callable[[int], int | None],
) -> list[RankFailure]:
    """Return the failures of the ranks of a host, without ranks that ended because they were told to.

    Args:
        ranks: The processes.
        scratch: The directory of their error files.
        numbers: The global rank of each local rank.
        host: This host.
        step: Returns how many steps a local rank has finished; None where it has not reported any.
    """
    failures = []
    for local_rank, rank in ranks.all.items():
        code = rank.code
        asked = code is not None and code < 0 and -code in rank.asked and not rank.why_killed
        if code and not (asked and not ranks.stop_signal):
            file = error_file(scratch, local_rank)
            failures.append(_read_failure(rank, file, number=numbers[local_rank], host=host, step=step(local_rank)))
    return failures


def _read_failure(rank: RankProcess, file: Path, *, number: int, host: str, step: int | None) -> RankFailure:
    code = rank.code or 0
    killed = max(0, -code)
    error = None if killed else _read(file)
    cause = _cause_of(error) if error else _find_in_output(rank)
    return RankFailure(
        rank=number,
        host=host,
        code=128 + killed if killed else code,
        signal=killed,
        cause=cause,
        family=error.trainbox.family if error and error.trainbox else _family(cause),
        time=error.trainbox.time if error and error.trainbox else rank.ended_at,
        step=step,
        hung=rank.why_killed,
        ended=killed == signal.SIGKILL and signal.SIGKILL in rank.asked,
    )


def _read(path: Path) -> _ErrorFile | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_ErrorFile)
    except (OSError, ValueError, RecursionError):  # none, or an incomplete one: the output has it, too
        return None


def _cause_of(error: _ErrorFile) -> Cause | None:
    return find_cause(error.message.extraInfo.py_callstack, Path.cwd()) or Cause(text=error.message.message)


def _find_in_output(rank: RankProcess) -> Cause | None:
    found = [cause for text in rank.last_words() if (cause := find_cause(text, Path.cwd()))]
    return next((cause for cause in found if cause.exception), found[0] if found else None)


def _family(cause: Cause | None) -> tuple[str, ...]:
    """Return the exception's class: a traceback does not show its base classes."""
    if cause is None or not cause.exception:
        return ()
    return (cause.exception if "." in cause.exception else f"builtins.{cause.exception}",)
