"""`model.tar.gz`: the same bytes for the same files, whole or not at all."""

import gzip
import os
import stat
import tarfile
from pathlib import Path

from trainbox import atomic_write
from trainbox.errors import RunError
from trainbox.files import open_regular, walk_below
from trainbox.local.results.record import ModelRecord

#: Levels above cost much time and save little on what models are made of: random-looking numbers.
_LEVEL = 6
_FILES = frozenset({stat.S_IFREG, stat.S_IFLNK})
_KINDS = _FILES | {stat.S_IFDIR}


def archive(directory: Path, target: Path) -> tuple[ModelRecord | None, tuple[str, ...]]:
    """Pack a directory; where it is empty there is no archive.

    Names are sorted; times, owners and the umask of the moment are left out, so equal models have equal digests.

    Returns:
        The archive, and what cannot be in one: sockets, FIFOs and devices.

    Raises:
        RunError: It cannot be written; the directory is untouched.
    """
    try:
        paths = sorted(walk_below(directory))
        files = [path for path, found in paths if stat.S_IFMT(found.st_mode) in _FILES]
        left_out = tuple(str(path) for path, found in paths if stat.S_IFMT(found.st_mode) not in _KINDS)
        if not files:
            return None, left_out
        with (
            atomic_write.writing(target) as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=_LEVEL) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path, found in paths:
                _add(tar, path, found, str(path.relative_to(directory)))
    except OSError as error:
        raise RunError(f"{target.name} cannot be written: {error.strerror}") from error
    return ModelRecord(archive=target.name, bytes=target.stat().st_size, files=len(files)), left_out


def _add(tar: tarfile.TarFile, path: Path, found: os.stat_result, name: str) -> None:
    info = tarfile.TarInfo(name)
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(info)
    elif stat.S_ISDIR(found.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    elif stat.S_ISREG(found.st_mode):
        # Never a hard link to another member: SageMaker's readers may refuse links.
        info.size, info.mode = found.st_size, 0o755 if found.st_mode & stat.S_IXUSR else 0o644
        with os.fdopen(open_regular(path), "rb") as file:
            tar.addfile(info, file)
