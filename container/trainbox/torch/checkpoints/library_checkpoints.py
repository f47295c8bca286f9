"""Checkpoints of libraries: a directory that a library writes, published atomically on every host, found by all ranks.

A library has its own format and names, and most write one file after the other. So it writes into a staging directory;
the checkpoint is a copy in the store (`trainbox.checkpoint.store`), which appears completely or not at all.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from trainbox.checkpoint.manifest import NOT_UPLOADED, Natural, is_inside
from trainbox.checkpoint.store import Checkpoint, Checkpoints, examine, step_directories
from trainbox.contract.cluster.ranks import Ranks
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit
from trainbox.torch.checkpoints.collectives import MESSAGE_BYTES, RankGroup

_Files = dict[str, Natural]


class HostLeaders(msgspec.Struct, frozen=True):
    """The ranks that act for their hosts.

    Attributes:
        leaders: The first rank of each host.
        writers: The leaders that publish: rank 0, and each that does not share the directory of rank 0.
    """

    leaders: tuple[int, ...]
    writers: tuple[int, ...]


def find_hosts(store: Checkpoints, peers: RankGroup, local_rank: int) -> HostLeaders:
    """Find the ranks that publish checkpoints; all ranks call this."""
    leaders = tuple(rank for rank, place in enumerate(peers.all_gather(b"%d" % local_rank)) if place == b"0")
    if len(leaders) < 2:  # noqa: PLR2004 - one host
        return HostLeaders(leaders, leaders)
    probe = store.directory / peers.broadcast(f".tmp-probe-{os.urandom(4).hex()}{NOT_UPLOADED}".encode()).decode()
    if peers.rank == 0:
        store.directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
    peers.all_gather(b"")
    seen = peers.all_gather(b"%d" % probe.exists())
    if peers.rank == 0:
        probe.unlink()
    return HostLeaders(leaders, tuple(rank for rank in leaders if rank == 0 or seen[rank] == b"0"))


def publish(store: Checkpoints, step: int, made: Path, peers: RankGroup, hosts: HostLeaders, *, keep: bool) -> None:
    """Publish a directory that the ranks have written as the checkpoint of a step; all ranks call this.

    Each host gets the files of all hosts: a restarted job may find the disk of one host only.

    Args:
        store: Where checkpoints are published.
        step: The number of steps done.
        made: The directory, with the same path on every host.
        peers: The ranks.
        hosts: The ranks that publish.
        keep: Whether to keep the directory.

    Raises:
        CheckpointError: On every rank: a host could not write it.
    """
    gathered = peers.all_gather(msgspec.json.encode(_list(made) if peers.rank in hosts.leaders else {}))
    listed = [msgspec.json.decode(one, type=_Files) for one in gathered]
    for rank, files in enumerate(listed):
        check_names(rank, files)
    _complete(made, listed, peers, hosts)

    def write() -> None:
        if peers.rank in hosts.writers:
            with store.writing(step) as directory:
                _link(made, directory)
                if not keep:  # inside the block: at its end the store removes leftovers, this directory among them
                    shutil.rmtree(made)

    peers.run_together(write)


def check_names(rank: int, files: Mapping[str, int]) -> None:
    """Reject names of files outside of the checkpoint.

    Args:
        rank: The rank that has sent them, for the message.
        files: The sizes of its files by name.

    Raises:
        CheckpointError: A name leads out of the checkpoint.
    """
    outside = next((name for name in sorted(files) if not is_inside(name)), None)
    if outside is not None:
        raise CheckpointError(
            f"rank {rank} names {outside[:100]!r}, which is not a path inside a checkpoint",
            hint="a process that is not of this job may have joined it",
        )


def _list(made: Path) -> _Files:
    return {path.relative_to(made).as_posix(): path.stat().st_size for path in _files(made)}


def _files(made: Path) -> Iterator[Path]:
    return (path for path in sorted(made.rglob("*")) if path.is_file())


def _complete(made: Path, listed: Sequence[_Files], peers: RankGroup, hosts: HostLeaders) -> None:
    """Send each file to the writers that lack it; all ranks in the same order, to avoid deadlocks."""
    for name in sorted(set().union(*listed)):
        source = next(rank for rank in hosts.leaders if name in listed[rank])
        for writer in hosts.writers:
            if name not in listed[writer]:
                if peers.rank == writer:
                    prepare(made, name)
                _send(made / name, listed[source][name], peers, source, writer)


def _send(path: Path, size: int, peers: RankGroup, source: int, writer: int) -> None:
    if peers.rank == source:
        with path.open("rb") as file:
            for start in range(0, size, MESSAGE_BYTES):
                content = file.read(min(MESSAGE_BYTES, size - start))
                peers.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), writer)
    elif peers.rank == writer:
        with path.open("xb") as file:  # x: a new file, never through a link
            for start in range(0, size, MESSAGE_BYTES):
                message = torch.empty(min(MESSAGE_BYTES, size - start), dtype=torch.uint8)
                peers.recv(message, source)
                file.write(message.numpy().tobytes())


def prepare(made: Path, name: str) -> None:
    """Create the directories for a file from another host.

    Raises:
        CheckpointError: A link leads out of the directory, or the file exists.
    """
    path = made / name
    if path.parent.resolve() != (made.resolve() / name).parent or path.is_symlink() or path.exists():
        raise CheckpointError(
            f"{path} exists, or is reached through a link: no file from another host is written there"
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def _link(made: Path, directory: Path) -> None:
    """Link each file into a directory, or copy it from another file system."""
    for path in _files(made):
        target = directory / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)


class StagingDirectory:
    """The directory that a library writes a checkpoint to, on the file system of the store."""

    def __init__(self, store: Checkpoints, step: int) -> None:
        # Named like leftovers of the store after a kill, which it removes with its next checkpoint.
        self.path = store.directory / f".tmp-step-{step:08d}-library{NOT_UPLOADED}"

    def make(self) -> None:
        """Create it, empty."""
        self.remove()
        self.path.mkdir(parents=True)

    def remove(self) -> None:
        """Remove it with its files."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)


class CommonCheckpoints:
    """Finds the newest checkpoint that every host has, before there is a process group.

    The first rank of each host looks, and the ranks exchange what they find through the store of torch's rendezvous,
    the same that the process group uses. A process without rank variables looks alone.
    """

    def __init__(self, store: Checkpoints, ranks: Ranks, *, seconds: float) -> None:
        self._checkpoints = store
        self._ranks = ranks
        self._timeout = timedelta(seconds=seconds)
        self._store: Store | None = None  # kept open: without an agent rank 0 serves it, while others still read

    def newest(self) -> Path | None:
        """Return its directory, or None if there is none; all ranks call this."""
        if self._ranks.world_size == 1:
            found = self._checkpoints.latest()
            return None if found is None else found.path
        store, host = self._connect(), self._ranks.rank // self._ranks.local_world_size
        hosts = self._ranks.world_size // self._ranks.local_world_size
        call = f"trainbox/newest/{store.add(f'trainbox/newest/calls/{self._ranks.rank}', 1)}"
        if self._ranks.local_rank == 0:
            held = {one.step: one.path for one in self._valid()}
            store.set(f"{call}/held/{host}", msgspec.json.encode(list(held)).decode())
            gathered = [
                msgspec.json.decode(store.get(f"{call}/held/{other}"), type=list[int]) for other in range(hosts)
            ]
            step = max(set(held).intersection(*gathered), default=None)
            self._log(step, gathered)
            store.set(f"{call}/path/{host}", "" if step is None else str(held[step]))
        path = store.get(f"{call}/path/{host}").decode()
        return Path(path) if path else None

    def _connect(self) -> Store:
        if self._store is None:
            met = rendezvous("env://", self._ranks.rank, self._ranks.world_size, timeout=self._timeout)
            self._store = next(iter(met))[0]
        return self._store

    def _valid(self) -> list[Checkpoint]:
        """Return all valid checkpoints of this host, of each step the last one; on a single host the newest."""
        if self._ranks.local_world_size == self._ranks.world_size:
            found = self._checkpoints.find().chosen
            return [] if found is None else [found]
        examined = (
            examine(path, keys=self._checkpoints.keys)
            for path in reversed(step_directories(self._checkpoints.directory))
        )
        return [found for found in examined if isinstance(found, Checkpoint)]

    def _log(self, step: int | None, gathered: Sequence[Sequence[int]]) -> None:
        if self._ranks.rank != 0:
            return
        newest = max((max(steps, default=0) for steps in gathered), default=0)
        if step is not None:
            emit(f"resuming from step {step}")
        elif newest:
            emit(f"the newest checkpoint is that of step {newest}, but not every host has one: starting fresh")
        else:
            emit(f"no checkpoint in {self._checkpoints.directory}: starting fresh")
