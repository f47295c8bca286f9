"""What the hosts of a job have of the checkpoints of a sharded training, each on a disk of its own, put together.

    algo-1: algo-1/step-00000020, algo-1/step-00000010      a host that restarts in place sees what its ranks have
    algo-2: algo-2/step-00000010                            written, and from S3 what all had when the job started

A checkpoint counts if the piece of each host that wrote it is valid on the disk of some host. What a rank needs of it
and its host lacks comes from a host that has it, in messages of bounded size, into files without a name: whatever ends
the process, nothing of them stays, and nothing is written where SageMaker would upload it.
"""

import errno
import hashlib
import os
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec
import torch

from trainbox.checkpointing import Rejected, examine, step_directories
from trainbox.errors import CheckpointError
from trainbox.manifest import FileRecord, Keys, decode_info, is_inside, open_sealed, read_sealed, require_genuine
from trainbox.say import say
from trainbox.torch.checkpoints.collectives import MESSAGE_BYTES, Peers

#: Ranges that are closer to each other than this are fetched as one.
_GAP_BYTES = 64 << 10


class Piece(msgspec.Struct, frozen=True):
    """What one host has written of a checkpoint, as a disk shows it."""

    step: int
    #: The name of the save: the later of two saves of one step has the greater one.
    save: str
    #: Who has written it, and all who have written a piece.
    host: str
    hosts: tuple[str, ...]
    path: str
    files: dict[str, FileRecord]
    #: The file of its manifest, as it is.
    sealed: bytes


class Whole(msgspec.Struct, frozen=True):
    """A checkpoint whose pieces are all there: where each of its files is."""

    step: int
    save: str
    #: The directories in which a host has a valid piece, by the host that wrote the piece, by the host that has it.
    places: dict[str, dict[str, str]]
    #: The host that has written a file, and what its manifest says of it.
    files: dict[str, tuple[str, FileRecord]]

    def place(self, name: str, host: str) -> Path | None:
        """Where a host has a file; None if it lacks it, or there is no such file."""
        if name not in self.files:
            return None
        directory = self.places[self.files[name][0]].get(host)
        return None if directory is None else Path(directory) / name


class Range(msgspec.Struct, frozen=True, order=True):
    """Some bytes of a file."""

    name: str
    offset: int
    size: int


class Transfer(msgspec.Struct, frozen=True):
    """A range on its way from one rank to another."""

    source: int
    target: int
    range: Range


# ---- what is decided ----


def saves(shown: Mapping[str, Sequence[Piece]]) -> list[tuple[int, str]]:
    """Step and name of all saves of which any host has a piece, newest first."""
    return sorted({(piece.step, piece.save) for pieces in shown.values() for piece in pieces}, reverse=True)


def put_together(pieces: Mapping[str, Sequence[Piece]]) -> Whole | tuple[str, ...]:
    """One save of the valid pieces of each host; or the hosts whose piece nobody has."""
    everything = [piece for of_host in pieces.values() for piece in of_host]
    places: dict[str, dict[str, str]] = {}
    for host, of_host in pieces.items():
        for piece in of_host:
            places.setdefault(piece.host, {})[host] = piece.path
    first = everything[0]
    missing = tuple(host for host in first.hosts if host not in places)
    if missing:
        return missing
    files = {name: (piece.host, record) for piece in everything for name, record in piece.files.items()}
    return Whole(first.step, first.save, places, files)


def merge(ranges: Collection[Range]) -> list[Range]:
    """The same bytes in fewer ranges, and some between them."""
    merged: list[Range] = []
    for one in sorted(ranges):
        last = merged[-1] if merged else None
        if last is not None and last.name == one.name and one.offset <= last.offset + last.size + _GAP_BYTES:
            end = max(last.offset + last.size, one.offset + one.size)
            merged[-1] = Range(last.name, last.offset, end - last.offset)
        else:
            merged.append(one)
    return merged


def schedule(wanted: Sequence[Sequence[Range]], whole: Whole, hosts: Sequence[str]) -> list[Transfer]:
    """Who sends what to whom, in an order in which everybody does its share without a deadlock.

    Args:
        wanted: By rank.
        whole: The checkpoint.
        hosts: The host of each rank.
    """
    transfers = []
    for target, ranges in enumerate(wanted):
        for one in ranges:
            having = whole.places[whole.files[one.name][0]]
            sources = [rank for rank, host in enumerate(hosts) if host in having]
            transfers.append(Transfer(sources[target % len(sources)], target, one))
    # In rounds: in each, every rank has at most one other to send to and one to receive from.
    return sorted(transfers, key=lambda one: ((one.target - one.source) % len(hosts), one.target))


# ---- what is done ----


class Pool:
    """The checkpoints of all hosts as one rank sees them; of each host one rank, the first, looks at its disk.

    Args:
        root: Where they are, the same path on every host.
        peers: All ranks.
        hosts: The host of each rank.
        keys: One of them must have sealed what is used.
    """

    def __init__(self, root: Path, peers: Peers, hosts: Sequence[str], keys: Keys = ()) -> None:
        self.host = hosts[peers.rank]
        self.peers = peers
        self.hosts = hosts
        self.leads = hosts.index(self.host) == peers.rank
        self._root = root
        self._keys = keys

    def newest(self, otherwise: str) -> Whole | None:
        """The newest checkpoint of which every piece is valid on some host; all ranks call it.

        What is newer and cannot be used is said.

        Args:
            otherwise: What is said to happen if there is none.

        Raises:
            CheckpointError: The directory of a host cannot be read. On every rank.
            NotGenuineError: A piece of it is sealed with none of the keys. On every rank.
        """
        mine = self.peers.together(lambda: _pieces(self._root) if self.leads else [])
        shown = self._gather(mine)
        newest_first = saves(shown)
        for save in newest_first:
            valid = self._gather([piece for piece in mine if (piece.step, piece.save) == save and _is_valid(piece)])
            named = next(piece for pieces in shown.values() for piece in pieces if (piece.step, piece.save) == save)
            found = put_together(valid) if any(valid.values()) else named.hosts
            if isinstance(found, Whole):
                for piece in (piece for pieces in valid.values() for piece in pieces):
                    require_genuine(Path(piece.path), piece.sealed, self._keys)  # also those of other hosts
                return found
            self._say(f"rejected the checkpoint of step {save[0]}: no host has a valid part of {', '.join(found)}")
        rejected = f" ({len(newest_first)} rejected)" if newest_first else ""
        self._say(f"no {'valid ' if rejected else ''}checkpoint in {self._root}{rejected}: {otherwise}")
        return None

    def _gather(self, mine: Sequence[Piece]) -> dict[str, tuple[Piece, ...]]:
        """What the first rank of each host has, by host; of another host's rank only its manifests count."""
        told = self.peers.gather(msgspec.msgpack.encode([(piece.path, piece.sealed) for piece in mine]))
        texts = {
            host: msgspec.msgpack.decode(told[self.hosts.index(host)], type=list[tuple[str, bytes]])
            for host in self.hosts
        }
        return {host: tuple(filter(None, (_piece(*one) for one in texts[host]))) for host in texts}

    def _say(self, text: str) -> None:
        if self.peers.rank == 0:
            say(text)


def _pieces(root: Path) -> list[Piece]:
    """What a disk shows; says what is none."""
    found = []
    for path in [path for directory in _directories(root) for path in step_directories(directory)]:
        verdict = examine(path, digests=False)
        piece = None if isinstance(verdict, Rejected) else _piece(str(path), read_sealed(path))
        if piece is not None:
            found.append(piece)
            continue
        reason = verdict.reason if isinstance(verdict, Rejected) else "it is not one of a sharded training"
        say(f"rejected the checkpoint {path}: {reason}")
    return found


def _piece(path: str, sealed: bytes) -> Piece | None:
    """What a manifest says of a piece, or None where it is that of something else."""
    manifest = open_sealed(sealed)
    match decode_info(manifest.info):
        case {"save": str(save), "host": str(host), "hosts": [*hosts]} if all(map(is_inside, manifest.files)):
            return Piece(manifest.step, save, host, tuple(map(str, hosts)), path, manifest.files, sealed)
    return None


def _is_valid(piece: Piece) -> bool:
    verdict = examine(Path(piece.path))
    if isinstance(verdict, Rejected):
        say(f"rejected the checkpoint {piece.path}: {verdict.reason}")
    return not isinstance(verdict, Rejected)


def _directories(root: Path) -> list[Path]:
    """Where checkpoints may lie: the directory itself, and one for each host."""
    if not root.is_dir():
        return []
    inside = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "step-"))]
    return [root, *inside]


class Borrowed:
    """What this rank has fetched of a checkpoint from other hosts; gone when it is closed, or the process ends."""

    def __init__(self, pool: Pool, whole: Whole) -> None:
        self._pool = pool
        self._whole = whole
        self._files: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()
        self.bytes = 0

    def locate(self, name: str) -> Path:
        """Where a file can be read: on the disk of this host, or what has been fetched of it."""
        if name in self._files:
            # Opened by this path a file without a name is another open file: two readers have two positions.
            return Path(f"/proc/self/fd/{self._files[name].fileno()}")
        path = self._whole.place(name, self._pool.host)
        return path if path is not None else Path(name)

    def fetch_files(self, names: Collection[str]) -> None:
        """Bring whole files here if this host lacks them, and verify them once more; all ranks call it.

        Raises:
            CheckpointError: As `fetch`, or the checkpoint has no such file. On every rank.
        """
        missing = [name for name in names if name not in self._whole.files]
        self._pool.peers.together(
            lambda: _raise_first([CheckpointError(f"the checkpoint has no file {name}") for name in missing])
        )
        self.fetch([Range(name, 0, self._whole.files[name][1].size) for name in names])
        self._pool.peers.together(lambda: self._verify(names))

    def fetch(self, ranges: Collection[Range]) -> None:
        """Bring those ranges here that this host lacks; all ranks call it, each with what it needs itself.

        Raises:
            CheckpointError: A rank could not read or keep what one of them needs. On every rank.
        """
        wanted = merge([one for one in ranges if self._whole.place(one.name, self._pool.host) is None])
        peers = self._pool.peers
        told = peers.gather(msgspec.msgpack.encode(wanted))
        everything = [msgspec.msgpack.decode(of_rank, type=list[Range]) for of_rank in told]
        failures: list[CheckpointError] = []
        for transfer in schedule(everything, self._whole, self._pool.hosts):
            if transfer.source == peers.rank:
                self._send(transfer)
            elif transfer.target == peers.rank:
                failures += self._receive(transfer)
        peers.together(lambda: _raise_first(failures))

    def _verify(self, names: Collection[str]) -> None:
        for name in self._files.keys() & names:
            with self.locate(name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self._whole.files[name][1].sha256:
                    raise CheckpointError(f"{name} came to host {self._pool.host} with another digest")

    def close(self) -> None:
        """Give the space back."""
        self._stack.close()
        self._files.clear()

    def _send(self, transfer: Transfer) -> None:
        """A header of length and checksum before each message; a length of -1 says that it cannot be read."""
        peers, target = self._pool.peers, transfer.target
        try:
            for content in _messages(self.locate(transfer.range.name), transfer.range):
                peers.send(torch.tensor([len(content), zlib.crc32(content)]), target)
                peers.send(torch.frombuffer(content, dtype=torch.uint8), target)
        except OSError as error:
            say(f"rank {target} cannot have {transfer.range.name}: {error}")
            peers.send(torch.tensor([-1, 0]), target)

    def _receive(self, transfer: Transfer) -> list[CheckpointError]:
        """Take all that is sent, whatever becomes of it; gives what went wrong."""
        peers, name, host = self._pool.peers, transfer.range.name, self._pool.host
        offset, end = transfer.range.offset, transfer.range.offset + transfer.range.size
        header = torch.zeros(2, dtype=torch.int64)
        failures: list[CheckpointError] = []
        while offset < end:
            peers.receive(header, transfer.source)
            size, checksum = header.tolist()
            if size < 0:
                source = self._pool.hosts[transfer.source]
                return [*failures, CheckpointError(f"host {source} can no longer read {name}, which host {host} lacks")]
            content = torch.empty(size, dtype=torch.uint8)
            peers.receive(content, transfer.source)
            memory = content.numpy().data
            if zlib.crc32(memory) != checksum:
                failures.append(CheckpointError(f"{name} came to host {host} with another checksum"))
            try:
                self._keep(name, offset, memory)
            except OSError as error:
                failures.append(
                    CheckpointError(
                        f"{name}, which host {host} lacks, cannot be kept in {tempfile.gettempdir()}: {error.strerror}",
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


def _messages(path: Path, one: Range) -> Iterator[memoryview]:
    """A range of a file, cut.

    Raises:
        OSError: It cannot be read, or is too short.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(one.offset)
        left = one.size
        while left:
            content = memoryview(bytearray(min(left, MESSAGE_BYTES)))
            count = file.readinto(content)
            if not count:
                raise OSError(errno.EIO, "it is too short", str(path))
            left -= count
            yield content[:count]


def _raise_first(failures: Sequence[CheckpointError]) -> None:
    for failure in failures:
        raise failure
