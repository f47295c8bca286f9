"""The shard catalog: which host has which shards of sharded checkpoints, and fetching shards from other hosts.

    algo-1: algo-1/step-00000020, algo-1/step-00000010      after a restart in place a host has the shards of its own
    algo-2: algo-2/step-00000010                            ranks, and those that all hosts had in S3 at the job's start

A checkpoint is complete if the shard of each host that wrote it is valid on the disk of some host. A rank fetches what
its host lacks from a host that has it, in messages of bounded size, into unnamed files: they vanish with the process,
and none is written where SageMaker would upload it.
"""

import hashlib
import os
import tempfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec
import torch

from trainbox.checkpoint.manifest import (
    FileRecord,
    Keys,
    decode_info,
    is_inside,
    open_sealed,
    read_sealed,
    require_genuine,
)
from trainbox.checkpoint.store import Rejected, examine, step_directories
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit
from trainbox.torch.checkpoints.collectives import RankGroup, read_messages

#: Ranges with a smaller gap between them are fetched as one.
_GAP_BYTES = 64 << 10


class HostShard(msgspec.Struct, frozen=True):
    """What one host has written of a checkpoint, as found on a disk."""

    step: int
    #: The name of the save; of two saves of one step the later one has the greater name.
    save: str
    #: The host that has written it, and all hosts of the save.
    host: str
    hosts: tuple[str, ...]
    path: str
    files: dict[str, FileRecord]
    #: The content of its manifest file.
    sealed: bytes


class ShardedCheckpoint(msgspec.Struct, frozen=True):
    """A complete checkpoint, and where its files are."""

    step: int
    save: str
    #: The directories of valid shards: by the host that wrote the shard, by the host that has it.
    places: dict[str, dict[str, str]]
    #: By file name: the host that wrote it, and its record in the manifest.
    files: dict[str, tuple[str, FileRecord]]

    def place(self, name: str, host: str) -> Path | None:
        """Return the path of a file on a host; None if the host does not have it."""
        if name not in self.files:
            return None
        directory = self.places[self.files[name][0]].get(host)
        return None if directory is None else Path(directory) / name


class FileRange(msgspec.Struct, frozen=True, order=True):
    """A range of bytes of a file."""

    name: str
    offset: int
    size: int


class Transfer(msgspec.Struct, frozen=True):
    """The transfer of a range from one rank to another."""

    source: int
    target: int
    range: FileRange


# ---- planning ----


def list_saves(shown: Mapping[str, Sequence[HostShard]]) -> list[tuple[int, str]]:
    """Return step and name of all saves of which any host has a shard, newest first."""
    return sorted({(shard.step, shard.save) for shards in shown.values() for shard in shards}, reverse=True)


def assemble(shards: Mapping[str, Sequence[HostShard]]) -> ShardedCheckpoint | tuple[str, ...]:
    """Assemble the valid shards of one save; if shards are missing, return the hosts that wrote them."""
    everything = [shard for of_host in shards.values() for shard in of_host]
    places: dict[str, dict[str, str]] = {}
    for host, of_host in shards.items():
        for shard in of_host:
            places.setdefault(shard.host, {})[host] = shard.path
    first = everything[0]
    missing = tuple(host for host in first.hosts if host not in places)
    if missing:
        return missing
    files = {name: (shard.host, record) for shard in everything for name, record in shard.files.items()}
    return ShardedCheckpoint(first.step, first.save, places, files)


def merge_ranges(ranges: Collection[FileRange]) -> list[FileRange]:
    """Merge ranges that overlap or are close to each other."""
    merged: list[FileRange] = []
    for one in sorted(ranges):
        last = merged[-1] if merged else None
        if last is not None and last.name == one.name and one.offset <= last.offset + last.size + _GAP_BYTES:
            end = max(last.offset + last.size, one.offset + one.size)
            merged[-1] = FileRange(last.name, last.offset, end - last.offset)
        else:
            merged.append(one)
    return merged


def plan_transfers(
    wanted: Sequence[Sequence[FileRange]], checkpoint: ShardedCheckpoint, hosts: Sequence[str]
) -> list[Transfer]:
    """Plan transfers in an order that all ranks follow without a deadlock.

    Args:
        wanted: The ranges that each rank needs.
        checkpoint: The checkpoint.
        hosts: The host of each rank.
    """
    transfers = []
    for target, ranges in enumerate(wanted):
        for one in ranges:
            having = checkpoint.places[checkpoint.files[one.name][0]]
            sources = [rank for rank, host in enumerate(hosts) if host in having]
            transfers.append(Transfer(sources[target % len(sources)], target, one))
    # In rounds: in each round a rank sends to one other at most, and receives from one.
    return sorted(transfers, key=lambda one: ((one.target - one.source) % len(hosts), one.target))


# ---- execution ----


class ShardCatalog:
    """The shards on the disks of all hosts; the first rank of each host reads its disk.

    Args:
        root: The directory of the checkpoints, the same path on every host.
        peers: All ranks.
        hosts: The host of each rank.
        keys: A checkpoint must be sealed with one of them.
    """

    def __init__(self, root: Path, peers: RankGroup, hosts: Sequence[str], keys: Keys = ()) -> None:
        self.host = hosts[peers.rank]
        self.peers = peers
        self.hosts = hosts
        self.leads = hosts.index(self.host) == peers.rank
        self._root = root
        self._keys = keys

    def newest(self, otherwise: str) -> ShardedCheckpoint | None:
        """Return the newest complete checkpoint; all ranks call it. Newer ones that cannot be used are logged.

        Args:
            otherwise: What the log says happens if there is none.

        Raises:
            CheckpointError: On every rank: the directory of a host cannot be read.
            NotGenuineError: On every rank: a shard is sealed with none of the keys.
        """
        mine = self.peers.run_together(lambda: _find_shards(self._root) if self.leads else [])
        shown = self._gather(mine)
        newest_first = list_saves(shown)
        for save in newest_first:
            valid = self._gather([shard for shard in mine if (shard.step, shard.save) == save and _is_valid(shard)])
            named = next(shard for shards in shown.values() for shard in shards if (shard.step, shard.save) == save)
            found = assemble(valid) if any(valid.values()) else named.hosts
            if isinstance(found, ShardedCheckpoint):
                for shard in (shard for shards in valid.values() for shard in shards):
                    require_genuine(Path(shard.path), shard.sealed, self._keys)  # also those of other hosts
                return found
            self.peers.log(
                f"rejected the checkpoint of step {save[0]}: no host has a valid shard of {', '.join(found)}"
            )
        rejected = f" ({len(newest_first)} rejected)" if newest_first else ""
        self.peers.log(f"no {'valid ' if rejected else ''}checkpoint in {self._root}{rejected}: {otherwise}")
        return None

    def _gather(self, mine: Sequence[HostShard]) -> dict[str, tuple[HostShard, ...]]:
        """Gather the shards that the first rank of each host has; from their manifests, not from what a rank claims."""
        gathered = self.peers.all_gather(msgspec.msgpack.encode([(shard.path, shard.sealed) for shard in mine]))
        texts = {
            host: msgspec.msgpack.decode(gathered[self.hosts.index(host)], type=list[tuple[str, bytes]])
            for host in self.hosts
        }
        return {host: tuple(filter(None, (_read_shard(*one) for one in texts[host]))) for host in texts}


def _find_shards(root: Path) -> list[HostShard]:
    """List the shards on a disk; log what is rejected."""
    found = []
    for path in [path for directory in _directories(root) for path in step_directories(directory)]:
        verdict = examine(path, digests=False)
        shard = None if isinstance(verdict, Rejected) else _read_shard(str(path), read_sealed(path))
        if shard is not None:
            found.append(shard)
            continue
        reason = verdict.reason if isinstance(verdict, Rejected) else "not a checkpoint of a sharded training"
        emit(f"rejected the checkpoint {path}: {reason}")
    return found


def _read_shard(path: str, sealed: bytes) -> HostShard | None:
    """Read a shard from its manifest; None for another kind of checkpoint."""
    manifest = open_sealed(sealed)
    match decode_info(manifest.info):
        case {"save": str(save), "host": str(host), "hosts": [*hosts]} if all(map(is_inside, manifest.files)):
            return HostShard(manifest.step, save, host, tuple(map(str, hosts)), path, manifest.files, sealed)
    return None


def _is_valid(shard: HostShard) -> bool:
    verdict = examine(Path(shard.path))
    if isinstance(verdict, Rejected):
        emit(f"rejected the checkpoint {shard.path}: {verdict.reason}")
    return not isinstance(verdict, Rejected)


def _directories(root: Path) -> list[Path]:
    """List the directories with checkpoints: the directory itself, and one for each host."""
    if not root.is_dir():
        return []
    inside = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "step-"))]
    return [root, *inside]


class ShardFetcher:
    """Fetches files of a checkpoint from other hosts; they vanish when it is closed, or the process ends."""

    def __init__(self, catalog: ShardCatalog, checkpoint: ShardedCheckpoint) -> None:
        self._catalog = catalog
        self._checkpoint = checkpoint
        self._files: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()
        self.bytes = 0

    def locate(self, name: str) -> Path:
        """Return a path to read a file from: on the disk of this host, or fetched."""
        if name in self._files:
            # Opening this path makes another open file: two readers have two positions.
            return Path(f"/proc/self/fd/{self._files[name].fileno()}")
        path = self._checkpoint.place(name, self._catalog.host)
        return path if path is not None else Path(name)

    def fetch_files(self, names: Collection[str]) -> None:
        """Fetch whole files that this host lacks, and verify their digests; all ranks call it.

        Raises:
            CheckpointError: On every rank: as `fetch`, or the checkpoint has no such file.
        """
        missing = [name for name in names if name not in self._checkpoint.files]
        self._catalog.peers.run_together(
            lambda: _raise_first([CheckpointError(f"the checkpoint has no file {name}") for name in missing])
        )
        self.fetch([FileRange(name, 0, self._checkpoint.files[name][1].size) for name in names])
        self._catalog.peers.run_together(lambda: self._verify(names))

    def fetch(self, ranges: Collection[FileRange]) -> None:
        """Fetch the ranges that this host lacks; all ranks call it, each with its own ranges.

        Raises:
            CheckpointError: On every rank: a rank could not read, send or store a range.
        """
        wanted = merge_ranges([one for one in ranges if self._checkpoint.place(one.name, self._catalog.host) is None])
        peers = self._catalog.peers
        gathered = peers.all_gather(msgspec.msgpack.encode(wanted))
        everything = [msgspec.msgpack.decode(of_rank, type=list[FileRange]) for of_rank in gathered]
        failures: list[CheckpointError] = []
        for transfer in plan_transfers(everything, self._checkpoint, self._catalog.hosts):
            if transfer.source == peers.rank:
                self._send(transfer)
            elif transfer.target == peers.rank:
                failures += self._receive(transfer)
        peers.run_together(lambda: _raise_first(failures))

    def _verify(self, names: Collection[str]) -> None:
        for name in self._files.keys() & names:
            with self.locate(name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self._checkpoint.files[name][1].sha256:
                    raise CheckpointError(f"the digest of {name} has changed on its way to host {self._catalog.host}")

    def close(self) -> None:
        """Delete the fetched files."""
        self._stack.close()
        self._files.clear()

    def _send(self, transfer: Transfer) -> None:
        """Send a range: before each message its length and checksum, or a length of -1 if it cannot be read."""
        peers, target = self._catalog.peers, transfer.target
        try:
            for content in read_messages(self.locate(transfer.range.name), transfer.range.offset, transfer.range.size):
                peers.send(torch.tensor([len(content), zlib.crc32(content)]), target)
                peers.send(torch.frombuffer(content, dtype=torch.uint8), target)
        except OSError as error:
            emit(f"cannot send {transfer.range.name} to rank {target}: {error}")
            peers.send(torch.tensor([-1, 0]), target)

    def _receive(self, transfer: Transfer) -> list[CheckpointError]:
        """Receive all messages of a range, also after a failure; return the failures."""
        peers, name, host = self._catalog.peers, transfer.range.name, self._catalog.host
        offset, end = transfer.range.offset, transfer.range.offset + transfer.range.size
        header = torch.zeros(2, dtype=torch.int64)
        failures: list[CheckpointError] = []
        while offset < end:
            peers.recv(header, transfer.source)
            size, checksum = header.tolist()
            if size < 0:
                source = self._catalog.hosts[transfer.source]
                return [*failures, CheckpointError(f"host {source} can no longer read {name}, which host {host} lacks")]
            content = torch.empty(size, dtype=torch.uint8)
            peers.recv(content, transfer.source)
            memory = content.numpy().data
            if zlib.crc32(memory) != checksum:
                failures.append(CheckpointError(f"the checksum of {name} has changed on its way to host {host}"))
            try:
                self._keep(name, offset, memory)
            except OSError as error:
                failures.append(
                    CheckpointError(
                        f"cannot store {name}, which host {host} lacks, in {tempfile.gettempdir()}: {error.strerror}",
                        hint="set TMPDIR to a directory with more space",
                    )
                )
            offset += size
        self.bytes += transfer.range.size
        return failures

    def _keep(self, name: str, offset: int, content: memoryview) -> None:
        if name not in self._files:
            self._files[name] = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - `close` does
        done = 0
        while done < len(content):
            done += os.pwrite(self._files[name].fileno(), content[done:], offset + done)


def _raise_first(failures: Sequence[CheckpointError]) -> None:
    for failure in failures:
        raise failure
