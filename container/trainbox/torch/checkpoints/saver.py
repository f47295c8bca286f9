"""Checkpoints of a training whose state every rank holds whole: rank 0 reads and writes, the others get it from rank 0.

    saver = Saver(store, {"model": model, "optimizer": optimizer, "progress": progress}, Course(rank, world_size))
    step = saver.resume()
    ...
        if agreed(saver.due()):
            saver.save(step)        # by all ranks, at the same step
    saver.save(step, wait=True)
    saver.close()

A step waits only while the state is copied into memory that is there already; a process of its own does the rest
(`writer`). That ranks agree on what they resume from needs no vote: only one of them looks. A sharded state goes
through `sharded.ShardedSaver`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch.distributed.tensor import DTensor

import trainbox
from trainbox.checkpointing import Checkpoint, Checkpoints, Rejected, examine
from trainbox.errors import CheckpointError
from trainbox.say import say
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.codec import CODEC, encode
from trainbox.torch.checkpoints.collectives import Peers
from trainbox.torch.checkpoints.parts import FROZEN, Stateful, Trainable, is_partly_frozen, kind_of, plain, state_of
from trainbox.torch.checkpoints.replicas import Replicas
from trainbox.torch.checkpoints.run_info import ALONE, Course, Pace, Saved
from trainbox.torch.checkpoints.snapshot import Buffer
from trainbox.torch.checkpoints.state_manifest import (
    GENERATORS,
    NO_EARLIER,
    Document,
    UnreadableError,
    check,
    compose,
    parse,
    read_part,
)
from trainbox.torch.checkpoints.writer import SHARD_BYTES, STATE, Done, Handover, Order, is_idle

if TYPE_CHECKING:
    from trainbox.torch.checkpoints.sharded import ShardedSaver

#: The document grows by some digits from save to save.
_SLACK = 1 << 20


def choose_saver(store: Checkpoints, parts: Mapping[str, object], course: Course) -> "Saver | ShardedSaver":
    """The saver of some parts.

    Raises:
        CheckpointError: A state is spread over the ranks, and it is not that of one model and its optimizer.
    """
    only = FROZEN in course.identity
    spread = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module) and _is_spread(part)}
    if not spread:
        return Saver(store, {name: _trainable(part) if only else part for name, part in parts.items()}, course)
    optimizers = {name: part for name, part in parts.items() if isinstance(part, torch.optim.Optimizer)}
    if len(spread) != 1 or len(optimizers) != 1:
        raise CheckpointError(
            f"of what is spread over the ranks there are {len(spread)} models and {len(optimizers)} optimizers to save",
            hint="with sharded=True give resume() one model and its one optimizer; other parts are whole on every rank",
        )
    from trainbox.torch.checkpoints.sharded import ShardedSaver  # noqa: PLC0415 - DCP takes half a second to import

    (model,), (optimizer,) = spread.values(), optimizers.values()
    whole = {name: part for name, part in parts.items() if name not in spread and name not in optimizers}
    whole = {name: _trainable(part) if only else part for name, part in whole.items()}
    return ShardedSaver(store, model, optimizer, whole, course)


def _trainable(part: object) -> object:
    """A part without its frozen parameters; a model none of which is trained is a state of its own, as an average."""
    inner = plain(part)
    return Trainable(inner) if isinstance(inner, torch.nn.Module) and is_partly_frozen(inner) else part


def _is_spread(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


class _Found(msgspec.Struct, frozen=True):
    """A valid checkpoint: its directory, which rank 0 sees, and its document."""

    step: int
    path: str
    text: bytes


class _Started(msgspec.Struct, frozen=True):
    """A checkpoint that is being written."""

    began: float
    size: int
    stall: float


class Saver:
    """Saves parts: models, optimizers, whatever has `state_dict` and `load_state_dict`, and plain dicts.

    Args:
        store: The directory; only rank 0 looks into it.
        parts: By name. `DistributedDataParallel` and `torch.compile` are seen through.
        course: The training.

    Raises:
        CheckpointError: The state of a part holds something that cannot be written.
    """

    def __init__(self, store: Checkpoints, parts: Mapping[str, object], course: Course = ALONE) -> None:
        self.pace = Pace(course.interval_seconds)
        self.last: Saved | None = None
        self._store = store
        self._parts = {name: plain(part) for name, part in parts.items()}
        self._kinds = {name: kind_of(part) for name, part in self._parts.items()}
        self._course = course
        self._peers = Peers(course.rank, course.world_size, course.group)
        self._replicas = Replicas(self._parts, self._peers)
        self._buffer: Future[Buffer] | None = None
        self._handover = Handover(store.directory, store.keep, hang_seconds=course.hang_seconds)
        self._started: _Started | None = None
        if GENERATORS in self._parts:
            raise CheckpointError(f"a part must not be called {GENERATORS!r}", hint="use another name")
        self._replicas.encode()  # what cannot be written is better found now than at the first checkpoint

    def resume(self, *, patience: float = 120.0) -> int:
        """Load the newest valid checkpoint into the parts and the generators of every rank; all ranks call it.

        Args:
            patience: Seconds to wait for a checkpoint that a rank which has died left to its writer.

        Returns:
            Its step; 0 if there is none.

        Raises:
            CheckpointError: It belongs to another training, it is not genuine, or neither it nor an earlier one can be
                read. On every rank.
        """
        found = self._share(partial(_look, self._store, patience))
        tried: list[str] = []
        while found is not None:
            tried.append(found.path)
            try:
                return self._resume_from(found)
            except UnreadableError as error:
                found = self._share(partial(_look_again, self._store, tried, error))
        return 0

    @property
    def parts(self) -> Mapping[str, object]:
        """What is saved, by name."""
        return self._parts

    def adopt(self, number: int, loader: Stateful) -> None:
        """Save the place of a loader, too, from now on; all ranks call it."""
        self._kinds[self._replicas.adopt(number, loader)] = kind_of(loader)

    def due(self) -> bool:
        """Whether rank 0 wants a checkpoint now; False on the others. Cheap: to be asked at every step."""
        if self._peers.rank != 0:
            return False
        self._collect(0.0)
        if self._buffer is None:
            self._prepare()
        return self._started is None and self.pace.due()

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state as that of `step`; all ranks call it at the same step.

        Args:
            step: How many steps are done.
            wait: Return only when it is durable. Otherwise what goes wrong on the disk is said on stderr, and the
                training goes on.

        Raises:
            CheckpointError: With `wait`, it could not be written. On every rank.
        """
        began = time.monotonic()
        gathered = self._replicas.gather()
        if self._peers.rank == 0:
            self._collect(None)
            self._hand_over(step, gathered, began)
        if wait:
            self._peers.together(self._finish)

    def _finish(self) -> None:
        """Wait until what rank 0 writes is durable."""
        done = self._collect(None)
        if done is not None and done.error is not None:
            raise CheckpointError(done.error, hint=done.hint or "")

    def close(self, seconds: float = 60.0) -> None:
        """Wait so long for a checkpoint that is being written; end the writer and give the memory back."""
        self._collect(seconds)
        self._handover.close(seconds)
        if self._buffer is not None:
            self._buffer.result().close()
            self._buffer = None

    def _share(self, look: Callable[[], _Found | None]) -> _Found | None:
        """What rank 0 finds, for everybody."""
        found = self._peers.together(lambda: look() if self._peers.rank == 0 else None)
        return msgspec.msgpack.decode(self._peers.share(msgspec.msgpack.encode(found)), type=_Found | None)

    def _resume_from(self, found: _Found) -> int:
        """Give all parts and generators their states; what a failure leaves half done, another one does anew."""
        document = parse(found.text)
        self._peers.together(partial(self._check, document))

        def read(name: str) -> Any:  # noqa: ANN401 - any state
            return read_part(document.parts[name], document.shard_bytes, Path(found.path).joinpath, self._peers)

        self._kinds |= self._replicas.load_all(document, read)
        states = read(GENERATORS)
        rng_state.resume(states, self._peers.rank, self._peers.size, (self._course.seed, found.step))
        self.pace.saved(0.0)
        return found.step

    def _prepare(self) -> None:
        """Make the memory and start the writer beside the training: no step shall wait for that."""
        size = max((part.end for part in self._replicas.encode().values()), default=0)
        self._buffer = _make_buffer(size + 2 * _SLACK)
        self._handover.start()

    def _hand_over(self, step: int, gathered: Mapping[str, Sequence[bytes]], began: float) -> None:
        encoded = self._replicas.encode(gathered)
        kinds = {**self._kinds, GENERATORS: "list"}
        text = compose(
            kinds,
            encoded,
            world_size=self._peers.size,
            shard_bytes=SHARD_BYTES,
            identity=self._course.identity,
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
        self._handover.submit(Order(step, size, len(text), info, tuple(self._store.keys)), buffer.descriptor)
        stall = time.monotonic() - began
        self._started = _Started(began, size, stall)
        self.pace.saved(stall)

    def _memory(self, size: int) -> Buffer:
        if self._buffer is None:
            self._buffer = _make_buffer(size + _SLACK)
        buffer = self._buffer.result()
        if buffer.size < size:
            say(f"the state has grown to {size:,} bytes: its buffer of {buffer.size:,} is made anew")
            buffer.close()
            self._buffer = _make_buffer(size + _SLACK)
        return self._buffer.result()

    def _collect(self, seconds: float | None) -> Done | None:
        """Hear how the last write went, and say it; waits so long for it."""
        done = self._handover.answer(seconds)
        if done is None or self._started is None:
            return None
        started, self._started = self._started, None
        if done.error is not None:
            say(f"{done.error}; the training goes on, earlier checkpoints stay" + _hint(done.hint))
            return done
        self.last = Saved(done.step, started.size, started.stall, started.stall + done.seconds)
        say(
            f"checkpoint of step {done.step}: {started.size:,} bytes, the training stood still for "
            f"{started.stall:.2f} s, durable after {self.last.durable:.1f} s"
        )
        return done

    def _check(self, document: Document) -> None:
        models = {
            name: encode(state_of(part), name)
            for name, part in self._parts.items()
            if isinstance(part, torch.nn.Module | Trainable)
        }
        check(document, self._kinds, models, self._course.identity)
        self._replicas.check(document)


def _make_buffer(size: int) -> Future[Buffer]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-memory")
    future = pool.submit(Buffer, size, pinned=torch.cuda.is_available())
    pool.shutdown(wait=False)  # the thread ends with its only task
    return future


def _look(store: Checkpoints, patience: float) -> _Found | None:
    """The newest valid checkpoint and its document, once nobody is at a newer one."""
    until = time.monotonic() + patience
    if not is_idle(store.directory):
        say("waiting for the checkpoint that the rank before this one left to its writer")
        while not is_idle(store.directory) and time.monotonic() < until:
            time.sleep(0.02)
        if not is_idle(store.directory):
            say(f"it is not written after {patience:.0f} s: resuming without it")
    found = store.latest()
    if found is None:
        return None
    try:
        return _open(found)
    except UnreadableError as error:
        return _look_again(store, [str(found.path)], error)


def _look_again(store: Checkpoints, tried: Sequence[str], error: UnreadableError) -> _Found:
    """The newest valid checkpoint after others could not be read.

    Raises:
        CheckpointError: There is none but those: better no training than one that forgets how far it was.
    """
    found = store.find().chosen
    if found is None or str(found.path) in tried:
        raise CheckpointError(error.message, hint=NO_EARLIER)
    say(f"{error.message}: resuming from step {found.step} ({found.path}) instead")
    return _open(found)


def _open(found: Checkpoint) -> _Found:
    try:
        return _Found(found.step, str(found.path), (found.path / STATE).read_bytes())
    except OSError as error:
        if isinstance(examine(found.path, digests=False), Rejected):
            raise UnreadableError(f"the checkpoint {found.path} can no longer be read: {error}") from error
        raise CheckpointError(
            f"{found.path} is no checkpoint of trainbox.torch: {STATE} cannot be read: {error.strerror}",
            hint="use another directory",
        ) from error


def _hint(hint: str | None) -> str:
    return f" - hint: {hint}" if hint else ""
