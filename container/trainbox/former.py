"""The channel `model`: the model of a former job, from which training starts.

It holds that job's `model.tar.gz`, or the files of its model as they were written (CompressionType None).
"""

import atexit
import contextlib
import functools
from pathlib import Path

from trainbox import toolkit
from trainbox.contract.job import Channel
from trainbox.contract.text import short
from trainbox.errors import DataError, ProgramError
from trainbox.launch.source import extract
from trainbox.scratch import temporary_directory

#: As SageMaker's SDK calls it (`model_channel_name`).
MODEL_CHANNEL = "model"
_PREFIX = "trainbox-model-"
_ARCHIVES = (".tar.gz", ".tgz")
_HINT = "give the model.tar.gz of a former job as it is, or a directory with what is in it"


@functools.cache
def former_model() -> Path | None:
    """The directory with the model of a former job, unpacked; None where the job has no channel `model`.

    >>> trainbox.former_model()  # where `--channel model=former/model.tar.gz` was given
    PosixPath('/tmp/trainbox-model-…')

    The archive is refused if it holds links, leads out of its directory, or is larger than `trainbox_source_bytes`
    once it is unpacked. The directory is removed when the process ends.

    Raises:
        DataError: The channel holds no model, or one that is damaged.
    """
    channel = toolkit.current_job().channels.get(MODEL_CHANNEL)
    if channel is None:
        return None
    files = _list(channel)
    archives = [path for path in files if path.name.endswith(_ARCHIVES)]
    if not archives:
        return channel.path if channel.path.is_dir() else channel.path.parent
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:3])
        raise DataError(f"channel {MODEL_CHANNEL}: which is the model: {names}?", hint=_HINT)
    return _unpack(archives[0])


def find_file(directory: Path, name: str) -> Path:
    """A file of the former model.

    Raises:
        DataError: It is not there; what is there is named.
    """
    path = directory / name
    if path.is_file():
        return path
    there = sorted(each.name for each in directory.iterdir())
    listed = ", ".join(short(each) for each in there[:5]) or "nothing"
    raise DataError(
        f"channel {MODEL_CHANNEL}: there is no {name}; it holds {listed}",
        hint="training starts from a model of the same script",
    )


def _list(channel: Channel) -> list[Path]:
    if channel.input_mode == "Pipe":
        raise DataError(f"channel {MODEL_CHANNEL}: a model cannot be read from a pipe", hint="use input mode File")
    if channel.path.is_file():  # a script that is started by hand is given any path
        return [channel.path]
    try:
        files = sorted(path for path in channel.path.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"channel {MODEL_CHANNEL}: {channel.path} cannot be read: {error.strerror}", hint=_HINT
        ) from error
    if not files:
        raise DataError(f"channel {MODEL_CHANNEL}: there is no file in {channel.path}", hint=_HINT)
    return files


def _unpack(archive: Path) -> Path:
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(temporary_directory(_PREFIX))
            most = toolkit.current_job().settings.source_bytes
            extract(archive, directory, shown=f"{MODEL_CHANNEL}/{archive.name}", most_bytes=most)
        except ProgramError as error:
            hint = f"{_HINT}; trainbox_source_bytes says how much it may hold"
            raise DataError(f"channel {MODEL_CHANNEL}: {error.message}", hint=hint) from error
        except OSError as error:
            raise DataError(f"channel {MODEL_CHANNEL}: {archive.name} cannot be unpacked: {error.strerror}") from error
        atexit.register(stack.pop_all().close)
        return directory
