"""Read and write `torch.distributed.checkpoint` (DCP) without its pickles: DCP plans and reshards only.

DCP's own `load` reads its index, and objects that are not tensors, as pickles that may call any function, and its ranks
exchange plans as pickles. Here the index is read as data (`dcp_index`), objects by torch's reader of plain data
(`weights_only`), and plans are exchanged as tables. The files are as DCP writes them, so its tools can read them.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import msgspec
import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    BytesIOWriteData,
    LoadItemType,
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view

from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import dtypes
from trainbox.torch.checkpoints.collectives import RankGroup
from trainbox.torch.checkpoints.pickles import names_in, refuse
from trainbox.torch.checkpoints.sharded.catalog import FileRange
from trainbox.torch.checkpoints.sharded.dcp_index import DcpIndex, read_index
from trainbox.torch.checkpoints.state_manifest import Locate

T = TypeVar("T")

#: With one thread DCP writes each file synchronously, at a third of the speed.
_THREADS = 2
#: What DCP and torch raise if a state does not fit, or a file or a disk is damaged.
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_Numbers = tuple[int, ...]


# ---- reading ----


class DcpReader:
    """Reads the part of a sharded state that one rank needs.

    Args:
        state: The state of this rank, which is filled in place.
        index: The index of the checkpoint.
        is_first: Whether this is rank 0.

    Raises:
        CheckpointError: The state does not fit.
    """

    def __init__(self, state: dict[str, Any], index: DcpIndex, *, is_first: bool) -> None:
        self._planner = DefaultLoadPlanner()
        self._places = index.places
        self._plan: LoadPlan = _doing(lambda: self._make_plan(state, index, is_first))

    def _make_plan(self, state: dict[str, Any], index: DcpIndex, is_first: bool) -> LoadPlan:
        # DCP's ranks would now exchange their plans without changing them.
        self._planner.set_up_planner(state, index.metadata, is_first)
        return self._planner.create_local_plan()

    @property
    def ranges(self) -> list[FileRange]:
        """The ranges of files that it needs."""
        return [self._places[item.storage_index] for item in self._plan.items]

    def read(self, locate: Locate) -> None:
        """Fill the state.

        Raises:
            ForeignNameError: A file asks for code.
            CheckpointError: A file cannot be read, or does not fit.
        """
        items = sorted(self._plan.items, key=lambda item: self._places[item.storage_index])
        for name, of_file in groupby(items, key=lambda item: self._places[item.storage_index].name):
            _doing(partial(self._read_file, locate(name), [*of_file]))

    def _read_file(self, path: Path, items: Sequence[ReadItem]) -> None:
        with path.open("rb") as file:
            for item in items:
                value = read_plain(file, self._places[item.storage_index], path)
                if item.type == LoadItemType.BYTE_IO:
                    where = self._planner.mappings[item.dest_index.fqn]
                    set_element(self._planner.original_state_dict, where, value)
                else:
                    self._fill(item, value)

    def _fill(self, item: ReadItem, value: object) -> None:
        target = self._planner.resolve_tensor(item).detach()
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{item.dest_index.fqn} is a {type(value).__name__}, expected a tensor")
        part = narrow_tensor_by_index(value, item.storage_offsets, item.lengths)
        if part.size() != target.size():
            raise ValueError(f"{item.dest_index.fqn} has the size {list(part.size())}, expected {list(target.size())}")
        target.copy_(part)


def read_plain(file: BufferedReader, place: FileRange, path: Path) -> Any:  # noqa: ANN401 - any plain data
    """Read what `torch.save` wrote, if it is numbers, text, tensors and containers of them.

    Args:
        file: The file.
        place: The range of the file to read.
        path: The path of the file, for the message.

    Raises:
        ForeignNameError: It asks for something else, which may run code.
    """
    view = cast("IO[bytes]", _create_file_view(file, place.offset, place.size))
    try:
        return torch.load(view, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        view.seek(0)
        raise refuse(path, names_in(view.read())) from None


def read_bytes_of(path: Path, files: Mapping[str, int]) -> None:
    """Read an index, and its objects that are not tensors, as plain data.

    Args:
        path: The index.
        files: The sizes of the files in its directory.

    Raises:
        ForeignNameError: One of them asks for code.
        CheckpointError: One of them cannot be read.
    """
    index = read_index(path, files)
    for part, place in index.places.items():
        if isinstance(index.metadata.state_dict_metadata.get(part.fqn), BytesStorageMetadata):
            source = path.parent / place.name
            with source.open("rb") as file:
                _doing(partial(read_plain, file, place, source))


def _doing(act: Callable[[], T]) -> T:
    """Call DCP or torch.

    Raises:
        CheckpointError: They fail because a state does not fit, or a file or a disk is damaged.
    """
    try:
        return act()
    except _BROKEN as error:
        raise CheckpointError(str(error) or repr(error)) from error


# ---- writing ----


class _Item(msgspec.Struct, frozen=True, array_like=True):
    """A part of a state, as ranks exchange it."""

    name: str
    offset: _Numbers | None
    hint: int | None
    kind: int
    #: The size of an object that is not a tensor.
    size: int | None = None
    #: Of a tensor: the offset of its part, the size of the part, and the size of the whole.
    begin: _Numbers = ()
    part: _Numbers = ()
    whole: _Numbers = ()
    dtype: str = ""


class _Plan(msgspec.Struct, frozen=True, array_like=True):
    """What a rank writes."""

    items: list[_Item]
    #: The path of each part in the state.
    paths: dict[str, tuple[str | int, ...]]


class _Written(msgspec.Struct, frozen=True, array_like=True):
    """The position of a part that has been written."""

    name: str
    offset: _Numbers | None
    hint: int | None
    file: str
    begin: int
    size: int


class DcpWriter:
    """Writes the part of a sharded state that one rank holds; all ranks call its methods, in the same order.

    Args:
        state: The state of this rank.
        directory: The directory for its files.
        peers: All ranks.
    """

    def __init__(self, state: dict[str, Any], directory: Path, peers: RankGroup) -> None:
        self._planner = DefaultSavePlanner()
        self._writer = FileSystemWriter(directory, thread_count=_THREADS, sync_files=False)
        self._state = state
        self._peers = peers

    def write(self) -> None:
        """Plan with the other ranks what each one writes, and write it; all ranks call it.

        Raises:
            CheckpointError: On every rank: a rank could not.
        """
        peers = self._peers
        gathered = peers.gather(self._together(self._plan))
        metadata, plans = self._together(lambda: self._combine(gathered) if gathered else (None, []))
        plan = peers.scatter(plans)
        results = peers.gather(self._together(lambda: self._write(plan)))
        self._together(lambda: self._finish(metadata, results) if metadata else None)

    def _together(self, act: Callable[[], T]) -> T:
        return self._peers.run_together(lambda: _doing(act))

    def _plan(self) -> bytes:
        """Plan what this rank could write."""
        is_first = self._peers.rank == 0
        self._planner.set_up_planner(self._state, self._writer.storage_meta(), is_first)
        self._writer.set_up_storage_writer(is_first, rank=self._peers.rank, use_collectives=True)
        return _encode_plan(self._writer.prepare_local_plan(self._planner.create_local_plan()))

    def _combine(self, gathered: Sequence[bytes]) -> tuple[Metadata, list[bytes]]:
        """Plan what each rank writes: only one of those that have the same part."""
        plans, metadata = self._planner.create_global_plan([_decode_plan(plan) for plan in gathered])
        return metadata, [_encode_plan(plan) for plan in plans]

    def _write(self, plan: bytes) -> bytes:
        """Write what rank 0 has planned for this rank, to files that this rank names itself."""
        named = replace(_decode_plan(plan), storage_data=_StoragePrefix(f"__{self._peers.rank}_"))
        future = self._writer.write_data(self._planner.finish_plan(named), self._planner)
        results: list[WriteResult] = future.wait()
        return msgspec.msgpack.encode([_written(result) for result in results])

    def _finish(self, metadata: Metadata, gathered: Sequence[bytes]) -> None:
        """Write the index."""
        written = [msgspec.msgpack.decode(results, type=list[_Written]) for results in gathered]
        self._writer.finish(metadata, [[_result(one) for one in of_rank] for of_rank in written])


# ---- exchange of plans ----


def _encode_plan(plan: SavePlan) -> bytes:
    return msgspec.msgpack.encode(_Plan([_item(item) for item in plan.items], plan.planner_data))


def _decode_plan(content: bytes) -> SavePlan:
    plan = msgspec.msgpack.decode(content, type=_Plan)
    return SavePlan([_write_item(item) for item in plan.items], planner_data=plan.paths)


def _item(item: WriteItem) -> _Item:
    index, tensor = item.index, item.tensor_data
    offset = None if index.offset is None else tuple(index.offset)
    if tensor is None:
        size = None if item.bytes_io_data is None else item.bytes_io_data.nbytes
        return _Item(index.fqn, offset, index.index, item.type.value, size)
    begin, part = tuple(tensor.chunk.offsets), tuple(tensor.chunk.sizes)
    dtype = str(tensor.properties.dtype).removeprefix("torch.")
    return _Item(index.fqn, offset, index.index, item.type.value, None, begin, part, tuple(tensor.size), dtype)


def _write_item(item: _Item) -> WriteItem:
    index, kind = MetadataIndex(item.name, item.offset, item.hint), WriteItemType(item.kind)
    if not item.dtype:
        return WriteItem(index, kind, bytes_io_data=None if item.size is None else BytesIOWriteData(item.size))
    chunk = ChunkStorageMetadata(torch.Size(item.begin), torch.Size(item.part))
    properties = TensorProperties(dtype=dtypes()[item.dtype])
    return WriteItem(index, kind, tensor_data=TensorWriteData(chunk, properties, torch.Size(item.whole)))


def _written(result: WriteResult) -> _Written:
    index, place = result.index, result.storage_data
    offset = None if index.offset is None else tuple(index.offset)
    return _Written(index.fqn, offset, index.index, place.relative_path, place.offset, place.length)


def _result(written: _Written) -> WriteResult:
    index = MetadataIndex(written.name, written.offset, written.hint)
    return WriteResult(index, written.size, _StorageInfo(written.file, written.begin, written.size))
