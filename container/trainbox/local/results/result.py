"""Replaces the result of a job: model, archive, output and record of an attempt appear together, or not at all.

An attempt builds all of it below the work directory. One rename commits it; from then on the next run completes what a
kill interrupted. Until that rename the result of the last good attempt lies where it was.
"""

import ctypes
import os
from pathlib import Path

import msgspec

from trainbox import atomic_write
from trainbox.errors import RunError
from trainbox.local.results.collect import has_files
from trainbox.local.results.folder import remove
from trainbox.local.results.record import COMMITTED, FILE_NAME, WORK, JobRecord, Status, write_record

#: Below the work directory: what is being built.
BUILDING = "building"
OUTPUT, MODEL, ARCHIVE = "output", "model", "model.tar.gz"
_PIECES = (OUTPUT, MODEL, ARCHIVE)
#: The inode of each piece of a committed result: tells whether it is in place already.
_INODES = "inodes.json"
# <linux/fs.h>, <fcntl.h>
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_RANKS: dict[Status, int] = {"InProgress": 0, "Failed": 0, "Stopped": 1, "Completed": 2}


def may_replace(status: Status, *, has_model: bool, record: JobRecord) -> bool:
    """Whether an attempt's result replaces the one in the directory: only if it is at least as good.

    Args:
        status: How the attempt ended.
        has_model: Whether it left a model, and its archive is whole.
        record: Says whose result lies in the directory.
    """
    if record.result is None:
        return True
    ends = {each.attempt: each.status for each in record.earlier_attempts}
    kept = ends.get(record.result, "Completed")
    return _RANKS[status] >= _RANKS[kept] and (has_model or record.model is None)


def commit(record: JobRecord, out: Path) -> None:
    """Make what was built, with this record, the result; a kill after this loses none of it.

    Raises:
        RunError: It cannot be written; the result of before is untouched.
    """
    building, committed = out / WORK / BUILDING, out / COMMITTED
    inodes = {name: (building / name).lstat().st_ino for name in _PIECES if os.path.lexists(building / name)}
    try:
        atomic_write.write(building / _INODES, msgspec.json.encode(inodes))
        write_record(record, building)
        building.rename(committed)
    except OSError as error:
        raise RunError(f"{committed} cannot be written: {error.strerror}", hint=f"see {building}") from error


def install(out: Path) -> None:
    """Move a committed result to its place; repeated after a kill at any moment, it comes to the same end.

    Raises:
        RunError: A piece cannot be moved; the next run tries again.
    """
    committed = out / COMMITTED
    if (committed / FILE_NAME).exists():
        inodes = msgspec.json.decode((committed / _INODES).read_bytes(), type=dict[str, int])
        try:
            for name in _PIECES:
                if name in inodes:
                    _move(committed / name, out / name, inodes[name])
                elif name == ARCHIVE:
                    (out / name).unlink(missing_ok=True)
            # The last: without it nothing is committed any more.
            (committed / FILE_NAME).replace(out / FILE_NAME)
        except OSError as error:
            hint = f"the result is whole in {committed}; the next run with --resume moves it"
            raise RunError(f"{out} cannot be written: {error.strerror}", hint=hint) from error
    remove(committed)


def _move(new: Path, place: Path, inode: int) -> None:
    """Put a file or directory in place of another, which afterwards has the name of the new one or is gone."""
    if not os.path.lexists(new) or (os.path.lexists(place) and place.lstat().st_ino == inode):
        return
    if not new.is_dir():
        new.replace(place)
    elif not os.path.lexists(place):
        new.rename(place)
    elif not _exchange(new, place):
        old = new.with_name(f"{new.name}.old")
        remove(old)
        place.rename(old)
        new.rename(place)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths trade places at once; False where the file system or the C library cannot (renameat2(2))."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def put_aside(out: Path, attempt: int) -> tuple[str, ...]:
    """Keep what an attempt left beside the better result of an earlier one; returns the names it has there."""
    kept = []
    for name in (OUTPUT, MODEL):
        left = out / WORK / BUILDING / name
        if has_files(left):
            place = out / f"{name}.attempt-{attempt}"
            remove(place)
            left.rename(place)
            kept.append(place.name)
    return tuple(kept)
