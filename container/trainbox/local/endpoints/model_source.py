"""Finds the model that a person means: a folder, a `model.tar.gz`, or the result folder of `trainbox run`."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from trainbox.errors import DataError, RunError
from trainbox.files import remove_tree
from trainbox.local.results.record import read_record
from trainbox.local.results.result import ARCHIVE, MODEL
from trainbox.supervisor.program.archive import extract

#: What an unpacked model may have; training jobs may write models of any size.
_MOST_BYTES = 2**40
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
SourceKind: TypeAlias = Literal["directory", "archive"]


class ModelSource(msgspec.Struct, frozen=True):
    """Where a model lies."""

    kind: SourceKind
    path: Path


def is_model(path: Path) -> bool:
    """Whether a path is a model rather than a script: a folder, or an archive."""
    return path.is_dir() or path.name.endswith(_ARCHIVES)


def find_source(path: Path) -> ModelSource:
    """Find the model at a path.

    Raises:
        RunError: There is none; says what was expected.
    """
    if path.is_file():
        if not path.name.endswith(_ARCHIVES):
            raise RunError(f"{path} is no model", hint="give a folder, a model.tar.gz, or the folder of a job")
        return ModelSource("archive", path.resolve())
    if not path.is_dir():
        raise RunError(f"there is no model {path}", hint="give a folder, a model.tar.gz, or the folder of a job")
    record = read_record(path)
    if record is None:
        return ModelSource("directory", path.resolve())
    if (path / MODEL).is_dir():
        return ModelSource("directory", (path / MODEL).resolve())
    if (path / ARCHIVE).is_file():
        return ModelSource("archive", (path / ARCHIVE).resolve())
    raise RunError(
        f"job {record.job_name!r} in {path} has no model ({record.status})",
        hint="a script leaves its model in SM_MODEL_DIR",
    )


def unpack(archive: Path, place: Path) -> None:
    """Unpack the archive of a model into a new folder.

    Raises:
        OSError: It cannot be made.
        ProgramError: The archive is damaged, or not safe to unpack.
    """
    place.mkdir()
    extract(archive, place, shown=str(archive), most_bytes=_MOST_BYTES)


@contextlib.contextmanager
def unpacked(source: ModelSource) -> Iterator[Path]:
    """Give a tree as SageMaker's below `/opt/ml`, with the model in `model`; it is removed afterwards.

    Raises:
        RunError: There is no place for it.
        ProgramError: The archive is damaged, or not safe to unpack.
    """
    try:
        root = Path(tempfile.mkdtemp(prefix="trainbox-endpoint-"))
    except OSError as error:
        raise RunError(f"there is no place for the model: {error.strerror}", hint="set TMPDIR") from error
    try:
        if source.kind == "archive":
            unpack(source.path, root / MODEL)
        else:
            (root / MODEL).symlink_to(source.path)
        yield root
    except OSError as error:
        raise DataError(f"{source.path} cannot be unpacked: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            remove_tree(root)
