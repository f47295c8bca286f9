"""Which models are loaded, in memory that outlives the loader: the next one loads them again."""

import os
from collections.abc import Sequence

import msgspec

from trainbox.log_lines import emit

_LENGTH_BYTES = 8


class StoredModel(msgspec.Struct, frozen=True):
    """A model."""

    name: str
    url: str
    #: False while the loader loads it: one that has died meanwhile died of it.
    is_loaded: bool = True


class Store:
    """The memory.

    Args:
        descriptor: Of a file in memory, empty at first; the supervisor keeps it open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, records: Sequence[StoredModel]) -> None:
        """Replace what is there."""
        content = msgspec.json.encode(records)
        os.pwrite(self._descriptor, len(content).to_bytes(_LENGTH_BYTES) + content, 0)

    def read(self) -> tuple[StoredModel, ...]:
        """Return what the last loader has written."""
        length = int.from_bytes(os.pread(self._descriptor, _LENGTH_BYTES, 0))
        content = os.pread(self._descriptor, length, _LENGTH_BYTES)
        if not content:
            return ()
        try:
            return msgspec.json.decode(content, type=tuple[StoredModel, ...])
        except msgspec.DecodeError:
            emit("the list of the loaded models was cut off: none is loaded again")
            return ()
