"""The shard catalog: which host has which shards of sharded checkpoints, and which ranges a host has to fetch.

    algo-1: algo-1/step-00000020, algo-1/step-00000010      after a restart in place a host has the shards of its own
    algo-2: algo-2/step-00000010                            ranks, and those that all hosts had in S3 at the job's start

A checkpoint is complete if the shard of each host that wrote it is valid on the disk of some host. A rank fetches what
its host lacks from a host that has it.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

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
from trainbox.log_lines import emit
from trainbox.torch.checkpoints.collectives import RankGroup

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
