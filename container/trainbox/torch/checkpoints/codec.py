"""The state of a training as plain data: a tree that JSON can say, and a table of its tensors. Nothing is pickled.

    tree     None, booleans, integers, strings, finite floats and lists as JSON has them; all else is an object of one
             key, which says what it is: {"dict": [[key, value], …]}, {"tensor": 7}, {"float": "7ff0000000000000"}, …
    table    one entry a tensor: its type, shape and strides, and where its bytes lie

Reading it back can make nothing but these values, whatever the file says: no name in it is looked up but that of a
number's type. What is read is equal to what was written, to the bit: NaN with its payload, integers beyond 64 bits,
0-dimensional and empty tensors, the strides of channels-last ones, weights that are tied.
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

#: Changes when what is written today could not be read by yesterday's reader.
CODEC: Final = 1
#: Where each tensor begins, in bytes: a cache line, so that copies run at full speed and any type is aligned.
ALIGNMENT: Final = 64
_SCALARS = frozenset({type(None), bool, int, str})


class Entry(msgspec.Struct, frozen=True):
    """One tensor: what it is, and where its elements lie, in logical order, whatever its strides."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    #: None if it is contiguous.
    stride: tuple[int, ...] | None = None


class Encoded(msgspec.Struct, frozen=True):
    """A state taken apart; the tensors are the live ones, not copies."""

    tree: Any
    table: tuple[Entry, ...]
    tensors: tuple[torch.Tensor, ...]
    #: Where the next part may begin: the aligned end of the last tensor.
    end: int


def encode(state: object, name: str, *, offset: int = 0) -> Encoded:
    """Take a state apart; nothing is copied.

    Args:
        state: Dicts (keys: strings and integers), lists, tuples, None, booleans, numbers, strings, bytes, tensors, and
            numpy's arrays and scalars, however deep.
        name: What to call it in messages.
        offset: Where its first tensor goes.

    Raises:
        CheckpointError: Something in it is of another type; the message says where in the tree.
    """
    encoder = _Encoder(offset)
    try:
        tree = encoder.node(state, name)
    except RecursionError:
        raise CheckpointError(
            f"{name} is nested too deeply, or contains itself", hint="save a flat dict of tensors and numbers"
        ) from None
    return Encoded(tree, tuple(encoder.table), tuple(encoder.tensors), encoder.end)


class _Encoder:
    """The table as far as it goes, and which tensors are in it: tied weights are written once."""

    def __init__(self, offset: int) -> None:
        self.table: list[Entry] = []
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
            # `Module.state_dict` hangs the versions of its modules on it; `load_state_dict` looks for them.
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
                    f"{path} has the key {key!r} of type {type(key).__name__}, which a checkpoint cannot say",
                    hint="use strings or integers as keys",
                )
        return [[key, self.node(item, f"{path}[{key!r}]")] for key, item in value.items()]

    def _of_numpy(self, value: object, path: str) -> dict[str, int]:
        # Whoever holds an array has imported numpy; this module needs not.
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            kind = "array" if isinstance(value, numpy.ndarray) else "scalar"
            try:
                # A copy, since torch warns of arrays that it may not write to.
                return {kind: self._tensor(torch.from_numpy(numpy.array(value, order="C")), path)}
            except TypeError:
                pass
        raise CheckpointError(
            f"{path} is of type {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot say",
            hint="save numbers, strings, bytes, None, tensors, and lists, tuples and dicts of them",
        )

    def _tensor(self, tensor: torch.Tensor, path: str) -> int:
        refused = _refusal(tensor)
        if refused is not None:
            raise CheckpointError(f"{path} is {refused}, which a checkpoint cannot say", hint="save a plain tensor")
        tensor = tensor.detach()
        stride = None if tensor.is_contiguous() else torch.empty_like(tensor, device="meta").stride()
        # Two empty tensors may have one address, and nothing to share.
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj())
        if tensor.numel() and place in self._known:
            return self._known[place]
        size = tensor.numel() * tensor.element_size()
        index = self._known[place] = len(self.table)
        self.table.append(Entry(_name(tensor.dtype), tuple(tensor.shape), self.end, size, stride))
        self.tensors.append(tensor)
        self.end = -(-(self.end + size) // ALIGNMENT) * ALIGNMENT
        return index


def _refusal(tensor: torch.Tensor) -> str | None:
    """What is wrong with a tensor whose elements do not lie in memory one beside the other, if anything."""
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
    """The state that `encode` took apart, of the tensors of its table.

    Raises:
        CheckpointError: The tree is none that `encode` makes.
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
    raise ValueError(f"{kind!r} is no type of value")


def _items(pairs: Sequence[tuple[Any, Any]], tensors: Sequence[torch.Tensor]) -> Iterator[tuple[Any, Any]]:
    return ((key, _value(item, tensors)) for key, item in pairs)


def pack(state: object, name: str) -> bytes:
    """A small state as bytes: the generators of one rank."""
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
    """The state that `pack` took.

    Raises:
        CheckpointError: These are no such bytes.
    """
    offset = 8 + int.from_bytes(content[:8], "little")
    tensors = []
    try:
        tree, table = json.loads(content[8:offset])
        for entry in msgspec.convert(table, tuple[Entry, ...]):
            tensor = empty(entry)
            if entry.size:
                there = bytearray(content[offset : offset + entry.size])
                flat(tensor).copy_(torch.frombuffer(there, dtype=torch.uint8))
            tensors.append(tensor)
            offset += entry.size
    except (RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"a state of the checkpoint cannot be read: {error}") from error
    return decode(tree, tensors)


def empty(entry: Entry) -> torch.Tensor:
    """A new contiguous CPU tensor for the elements of an entry.

    Raises:
        CheckpointError: No such type, or the shape and the size contradict each other.
    """
    dtype = dtypes().get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"the checkpoint holds a tensor of type {entry.dtype}, which torch {torch.__version__} does not know",
            hint="resume with the version of torch that wrote it",
        )
    if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise CheckpointError(f"a tensor of type {entry.dtype} and shape {entry.shape} has not {entry.size} bytes")
    return torch.empty(entry.shape, dtype=dtype)


def restride(tensor: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The same elements with the strides that the tensor had."""
    if entry.stride is None:
        return tensor
    return torch.empty_strided(entry.shape, entry.stride, dtype=tensor.dtype).copy_(tensor)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor: one dimension, type uint8, the same memory."""
    return tensor.reshape(-1).view(torch.uint8)


def difference(saved: Mapping[str, Entry], present: Mapping[str, Entry], *, shown: int = 3) -> str | None:
    """How the tensors of two states differ by name, shape and type: the first differences, or None."""
    found = [
        f"{name}: {_specification(saved.get(name))} in the checkpoint, {_specification(present.get(name))} now"
        for name in [*present, *(name for name in saved if name not in present)]
        if _specification(saved.get(name)) != _specification(present.get(name))
    ]
    more = f"; and {len(found) - shown} more" if len(found) > shown else ""
    return "; ".join(found[:shown]) + more if found else None


def named(tree: Any, table: Sequence[Entry]) -> dict[str, Entry]:  # noqa: ANN401 - a tree of `encode`
    """The entries of a state dict of tensors, by name; all that is no tensor is left out."""
    ((_, content),) = tree.items()
    pairs = content[0] if "ordered" in tree else content
    return {str(name): table[value["tensor"]] for name, value in pairs if isinstance(value, dict) and "tensor" in value}


def _specification(entry: Entry | None) -> str:
    return "absent" if entry is None else f"{entry.dtype} {list(entry.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def dtypes() -> dict[str, torch.dtype]:
    """The types of numbers that torch has, by name: `float32`."""
    return {_name(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
