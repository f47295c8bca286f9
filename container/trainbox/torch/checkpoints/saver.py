"""Checkpoints of a training whose state every rank holds whole: rank 0 reads and writes, the others get it from rank 0.

    saver = Saver(store, {"model": model, "optimizer": optimizer, "progress": progress}, rank=rank, world_size=size)
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
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

import trainbox
from trainbox.checkpointing import Checkpoint, Checkpoints
from trainbox.errors import CheckpointError
from trainbox.say import say
from trainbox.torch.checkpoints import generators
from trainbox.torch.checkpoints.codec import CODEC, Encoded, Entry, decode, empty, encode, flat, restride
from trainbox.torch.checkpoints.document import GENERATORS, Document, Part, check, compose, pack, parse
from trainbox.torch.checkpoints.exchange import Peers
from trainbox.torch.checkpoints.handover import Handover
from trainbox.torch.checkpoints.parts import kind_of, load, plain, state_of
from trainbox.torch.checkpoints.snapshot import Buffer
from trainbox.torch.checkpoints.writer import SHARD_BYTES, STATE, Done, Order, is_idle, shard_name

#: The part of the time of a training that its stalls may take: CheckFreq (FAST '21).
STALLS = 0.035
#: The document grows by some digits from save to save.
_SLACK = 1 << 20


class Saved(msgspec.Struct, frozen=True):
    """A checkpoint that is durable."""

    step: int
    #: Of the state, without its document.
    size: int
    #: Seconds for which the training stood still, the wait for other ranks included.
    stall: float
    #: Seconds from the call of `save` until it was on the disk.
    durable: float


class Pace:
    """When the next checkpoint is due: after an interval, or later if stalls would take more than `STALLS`."""

    def __init__(self, interval_seconds: float) -> None:
        self.interval = interval_seconds
        self._next = time.monotonic() + interval_seconds
        self._stretched = False

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def saved(self, stall: float) -> None:
        """Begin another interval, after the training stood still for so many seconds."""
        shortest = stall / STALLS
        if shortest > max(self.interval, 1.0) and not self._stretched:
            self._stretched = True
            say(
                f"a checkpoint stops the training for {stall:.2f} s: the next one not before {shortest:.0f} s instead "
                f"of {self.interval:.0f} s, so that stalls stay below {STALLS:.1%} of the time"
            )
        self._next = time.monotonic() + max(self.interval, shortest)


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
        rank: This rank.
        world_size: How many ranks there are.
        group: For what they tell each other: one whose backend works on the CPU. None is the default group.
        seed: Of the generators, should a later run have another number of ranks.
        identity: What has to be the same in a run that resumes, beyond the shapes: values that JSON can say.
        interval_seconds: Between two checkpoints; longer if stalls would take more than `STALLS` of the time.

    Raises:
        CheckpointError: The state of a part holds something that cannot be written.
    """

    def __init__(
        self,
        store: Checkpoints,
        parts: Mapping[str, object],
        *,
        rank: int = 0,
        world_size: int = 1,
        group: dist.ProcessGroup | None = None,
        seed: int = 0,
        identity: Mapping[str, Any] | None = None,
        interval_seconds: float = 300.0,
    ) -> None:
        self.pace = Pace(interval_seconds)
        self.last: Saved | None = None
        self._store = store
        self._parts = {name: plain(part) for name, part in parts.items()}
        self._kinds = {name: kind_of(part) for name, part in self._parts.items()}
        self._peers = Peers(rank, world_size, group)
        self._seed = seed
        self._identity = dict(identity or {})
        self._buffer: Future[Buffer] | None = None
        self._handover = Handover(store.directory, store.keep)
        self._started: _Started | None = None
        if GENERATORS in self._parts:
            raise CheckpointError(f"a part must not be called {GENERATORS!r}", hint="use another name")
        self._encode()  # what cannot be written is better found now than at the first checkpoint

    def resume(self, *, patience: float = 120.0) -> int:
        """Load the newest valid checkpoint into the parts and the generators of every rank; all ranks call it.

        Args:
            patience: Seconds to wait for a checkpoint that a rank which has died left to its writer.

        Returns:
            Its step; 0 if there is none.

        Raises:
            CheckpointError: It belongs to another training, or cannot be read. On every rank.
        """
        found, text = None, b""
        head: dict[str, Any] = {}
        if self._peers.rank == 0:
            try:
                found, text = _look(self._store, patience)
                head = {"step": found.step if found else None}
            except CheckpointError as error:
                head = {"error": error.message, "hint": error.hint}
        head = msgspec.json.decode(self._peers.share(msgspec.json.encode(head)))
        if "error" in head:
            raise CheckpointError(head["error"], hint=head["hint"])
        if head["step"] is None:
            return 0
        document = parse(self._peers.share(text))
        self._check(document)
        path = None if found is None else found.path
        for name, part in self._parts.items():
            load(name, part, read_part(document.parts[name], path, self._peers))
        states = read_part(document.parts[GENERATORS], path, self._peers)
        generators.resume(states, self._peers.rank, self._peers.size, (self._seed, head["step"]))
        self.pace.saved(0.0)
        return int(head["step"])

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
        states = self._peers.gather(pack(generators.capture(), GENERATORS))
        if self._peers.rank == 0:
            self._collect(None)
            self._hand_over(step, states, began)
        if wait:
            done = self._collect(None)
            failure = {"error": done.error, "hint": done.hint} if done and done.error else {}
            failure = msgspec.json.decode(self._peers.share(msgspec.json.encode(failure)))
            if failure:
                raise CheckpointError(failure["error"], hint=failure["hint"])

    def close(self, seconds: float = 60.0) -> None:
        """Wait so long for a checkpoint that is being written; end the writer and give the memory back."""
        self._collect(seconds)
        self._handover.close(seconds)
        if self._buffer is not None:
            self._buffer.result().close()
            self._buffer = None

    def _encode(self) -> dict[str, Encoded]:
        encoded: dict[str, Encoded] = {}
        offset = 0
        for name, part in self._parts.items():
            encoded[name] = encode(state_of(part), name, offset=offset)
            offset = encoded[name].end
        return encoded

    def _prepare(self) -> None:
        """Make the memory and start the writer beside the training: no step shall wait for that."""
        size = max((part.end for part in self._encode().values()), default=0)
        self._buffer = _make_buffer(size + 2 * _SLACK)
        self._handover.start()

    def _hand_over(self, step: int, states: Sequence[bytes], began: float) -> None:
        encoded = self._encode()
        offset = max((part.end for part in encoded.values()), default=0)
        ranks = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states]
        encoded[GENERATORS] = encode(ranks, GENERATORS, offset=offset)
        kinds = {**self._kinds, GENERATORS: "list"}
        text = compose(kinds, encoded, world_size=self._peers.size, identity=self._identity)
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
        self._handover.submit(Order(step, size, len(text), info), buffer.descriptor)
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
            if isinstance(part, torch.nn.Module)
        }
        check(document, self._kinds, models, self._identity)


def read_part(part: Part, path: Path | None, peers: Peers) -> Any:  # noqa: ANN401 - any state
    """The state of a part of a checkpoint, on every rank; all ranks call it.

    Args:
        part: What the document of the checkpoint says of it.
        path: The checkpoint, on rank 0; None on the others.
        peers: All ranks.
    """
    tensors = [empty(entry) for entry in part.table]
    if path is not None:
        _fill(path, part.table, tensors)
    peers.share_tensors(tensors)
    return decode(part.tree, [restride(tensor, entry) for tensor, entry in zip(tensors, part.table, strict=True)])


def _make_buffer(size: int) -> Future[Buffer]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-memory")
    future = pool.submit(Buffer, size, pinned=torch.cuda.is_available())
    pool.shutdown(wait=False)  # the thread ends with its only task
    return future


def _look(store: Checkpoints, patience: float) -> tuple[Checkpoint | None, bytes]:
    """The newest valid checkpoint and its document, once nobody is at a newer one."""
    until = time.monotonic() + patience
    if not is_idle(store.directory):
        say("waiting for the checkpoint that the rank before this one left to its writer")
        while not is_idle(store.directory) and time.monotonic() < until:
            time.sleep(0.02)
    found = store.latest()
    if found is None:
        return None, b""
    try:
        return found, (found.path / STATE).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{found.path} is no checkpoint of trainbox.torch: {STATE} cannot be read: {error.strerror}",
            hint="use another directory",
        ) from error


def _fill(path: Path, table: Sequence[Entry], tensors: Sequence[torch.Tensor]) -> None:
    """Read the elements of tensors from the files of a checkpoint."""
    for tensor, entry in zip(tensors, table, strict=True):
        memory = memoryview(flat(tensor).numpy().data)
        done = 0
        while done < entry.size:
            index, offset = divmod(entry.offset + done, SHARD_BYTES)
            piece = memory[done : done + SHARD_BYTES - offset]
            try:
                with (path / shard_name(index)).open("rb", buffering=0) as file:
                    file.seek(offset)
                    count = file.readinto(piece)
            except OSError as error:
                raise CheckpointError(f"{path} can no longer be read: {error}") from error
            if not count:
                raise CheckpointError(f"{path / shard_name(index)} is shorter than {STATE} says")
            done += count


def _hint(hint: str | None) -> str:
    return f" - hint: {hint}" if hint else ""
