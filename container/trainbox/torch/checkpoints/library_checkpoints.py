"""Checkpoints that a library writes: a directory, published whole on every host, and found again by all ranks.

A library has its own format and names, and most write one file after the other. So it writes into a directory aside;
what counts is the copy in the store of checkpoints, which appears whole or not at all (`trainbox.checkpointing`).
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

from trainbox.checkpointing import Checkpoint, Checkpoints, examine, step_directories
from trainbox.contract.ranks import Ranks
from trainbox.errors import CheckpointError
from trainbox.manifest import NOT_UPLOADED, Natural, is_inside
from trainbox.say import say
from trainbox.torch.checkpoints.collectives import MESSAGE_BYTES, Peers

_Files = dict[str, Natural]


class Hosts(msgspec.Struct, frozen=True):
    """Which ranks speak for their hosts.

    Attributes:
        leaders: The first rank of each host.
        writers: Those of them that publish: rank 0, and each that does not see the directory of rank 0.
    """

    leaders: tuple[int, ...]
    writers: tuple[int, ...]


def find_hosts(store: Checkpoints, peers: Peers, local_rank: int) -> Hosts:
    """Find who publishes checkpoints; all ranks call this."""
    leaders = tuple(rank for rank, place in enumerate(peers.gather(b"%d" % local_rank)) if place == b"0")
    if len(leaders) < 2:  # noqa: PLR2004 - one host
        return Hosts(leaders, leaders)
    probe = store.directory / peers.share(f".tmp-probe-{os.urandom(4).hex()}{NOT_UPLOADED}".encode()).decode()
    if peers.rank == 0:
        store.directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
    peers.gather(b"")
    seen = peers.gather(b"%d" % probe.exists())
    if peers.rank == 0:
        probe.unlink()
    return Hosts(leaders, tuple(rank for rank in leaders if rank == 0 or seen[rank] == b"0"))


def publish(store: Checkpoints, step: int, made: Path, peers: Peers, hosts: Hosts, *, keep: bool) -> None:
    """Make what the ranks have written into a directory the checkpoint of a step; all ranks call this.

    Each host gets the files of all hosts: its own may be the only disk that a restarted job finds there.

    Args:
        store: Where checkpoints are published.
        step: How many steps are done.
        made: The directory, of the same name on every host.
        peers: The ranks.
        hosts: Who publishes.
        keep: Whether the directory stays.

    Raises:
        CheckpointError: It cannot be written on some host. On every rank.
    """
    told = peers.gather(msgspec.json.encode(_list(made) if peers.rank in hosts.leaders else {}))
    listed = [msgspec.json.decode(one, type=_Files) for one in told]
    for rank, files in enumerate(listed):
        check_names(rank, files)
    _complete(made, listed, peers, hosts)

    def write() -> None:
        if peers.rank in hosts.writers:
            with store.writing(step) as directory:
                _link(made, directory)
                if not keep:  # within the block: the store, which tidies up at its end, must not take it for a leftover
                    shutil.rmtree(made)

    peers.together(write)


def check_names(rank: int, files: Mapping[str, int]) -> None:
    """Refuse names of files that lead out of a checkpoint.

    Args:
        rank: Whose they are, for the message.
        files: What it has, and the sizes.

    Raises:
        CheckpointError: There is one.
    """
    outside = next((name for name in sorted(files) if not is_inside(name)), None)
    if outside is not None:
        raise CheckpointError(
            f"rank {rank} names {outside[:100]!r}, which is no path inside a checkpoint",
            hint="a process that is not of this job may have joined it",
        )


def _list(made: Path) -> _Files:
    return {path.relative_to(made).as_posix(): path.stat().st_size for path in _files(made)}


def _files(made: Path) -> Iterator[Path]:
    return (path for path in sorted(made.rglob("*")) if path.is_file())


def _complete(made: Path, listed: Sequence[_Files], peers: Peers, hosts: Hosts) -> None:
    """Send each file to the hosts that publish and lack it; all in one order, so that no two wait for each other."""
    for name in sorted(set().union(*listed)):
        source = next(rank for rank in hosts.leaders if name in listed[rank])
        for writer in hosts.writers:
            if name not in listed[writer]:
                if peers.rank == writer:
                    prepare(made, name)
                _send(made / name, listed[source][name], peers, source, writer)


def _send(path: Path, size: int, peers: Peers, source: int, writer: int) -> None:
    if peers.rank == source:
        with path.open("rb") as file:
            for start in range(0, size, MESSAGE_BYTES):
                content = file.read(min(MESSAGE_BYTES, size - start))
                peers.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), writer)
    elif peers.rank == writer:
        with path.open("xb") as file:  # what is not there yet: no link leads it elsewhere
            for start in range(0, size, MESSAGE_BYTES):
                message = torch.empty(min(MESSAGE_BYTES, size - start), dtype=torch.uint8)
                peers.receive(message, source)
                file.write(message.numpy().tobytes())


def prepare(made: Path, name: str) -> None:
    """Make the directories of a file that another host sends.

    Raises:
        CheckpointError: A link leads out of the directory, or something has the name.
    """
    path = made / name
    if path.parent.resolve() != (made.resolve() / name).parent or path.is_symlink() or path.exists():
        raise CheckpointError(f"{path} is there, or lies behind a link: no file of another host is written there")
    path.parent.mkdir(parents=True, exist_ok=True)


def _link(made: Path, directory: Path) -> None:
    """Give each file a second name, or copy it where that is on another file system."""
    for path in _files(made):
        target = directory / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)


class Scratch:
    """The directory that a library writes a checkpoint into, on the file system of the store."""

    def __init__(self, store: Checkpoints, step: int) -> None:
        # Named as what the store itself leaves behind after a kill, and removes with its next checkpoint.
        self.path = store.directory / f".tmp-step-{step:08d}-library{NOT_UPLOADED}"

    def make(self) -> None:
        """Make it, empty."""
        self.remove()
        self.path.mkdir(parents=True)

    def remove(self) -> None:
        """Remove it with what it holds."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)


class NewestOfAll:
    """Finds the newest checkpoint that every host has, before the ranks have a process group.

    The first rank of each host looks, and the ranks tell each other through the store of torch's rendezvous, the same
    that the process group meets at. Where nobody has told this process its place, it looks alone.
    """

    def __init__(self, store: Checkpoints, ranks: Ranks, *, seconds: float) -> None:
        self._checkpoints = store
        self._ranks = ranks
        self._timeout = timedelta(seconds=seconds)
        self._store: Store | None = None  # kept: without an agent rank 0 serves it, also while others still read

    def newest(self) -> Path | None:
        """Return its directory, or None if there is none; every rank calls this equally often."""
        if self._ranks.world_size == 1:
            found = self._checkpoints.latest()
            return None if found is None else found.path
        store, host = self._connect(), self._ranks.rank // self._ranks.local_world_size
        hosts = self._ranks.world_size // self._ranks.local_world_size
        call = f"trainbox/newest/{store.add(f'trainbox/newest/calls/{self._ranks.rank}', 1)}"
        if self._ranks.local_rank == 0:
            held = {one.step: one.path for one in self._valid()}
            store.set(f"{call}/held/{host}", msgspec.json.encode(list(held)).decode())
            told = [msgspec.json.decode(store.get(f"{call}/held/{other}"), type=list[int]) for other in range(hosts)]
            step = max(set(held).intersection(*told), default=None)
            self._say(step, told)
            store.set(f"{call}/path/{host}", "" if step is None else str(held[step]))
        path = store.get(f"{call}/path/{host}").decode()
        return Path(path) if path else None

    def _connect(self) -> Store:
        if self._store is None:
            met = rendezvous("env://", self._ranks.rank, self._ranks.world_size, timeout=self._timeout)
            self._store = next(iter(met))[0]
        return self._store

    def _valid(self) -> list[Checkpoint]:
        """All valid checkpoints of this host, of each step the last saved; one host needs but the newest."""
        if self._ranks.local_world_size == self._ranks.world_size:
            found = self._checkpoints.find().chosen
            return [] if found is None else [found]
        examined = (
            examine(path, keys=self._checkpoints.keys)
            for path in reversed(step_directories(self._checkpoints.directory))
        )
        return [found for found in examined if isinstance(found, Checkpoint)]

    def _say(self, step: int | None, told: Sequence[Sequence[int]]) -> None:
        if self._ranks.rank != 0:
            return
        newest = max((max(steps, default=0) for steps in told), default=0)
        if step is not None:
            say(f"resuming from step {step}")
        elif newest:
            say(f"the newest checkpoint is that of step {newest}, but not every host has one: starting fresh")
        else:
            say(f"no checkpoint in {self._checkpoints.directory}: starting fresh")
