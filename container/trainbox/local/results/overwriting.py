"""`--overwrite`: a new job in the directory of an earlier result, which is removed; what else lies there stays."""

import re
from collections.abc import Mapping
from pathlib import Path

from trainbox.errors import RunError
from trainbox.local.results.folder import read_previous, remove
from trainbox.local.results.record import FILE_NAME, WORK, JobRecord
from trainbox.local.results.result import ARCHIVE, MODEL, OUTPUT

_OURS = frozenset({WORK, MODEL, ARCHIVE, OUTPUT, "checkpoints", "logs"})
_OF_ATTEMPT = re.compile(rf"(?:{MODEL}|{OUTPUT})\.attempt-\d+|job\.attempt-\d+\.json")


def read_replaced(out: Path, *, overwrite: bool, resume: bool) -> JobRecord | None:
    """Return the record of the result that is to be replaced; None where none is, or that is not asked for.

    Raises:
        RunError: The directory cannot be used or holds something else, or the same result is to be resumed.
    """
    if overwrite and resume:
        raise RunError("--overwrite and --resume: only one of them can be done", hint="--resume keeps checkpoints")
    return read_previous(out, resume=True) if overwrite else None


def require_kept(out: Path, inputs: Mapping[str, Path]) -> None:
    """Nothing that the new job reads lies in what is removed.

    Args:
        out: The directory of the result.
        inputs: What is read, by how the command names it.

    Raises:
        RunError: Something does.
    """
    for name, path in inputs.items():
        if path == out or (path.is_relative_to(out) and _is_ours(path.relative_to(out).parts[0])):
            raise RunError(f"--overwrite would remove {name} ({path})", hint="copy it elsewhere, or give another --out")


def remove_result(out: Path) -> None:
    """Remove a result; its record goes last, so that a kill meanwhile leaves what can be overwritten again.

    Raises:
        RunError: Something of it cannot be removed.
    """
    try:
        for path in sorted(path for path in out.iterdir() if _is_ours(path.name)):
            if path.is_dir() and not path.is_symlink():
                remove(path)
            else:
                path.unlink()
        (out / FILE_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{error.filename or out} cannot be removed: {error.strerror}") from error


def _is_ours(name: str) -> bool:
    return name in _OURS or _OF_ATTEMPT.fullmatch(name) is not None
