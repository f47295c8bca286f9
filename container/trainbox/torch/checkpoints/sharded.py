"""Checkpoints of a training whose ranks hold a part of the state each (FSDP2): DCP writes them, under our manifest.

    step-00000020/           one host: all its ranks write here, the manifest comes last
    algo-2/step-00000020/    of several hosts each has a directory of its own: no name is written by two of them

`torch.distributed.checkpoint` cuts the state anew when the number of ranks has changed, and has no digests: an older
file of the same name is loaded without a word. So each host seals what its ranks have written, and a checkpoint counts
only if the parts of all hosts are there, on whosever disk, are valid, and come from one and the same save (`pool`).
DCP's pickles are written, and read as data (`dcp`, `index`): one that asks for code ends the job on every rank, and no
older checkpoint takes its place. A step waits until all is on the disk.
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
from trainbox.checkpointing import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.manifest import NotGenuineError
from trainbox.say import say
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.codec import CODEC, encode, flat
from trainbox.torch.checkpoints.collectives import Peers
from trainbox.torch.checkpoints.dcp import Load, Save
from trainbox.torch.checkpoints.dcp_index import METADATA, read_index
from trainbox.torch.checkpoints.parts import FROZEN, Stateful, kind_of, plain, without_frozen
from trainbox.torch.checkpoints.replicas import Replicas
from trainbox.torch.checkpoints.run_info import ALONE, Course, Pace
from trainbox.torch.checkpoints.shard_catalog import Borrowed, Pool, Whole
from trainbox.torch.checkpoints.state_manifest import (
    GENERATORS,
    NO_EARLIER,
    UnreadableError,
    check,
    compose,
    parse,
    read_part,
)
from trainbox.torch.checkpoints.writer import STATE, shard_name


class ShardedSaver:
    """As `saver.Saver`, for one model whose parameters are DTensors, and its optimizer.

    Args:
        store: The directory, the same path on every host; other checkpoints in it are left alone.
        model: What `fully_shard` was applied to.
        optimizer: Of its parameters.
        parts: What every rank holds whole; rank 0 writes it.
        course: The training.
    """

    def __init__(
        self,
        store: Checkpoints,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        parts: Mapping[str, object],
        course: Course = ALONE,
    ) -> None:
        self.pace = Pace(course.interval_seconds)
        self._model = model
        self._optimizer = optimizer
        self._parts = {name: plain(part) for name, part in parts.items()}
        self._kinds = {name: kind_of(part) for name, part in self._parts.items()}
        self._kinds |= {"model": kind_of(model), "optimizer": kind_of(optimizer)}
        self._course = course
        self._trainable_only = FROZEN in course.identity
        self._peers = Peers(course.rank, course.world_size, course.group)
        self._replicas = Replicas(self._parts, self._peers)
        self._hosts = [name.decode() for name in self._peers.gather(course.host.encode())]
        self._pool = Pool(store.directory, self._peers, self._hosts, store.keys)
        self._store = store.below(course.host) if len(set(self._hosts)) > 1 else store

    def resume(self) -> int:
        """Load the newest checkpoint that is whole, wherever its parts are; all ranks call it.

        Returns:
            Its step; 0 if there is none.

        Raises:
            CheckpointError: It belongs to another training, it is not genuine or asks for code, or neither it nor an
                earlier one can be read. On every rank.
        """
        found = self._pool.newest("starting fresh")
        tried: list[str] = []
        while found is not None:
            tried.append(found.save)
            borrowed = Borrowed(self._pool, found)
            try:
                return self._resume_from(found, borrowed)
            except UnreadableError as error:
                self._say(f"{error.message}: looking for what can be read")
                found = self._pool.newest("giving up")
                if found is None:
                    raise CheckpointError(error.message, hint=NO_EARLIER) from error
                if found.save in tried:  # nothing is wrong with it
                    raise
            finally:
                borrowed.close()
        return 0

    def _resume_from(self, found: Whole, borrowed: Borrowed) -> int:
        """Give all parts and generators their states; what a failure leaves half done, another one does anew."""
        locate, is_first = borrowed.locate, self._peers.rank == 0
        try:
            borrowed.fetch_files([METADATA, *((STATE, shard_name(0)) if is_first else ())])
            text = self._peers.together(lambda: _read(locate(STATE)) if is_first else b"")
        except CheckpointError as error:
            raise UnreadableError(error.message, hint=error.hint) from error
        document = parse(self._peers.share(text))
        self._peers.together(lambda: check(document, self._kinds, {}, self._course.identity))
        self._peers.together(lambda: self._replicas.check(document))
        state = self._sharded()
        self._fill(state, found, borrowed)
        set_model_state_dict(self._model, state["model"], options=StateDictOptions(strict=not self._trainable_only))
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"])

        def read(name: str) -> Any:  # noqa: ANN401 - any state
            return read_part(document.parts[name], document.shard_bytes, locate, self._peers)

        self._kinds |= self._replicas.load_all(document, read)
        states = read(GENERATORS)
        rng_state.resume(states, self._peers.rank, self._peers.size, (self._course.seed, found.step))
        self.pace.saved(0.0)
        self._say(f"resuming from step {found.step} (the parts of {', '.join(found.places)})")
        if borrowed.bytes:
            say(f"rank {self._peers.rank} has got {borrowed.bytes:,} bytes of it that its host lacks from other hosts")
        return found.step

    def _fill(self, state: dict[str, Any], found: Whole, borrowed: Borrowed) -> None:
        """Read what this rank holds of the model and the optimizer."""

        def plan() -> Load:
            sizes = {name: record.size for name, (_, record) in found.files.items()}
            return Load(state, read_index(borrowed.locate(METADATA), sizes), is_first=self._peers.rank == 0)

        try:
            load = self._peers.together(plan)
            borrowed.fetch(load.ranges)
            self._peers.together(lambda: load.read(borrowed.locate))
        except NotGenuineError:
            raise
        except CheckpointError as error:
            raise UnreadableError(
                f"the checkpoint of step {found.step} cannot be loaded into the model: {error.message}",
                hint="resume with the script that wrote it, or start fresh in another directory",
            ) from error

    @property
    def parts(self) -> Mapping[str, object]:
        """What is saved, by name."""
        return self._parts

    def adopt(self, number: int, loader: Stateful) -> None:
        """Save the place of a loader, too, from now on; all ranks call it."""
        self._kinds[self._replicas.adopt(number, loader)] = kind_of(loader)

    def due(self) -> bool:
        """Whether rank 0 wants a checkpoint now; False on the others."""
        return self._peers.rank == 0 and self.pace.due()

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state as that of `step`; all ranks call it at the same step, and it is durable when it returns.

        Raises:
            CheckpointError: With `wait`, it could not be written. Otherwise that is said, and the training goes on.
        """
        began = time.monotonic()
        gathered = self._replicas.gather()
        # The later of two saves of one step has the greater name.
        name = self._peers.share(f"{time.time_ns():020d}-{os.urandom(4).hex()}".encode()).decode()
        info = {
            "trainbox": trainbox.__version__,
            "codec": CODEC,
            "world_size": self._peers.size,
            "save": name,
            "host": self._course.host,
            "hosts": sorted(set(self._hosts)),
        }
        stack = ExitStack()
        opened: list[Path] = []
        failure = self._together(lambda: self._open(step, info, stack, opened))
        aside = Path(os.fsdecode(self._from_leader(os.fsencode(opened[0]) if opened else b"")))
        failure = failure or self._together(lambda: self._write_whole(aside, gathered))
        failure = failure or self._write_parts(aside)
        if failure:
            stack.__exit__(type(failure), failure, None)  # nothing remains of what was opened
        else:
            failure = self._together(stack.close)
        self.pace.saved(time.monotonic() - began)
        if not failure:
            return
        if wait:
            raise failure
        self._say(f"{failure}; the training goes on, earlier checkpoints stay")

    def close(self, _seconds: float = 0.0) -> None:
        """Nothing is on its way."""

    def _together(self, act: Callable[[], object]) -> CheckpointError | None:
        """Do something that may fail on one rank: the failure of the first that has one, known to all, or None."""

        def attempt() -> None:
            try:
                act()
            except OSError as error:
                raise CheckpointError(f"the checkpoint cannot be written: {error}") from error

        try:
            self._peers.together(attempt)
        except CheckpointError as error:
            return error
        return None

    def _say(self, text: str) -> None:
        if self._peers.rank == 0:
            say(text)

    def _from_leader(self, content: bytes) -> bytes:
        """What the first rank of this host gives."""
        return self._peers.gather(content)[self._hosts.index(self._hosts[self._peers.rank])]

    def _open(self, step: int, info: Mapping[str, object], stack: ExitStack, opened: list[Path]) -> None:
        if self._pool.leads:
            opened.append(stack.enter_context(self._store.writing(step, info=info)))

    def _sharded(self) -> dict[str, Any]:
        model = get_model_state_dict(self._model)
        return {
            "model": without_frozen(self._model, model) if self._trainable_only else model,
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
        }

    def _write_parts(self, aside: Path) -> CheckpointError | None:
        """What each rank holds of the model and the optimizer; all ranks call it."""
        try:
            Save(self._sharded(), aside, self._peers).write()
        except CheckpointError as error:
            return CheckpointError(f"the checkpoint cannot be written: {error.message}", hint=error.hint)
        return None

    def _write_whole(self, aside: Path, gathered: Mapping[str, Sequence[bytes]]) -> None:
        """What every rank holds, or each its own, and the generators of all: rank 0 writes it."""
        if self._peers.rank != 0:
            return
        encoded = self._replicas.encode(gathered)
        encoded |= {name: encode(None, name) for name in ("model", "optimizer")}
        kinds = {**self._kinds, GENERATORS: "list"}
        text = compose(
            kinds,
            encoded,
            world_size=self._peers.size,
            shard_bytes=max(1, encoded[GENERATORS].end),  # all in one file
            identity=self._course.identity,
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
