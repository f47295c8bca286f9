"""`output/failure`, SageMaker's `FailureReason`: cause, place, hint; written whole or not at all."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.text import printable
from trainbox.files import read_regular

#: FailureReason holds 1,024 characters; SageMaker puts "AlgorithmError: " before ours and ", exit code: N" behind.
LONGEST_FAILURE = 980
#: Where place and hint are long, too; else it has what they leave.
_LONGEST_CAUSE = 600
#: Of a failure file that the script has written; SageMaker shows 1,024 characters.
LARGEST_FAILURE_BYTES = 64 * 1024
#: Set aside for the failure file: 980 characters of at most 4 bytes.
_RESERVED_BYTES = 4096
#: What the system says of a directory that takes no new file, and of a file that is a mount.
_NOT_TO_BE_REPLACED = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS})


def compose(diagnosis: Diagnosis, hidden: Iterable[str] = ()) -> str:
    """The text of the failure file: at most `LONGEST_FAILURE` characters, the cause first and never pushed out.

    Args:
        diagnosis: Why the job has failed.
        hidden: Values to leave out; before the cut, which could leave half of one.
    """
    hidden = tuple(hidden)
    cause = printable(without_secrets(diagnosis.cause, hidden))
    below = ""
    if diagnosis.where:
        below += printable(f"\nat {without_secrets(diagnosis.where, hidden)}")
    if diagnosis.hint:
        below += printable(f"\nhint: {without_secrets(diagnosis.hint, hidden)}")
    return _cut(_cut(cause, max(_LONGEST_CAUSE, LONGEST_FAILURE - len(below))) + below, LONGEST_FAILURE)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


#: Device, inode, time of the last change and size of a file: another content has another one.
Mark = tuple[int, int, int, int]


def mark_failure(path: Path) -> Mark | None:
    """What tells the failure file that is there now from one that is written later; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def reserve_failure(path: Path) -> None:
    """Set space aside for the failure file: a full disk is a reason to fail that could not be written otherwise.

    The failure file of an earlier attempt in the same tree goes: it says nothing about this one. One that cannot be
    removed, as it is a mount of its own, is emptied.

    Raises:
        OSError: The directory cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.unlink(missing_ok=True)
    except OSError:
        _write_in_place(path, b"")
    with os.fdopen(_open_part(path), "wb") as file:
        file.write(b" " * _RESERVED_BYTES)


def release_failure(path: Path) -> None:
    """Give the space back: the job has not failed."""
    _part(path).unlink(missing_ok=True)


def write_failure(path: Path, text: str, *, before: bool = False, earlier: Mark | None = None) -> bool:
    """Write the failure file, whole or not at all, unless the script has written one.

    Args:
        path: Where.
        text: What `compose` made.
        before: Whether it goes before what the script has written, rather than give way to it.
        earlier: What `mark_failure` gave before the script was started: that file is not the script's.

    Returns:
        Whether it was written.

    Raises:
        OSError: The directory cannot be written.
    """
    if _has_words(path) and mark_failure(path) != earlier:
        if not before:
            release_failure(path)
            return False
        text = _cut(f"{text}\nthe script: {read_failure(path)[:LONGEST_FAILURE]}", LONGEST_FAILURE)
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
    content = text.encode(errors="replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(path, content)
    except OSError as error:
        if error.errno not in _NOT_TO_BE_REPLACED:
            raise
        try:
            _write_in_place(path, content)
        except OSError:
            raise error from None


def _replace(path: Path, content: bytes) -> None:
    part = _part(path)
    try:
        with os.fdopen(_open_part(path), "wb") as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a directory that cannot be written holds none of ours
            part.unlink()


def _write_in_place(path: Path, content: bytes) -> None:
    """Give a regular file another content, where nothing can take its place: it is a mount of its own, for example."""
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "wb") as file:
        file.write(content)


def read_failure(path: Path) -> str:
    """What a script has written there, cut at `LARGEST_FAILURE_BYTES`.

    Raises:
        OSError: It cannot be read, or is no regular file: a link to one is not followed, a FIFO not waited for.
    """
    return read_regular(path, LARGEST_FAILURE_BYTES).decode(errors="replace")


def _has_words(path: Path) -> bool:
    """Whether a script has written there; what is no regular file gives way to ours."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _open_part(path: Path) -> int:
    """Open what was reserved, not anew: a full disk has no other room. What a script has put there instead goes."""
    part = _part(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(part.lstat().st_mode):
            part.unlink()
    return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
