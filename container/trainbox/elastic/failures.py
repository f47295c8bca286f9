"""What a rank left behind, its error file or its last words, becomes a `RankFailure`."""

import signal
from pathlib import Path

import msgspec

from trainbox.contract.cause import Cause, find_cause
from trainbox.contract.verdict import RankFailure
from trainbox.elastic.rank_processes import Rank


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
    """Torch elastic's format, and what our ranks put beside it."""

    message: _Message
    trainbox: _Ours | None = None


def read_failure(rank: Rank, error_file: Path, *, number: int, host: str, step: int | None) -> RankFailure:
    """How a rank that has ended failed.

    Args:
        rank: The process.
        error_file: Where its exception stands, if there was one.
        number: Its rank in the job.
        host: This host.
        step: Steps it had finished, if it says so.
    """
    code = rank.code or 0
    killed = max(0, -code)
    error = None if killed else _read(error_file)
    cause = _cause_of(error) if error else _last_words(rank)
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
    except (OSError, ValueError, RecursionError):  # none, or one that is not whole: its last words say it, too
        return None


def _cause_of(error: _ErrorFile) -> Cause | None:
    return find_cause(error.message.extraInfo.py_callstack, Path.cwd()) or Cause(text=error.message.message)


def _last_words(rank: Rank) -> Cause | None:
    found = [cause for text in rank.last_words() if (cause := find_cause(text, Path.cwd()))]
    return next((cause for cause in found if cause.exception), found[0] if found else None)


def _family(cause: Cause | None) -> tuple[str, ...]:
    """All that a traceback shows of an exception's classes is its own."""
    if cause is None or not cause.exception:
        return ()
    return (cause.exception if "." in cause.exception else f"builtins.{cause.exception}",)
