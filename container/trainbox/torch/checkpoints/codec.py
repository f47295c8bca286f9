"""Codec of training states: a tree of JSON values, and a table of the tensors. Nothing is pickled.

    tree     None, booleans, integers, strings, finite floats and lists as JSON has them; other values are objects with
             one key, which names the type: {"dict": [[key, value], …]}, {"tensor": 7}, {"float": "7ff0000000000000"}, …
    table    one entry per tensor: its type, shape and strides, and the position of its bytes

Decoding makes these values only, whatever the file holds: the only names looked up are those of dtypes. What is read
equals what was written, to the bit: NaN with its payload, integers beyond 64 bits, 0-dimensional and empty tensors, the
strides of channels-last tensors, tied weights.
"""

import base64
import functools
import json
import math
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import torch

from trainbox.errors import CheckpointError

#: The version of the format: changes when the previous version could not read what this one writes.
CODEC: Final = 1
#: The alignment of tensors in bytes: a cache line, so that copies run at full speed and any type is aligned.
ALIGNMENT: Final = 64
_SCALARS = frozenset({type(None), bool, int, str})


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor: its type and shape, and the position of its elements, in logical order whatever its strides."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    #: None if it is contiguous.
    stride: tuple[int, ...] | None = None


class EncodedState(msgspec.Struct, frozen=True):
    """An encoded state; its tensors are the live ones, not copies."""

    tree: Any
    table: tuple[TensorEntry, ...]
    tensors: tuple[torch.Tensor, ...]
    #: The aligned end of the last tensor: where the next part may begin.
    end: int


def encode(state: object, name: str, *, offset: int = 0) -> EncodedState:
    """Encode a state without copying it.

    Args:
        state: Dicts (keys: strings and integers), lists, tuples, None, booleans, numbers, strings, bytes, tensors, and
            numpy's arrays and scalars, nested to any depth.
        name: Its name in messages.
        offset: The position of its first tensor.

    Raises:
        CheckpointError: It holds a value of another type; the message has its path.
    """
    encoder = _Encoder(offset)
    try:
        tree = encoder.node(state, name)
    except RecursionError:
        raise CheckpointError(
            f"{name} is nested too deeply, or contains itself", hint="save a flat dict of tensors and numbers"
        ) from None
    return EncodedState(tree, tuple(encoder.table), tuple(encoder.tensors), encoder.end)


class _Encoder:
    """The table so far, and the tensors in it: tied weights are written once."""

    def __init__(self, offset: int) -> None:
        self.table: list[TensorEntry] = []
        self.tensors: list[torch.Tensor] = []
        self.end = offset
        self._known: dict[tuple[object, ...], int] = {}

    def node(self, value: object, path: str) -> Any:  # noqa: ANN401, PLR0911 - one return for each type
        if type(value) in _SCALARS:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if type(value) is list:
            return [self.node(item, f"{path}[{index}]") for index, item in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": [self.node(item, f"{path}[{index}]") for index, item in enumerate(value)]}
        if type(value) is dict:
            return {"dict": self._pairs(value, path)}
        if type(value) is Counter:  # the milestones of MultiStepLR
            return {"counter": self._pairs(value, path)}
        if type(value) is OrderedDict:
            # `Module.state_dict` adds the versions of its modules as an attribute, which `load_state_dict` reads.
            metadata = getattr(value, "_metadata", None)
            return {"ordered": [self._pairs(value, path), self.node(metadata, f"{path}._metadata")]}
        if type(value) is bytes:
            return {"bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._tensor(value, path)}
        return self._of_numpy(value, path)

    def _pairs(self, value: Mapping[Any, object], path: str) -> list[list[Any]]:
        for key in value:
            if type(key) not in {str, int}:
                raise CheckpointError(
                    f"{path} has the key {key!r} of type {type(key).__name__}, which a checkpoint cannot store",
                    hint="use strings or integers as keys",
                )
        return [[key, self.node(item, f"{path}[{key!r}]")] for key, item in value.items()]

    def _of_numpy(self, value: object, path: str) -> dict[str, int]:
        # If there is an array, numpy has been imported; this module does not import it.
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            kind = "array" if isinstance(value, numpy.ndarray) else "scalar"
            try:
                # A copy: torch warns of arrays that are not writable.
                return {kind: self._tensor(torch.from_numpy(numpy.array(value, order="C")), path)}
            except TypeError:
                pass
        raise CheckpointError(
            f"{path} is of type {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot store",
            hint="save numbers, strings, bytes, None, tensors, and lists, tuples and dicts of them",
        )

    def _tensor(self, tensor: torch.Tensor, path: str) -> int:
        refused = _refusal(tensor)
        if refused is not None:
            raise CheckpointError(f"{path} is {refused}, which a checkpoint cannot store", hint="save a plain tensor")
        tensor = tensor.detach()
        stride = None if tensor.is_contiguous() else torch.empty_like(tensor, device="meta").stride()
        # Empty tensors may have the same address without sharing memory.
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj())
        if tensor.numel() and place in self._known:
            return self._known[place]
        size = tensor.numel() * tensor.element_size()
        index = self._known[place] = len(self.table)
        self.table.append(TensorEntry(_name(tensor.dtype), tuple(tensor.shape), self.end, size, stride))
        self.tensors.append(tensor)
        self.end = -(-(self.end + size) // ALIGNMENT) * ALIGNMENT
        return index


def _refusal(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be stored: its elements are not laid out in memory by strides; None if it can."""
    if type(tensor) not in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}:
        return f"a {type(tensor).__qualname__}"
    if tensor.is_quantized:
        return f"a quantized tensor ({_name(tensor.dtype)})"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout}"
    if tensor.is_meta:
        return "a tensor on the device meta, without elements"
    return None


def decode(tree: Any, tensors: Sequence[torch.Tensor]) -> Any:  # noqa: ANN401 - what was encoded
    """Decode what `encode` made.

    Raises:
        CheckpointError: `encode` does not make such a tree.
    """
    try:
        return _value(tree, tensors)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise CheckpointError(f"the tree of a checkpoint cannot be read: {error!r}") from error


def _value(tree: Any, tensors: Sequence[torch.Tensor]) -> Any:  # noqa: ANN401, C901, PLR0911 - one return for each type
    if isinstance(tree, list):
        return [_value(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind:
        case "dict":
            return dict(_items(content, tensors))
        case "tensor":
            return tensors[content]
        case "tuple":
            return tuple(_value(item, tensors) for item in content)
        case "ordered":
            pairs, metadata = content
            ordered = OrderedDict(_items(pairs, tensors))
            if metadata is not None:
                vars(ordered)["_metadata"] = _value(metadata, tensors)
            return ordered
        case "counter":
            return Counter(dict(_items(content, tensors)))
        case "float":
            return struct.unpack(">d", bytes.fromhex(content))[0]
        case "bytes":
            return base64.b64decode(content, validate=True)
        case "array":
            return tensors[content].numpy()
        case "scalar":
            return tensors[content].numpy()[()]
    raise ValueError(f"unknown type of value {kind!r}")


def _items(pairs: Sequence[tuple[Any, Any]], tensors: Sequence[torch.Tensor]) -> Iterator[tuple[Any, Any]]:
    return ((key, _value(item, tensors)) for key, item in pairs)


def pack(state: object, name: str) -> bytes:
    """Encode a small state as bytes: the random generators of one rank, for example."""
    encoded = encode(state, name)
    head = json.dumps(msgspec.to_builtins([encoded.tree, encoded.table])).encode()
    return b"".join(
        [
            len(head).to_bytes(8, "little"),
            head,
            *(flat(tensor.cpu().contiguous()).numpy().tobytes() for tensor in encoded.tensors),
        ]
    )


def unpack(content: bytes) -> Any:  # noqa: ANN401 - what was packed
    """Decode what `pack` made.

    Raises:
        CheckpointError: `pack` does not make such bytes.
    """
    offset = 8 + int.from_bytes(content[:8], "little")
    tensors = []
    try:
        tree, table = json.loads(content[8:offset])
        for entry in msgspec.convert(table, tuple[TensorEntry, ...]):
            tensor = empty(entry)
            if entry.size:
                there = bytearray(content[offset : offset + entry.size])
                flat(tensor).copy_(torch.frombuffer(there, dtype=torch.uint8))
            tensors.append(tensor)
            offset += entry.size
    except (RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"a state of the checkpoint cannot be read: {error}") from error
    return decode(tree, tensors)


def empty(entry: TensorEntry) -> torch.Tensor:
    """Make a contiguous CPU tensor for the elements of an entry.

    Raises:
        CheckpointError: The dtype is unknown, or shape and size contradict each other.
    """
    dtype = dtypes().get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"the checkpoint holds a tensor of type {entry.dtype}, which torch {torch.__version__} does not know",
            hint="resume with the version of torch that wrote it",
        )
    if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise CheckpointError(
            f"a tensor of type {entry.dtype} and shape {entry.shape} does not have {entry.size} bytes"
        )
    return torch.empty(entry.shape, dtype=dtype)


def restride(tensor: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    """Return the elements with the strides that the tensor had."""
    if entry.stride is None:
        return tensor
    return torch.empty_strided(entry.shape, entry.stride, dtype=tensor.dtype).copy_(tensor)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """View a contiguous tensor as bytes: one dimension, dtype uint8, the same memory."""
    return tensor.reshape(-1).view(torch.uint8)


def difference(saved: Mapping[str, TensorEntry], present: Mapping[str, TensorEntry], *, shown: int = 3) -> str | None:
    """Describe how the tensors of two states differ by name, shape and dtype: the first differences, or None."""
    found = [
        f"{name}: {_specification(saved.get(name))} in the checkpoint, {_specification(present.get(name))} now"
        for name in [*present, *(name for name in saved if name not in present)]
        if _specification(saved.get(name)) != _specification(present.get(name))
    ]
    more = f"; and {len(found) - shown} more" if len(found) > shown else ""
    return "; ".join(found[:shown]) + more if found else None


def named(tree: Any, table: Sequence[TensorEntry]) -> dict[str, TensorEntry]:  # noqa: ANN401 - a tree of `encode`
    """Return the entries of the tensors of a state dict, by name; other values are left out."""
    ((_, content),) = tree.items()
    pairs = content[0] if "ordered" in tree else content
    return {str(name): table[value["tensor"]] for name, value in pairs if isinstance(value, dict) and "tensor" in value}


def _specification(entry: TensorEntry | None) -> str:
    return "absent" if entry is None else f"{entry.dtype} {list(entry.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def dtypes() -> dict[str, torch.dtype]:
    """Return the dtypes of torch by name: `float32`."""
    return {_name(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
