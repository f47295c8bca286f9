"""Fetch the shards of a checkpoint that other hosts have.

They arrive in messages of bounded size, in unnamed files: these vanish with the process, and none is written where
SageMaker would upload it.
"""

import hashlib
import os
import tempfile
import zlib
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec
import torch

from trainbox.errors import CheckpointError
from trainbox.log_lines import emit
from trainbox.torch.checkpoints.collectives import read_messages
from trainbox.torch.checkpoints.sharded.catalog import (
    FileRange,
    ShardCatalog,
    ShardedCheckpoint,
    Transfer,
    merge_ranges,
    plan_transfers,
)


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
