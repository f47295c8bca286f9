"""What lies in a result's directory of checkpoints, also while it changes."""

from collections.abc import Iterator
from pathlib import Path

from trainbox.checkpoint.store import Checkpoint, examine

_ASIDE, _STEP = ".tmp-step-", "step-"


def being_written(out: Path) -> set[Path]:
    """The checkpoints that are being written aside, or were when their writer was killed."""
    return {path for path in _entries(out) if path.name.startswith(_ASIDE)}


def with_manifest(out: Path) -> set[Path]:
    """The checkpoints that say that they are whole."""
    return {path for path in _entries(out) if path.name.startswith(_STEP) and (path / "MANIFEST.json").exists()}


def valid(out: Path) -> set[Path]:
    """The checkpoints that are whole."""
    return {path for path in with_manifest(out) if isinstance(examine(path), Checkpoint)}


def newest(out: Path, paths: set[Path]) -> dict[str, int]:
    """The highest step in each directory of checkpoints: one for all hosts, or one for each."""
    steps: dict[str, int] = {}
    for path in paths:
        directory = str(path.parent.relative_to(out))
        steps[directory] = max(int(path.name.removeprefix(_STEP).partition(".")[0]), steps.get(directory, 0))
    return steps


def _entries(out: Path) -> Iterator[Path]:
    for path in _list(out / "checkpoints"):
        if path.name.startswith((_ASIDE, _STEP)):
            yield path
        else:
            yield from _list(path)


def _list(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:  # it is not there yet, or no directory
        return []
