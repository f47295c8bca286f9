"""Unpack the archive of a program: its regular files and directories, refused where it is unsafe or beyond a limit."""

import errno
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Self

from trainbox.contract.settings import DEFAULT_SOURCE_BYTES
from trainbox.contract.text import short
from trainbox.errors import ProgramError
from trainbox.files import permission_hint
from trainbox.system.cgroup import (
    ARCHIVE_DEPTH,
    ARCHIVE_HEADER_BYTES,
    ARCHIVE_MEMBERS,
    ARCHIVE_NAME_BYTES,
    ARCHIVE_PATH_BYTES,
)

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it reads no .tar.xz either
    LZMAError = zlib.error  # type: ignore[misc,assignment]  # any exception class will do

#: What tarfile and the file system raise for an archive that is damaged or made to harm: a header's numbers, names and
#: records are used as they stand.
_DAMAGED = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    LZMAError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
_LONGEST_SHOWN, _LONGEST_REASON = 200, 300
_HEADERS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_BLOCK_BYTES = 1024 * 1024


def extract(archive: Path, directory: Path, *, shown: str, most_bytes: int = DEFAULT_SOURCE_BYTES) -> None:
    """Unpack regular files and directories; refuse the archive if it holds anything else or reaches outside.

    It is read twice: nothing is written before all of it is known to be within the limits (`trainbox.system.cgroup`).

    Args:
        archive: The file.
        directory: Where to.
        shown: How messages name it.
        most_bytes: What it may hold once it is decompressed, headers included.

    Raises:
        ProgramError: The archive is missing, damaged, not safe or beyond a limit.
    """
    shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
    try:
        with tarfile.open(archive, tarinfo=_Member) as tar:
            members = list(_read_members(tar, shown, most_bytes))
            for member in members:
                _extract_member(tar, member, directory)
            _read_to_end(tar, shown, most_bytes)
    except FileNotFoundError as error:
        raise ProgramError(f"there is no archive {shown}", hint="check sagemaker_submit_directory") from error
    except _DAMAGED as error:
        # tarfile says of each way to open what is no archive why it failed; the first line is enough.
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        hint = "is it a whole .tar.gz? `tar tzf` lists it"
        if isinstance(error, OSError):
            reason = error.strerror or reason
            if error.errno == errno.ENOSPC:
                hint = "the disk is full: ask for a larger VolumeSizeInGB"
            hint = permission_hint(error) or hint
        raise ProgramError(f"the archive {shown} cannot be unpacked: {reason[:_LONGEST_REASON]}", hint=hint) from error


class _Member(tarfile.TarInfo):
    """A header, refused where tarfile would use any amount of memory, or take damage for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header is damaged: {error}") from error
        if member.size < 0 or (member.type in _HEADERS and member.size > ARCHIVE_HEADER_BYTES):
            raise tarfile.ReadError(f"a header declares {member.size:,} bytes")
        return member


def _read_members(tar: tarfile.TarFile, shown: str, most_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members in order, each checked before the data after it is read.

    A size below 0 in a pax record would lead back to a member before, for ever.
    """
    last = -1
    for count, member in enumerate(tar, start=1):
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError(f"the member {short(member.name)} declares {member.size:,} bytes")
        if count > ARCHIVE_MEMBERS:
            raise ProgramError(
                f"the archive {shown} is refused: it has more than {ARCHIVE_MEMBERS:,} members",
                hint="source is code: pass data as a channel",
            )
        _refuse_unsafe(member, shown)
        if member.offset_data + member.size > most_bytes:
            raise too_large(shown, most_bytes)
        member.pax_headers = {}  # up to a megabyte each, and of no use any more
        last = member.offset
        yield member


def _refuse_unsafe(member: tarfile.TarInfo, shown: str) -> None:
    path = PurePosixPath(member.name)
    refused = f"the archive {shown} is refused: its member {short(member.name)}"
    if path.is_absolute() or ".." in path.parts:
        raise ProgramError(f"{refused} lies outside of it")
    if "\0" in member.name:
        raise ProgramError(f"{refused} has a NUL in its name", hint="rename it, and make the archive again")
    names = [os.fsencode(name) for name in path.parts]
    longest, length = max(map(len, names), default=0), sum(map(len, names))
    if len(names) > ARCHIVE_DEPTH or longest > ARCHIVE_NAME_BYTES or length > ARCHIVE_PATH_BYTES:
        raise ProgramError(
            f"{refused} has a name that is too long or too deep",
            hint=f"at most {ARCHIVE_DEPTH} folders, {ARCHIVE_NAME_BYTES} bytes in a name and"
            f" {ARCHIVE_PATH_BYTES:,} in a path",
        )
    if member.issparse():
        raise ProgramError(f"{refused} is a sparse file", hint="archive it without --sparse")
    if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device"
        raise ProgramError(
            f"{refused} is {kind}",
            hint="archive the files themselves (tar --dereference)",
        )


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    target = directory / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    if content is None:  # never for a regular file, which is all that is left here
        raise tarfile.ExtractError(f"{member.name!r} has no content")
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(0o755 if member.mode & 0o111 else 0o644)


def too_large(shown: str, most_bytes: int) -> ProgramError:
    """Return the error for an archive beyond the limit."""
    return ProgramError(
        f"the archive {shown} is refused: it holds more than {most_bytes:,} bytes when it is unpacked",
        hint="source is code: pass data as a channel, or raise the limit with trainbox_source_bytes",
    )


def _read_to_end(tar: tarfile.TarFile, shown: str, most_bytes: int) -> None:
    """Read the archive to its end: a compressed file has its checksum there."""
    while tar.fileobj is not None and tar.fileobj.read(_BLOCK_BYTES):
        if tar.fileobj.tell() > most_bytes + _BLOCK_BYTES:  # the padding at the end
            raise too_large(shown, most_bytes)
