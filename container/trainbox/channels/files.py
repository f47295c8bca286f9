"""Which files of a channel are data, and in which order they are read."""

from collections.abc import Iterator
from pathlib import Path

from trainbox.channels.shortage import naming_shortage
from trainbox.channels.wording import some
from trainbox.contract.text import printable, short
from trainbox.errors import DataError
from trainbox.say import say

_DEEPEST = 100


def find_files(channel_dir: Path) -> tuple[Path, ...]:
    """The data files below a channel's directory, sorted by their relative path.

    The order of the paths is the order of the rows, whatever the file system lists first: with sampling, a model
    depends on it. Left out, and said, is what other programs write beside the data: manifests, hidden files, and
    everything that begins with `_` (Spark's `_SUCCESS` and `_temporary`, Delta's `_delta_log`).

    Args:
        channel_dir: The channel's directory, or one file.

    Raises:
        DataError: There is no such directory; a link is broken or leads in a circle; a FIFO lies among the files.
    """
    data, notes = list_files(channel_dir)
    for note in notes:
        say(note)
    return data


def list_files(channel_dir: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """What `find_files` finds, and what it says."""
    shown = short(str(channel_dir), 200)
    try:
        with naming_shortage(shown):
            return _list_files(channel_dir)
    except OSError as error:  # a name too long for Linux, a folder that may not be read
        raise DataError(f"{shown} cannot be listed: {error.strerror}", hint="check the channel's path") from error


def _list_files(channel_dir: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    if channel_dir.is_file():
        return (channel_dir,), ()
    if not channel_dir.is_dir():
        pipe = Path(f"{channel_dir}_0").exists()
        raise DataError(
            f"{channel_dir} is not a directory" + (": the channel is in Pipe mode" if pipe else ""),
            hint="read the job's own Channel (current_job().channels), or use input mode File or FastFile"
            if pipe
            else "check the channel's name and path",
        )
    found = sorted(_walk(channel_dir, ()), key=lambda path: path.relative_to(channel_dir).as_posix())
    data = tuple(path for path in found if not _is_marker(path.relative_to(channel_dir)))
    names = [path.relative_to(channel_dir) for path in found]
    ignored = [printable(name.as_posix()) for name in names if _is_marker(name)]
    text = f"{channel_dir.name}: ignored {some(ignored)} (not data: hidden, *-manifest, or a name that begins with _)"
    return data, (text,) if ignored else ()


def show(path: Path, channel_dir: Path) -> str:
    """How messages name a file: by its path from the channel's name on, as text that can be written anywhere."""
    below = "" if path == channel_dir else f"/{path.relative_to(channel_dir).as_posix()}"
    return printable(f"{channel_dir.name}{below}")


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Every file below `folder`, through links too: a linked folder left out would be rows lost in silence."""
    if len(above) > _DEEPEST:
        raise DataError(f"{above[0]} has more than {_DEEPEST} folders within each other", hint="put the files higher")
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder} links back to {real}, which contains it", hint="remove the link")
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        elif entry.is_file():
            yield entry
        else:
            raise DataError(f"{entry} is not a file that can be read (a broken link or a pipe)", hint="remove it")


def _is_marker(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts) or path.name.endswith("-manifest")
