"""Checkpoints that are whole or not there: each is a directory, vouched for by a manifest that is written last.

    .tmp-step-00000020-5f3a9c1e.sagemaker-ignore/   written here first; locked while its writer lives
    step-00000020/                                  every file fsynced and digested, then renamed whole
        model.bin, optimizer/rank-0.bin, …
        MANIFEST.json                               last: step, info, size and SHA-256 of every file
    step-00000020.2/                                step 20 saved again after a rollback: no name is used twice

Why: SageMaker copies this directory to S3 file by file, in any order, while it is written, and copies deletions too
(https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html). What a restarted job finds may be torn or
mixed, and libraries load a flipped bit or an older file of the same name without a word. So only digests are trusted.
They tell that a checkpoint is whole, not who has written it: that takes a key (`manifest.require_genuine`).
A new one is written aside in the same directory, because that is a filesystem of its own: a rename from elsewhere would
be refused (EXDEV).
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from trainbox.checkpoint.directory import is_being_uploaded, lock, remove, walk
from trainbox.checkpoint.manifest import (
    MANIFEST,
    NOT_UPLOADED,
    Keys,
    Manifest,
    check_files,
    decode_info,
    encode_info,
    fsync,
    open_sealed,
    read_sealed,
    require_genuine,
    require_no_others,
    seal,
    settle,
    write_manifest,
)
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit

_ASIDE = ".tmp-"
_STEP_DIRECTORY = re.compile(r"step-([0-9]{8,})(?:\.([0-9]+))?")
# A file-size limit counts as a full disk, too: the same remedy.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NAME_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY})


class Checkpoint(msgspec.Struct, frozen=True):
    """A complete checkpoint: its directory, its step, the `info` that the script saved, and its size in bytes."""

    path: Path
    step: int
    info: Mapping[str, Any]
    size: int


class Rejected(msgspec.Struct, frozen=True):
    """A directory that looks like a checkpoint and must not be loaded."""

    path: Path
    reason: str


class Search(msgspec.Struct, frozen=True):
    """The newest valid checkpoint, if any, and what was newer than it, newest first, but not valid."""

    chosen: Checkpoint | None
    rejected: tuple[Rejected, ...]


class Checkpoints:
    """A directory of checkpoints, of which the newest `keep` are kept.

        store = Checkpoints(directory)
        if (found := store.latest()) is not None:
            model, first = load(found.path / "model.bin"), found.step + 1
        for step in range(first, last + 1):
            ...
            with store.writing(step, info={"loss": loss}) as path:
                save(model, path / "model.bin")

    Several processes may write to one directory. The highest step is the newest; of one step, the last saved. With
    `keys` each one is sealed with the first of them, and what none of them has sealed is refused.
    """

    def __init__(self, directory: Path, *, keep: int = 3, keys: Keys = ()) -> None:
        if keep < 1:
            raise CheckpointError(f"keep={keep}: at least one checkpoint has to be kept", hint="use keep=1 or more")
        self.directory = directory
        self.keep = keep
        self.keys = keys
        self._rejected: frozenset[Path] = frozenset()

    def below(self, name: str) -> "Checkpoints":
        """Return the store in a subdirectory, with the same `keep` and keys."""
        return Checkpoints(self.directory / name, keep=self.keep, keys=self.keys)

    def find(self) -> Search:
        """Verify checkpoints, newest first, until one is valid; change nothing and log nothing.

        Raises:
            NotGenuineError: The newest that is whole is sealed with none of the keys. No older one takes its place: who
                forges one could choose which.
        """
        rejected: list[Rejected] = []
        for path in step_directories(self.directory):
            match examine(path, keys=self.keys):
                case Checkpoint() as chosen:
                    return Search(chosen, tuple(rejected))
                case Rejected() as verdict:
                    rejected.append(verdict)
        return Search(None, tuple(rejected))

    def latest(self) -> Checkpoint | None:
        """Return the newest valid checkpoint, or None; log which one, and which were rejected and why.

        Raises:
            NotGenuineError: As `find`.
        """
        search = self.find()
        self._rejected |= {verdict.path for verdict in search.rejected}
        for verdict in search.rejected:
            emit(f"rejected the checkpoint {verdict.path}: {verdict.reason}")
        if search.chosen is not None:
            emit(f"resuming from step {search.chosen.step} ({search.chosen.path})")
        elif search.rejected:
            emit(f"no valid checkpoint in {self.directory} ({len(search.rejected)} rejected): starting fresh")
        else:
            emit(f"no checkpoint in {self.directory}: starting fresh")
        return search.chosen

    @contextmanager
    def writing(self, step: int, *, info: Mapping[str, object] | None = None) -> Iterator[Path]:
        """Yield an empty directory to write into; it becomes the checkpoint of `step` when the block succeeds.

        When the block raises, nothing remains and its exception goes on; a full disk becomes a `CheckpointError`.
        Earlier checkpoints stay as they are until the new one is durable.

        Args:
            step: What `Checkpoint.step` will be: 0 or more.
            info: What JSON can say; comes back as `Checkpoint.info`. It is taken down now, before the block runs.
                JSON has no word for NaN and the infinities: they come back as None.
        """
        noted = encode_info(step, info or {})
        with ExitStack() as always, ExitStack() as undo:
            try:
                aside = self._make_aside(step, always)
                undo.callback(remove, aside)
            except OSError as error:
                raise self._cannot_write(step, error) from error
            try:
                yield aside
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise self._cannot_write(step, error) from error
            try:
                path = self._publish(aside, step, noted, undo)
            except OSError as error:
                raise self._cannot_write(step, error) from error
            undo.pop_all()
        self._prune(path)

    def _make_aside(self, step: int, stack: ExitStack) -> Path:
        """Make a new directory to write into, locked until the stack ends."""
        self.directory.mkdir(parents=True, exist_ok=True)
        while True:
            aside = self.directory / f"{_ASIDE}step-{step:08d}-{os.urandom(4).hex()}{NOT_UPLOADED}"
            aside.mkdir()
            # Before the lock is ours another process may take the directory for a leftover: then we make a new one.
            if lock(aside, stack) is not False and aside.is_dir():
                return aside

    def _publish(self, aside: Path, step: int, info: msgspec.Raw, undo: ExitStack) -> Path:
        directories, files = walk(aside)
        if not files:
            raise CheckpointError(
                f"nothing was written into the checkpoint of step {step}",
                hint="write the files into the directory that `writing(step)` gives",
            )
        names = [path.relative_to(aside).as_posix() for path in files]
        manifest = seal(Manifest(step, info, dict(zip(names, settle(files), strict=True))), self.keys)
        for directory in directories:
            fsync(directory)
        path = self._rename_to_step(aside, step)
        undo.callback(remove, path)
        fsync(self.directory)
        write_manifest(path, manifest)
        return path

    def _rename_to_step(self, aside: Path, step: int) -> Path:
        taken = [number for other, number in map(_key, step_directories(self.directory)) if other == step]
        attempt = max(taken, default=0) + 1
        while True:
            path = self.directory / (f"step-{step:08d}" if attempt == 1 else f"step-{step:08d}.{attempt}")
            try:
                aside.rename(path)
            except OSError as error:
                if error.errno not in _NAME_TAKEN:
                    raise
                attempt += 1  # another process has just saved the same step
            else:
                return path

    def _cannot_write(self, step: int, error: OSError) -> CheckpointError:
        message = f"the checkpoint of step {step} cannot be written to {self.directory}: {error.strerror or error}"
        if error.errno not in _FULL:
            return CheckpointError(message, hint="it has to be a directory in which this process may write")
        with suppress(OSError):
            message += f"; {shutil.disk_usage(self.directory).free:,} bytes are free"
        complete = (examine(path, digests=False) for path in step_directories(self.directory))
        if last := next((found for found in complete if isinstance(found, Checkpoint)), None):
            message += f", the last complete checkpoint takes {last.size:,}"
        return CheckpointError(message, hint=f"keep fewer checkpoints (keep={self.keep} now) or take a larger volume")

    def _prune(self, newest: Path) -> None:
        """Delete checkpoints older than `newest` beyond `keep`; newer steps are left alone."""
        older = [path for path in step_directories(self.directory) if _key(path) < _key(newest)]
        sound = [path for path in older if self._is_sound(path)]
        for path in sound[self.keep - 1 :]:
            self._remove_idle(path, unfinished=False)
        leftovers = [path for path in older if path not in sound and not path.is_symlink() and path.is_dir()]
        for path in [*leftovers, *sorted(self.directory.glob(f"{_ASIDE}step-*"))]:
            self._remove_idle(path, unfinished=True)

    def _is_sound(self, path: Path) -> bool:
        # Without digests: pruning is not worth reading gigabytes at each save. `latest` has read them once.
        return path not in self._rejected and isinstance(examine(path, digests=False), Checkpoint)

    def _remove_idle(self, path: Path, *, unfinished: bool) -> None:
        """Remove a directory unless somebody is at it: SageMaker's agent, or a writer that lives."""
        with ExitStack() as stack:
            locked = lock(path, stack)
            if locked is False or is_being_uploaded(path):
                return
            if unfinished:
                # Without locks nobody can tell a leftover from a live write; with the lock in hand, look again: its
                # writer may have finished in between.
                if locked is None or not path.is_dir() or self._is_sound(path):
                    return
                if any(path.iterdir()):
                    emit(f"removing {path}: its write did not finish, or it is damaged")
            remove(path)


def examine(path: Path, *, digests: bool = True, keys: Keys = ()) -> Checkpoint | Rejected:
    """Whether a directory is a checkpoint to load: every file of its manifest there, of the right size and digest.

    Files that the manifest does not name are no fault: SageMaker's agent leaves its marks beside the files.

    Raises:
        NotGenuineError: It is whole, and none of the keys has sealed it.
    """
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return Rejected(path, "it is not a directory")
        text = read_sealed(path)
        manifest = open_sealed(text)
        if manifest.step != _key(path)[0]:
            return Rejected(path, f"{MANIFEST} is that of step {manifest.step}")
        check_files(path, manifest.files, digests=digests)
        info = decode_info(manifest.info)
    except CheckpointError as error:
        return Rejected(path, error.message)
    except OSError as error:
        return Rejected(path, f"{error.filename or path}: {error.strerror}")
    except (TypeError, ValueError, RecursionError) as error:
        return Rejected(path, f"{MANIFEST} cannot be read: {error}")
    require_genuine(path, text, keys)
    require_no_others(path, manifest.files, keys)
    return Checkpoint(path, manifest.step, info, sum(record.size for record in manifest.files.values()))


def step_directories(directory: Path) -> list[Path]:
    """Everything named like a checkpoint, newest first."""
    try:
        found = [path for path in directory.iterdir() if _STEP_DIRECTORY.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints in {directory} cannot be listed: {error.strerror}",
            hint="it has to be a directory that can be read",
        ) from error
    return sorted(found, key=_key, reverse=True)


def _key(path: Path) -> tuple[int, int]:
    """Step, and which attempt at it: `step-00000020` is (20, 1), `step-00000020.2` is (20, 2)."""
    match = _STEP_DIRECTORY.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)
