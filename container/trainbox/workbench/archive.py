"""`model.tar.gz`: the same bytes for the same files, whole or not at all."""

import gzip
import stat
import tarfile
from pathlib import Path

from trainbox import whole
from trainbox.errors import RunError
from trainbox.workbench.record import ModelRecord

#: Levels above cost much time and save little on what models are made of: random-looking numbers.
_LEVEL = 6


def archive(directory: Path, target: Path) -> tuple[ModelRecord | None, tuple[str, ...]]:
    """Pack a directory; where it is empty there is no archive.

    Names are sorted; times, owners and the umask of the moment are left out, so equal models have equal digests.

    Returns:
        The archive, and what cannot be in one: sockets, FIFOs and devices.

    Raises:
        RunError: It cannot be written; the directory is untouched.
    """
    paths = sorted(directory.rglob("*"))
    files = [path for path in paths if path.is_symlink() or path.is_file()]
    left_out = tuple(str(path) for path in paths if not (path.is_symlink() or path.is_file() or path.is_dir()))
    if not files:
        return None, left_out
    try:
        with (
            whole.writing(target) as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=_LEVEL) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in paths:
                _add(tar, path, str(path.relative_to(directory)))
    except OSError as error:
        raise RunError(f"{target.name} cannot be written: {error.strerror}") from error
    return ModelRecord(archive=target.name, bytes=target.stat().st_size, files=len(files)), left_out


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(info)
    elif stat.S_ISDIR(found.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    elif stat.S_ISREG(found.st_mode):
        # Never a hard link to another member: SageMaker's readers may refuse links.
        info.size, info.mode = found.st_size, 0o755 if found.st_mode & stat.S_IXUSR else 0o644
        with path.open("rb") as file:
            tar.addfile(info, file)
