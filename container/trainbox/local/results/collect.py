"""What the hosts left becomes the result: their directories merged into one, nothing lost, and `model.tar.gz`."""

import filecmp
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from trainbox.errors import RunError
from trainbox.files import walk_below
from trainbox.local.results.record import Clash


def merge(directories: Sequence[tuple[str, Path]], target: Path) -> tuple[Clash, ...]:
    """Move the content of each host's directory into `target`, which must not exist.

    Hosts that wrote the same file with the same content share it. Where the content differs, the first host's keeps the
    name and the others' get the host's name behind theirs; SageMaker keeps one of them and says nothing.

    Args:
        directories: Host and directory, the first wins a name.
        target: The merged directory, on the same file system.

    Raises:
        RunError: It cannot be written.
    """
    merging = _Merging(target)
    try:
        target.mkdir()
        for host, directory in directories:
            if directory.is_dir() and not directory.is_symlink():
                merging.add(host, directory, Path())
    except OSError as error:
        raise RunError(
            f"{target} cannot be written: {error.strerror}", hint=f"what the hosts left is in {target.parent.parent}"
        ) from error
    return tuple(Clash(path, merging.owners[path], tuple(others)) for path, others in merging.clashes.items())


def has_files(directory: Path) -> bool:
    """Whether there is anything but directories."""
    return directory.is_dir() and any(not stat.S_ISDIR(found.st_mode) for _, found in walk_below(directory))


class _Merging:
    """What has been merged so far, and whose it is."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.owners: dict[str, str] = {}
        self.clashes: dict[str, list[str]] = {}

    def add(self, host: str, directory: Path, below: Path) -> None:
        """Move the entries of one host's directory to where they belong."""
        for entry in sorted(directory.iterdir()):
            relative = below / entry.name
            taken = self.place / relative
            if not os.path.lexists(taken):
                self.owners |= dict.fromkeys(_names(entry, relative), host)
                entry.rename(taken)
            elif _is_directory(entry) and _is_directory(taken):
                self.add(host, entry, relative)
            elif not _is_same(entry, taken):
                other = _free_name(taken, host)
                entry.rename(other)
                self.clashes.setdefault(str(relative), []).append(str(other.relative_to(self.place)))


def _names(entry: Path, relative: Path) -> list[str]:
    inside = [str(relative / path.relative_to(entry)) for path, _ in walk_below(entry)] if _is_directory(entry) else []
    return [str(relative), *inside]


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _free_name(place: Path, host: str) -> Path:
    name, number = f"{place.name}.{host}", 1
    while os.path.lexists(place.with_name(name)):
        number += 1
        name = f"{place.name}.{host}-{number}"
    return place.with_name(name)
