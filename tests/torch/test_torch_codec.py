"""A state comes back equal to the bit, whatever is in it; and what cannot come back is refused by its place."""

import json
import math
import struct
from collections import Counter, OrderedDict
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints import snapshot
from trainbox.torch.checkpoints.codec import ALIGNMENT, TensorEntry, decode, empty, encode, flat, pack, restride, unpack
from trainbox.torch.checkpoints.snapshot import SnapshotBuffer

DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    - {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4},
    key=str,
)


def through_memory(state: object) -> Any:
    """As a checkpoint does it: copied into the buffer, the tree through JSON, read back from the bytes."""
    encoded = encode(state, "state")
    buffer = SnapshotBuffer(max(1, encoded.end), pinned=False)
    try:
        buffer.copy(encoded.tensors, encoded.table)
        tree, table = json.loads(json.dumps(msgspec.to_builtins([encoded.tree, encoded.table]), allow_nan=False))
        tensors = []
        for entry in msgspec.convert(table, tuple[TensorEntry, ...]):
            assert entry.offset % ALIGNMENT == 0
            tensor = empty(entry)
            flat(tensor).copy_(buffer.bytes[entry.offset : entry.offset + entry.size])
            tensors.append(restride(tensor, entry))
        return decode(tree, tensors)
    finally:
        buffer.close()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and flat(one.contiguous()).tolist() == flat(
        other.contiguous()
    ).tolist()


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_any_plain_state_comes_back_equal(state: object) -> None:
    assert repr(through_memory(state)) == repr(state)  # equal, with types and signs of zero


@given(st.binary(min_size=8, max_size=8))
def test_every_float_comes_back_to_the_bit(content: bytes) -> None:
    (value,) = struct.unpack(">d", content)
    (back,) = through_memory([value])
    if math.isnan(value):
        assert math.isnan(back)
    assert struct.pack(">d", back) == struct.pack(">d", value)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (5, 7)], ids=str)
def test_tensors_of_every_type_come_back_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    size = math.prod(shape) * dtype.itemsize
    tensor = torch.empty(shape, dtype=dtype)
    flat(tensor).copy_(torch.arange(size, dtype=torch.uint8) % (2 if dtype is torch.bool else 251))
    assert same(through_memory({"t": tensor})["t"], tensor)


def test_tensors_that_are_not_contiguous_keep_their_strides_and_elements() -> None:
    state = {
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(4, 6).t(),
        "sliced": torch.randn(8, 8)[1:7:2, ::3],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    back = through_memory(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    for name in ("channels last", "transposed"):
        assert back[name].stride() == state[name].stride()


def test_tied_weights_are_written_once_and_stay_tied() -> None:
    weight = torch.randn(1000, 10)
    encoded = encode({"embedding": weight, "head": weight.detach(), "a copy": weight.clone()}, "model")
    assert [entry.size for entry in encoded.table] == [40_000, 40_000]
    back = through_memory({"embedding": weight, "head": weight})
    assert back["embedding"] is back["head"]


def test_what_torchs_own_classes_have_in_their_states_comes_back() -> None:
    model = torch.nn.BatchNorm1d(3)
    state = through_memory(model.state_dict())
    assert type(state) is OrderedDict
    assert vars(state)["_metadata"] == vars(model.state_dict())["_metadata"]
    optimizer = torch.optim.AdamW(model.parameters())
    for scheduler in (
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5]),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    ):
        assert through_memory(scheduler.state_dict()) == scheduler.state_dict()
    assert type(through_memory({"milestones": Counter([3, 3, 5])})["milestones"]) is Counter
    assert through_memory(optimizer.state_dict()) == optimizer.state_dict()


def test_numpys_arrays_and_scalars_come_back_as_such() -> None:
    state: dict[str, Any] = {
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3).T,
        "best": np.float64(0.1),
        "flag": np.bool_(True),
    }
    back = through_memory(state)
    assert np.array_equal(back["array"], state["array"])
    assert {name: type(value) for name, value in back.items()} == {name: type(value) for name, value in state.items()}
    assert (back["best"], back["flag"]) == (0.1, True)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (object(), "builtins.object"),
        ({1, 2}, "builtins.set"),
        (1j, "builtins.complex"),
        (torch.float32, "torch.dtype"),
        (lambda: None, "builtins.function"),
        (np.array(["a"]), "numpy.ndarray"),
        (torch.randn(2, 2).to_sparse(), "a tensor of layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), "a tensor on the device meta"),
        ({(1, 2): 3}, "the key (1, 2) of type tuple"),
        ({True: 3}, "the key True of type bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_said_is_refused_with_its_place(bad: object, said: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        encode({"groups": [{"lr": 0.1}, {"extra": (1, bad)}]}, "optimizer")
    assert refused.value.message.startswith("optimizer['groups'][1]['extra'][1]")
    assert said in refused.value.message
    assert refused.value.hint


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantized_tensor_is_refused() -> None:
    tensor = torch.quantize_per_tensor(torch.randn(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"model\['w'\] is a quantized tensor \(qint8\)"):
        encode({"w": tensor}, "model")


def test_a_state_that_contains_itself_is_refused() -> None:
    state: dict[str, object] = {}
    state["me"] = state
    with pytest.raises(CheckpointError, match="contains itself"):
        encode(state, "progress")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["dict", "tensor", "tuple", "ordered", "float", "bytes", "x"]), inner)
        ),
        max_leaves=10,
    )
)
def test_no_tree_whatever_gives_anything_but_a_state_or_an_error(tree: object) -> None:
    try:
        decode(tree, [torch.zeros(1)])
    except CheckpointError as error:
        assert "cannot be read" in error.message  # noqa: PT017 - most trees raise, some do not


@pytest.mark.parametrize(
    "entry",
    [TensorEntry("float32", (2,), 0, 7), TensorEntry("float32", (-1, -2), 0, 8), TensorEntry("nn", (1,), 0, 1)],
    ids=repr,
)
def test_a_table_that_contradicts_itself_is_refused(entry: TensorEntry) -> None:
    with pytest.raises(CheckpointError):
        empty(entry)


def test_a_packed_state_comes_back() -> None:
    state = {"tensor": torch.randn(3).half(), "empty": torch.zeros(0), "numbers": (1, 2.5, float("-inf"))}
    back = unpack(pack(state, "state"))
    assert same(back["tensor"], state["tensor"])  # type: ignore[arg-type]
    assert (tuple(back["empty"].shape), back["numbers"]) == ((0,), (1, 2.5, float("-inf")))


def test_a_state_is_cut_into_pieces_of_bounded_size_that_are_all_of_it_and_the_largest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, "_PIECE_BYTES", 10)
    source, target = np.arange(40, dtype=np.uint8), np.zeros(40, dtype=np.uint8)
    bounds = [(0, 5), (5, 5), (5, 30), (30, 40)]
    parts = snapshot.cut([(target[one:end], source[one:end]) for one, end in bounds])
    assert [len(part) for _, part in parts] == [10, 10, 10, 5, 5]
    for into, part in parts:
        np.copyto(into, part)
    assert target.tolist() == source.tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_several_threads_copy_what_one_copies(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_PIECE_BYTES", 1 << 20)
    monkeypatch.setattr(snapshot, "_BYTES_OF_A_THREAD", 1 << 20)
    generator = torch.Generator().manual_seed(threads)
    sizes = torch.randint(1, 700_000, (40,), generator=generator).tolist()
    state = [torch.randn(size, generator=generator) for size in (*sizes, 3, 2_000_000)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        back = through_memory(state)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(state, back, strict=True))
