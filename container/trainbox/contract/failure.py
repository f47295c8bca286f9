"""`output/failure`, SageMaker's `FailureReason`: cause, place, hint; written whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path

from trainbox.contract.diagnosis import Diagnosis
from trainbox.contract.secrets import without_secrets
from trainbox.contract.text import printable

#: FailureReason holds 1,024 characters; SageMaker puts "AlgorithmError: " before ours and ", exit code: N" behind.
LONGEST_FAILURE = 980
_LONGEST_CAUSE = 600
#: Of a failure file that the script has written, in characters.
_LONGEST_READ = 64 * 1024
#: Set aside for the failure file: 980 characters of at most 4 bytes.
_RESERVED_BYTES = 4096


def compose(diagnosis: Diagnosis, hidden: Iterable[str] = ()) -> str:
    """The text of the failure file: at most `LONGEST_FAILURE` characters, the cause first and never pushed out.

    Args:
        diagnosis: Why the job has failed.
        hidden: Values to leave out; before the cut, which could leave half of one.
    """
    hidden = tuple(hidden)
    parts = [_cut(printable(without_secrets(diagnosis.cause, hidden)), _LONGEST_CAUSE)]
    if diagnosis.where:
        parts.append(printable(f"at {without_secrets(diagnosis.where, hidden)}"))
    if diagnosis.hint:
        parts.append(printable(f"hint: {without_secrets(diagnosis.hint, hidden)}"))
    return _cut("\n".join(parts), LONGEST_FAILURE)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def reserve_failure(path: Path) -> None:
    """Set space aside for the failure file: a full disk is a reason to fail that could not be written otherwise.

    The failure file of an earlier attempt in the same tree goes: it says nothing about this one.

    Raises:
        OSError: The directory cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    _part(path).write_bytes(b" " * _RESERVED_BYTES)


def release_failure(path: Path) -> None:
    """Give the space back: the job has not failed."""
    _part(path).unlink(missing_ok=True)


def write_failure(path: Path, text: str, *, before: bool = False) -> bool:
    """Write the failure file, whole or not at all, unless the script has written one.

    Args:
        path: Where.
        text: What `compose` made.
        before: Whether it goes before what the script has written, rather than give way to it.

    Returns:
        Whether it was written.

    Raises:
        OSError: The directory cannot be written.
    """
    if path.exists() and path.stat().st_size > 0:
        if not before:
            release_failure(path)
            return False
        with path.open(encoding="utf-8", errors="replace") as file:  # of any size: a script has written it
            text = _cut(f"{text}\nthe script: {file.read(LONGEST_FAILURE)}", LONGEST_FAILURE)
    _write(path, text)
    return True


def hide_in_failure(path: Path, hidden: Iterable[str]) -> str:
    """Return what a script has written there, and leave secrets out of the file: its text is shown to many.

    A file longer than anybody would read is cut where it holds a secret.

    Raises:
        OSError: It cannot be read or written.
    """
    text = read_failure(path)
    shown = without_secrets(text, hidden)
    if shown != text:
        _write(path, shown)
    return shown


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        # Over what was reserved, not in its place: a full disk has no other room.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
            file.write(text.encode(errors="replace"))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_failure(path: Path) -> str:
    """What a script has written there, cut where it is longer than anybody would read.

    Raises:
        OSError: It cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_LONGEST_READ)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
