"""Pickles in checkpoints: reject what asks for code, before any of it runs.

Libraries read most of their files as safetensors, JSON, or with `weights_only=True`. They read two kinds as pickles,
which may call any function: DCP's index with its objects that are not tensors (FSDP), and objects that a script has
registered with Accelerate. Without a key that proves them genuine, these are checked first.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from trainbox.checkpoint.manifest import NotGenuineError

#: What a reader raises for a pickle that is damaged or of an unexpected kind.
DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
    pickle.PickleError,
)


#: Modules whose names in a file of `torch.save` stand for tensors and containers, or are rejected by torch.
_PLAIN = frozenset({"torch", "collections"})


class PickleRecord:
    """A record of an object that a pickle would make: its arguments and state."""

    kind = ""
    content: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *content: Any) -> None:  # noqa: ANN401 - any content of the file
        self.content = content

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401 - likewise
        self.state = state


class ForeignNameError(NotGenuineError):
    """A file of a checkpoint asks for code that no checkpoint needs: it is forged, and no older one is used instead."""


def refuse(path: Path, names: Sequence[str]) -> ForeignNameError:
    """Make the error for a file that asks for code."""
    listed = ", ".join(repr(name[:100]) for name in names[:10]) or "more than plain data"
    return ForeignNameError(
        f"{path} asks for {listed}, which no checkpoint needs: it is not loaded, and nothing of it has run",
        hint="it may be forged: find out who has written it; remove this checkpoint to resume from the one before",
    )


def require_small_memo(content: BytesIO) -> None:
    """Check the memo of a pickle before it is read: it gets as long as the highest index in it.

    Five bytes can hold an index for which pickle allocates 64 GiB. The position in `content` is not changed.

    Raises:
        ValueError: It has an index that no pickle of its length needs, or is not a pickle.
    """
    began, most = content.tell(), len(content.getbuffer())
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"} and isinstance(argument, int) and argument > most:
            raise ValueError(f"place {argument:,} of the memo of a pickle of {most:,} bytes")
    content.seek(began)


class _Names(pickle.Unpickler):
    """An unpickler that notes the names that a pickle asks for, and makes records."""

    def __init__(self, content: BytesIO) -> None:
        super().__init__(content)
        self.names: list[str] = []

    def find_class(self, module: str, name: str, /) -> type[PickleRecord]:
        """Return a class of records."""
        self.names.append(f"{module}.{name}")
        return type(name, (PickleRecord,), {})

    def persistent_load(self, _: object, /) -> None:
        """Ignore a tensor of a file of torch."""


def names_in(content: bytes) -> list[str]:
    """Return the names that a file asks for that torch has rejected, as far as known without running it."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(BytesIO(content)))
    except (*DAMAGED, RuntimeError):  # not an archive
        return _names_in_pickles(BytesIO(content))


def _names_in_pickles(content: BytesIO) -> list[str]:
    """Return the names in a file in the format of before 2020: a series of pickles."""
    names: list[str] = []
    size = len(content.getbuffer())
    while content.tell() < size:
        reader = _Names(content)
        try:
            require_small_memo(content)
            reader.load()
        except DAMAGED:
            size = 0
        names += reader.names
    return [name for name in dict.fromkeys(names) if name.partition(".")[0] not in _PLAIN]


def check_indexes(directory: Path) -> None:
    """Read each DCP index in a checkpoint, and its objects that are not tensors, as plain data.

    Raises:
        NotGenuineError: One asks for code.
        CheckpointError: One cannot be read.
    """
    found = sorted(directory.rglob("*.metadata"))
    if not found:
        return
    from trainbox.torch.checkpoints.sharded.dcp import read_bytes_of  # noqa: PLC0415 - DCP takes half a second to import

    for path in found:
        read_bytes_of(path, _sizes(path.parent))


def check_objects(directory: Path, pattern: str, read: Callable[[Path], object]) -> None:
    """Read files as plain data.

    Args:
        directory: The checkpoint.
        pattern: The pattern of their names.
        read: The reader of the library for plain data.

    Raises:
        NotGenuineError: One asks for code.
    """
    for path in sorted(directory.glob(pattern)):
        try:
            read(path)
        except pickle.UnpicklingError:
            raise refuse(path, names_in(path.read_bytes())) from None


def _sizes(directory: Path) -> Mapping[str, int]:
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size for path in directory.rglob("*") if path.is_file()
    }
