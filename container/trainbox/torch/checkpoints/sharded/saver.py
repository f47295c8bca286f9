"""The saver of a training with a sharded state (FSDP2): DCP writes the shards, under manifests of ours.

    step-00000020/           one host: all its ranks write here, the manifest comes last
    algo-2/step-00000020/    several hosts: each writes to a directory of its own

`torch.distributed.checkpoint` (DCP) reshards the state when the number of ranks has changed, and has no digests: it
loads an older file of the same name without an error. So each host seals what its ranks have written, and a checkpoint
is used only if the shards of all hosts are present on any disk, valid, and from the same save (`shard_catalog`). DCP's
pickles are read as data (`dcp`, `dcp_index`): one that asks for code ends the job on every rank, and no older
checkpoint takes its place. A step waits until everything is on disk.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import trainbox
from trainbox.checkpoint.manifest import NotGenuineError
from trainbox.checkpoint.store import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.codec import CODEC, encode, flat
from trainbox.torch.checkpoints.collectives import RankGroup
from trainbox.torch.checkpoints.parts import FROZEN, Stateful, kind_of, plain, without_frozen
from trainbox.torch.checkpoints.replicas import Replicas
from trainbox.torch.checkpoints.run_info import ALONE, RunInfo, SaveSchedule
from trainbox.torch.checkpoints.sharded.catalog import ShardCatalog, ShardedCheckpoint
from trainbox.torch.checkpoints.sharded.dcp import DcpReader, DcpWriter
from trainbox.torch.checkpoints.sharded.dcp_index import METADATA, read_index
from trainbox.torch.checkpoints.sharded.fetch import ShardFetcher
from trainbox.torch.checkpoints.state_manifest import (
    GENERATORS,
    NO_EARLIER,
    UnreadableError,
    check_manifest,
    decode_manifest,
    encode_manifest,
    read_part,
)
from trainbox.torch.checkpoints.writer import STATE, shard_name


class ShardedSaver:
    """Like `saver.Saver`, for one model whose parameters are DTensors, and its optimizer.

    Args:
        store: The directory, the same path on every host; other checkpoints in it are not touched.
        model: The model that `fully_shard` was applied to.
        optimizer: The optimizer of its parameters.
        parts: The parts that are whole on every rank; rank 0 writes them.
        run: The training.
    """

    def __init__(
        self,
        store: Checkpoints,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        parts: Mapping[str, object],
        run: RunInfo = ALONE,
    ) -> None:
        self.schedule = SaveSchedule(run.interval_seconds)
        self._model = model
        self._optimizer = optimizer
        self._parts = {name: plain(part) for name, part in parts.items()}
        self._kinds = {name: kind_of(part) for name, part in self._parts.items()}
        self._kinds |= {"model": kind_of(model), "optimizer": kind_of(optimizer)}
        self._run = run
        self._trainable_only = FROZEN in run.identity
        self._peers = RankGroup(run.rank, run.world_size, run.group)
        self._replicas = Replicas(self._parts, self._peers)
        self._hosts = [name.decode() for name in self._peers.all_gather(run.host.encode())]
        self._catalog = ShardCatalog(store.directory, self._peers, self._hosts, store.keys)
        self._store = store.below(run.host) if len(set(self._hosts)) > 1 else store

    def resume(self) -> int:
        """Load the newest complete checkpoint, from the disks of all hosts; all ranks call it.

        Returns:
            Its step; 0 if there is none.

        Raises:
            CheckpointError: On every rank: it belongs to another training, is not genuine or asks for code, or neither
                it nor an earlier one can be read.
        """
        found = self._catalog.newest("starting fresh")
        tried: list[str] = []
        while found is not None:
            tried.append(found.save)
            fetcher = ShardFetcher(self._catalog, found)
            try:
                return self._resume_from(found, fetcher)
            except UnreadableError as error:
                self._peers.log(f"{error.message}: looking for another checkpoint")
                found = self._catalog.newest("giving up")
                if found is None:
                    raise CheckpointError(error.message, hint=NO_EARLIER) from error
                if found.save in tried:  # it is valid
                    raise
            finally:
                fetcher.close()
        return 0

    def _resume_from(self, found: ShardedCheckpoint, fetcher: ShardFetcher) -> int:
        """Load the states of all parts and generators; after a failure midway, another checkpoint loads all of them."""
        locate, is_first = fetcher.locate, self._peers.rank == 0
        try:
            fetcher.fetch_files([METADATA, *((STATE, shard_name(0)) if is_first else ())])
            text = self._peers.run_together(lambda: _read(locate(STATE)) if is_first else b"")
        except CheckpointError as error:
            raise UnreadableError(error.message, hint=error.hint) from error
        manifest = decode_manifest(self._peers.broadcast(text))
        self._peers.run_together(lambda: check_manifest(manifest, self._kinds, {}, self._run.identity))
        self._peers.run_together(lambda: self._replicas.check(manifest))
        state = self._sharded()
        self._fill(state, found, fetcher)
        set_model_state_dict(self._model, state["model"], options=StateDictOptions(strict=not self._trainable_only))
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"])

        def read(name: str) -> Any:  # noqa: ANN401 - any state
            return read_part(manifest.parts[name], manifest.shard_bytes, locate, self._peers)

        self._kinds |= self._replicas.load_all(manifest, read)
        states = read(GENERATORS)
        rng_state.resume(states, self._peers.rank, self._peers.size, (self._run.seed, found.step))
        self.schedule.saved(0.0)
        self._peers.log(f"resuming from step {found.step} (the shards of {', '.join(found.places)})")
        if fetcher.bytes:
            emit(f"rank {self._peers.rank} has fetched {fetcher.bytes:,} bytes of it from other hosts")
        return found.step

    def _fill(self, state: dict[str, Any], found: ShardedCheckpoint, fetcher: ShardFetcher) -> None:
        """Load the shard of this rank of the model and the optimizer."""

        def plan() -> DcpReader:
            sizes = {name: record.size for name, (_, record) in found.files.items()}
            return DcpReader(state, read_index(fetcher.locate(METADATA), sizes), is_first=self._peers.rank == 0)

        try:
            load = self._peers.run_together(plan)
            fetcher.fetch(load.ranges)
            self._peers.run_together(lambda: load.read(fetcher.locate))
        except NotGenuineError:
            raise
        except CheckpointError as error:
            raise UnreadableError(
                f"the checkpoint of step {found.step} cannot be loaded into the model: {error.message}",
                hint="resume with the script that wrote it, or start fresh in another directory",
            ) from error

    @property
    def parts(self) -> Mapping[str, object]:
        """The parts that are saved, by name."""
        return self._parts

    def adopt(self, number: int, loader: Stateful) -> None:
        """Save the position of a loader as well from now on; all ranks call it."""
        self._kinds[self._replicas.adopt(number, loader)] = kind_of(loader)

    def due(self) -> bool:
        """Whether a checkpoint is due, on rank 0; False on the others."""
        return self._peers.rank == 0 and self.schedule.due()

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state as that of `step`; all ranks call it at the same step, and it is durable when it returns.

        Raises:
            CheckpointError: With `wait`, it could not be written. Otherwise that is logged, and the training continues.
        """
        began = time.monotonic()
        gathered = self._replicas.gather()
        # The later of two saves of one step has the greater name.
        name = self._peers.broadcast(f"{time.time_ns():020d}-{os.urandom(4).hex()}".encode()).decode()
        info = {
            "trainbox": trainbox.__version__,
            "codec": CODEC,
            "world_size": self._peers.size,
            "save": name,
            "host": self._run.host,
            "hosts": sorted(set(self._hosts)),
        }
        stack = ExitStack()
        opened: list[Path] = []
        failure = self._run_together(lambda: self._open(step, info, stack, opened))
        aside = Path(os.fsdecode(self._from_leader(os.fsencode(opened[0]) if opened else b"")))
        failure = failure or self._run_together(lambda: self._write_whole(aside, gathered))
        failure = failure or self._write_shards(aside)
        if failure:
            stack.__exit__(type(failure), failure, None)  # removes what was opened
        else:
            failure = self._run_together(stack.close)
        self.schedule.saved(time.monotonic() - began)
        if not failure:
            return
        if wait:
            raise failure
        self._peers.log(f"{failure}; the training goes on, earlier checkpoints stay")

    def close(self, _seconds: float = 0.0) -> None:
        """Do nothing: no checkpoint is being written."""

    def _run_together(self, act: Callable[[], object]) -> CheckpointError | None:
        """Run what may fail on one rank; return, on all ranks, the failure of the first such rank, or None."""

        def attempt() -> None:
            try:
                act()
            except OSError as error:
                raise CheckpointError(f"the checkpoint cannot be written: {error}") from error

        try:
            self._peers.run_together(attempt)
        except CheckpointError as error:
            return error
        return None

    def _from_leader(self, content: bytes) -> bytes:
        """Return the content of the first rank of this host."""
        return self._peers.all_gather(content)[self._hosts.index(self._hosts[self._peers.rank])]

    def _open(self, step: int, info: Mapping[str, object], stack: ExitStack, opened: list[Path]) -> None:
        if self._catalog.leads:
            opened.append(stack.enter_context(self._store.writing(step, info=info)))

    def _sharded(self) -> dict[str, Any]:
        model = get_model_state_dict(self._model)
        return {
            "model": without_frozen(self._model, model) if self._trainable_only else model,
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
        }

    def _write_shards(self, aside: Path) -> CheckpointError | None:
        """Write the shards of the model and the optimizer; all ranks call it."""
        try:
            DcpWriter(self._sharded(), aside, self._peers).write()
        except CheckpointError as error:
            return CheckpointError(f"the checkpoint cannot be written: {error.message}", hint=error.hint)
        return None

    def _write_whole(self, aside: Path, gathered: Mapping[str, Sequence[bytes]]) -> None:
        """On rank 0, write the parts that are not sharded, and the generators of all ranks."""
        if self._peers.rank != 0:
            return
        encoded = self._replicas.encode(gathered)
        encoded |= {name: encode(None, name) for name in ("model", "optimizer")}
        kinds = {**self._kinds, GENERATORS: "list"}
        text = encode_manifest(
            kinds,
            encoded,
            world_size=self._peers.size,
            shard_bytes=max(1, encoded[GENERATORS].end),  # all in one file
            identity=self._run.identity,
            per_rank=tuple(name for name in self._parts if name in gathered),
        )
        (aside / STATE).write_bytes(text)
        with (aside / shard_name(0)).open("wb") as file:
            for state in encoded.values():
                for tensor, entry in zip(state.tensors, state.table, strict=True):
                    file.seek(entry.offset)
                    file.write(flat(tensor.cpu().contiguous()).numpy().data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path.parent} can no longer be read: {error}") from error
