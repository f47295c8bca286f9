"""Whether there is memory for a model. Pure, from what the kernel says."""

from http import HTTPStatus

import msgspec

from trainbox.serving.multi.api import Reply

_MIB = 2**20
_HINT = "unload models, or use an instance with more memory"


#: Requests may need so many times their largest body in each worker, and a worker so much for itself; of what is
#: available a quarter at most is kept for them, or many workers would leave no room for any model.
_BODIES, _WORKER_BYTES, _MOST_RESERVED = 3, 32 * 2**20, 4


class Room(msgspec.Struct, frozen=True):
    """The memory of the container."""

    #: What can be had without taking it from anybody.
    available_bytes: int
    #: What requests may need meanwhile.
    reserved_bytes: int

    @property
    def free_bytes(self) -> int:
        """What models may take."""
        return max(0, self.available_bytes - self.reserved_bytes)


def find_room(available: int | None, *, workers: int, largest_body: int) -> Room | None:
    """Return the room for models; None where the kernel does not say.

    Args:
        available: Bytes that can be had.
        workers: How many there are.
        largest_body: Of a request, in bytes.
    """
    if available is None:
        return None
    needed = workers * (_WORKER_BYTES + _BODIES * largest_body)
    return Room(available, min(needed, available // _MOST_RESERVED))


def refuse_before(room: Room | None, size: int) -> Reply | None:
    """Return why a model is not even tried, by the size of its files; None if it is.

    Args:
        room: None where the kernel does not say.
        size: Of its files, in bytes; in memory few models are smaller.
    """
    if room is None or size <= room.free_bytes:
        return None
    return _refuse(f"its files have {_mib(size)}", room)


def refuse_after(room: Room | None, needed: int) -> Reply | None:
    """Return why a model is not loaded, by what its trial has needed; None if it is.

    Args:
        room: None where the kernel does not say.
        needed: Bytes.
    """
    if room is None or needed <= room.free_bytes:
        return None
    return _refuse(f"the model needs {_mib(needed)} of memory", room)


def no_memory(why: str) -> Reply:
    """Return what is said of a model that ended for memory.

    Args:
        why: How that was noticed.
    """
    return Reply(HTTPStatus.INSUFFICIENT_STORAGE, f"the memory does not suffice for the model: {why}", _HINT)


def _refuse(need: str, room: Room) -> Reply:
    has = f"{_mib(room.available_bytes)} is available, of which {_mib(room.reserved_bytes)} is for requests"
    return no_memory(f"{need}, {has}")


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB" if size >= _MIB else f"{size:,} bytes"
