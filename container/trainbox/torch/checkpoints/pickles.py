"""Pickles in checkpoints: what asks for code is refused by name, before any of it runs.

Libraries read most of their files as safetensors, JSON, or with `weights_only=True`. Two kinds they read as pickles
that may call anything: DCP's index with all that is no tensor (FSDP), and what a script has registered with Accelerate.
Where no key says that these are genuine they are looked at first.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from trainbox.manifest import NotGenuineError

#: What a pickle that is damaged, or none of ours, makes the reader raise.
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


#: Modules whose names in a file of `torch.save` are those of tensors and containers, or are refused as torch's.
_PLAIN = frozenset({"torch", "collections"})


class Record:
    """Stands for an object that a pickle makes: what it was to be made of."""

    kind = ""
    content: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *content: Any) -> None:  # noqa: ANN401 - whatever is in the file
        self.content = content

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401 - likewise
        self.state = state


class ForeignNameError(NotGenuineError):
    """A file of a checkpoint asks for code that no checkpoint needs: it is forged, and no older one takes its place."""


def refuse(path: Path, names: Sequence[str]) -> ForeignNameError:
    """The error for a file that asks for code."""
    listed = ", ".join(repr(name[:100]) for name in names[:10]) or "more than plain data"
    return ForeignNameError(
        f"{path} asks for {listed}, which no checkpoint needs: it is not loaded, and nothing of it has run",
        hint="it may be forged: find out who has written it; remove this checkpoint to resume from the one before",
    )


def require_small_memo(content: BytesIO) -> None:
    """Look at a pickle before it is read: its memo is as long as the highest place that it names.

    Five bytes can name a place for which pickle takes 64 GiB. The position in `content` stays.

    Raises:
        ValueError: It names a place that no pickle of its length has, or is none.
    """
    began, most = content.tell(), len(content.getbuffer())
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"} and isinstance(argument, int) and argument > most:
            raise ValueError(f"place {argument:,} of the memo of a pickle of {most:,} bytes")
    content.seek(began)


class _Names(pickle.Unpickler):
    """Notes the names that a pickle asks for, and makes records."""

    def __init__(self, content: BytesIO) -> None:
        super().__init__(content)
        self.names: list[str] = []

    def find_class(self, module: str, name: str, /) -> type[Record]:
        """A class of records."""
        self.names.append(f"{module}.{name}")
        return type(name, (Record,), {})

    def persistent_load(self, _: object, /) -> None:
        """A tensor, as torch writes them."""


def names_in(content: bytes) -> list[str]:
    """What a file that torch has refused to read asks for, as far as can be told without running it."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(BytesIO(content)))
    except (*DAMAGED, RuntimeError):  # no archive
        return _names_in_pickles(BytesIO(content))


def _names_in_pickles(content: BytesIO) -> list[str]:
    """As before 2020: some pickles, one after the other."""
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
    """Read each index of DCP in a checkpoint, and what it places that is no tensor, as plain data.

    Raises:
        NotGenuineError: One asks for code.
        CheckpointError: One cannot be read.
    """
    found = sorted(directory.rglob("*.metadata"))
    if not found:
        return
    from trainbox.torch.checkpoints.dcp import read_bytes_of  # noqa: PLC0415 - DCP takes half a second to import

    for path in found:
        read_bytes_of(path, _sizes(path.parent))


def check_objects(directory: Path, pattern: str, read: Callable[[Path], object]) -> None:
    """Read files as plain data.

    Args:
        directory: The checkpoint.
        pattern: What they are called.
        read: Of the library, which allows nothing else.

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
