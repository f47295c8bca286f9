"""Checkpoints of a training whose ranks hold a part of the state each (FSDP2): DCP writes them, under our manifest.

    step-00000020/           one host: all its ranks write here, the manifest comes last
    algo-2/step-00000020/    of several hosts each has a directory of its own: no name is written by two of them

`torch.distributed.checkpoint` cuts the state anew when the number of ranks has changed, and has no digests: an older
file of the same name is loaded without a word. So each host seals what its ranks have written, and a checkpoint counts
only if the parts of all hosts are there, are valid, and come from one and the same save. DCP's `.metadata` is a pickle,
the only one here; it is read after its digest has been verified. A step waits until all is on the disk.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import trainbox
from trainbox.checkpointing import Checkpoint, Checkpoints, Rejected, examine, step_directories
from trainbox.errors import CheckpointError
from trainbox.say import say
from trainbox.torch.checkpoints import generators
from trainbox.torch.checkpoints.codec import CODEC, Encoded, encode, flat
from trainbox.torch.checkpoints.document import GENERATORS, check, compose, pack, parse
from trainbox.torch.checkpoints.exchange import Peers
from trainbox.torch.checkpoints.parts import kind_of, load, plain, state_of
from trainbox.torch.checkpoints.saver import Pace, read_part
from trainbox.torch.checkpoints.writer import STATE, shard_name

#: With one thread DCP writes each file synchronously, at a third of the speed.
_THREADS = 2


class _Found(msgspec.Struct, frozen=True):
    """A checkpoint of which the parts of all hosts are there and valid."""

    step: int
    save: str
    paths: tuple[str, ...]

    @property
    def key(self) -> tuple[int, str]:
        return self.step, self.save


class ShardedSaver:
    """As `saver.Saver`, for one model whose parameters are DTensors, and its optimizer.

    Args:
        store: The directory, the same path on every host; other checkpoints in it are left alone.
        model: What `fully_shard` was applied to.
        optimizer: Of its parameters.
        parts: What every rank holds whole; rank 0 writes it.
        rank: This rank.
        world_size: How many ranks there are.
        group: For what they tell each other: one whose backend works on the CPU. None is the default group.
        host: The name of this host.
        seed: Of the generators, should a later run have another number of ranks.
        identity: What has to be the same in a run that resumes.
        interval_seconds: Between two checkpoints; longer if stalls would take more than 3.5 % of the time.
    """

    def __init__(
        self,
        store: Checkpoints,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        parts: Mapping[str, object],
        *,
        rank: int,
        world_size: int,
        group: dist.ProcessGroup | None = None,
        host: str = "",
        seed: int = 0,
        identity: Mapping[str, Any] | None = None,
        interval_seconds: float = 300.0,
    ) -> None:
        self.pace = Pace(interval_seconds)
        self._model = model
        self._optimizer = optimizer
        self._parts = {name: plain(part) for name, part in parts.items()}
        self._kinds = {name: kind_of(part) for name, part in self._parts.items()}
        self._kinds |= {"model": kind_of(model), "optimizer": kind_of(optimizer)}
        self._peers = Peers(rank, world_size, group)
        self._group = group
        self._seed = seed
        self._identity = dict(identity or {})
        self._hosts = hosts = [name.decode() for name in self._peers.gather(host.encode())]
        self._leads = hosts.index(host) == rank
        self._root = store.directory
        self._store = store
        if len(set(hosts)) > 1:
            self._store = Checkpoints(store.directory / host, keep=store.keep)

    def resume(self) -> int:
        """Load the newest checkpoint that is whole on every host; all ranks call it.

        Returns:
            Its step; 0 if there is none.

        Raises:
            CheckpointError: It belongs to another training, or cannot be read.
        """
        chosen = self._agree()
        if chosen is None:
            return 0
        step, paths = chosen.step, [Path(path) for path in chosen.paths]
        whole = next((path for path in paths if (path / STATE).exists()), None)
        text = whole.joinpath(STATE).read_bytes() if whole is not None and self._peers.rank == 0 else b""
        document = parse(self._peers.share(text))
        check(document, self._kinds, {}, self._identity)
        state = self._sharded()
        try:
            state_dict_loader.load(state, storage_reader=_reader(paths), process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(
                f"the checkpoint of step {step} does not fit the model: {_first(error)}",
                hint="resume with the script that wrote it, or start fresh in another directory",
            ) from error
        set_model_state_dict(self._model, state["model"])
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"])
        source = whole if self._peers.rank == 0 else None
        for name, part in self._parts.items():
            load(name, part, read_part(document.parts[name], source, self._peers))
        states = read_part(document.parts[GENERATORS], source, self._peers)
        generators.resume(states, self._peers.rank, self._peers.size, (self._seed, step))
        self.pace.saved(0.0)
        return step

    def due(self) -> bool:
        """Whether rank 0 wants a checkpoint now; False on the others."""
        return self._peers.rank == 0 and self.pace.due()

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state as that of `step`; all ranks call it at the same step, and it is durable when it returns.

        Raises:
            CheckpointError: With `wait`, it could not be written. Otherwise that is said, and the training goes on.
        """
        began = time.monotonic()
        states = self._peers.gather(pack(generators.capture(), GENERATORS))
        # The later of two saves of one step has the greater name.
        name = self._peers.share(f"{time.time_ns():020d}-{os.urandom(4).hex()}".encode()).decode()
        info = {
            "trainbox": trainbox.__version__,
            "codec": CODEC,
            "world_size": self._peers.size,
            "save": name,
            "hosts": sorted(set(self._hosts)),
        }
        stack = ExitStack()
        opened: list[Path] = []
        failure = self._together(lambda: self._open(step, info, stack, opened))
        aside = self._from_leader(os.fsencode(opened[0]) if opened else b"")
        failure = failure or self._together(lambda: self._write(Path(os.fsdecode(aside)), states))
        if failure:
            stack.__exit__(CheckpointError, CheckpointError(failure), None)  # nothing remains of what was opened
        else:
            failure = self._together(stack.close)
        self.pace.saved(time.monotonic() - began)
        if not failure:
            return
        if wait:
            raise CheckpointError(failure)
        if self._peers.rank == 0:
            say(f"{failure}; the training goes on, earlier checkpoints stay")

    def close(self, _seconds: float = 0.0) -> None:
        """Nothing is on its way."""

    def _together(self, act: Callable[[], object]) -> str:
        """Do something that may fail on one rank: the failure of the first that has one, known to all, or nothing."""
        failure = ""
        try:
            act()
        except CheckpointError as error:
            failure = str(error)
        except (CheckpointException, OSError) as error:
            failure = f"the checkpoint cannot be written: {_first(error)}"
        return next((text.decode() for text in self._peers.gather(failure.encode()) if text), "")

    def _from_leader(self, content: bytes) -> bytes:
        """What the first rank of this host gives."""
        return self._peers.gather(content)[self._hosts.index(self._hosts[self._peers.rank])]

    def _open(self, step: int, info: Mapping[str, object], stack: ExitStack, opened: list[Path]) -> None:
        if self._leads:
            opened.append(stack.enter_context(self._store.writing(step, info=info)))

    def _sharded(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self._model),
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
        }

    def _write(self, aside: Path, states: Sequence[bytes]) -> None:
        if self._peers.rank == 0:
            self._write_whole(aside, states)
        writer = FileSystemWriter(aside, thread_count=_THREADS, sync_files=False)
        state_dict_saver.save(self._sharded(), storage_writer=writer, process_group=self._group)

    def _write_whole(self, aside: Path, packed: Sequence[bytes]) -> None:
        """What every rank holds, and the generators of all."""
        encoded: dict[str, Encoded] = {}
        offset = 0
        for name, part in self._parts.items():
            encoded[name] = encode(state_of(part), name, offset=offset)
            offset = encoded[name].end
        ranks = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in packed]
        encoded[GENERATORS] = encode(ranks, GENERATORS, offset=offset)
        encoded |= {name: encode(None, name) for name in ("model", "optimizer")}
        kinds = {**self._kinds, GENERATORS: "list"}
        text = compose(kinds, encoded, world_size=self._peers.size, identity=self._identity)
        (aside / STATE).write_bytes(text)
        with (aside / shard_name(0)).open("wb") as file:
            for state in encoded.values():
                for tensor, entry in zip(state.tensors, state.table, strict=True):
                    file.seek(entry.offset)
                    file.write(flat(tensor.cpu().contiguous()).numpy().data)

    def _agree(self) -> _Found | None:
        """The newest checkpoint that the first rank of every host finds whole; where it is for this host."""
        bound: tuple[int, str] | None = None
        while True:
            mine = _find(self._root, bound) if self._leads else None
            answers = self._peers.gather(msgspec.json.encode(mine))
            leaders = {host: answers[self._hosts.index(host)] for host in self._hosts}
            found = {host: msgspec.json.decode(answer, type=_Found | None) for host, answer in leaders.items()}
            keys = [None if one is None else one.key for one in found.values()]
            if None in keys:
                return None
            if len(set(keys)) == 1:
                return found[self._hosts[self._peers.rank]]
            bound = min(key for key in keys if key is not None)


def _find(root: Path, bound: tuple[int, str] | None) -> _Found | None:
    """The newest checkpoint up to a bound; says what is newer and cannot be used."""
    saves: dict[tuple[int, str], list[Checkpoint]] = {}
    for path in [path for directory in _directories(root) for path in step_directories(directory)]:
        seen = examine(path, digests=False)
        match seen:
            case Rejected():
                say(f"rejected the checkpoint {path}: {seen.reason}")
            case Checkpoint(info={"save": str(save)}):
                saves.setdefault((seen.step, save), []).append(seen)
            case _:
                say(f"rejected the checkpoint {path}: it is not one of a sharded training")
    for (step, save), parts in sorted(saves.items(), reverse=True):
        if bound is not None and (step, save) > bound:
            continue
        missing = len(parts[0].info["hosts"]) - len(parts)
        reasons = [verdict.reason for part in parts if isinstance(verdict := examine(part.path), Rejected)]
        if not missing and not reasons:
            say(f"step {step} can be resumed from ({', '.join(str(part.path) for part in parts)})")
            return _Found(step, save, tuple(str(part.path) for part in parts))
        lacks = [f"the parts of {missing} hosts are missing"] if missing else []
        say(f"rejected the checkpoint of step {step}: {'; '.join([*reasons, *lacks])}")
    return None


def _directories(root: Path) -> list[Path]:
    """Where checkpoints may lie: the directory itself, and one for each host."""
    if not root.is_dir():
        return []
    inside = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "step-"))]
    return [root, *inside]


class _Spread(FileSystem):
    """Files of one checkpoint that lie in several directories."""

    def __init__(self, directories: Sequence[Path]) -> None:
        super().__init__()
        self._directories = directories

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str | os.PathLike[str]:
        """Where the file is that the checkpoint calls `suffix`."""
        places = (directory / suffix for directory in self._directories)
        return next((place for place in places if place.exists()), Path(path) / suffix)


def _reader(paths: Sequence[Path]) -> FileSystemReader:
    reader = FileSystemReader(paths[0])
    reader.fs = _Spread(paths)
    return reader


def _first(error: BaseException) -> str:
    """What went wrong, of one rank."""
    if isinstance(error, CheckpointException) and error.failures:
        return str(next(iter(error.failures.values()))[0])
    return str(error)
