"""The saver of a training whose whole state is on every rank: rank 0 reads and writes, and broadcasts what it reads.

    saver = Saver(store, {"model": model, "optimizer": optimizer, "progress": progress}, RunInfo(rank, world_size))
    step = saver.resume()
    ...
        if agreed(saver.due()):
            saver.save(step)        # by all ranks, at the same step
    saver.save(step, wait=True)
    saver.close()

A step waits only while the state is copied into memory that is already allocated; another process does the rest
(`writer`). Ranks resume from the same checkpoint because only rank 0 looks for it. `sharded.ShardedSaver` saves a
sharded state.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch.distributed.tensor import DTensor

import trainbox
from trainbox.checkpoint.store import Checkpoint, Checkpoints, Rejected, examine
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.codec import CODEC, encode
from trainbox.torch.checkpoints.collectives import RankGroup
from trainbox.torch.checkpoints.parts import FROZEN, Stateful, Trainable, is_partly_frozen, kind_of, plain, state_of
from trainbox.torch.checkpoints.replicas import Replicas
from trainbox.torch.checkpoints.run_info import ALONE, RunInfo, SavedCheckpoint, SaveSchedule
from trainbox.torch.checkpoints.snapshot import SnapshotBuffer, make_buffer
from trainbox.torch.checkpoints.state_manifest import (
    GENERATORS,
    NO_EARLIER,
    StateManifest,
    UnreadableError,
    check_manifest,
    decode_manifest,
    encode_manifest,
    read_part,
)
from trainbox.torch.checkpoints.writer import SHARD_BYTES, STATE, WriterClient, WriteReply, WriteRequest, is_idle

if TYPE_CHECKING:
    from trainbox.torch.checkpoints.sharded.saver import ShardedSaver

#: The manifest grows by some digits from save to save.
_SLACK = 1 << 20


def choose_saver(store: Checkpoints, parts: Mapping[str, object], run: RunInfo) -> "Saver | ShardedSaver":
    """Choose the saver of some parts: `ShardedSaver` if a model is sharded over the ranks, else `Saver`.

    Raises:
        CheckpointError: Sharded parts are not one model and its optimizer.
    """
    only = FROZEN in run.identity
    sharded = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module) and _is_sharded(part)}
    if not sharded:
        return Saver(store, {name: _trainable(part) if only else part for name, part in parts.items()}, run)
    optimizers = {name: part for name, part in parts.items() if isinstance(part, torch.optim.Optimizer)}
    if len(sharded) != 1 or len(optimizers) != 1:
        raise CheckpointError(
            f"cannot save {len(sharded)} sharded models with {len(optimizers)} optimizers",
            hint="with sharded=True give resume() one model and its one optimizer; other parts are whole on every rank",
        )
    from trainbox.torch.checkpoints.sharded.saver import ShardedSaver  # noqa: PLC0415 - DCP takes half a second to import

    (model,), (optimizer,) = sharded.values(), optimizers.values()
    whole = {name: part for name, part in parts.items() if name not in sharded and name not in optimizers}
    whole = {name: _trainable(part) if only else part for name, part in whole.items()}
    return ShardedSaver(store, model, optimizer, whole, run)


def _trainable(part: object) -> object:
    """Return a part without frozen parameters; a model that is not trained at all stays whole, as an average is."""
    inner = plain(part)
    return Trainable(inner) if isinstance(inner, torch.nn.Module) and is_partly_frozen(inner) else part


def _is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


class _Found(msgspec.Struct, frozen=True):
    """A valid checkpoint: its directory on rank 0, and its manifest."""

    step: int
    path: str
    text: bytes


class _Started(msgspec.Struct, frozen=True):
    """A checkpoint that is being written."""

    began: float
    size: int
    stall: float


class Saver:
    """Saves parts: models, optimizers, objects with `state_dict` and `load_state_dict`, and plain dicts.

    Args:
        store: The directory; only rank 0 reads and writes it.
        parts: By name. `DistributedDataParallel` and `torch.compile` are unwrapped.
        run: The training.

    Raises:
        CheckpointError: The state of a part holds a value that cannot be saved.
    """

    def __init__(self, store: Checkpoints, parts: Mapping[str, object], run: RunInfo = ALONE) -> None:
        self.schedule = SaveSchedule(run.interval_seconds)
        self.last: SavedCheckpoint | None = None
        self._store = store
        self._parts = {name: plain(part) for name, part in parts.items()}
        self._kinds = {name: kind_of(part) for name, part in self._parts.items()}
        self._run = run
        self._peers = RankGroup(run.rank, run.world_size, run.group)
        self._replicas = Replicas(self._parts, self._peers)
        self._buffer: Future[SnapshotBuffer] | None = None
        self._writer = WriterClient(store.directory, store.keep, hang_seconds=run.hang_seconds)
        self._started: _Started | None = None
        if GENERATORS in self._parts:
            raise CheckpointError(f"a part must not be called {GENERATORS!r}", hint="use another name")
        self._replicas.encode()  # fail now rather than at the first checkpoint

    def resume(self, *, patience: float = 120.0) -> int:
        """Load the newest valid checkpoint into the parts and the generators of every rank; all ranks call it.

        Args:
            patience: Seconds to wait for a checkpoint that is still being written for a rank that has died.

        Returns:
            Its step; 0 if there is none.

        Raises:
            CheckpointError: On every rank: it belongs to another training, is not genuine, or neither it nor an earlier
                one can be read.
        """
        found = self._look_on_first(partial(_look, self._store, patience))
        tried: list[str] = []
        while found is not None:
            tried.append(found.path)
            try:
                return self._resume_from(found)
            except UnreadableError as error:
                found = self._look_on_first(partial(_look_again, self._store, tried, error))
        return 0

    @property
    def parts(self) -> Mapping[str, object]:
        """The parts that are saved, by name."""
        return self._parts

    def adopt(self, number: int, loader: Stateful) -> None:
        """Save the position of a loader as well from now on; all ranks call it."""
        self._kinds[self._replicas.adopt(number, loader)] = kind_of(loader)

    def due(self) -> bool:
        """Whether a checkpoint is due, on rank 0; False on the others. Cheap enough to call at every step."""
        if self._peers.rank != 0:
            return False
        self._collect(0.0)
        if self._buffer is None:
            self._prepare()
        return self._started is None and self.schedule.due()

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state as that of `step`; all ranks call it at the same step.

        Args:
            step: The number of steps done.
            wait: Return only when it is durable. Otherwise an error of the disk is logged, and the training continues.

        Raises:
            CheckpointError: With `wait`, it could not be written. On every rank.
        """
        began = time.monotonic()
        gathered = self._replicas.gather()
        if self._peers.rank == 0:
            self._collect(None)
            self._submit(step, gathered, began)
        if wait:
            self._peers.run_together(self._finish)

    def _finish(self) -> None:
        """Wait until the checkpoint that is being written is durable."""
        done = self._collect(None)
        if done is not None and done.error is not None:
            raise CheckpointError(done.error, hint=done.hint or "")

    def close(self, seconds: float = 60.0) -> None:
        """Wait so long for a checkpoint that is being written; end the writer and free the memory."""
        self._collect(seconds)
        self._writer.close(seconds)
        if self._buffer is not None:
            self._buffer.result().close()
            self._buffer = None

    def _look_on_first(self, look: Callable[[], _Found | None]) -> _Found | None:
        """Return what rank 0 finds, on every rank."""
        found = self._peers.run_together(lambda: look() if self._peers.rank == 0 else None)
        return msgspec.msgpack.decode(self._peers.broadcast(msgspec.msgpack.encode(found)), type=_Found | None)

    def _resume_from(self, found: _Found) -> int:
        """Load the states of all parts and generators; after a failure midway, another checkpoint loads all of them."""
        manifest = decode_manifest(found.text)
        self._peers.run_together(partial(self._check, manifest))

        def read(name: str) -> Any:  # noqa: ANN401 - any state
            return read_part(manifest.parts[name], manifest.shard_bytes, Path(found.path).joinpath, self._peers)

        self._kinds |= self._replicas.load_all(manifest, read)
        states = read(GENERATORS)
        rng_state.resume(states, self._peers.rank, self._peers.size, (self._run.seed, found.step))
        self.schedule.saved(0.0)
        return found.step

    def _prepare(self) -> None:
        """Allocate the memory and start the writer in the background, so that no step waits for that."""
        size = max((part.end for part in self._replicas.encode().values()), default=0)
        self._buffer = make_buffer(size + 2 * _SLACK)
        self._writer.start()

    def _submit(self, step: int, gathered: Mapping[str, Sequence[bytes]], began: float) -> None:
        encoded = self._replicas.encode(gathered)
        kinds = {**self._kinds, GENERATORS: "list"}
        text = encode_manifest(
            kinds,
            encoded,
            world_size=self._peers.size,
            shard_bytes=SHARD_BYTES,
            identity=self._run.identity,
            per_rank=tuple(name for name in self._parts if name in gathered),
        )
        size = encoded[GENERATORS].end
        buffer = self._memory(size + len(text))
        for part in encoded.values():
            buffer.copy(part.tensors, part.table)
        buffer.put(size, text)
        info = {
            "trainbox": trainbox.__version__,
            "torch": str(torch.__version__),
            "codec": CODEC,
            "world_size": self._peers.size,
        }
        self._writer.submit(WriteRequest(step, size, len(text), info, tuple(self._store.keys)), buffer.descriptor)
        stall = time.monotonic() - began
        self._started = _Started(began, size, stall)
        self.schedule.saved(stall)

    def _memory(self, size: int) -> SnapshotBuffer:
        if self._buffer is None:
            self._buffer = make_buffer(size + _SLACK)
        buffer = self._buffer.result()
        if buffer.size < size:
            emit(f"the state has grown to {size:,} bytes: its buffer of {buffer.size:,} is allocated again")
            buffer.close()
            self._buffer = make_buffer(size + _SLACK)
        return self._buffer.result()

    def _collect(self, seconds: float | None) -> WriteReply | None:
        """Wait so long for the reply of the writer, and log it."""
        done = self._writer.poll(seconds)
        if done is None or self._started is None:
            return None
        started, self._started = self._started, None
        if done.error is not None:
            emit(f"{done.error}; the training goes on, earlier checkpoints stay" + _hint(done.hint))
            return done
        self.last = SavedCheckpoint(done.step, started.size, started.stall, started.stall + done.seconds)
        emit(
            f"checkpoint of step {done.step}: {started.size:,} bytes, the training stood still for "
            f"{started.stall:.2f} s, durable after {self.last.durable:.1f} s"
        )
        return done

    def _check(self, manifest: StateManifest) -> None:
        models = {
            name: encode(state_of(part), name)
            for name, part in self._parts.items()
            if isinstance(part, torch.nn.Module | Trainable)
        }
        check_manifest(manifest, self._kinds, models, self._run.identity)
        self._replicas.check(manifest)


def _look(store: Checkpoints, patience: float) -> _Found | None:
    """Find the newest valid checkpoint and read its manifest, once no writer is at a newer one."""
    until = time.monotonic() + patience
    if not is_idle(store.directory):
        emit("waiting for a checkpoint that is still being written for the rank before this one")
        while not is_idle(store.directory) and time.monotonic() < until:
            time.sleep(0.02)
        if not is_idle(store.directory):
            emit(f"the checkpoint is not written after {patience:.0f} s: resuming without it")
    found = store.latest()
    if found is None:
        return None
    try:
        return _open(found)
    except UnreadableError as error:
        return _look_again(store, [str(found.path)], error)


def _look_again(store: Checkpoints, tried: Sequence[str], error: UnreadableError) -> _Found:
    """Find the newest valid checkpoint after others could not be read.

    Raises:
        CheckpointError: There is no other: the job fails rather than starts from step 0.
    """
    found = store.find().chosen
    if found is None or str(found.path) in tried:
        raise CheckpointError(error.message, hint=NO_EARLIER)
    emit(f"{error.message}: resuming from step {found.step} ({found.path}) instead")
    return _open(found)


def _open(found: Checkpoint) -> _Found:
    try:
        return _Found(found.step, str(found.path), (found.path / STATE).read_bytes())
    except OSError as error:
        if isinstance(examine(found.path, digests=False), Rejected):
            raise UnreadableError(f"the checkpoint {found.path} can no longer be read: {error}") from error
        raise CheckpointError(
            f"{found.path} is not a checkpoint of trainbox.torch: {STATE} cannot be read: {error.strerror}",
            hint="use another directory",
        ) from error


def _hint(hint: str | None) -> str:
    return f" - hint: {hint}" if hint else ""
