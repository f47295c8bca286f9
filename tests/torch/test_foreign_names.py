"""A pickle in a checkpoint is read as data: names of honest files are known, and nothing that it names is called."""

import collections
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from tests.frozen.fixtures import FIXTURES
from tests.support.forged_checkpoints import NAME, Payload, change_index, forge_item, saved
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.codec import pack, unpack
from trainbox.torch.checkpoints.pickles import ForeignNameError, check_indexes, check_objects, names_in
from trainbox.torch.checkpoints.sharded.dcp import read_bytes_of
from trainbox.torch.checkpoints.sharded.dcp_index import read_index

HONEST = FIXTURES / "pytorch-sharded" / "checkpoints" / "step-00000002"


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    shutil.copytree(HONEST, tmp_path / "step-00000002")
    return tmp_path / "step-00000002"


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def read(directory: Path) -> None:
    read_bytes_of(directory / ".metadata", sizes(directory))


def test_an_index_of_an_earlier_version_is_read_to_what_torch_makes_of_it(honest: Path) -> None:
    ours, theirs = read_index(honest / ".metadata", sizes(honest)), pickle.loads((honest / ".metadata").read_bytes())
    assert [*ours.metadata.state_dict_metadata] == [*theirs.state_dict_metadata]
    for name, described in theirs.state_dict_metadata.items():
        own = ours.metadata.state_dict_metadata[name]
        assert type(own) is type(described)
        if isinstance(described, TensorStorageMetadata):
            assert isinstance(own, TensorStorageMetadata)
            assert (own.size, own.chunks, own.properties.dtype) == (
                described.size,
                described.chunks,
                described.properties.dtype,
            )
    assert {index: (place.name, place.offset, place.size) for index, place in ours.places.items()} == {
        index: (place.relative_path, place.offset, place.length) for index, place in theirs.storage_data.items()
    }
    read(honest)


def test_an_index_of_this_version_of_torch_has_no_other_names(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]
    state: dict[str, Any] = {str(kind): torch.zeros(3, 4, dtype=kind) for kind in kinds}
    state |= {"rate": 0.1, "betas": (0.9, 0.999), "none": None, "deep": {"list": [1, "two", True]}, "empty": {}}
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        state_dict_saver.save(state, checkpoint_id=tmp_path, no_dist=True)
    read(tmp_path)


def test_a_payload_in_the_place_of_the_index_is_refused_by_name(honest: Path, tmp_path: Path) -> None:
    (honest / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ForeignNameError, match=re.escape(f"{honest}/.metadata asks for '{NAME}', which no checkpoint")):
        read(honest)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("archive", [True, False])
def test_a_payload_in_the_place_of_one_item_is_refused_by_name(honest: Path, tmp_path: Path, archive: bool) -> None:
    forge_item(honest, tmp_path / "ran", archive=archive)
    with pytest.raises(ForeignNameError, match=rf"\.distcp asks for '.*{NAME}.*', which no checkpoint"):
        read(honest)
    assert not (tmp_path / "ran").exists()


def test_a_payload_in_the_index_of_a_library_is_refused(honest: Path, tmp_path: Path) -> None:
    library = tmp_path / "checkpoint"
    shutil.copytree(honest, library / "pytorch_model_fsdp_0")
    check_indexes(library)
    forge_item(library / "pytorch_model_fsdp_0", tmp_path / "ran")
    with pytest.raises(ForeignNameError, match=NAME):
        check_indexes(library)
    (library / "pytorch_model_fsdp_0" / ".metadata").rename(library / "pytorch_model_fsdp_0" / "__0.metadata")
    with pytest.raises(ForeignNameError, match=NAME):
        check_indexes(library)
    assert not (tmp_path / "ran").exists()


def test_a_payload_among_the_objects_of_a_script_is_refused(tmp_path: Path) -> None:
    def load(path: Path) -> object:
        return torch.load(path, weights_only=True)

    torch.save({"epoch": 1, "seen": [torch.ones(2)]}, tmp_path / "custom_checkpoint_0.pkl")
    check_objects(tmp_path, "custom_checkpoint_*.pkl", load)
    (tmp_path / "custom_checkpoint_1.pkl").write_bytes(saved(Payload(tmp_path / "ran")))
    with pytest.raises(ForeignNameError, match=rf"custom_checkpoint_1\.pkl asks for '{NAME}'"):
        check_objects(tmp_path, "custom_checkpoint_*.pkl", load)
    assert not (tmp_path / "ran").exists()


class Call:
    """Unpickled, it calls something of its choice."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


class State:
    """Unpickled, a class of an honest index is to get another attribute."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (Metadata, "__init__"), (None, {"__setstate__": os.mkdir}))


STRANGE: dict[str, object] = {
    "nothing": None,
    "a number": 7,
    "a dict": {"state_dict_metadata": {}, "storage_data": {}},
    "a class of the index": Metadata,
    "an index without places": Metadata({}),
    "another class of the index": MetadataIndex("a"),
    "what is called": Call(os.mkdir, "ran"),
    "what is looked up": Call(getattr, Metadata, "__init__"),
    "an attribute of a class": State(),
    "a class of torch": torch.nn.Linear(1, 1),
    "a counter": collections.Counter("abc"),
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_whatever_else_an_index_holds_is_an_error_of_ours(
    content: object, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (honest / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        read(honest)
    assert not (tmp_path / "ran").exists()


def set_attribute_of_a_class(directory: Path) -> None:
    """By the opcode BUILD with a pair: `setattr` on whatever lies on the stack."""
    path = "torch.distributed.checkpoint.metadata"
    (directory / ".metadata").write_bytes(
        b"\x80\x04" + f"c{path}\nMetadata\n".encode() + b"(NX\x07\x00\x00\x00version(dtX\x01\x00\x00\x00ab."
    )


def test_a_class_of_torch_cannot_be_changed_by_an_index(honest: Path) -> None:
    before = dict(vars(Metadata))
    set_attribute_of_a_class(honest)
    with pytest.raises(CheckpointError):
        read(honest)
    assert dict(vars(Metadata)) == before


def test_an_index_looks_into_no_file_that_is_not_of_the_checkpoint(honest: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(saved("of the host"))
    for name in (str(secret), "../secret", "absent"):

        def move(index: Metadata, name: str = name) -> None:
            next(iter(index.storage_data.values())).relative_path = name

        change_index(honest, move)
        with pytest.raises(ForeignNameError, match=re.escape(repr(name))):
            read(honest)


@pytest.mark.parametrize(("offset", "length"), [(0, 10**12), (10**12, 1), (-5, 10), (5, -1)])
def test_an_index_places_nothing_beyond_the_end_of_a_file(honest: Path, offset: int, length: int) -> None:
    def move(index: Metadata) -> None:
        place = next(iter(index.storage_data.values()))
        place.offset, place.length = offset, length

    change_index(honest, move)
    with pytest.raises(CheckpointError, match="beyond the end of"):
        read(honest)


def test_content_that_is_transformed_is_refused(honest: Path) -> None:
    def move(index: Metadata) -> None:
        next(iter(index.storage_data.values())).transform_descriptors = ["stream.zstd"]

    change_index(honest, move)
    with pytest.raises(CheckpointError, match="transformed"):
        read(honest)


def test_a_place_that_no_pickle_of_its_length_has_takes_no_memory(honest: Path) -> None:
    greedy = pickle.PROTO + b"\x02" + pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + pickle.STOP
    (honest / ".metadata").write_bytes(greedy)
    with pytest.raises(CheckpointError, match="place 2,147,483,647 of the memo of a pickle of 9 bytes"):
        read(honest)
    assert names_in(greedy) == []


def test_an_index_with_any_bytes_changed_is_read_or_refused(honest: Path) -> None:
    whole, draw = (honest / ".metadata").read_bytes(), random.Random(17)
    refused = 0
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        cut = content if draw.random() < 0.9 else content[: draw.randrange(len(content))]
        (honest / ".metadata").write_bytes(cut)
        try:
            read_index(honest / ".metadata", sizes(honest))
        except CheckpointError:
            refused += 1
    assert refused > 500


def test_the_packed_state_of_a_rank_with_any_bytes_changed_is_read_or_refused() -> None:
    whole, draw = pack({"a": torch.arange(5), "b": [1, "two"], "c": torch.get_rng_state()}, "state"), random.Random(3)
    for _ in range(500):
        content = bytearray(whole)
        content[draw.randrange(200)] = draw.randrange(256)
        try:
            unpack(bytes(content))
        except CheckpointError:
            continue
