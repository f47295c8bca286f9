"""Writes the pipes of Pipe mode, as SageMaker does: for each epoch one, `<channel>_0`, `<channel>_1`, and so on.

It runs as a file of its own (`python -I -S pipe_writer.py ORDER`) and imports nothing of trainbox. A pipe is there
before the one of the epoch before has ended, and is gone once it has been read; whoever closes one early gets the next.
What cannot be read is said on stdout, and its pipe does not end: half of the data must not pass for all of it.
"""

import contextlib
import json
import os
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1024 * 1024
_PIPE_BYTES = 1024 * 1024
_F_SETPIPE_SZ = 1031  # <fcntl.h>
_MAGIC = struct.pack("<I", 0xCED7230A)
_LARGEST_RECORD = 2**29 - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


def stream(stem: str, pieces: list[list[str]], wrapped: bool) -> None:
    """Write every epoch of a channel, one after the other, without end."""
    epoch = 0
    while True:
        path = f"{stem}_{epoch}"
        make_pipe(path)
        descriptor = os.open(path, os.O_WRONLY)  # waits for a reader
        make_pipe(f"{stem}_{epoch + 1}")
        widen(descriptor)
        with contextlib.suppress(BrokenPipeError):  # closed early
            for content in contents(pieces, wrapped=wrapped):
                write(descriptor, content)
        Path(path).unlink(missing_ok=True)  # a second reader would wait for ever
        os.close(descriptor)
        epoch += 1


def make_pipe(path: str) -> None:
    """Make a FIFO where there is none yet."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path)


def widen(descriptor: int) -> None:
    """Let the pipe hold more, where the system allows it."""
    import fcntl  # noqa: PLC0415

    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_BYTES)


def contents(pieces: Iterable[list[str]], *, wrapped: bool) -> Iterator[bytes]:
    """The bytes of all pieces, each in a record of its own where that is asked for."""
    for kind, value in pieces:
        if wrapped:
            yield from frames(Path(value).read_bytes() if kind == "file" else encoded(value))
        elif kind == "file":
            with open(value, "rb", buffering=0) as file:  # noqa: PTH123
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        else:
            yield encoded(value)


def encoded(text: str) -> bytes:
    """JSON may hold half a surrogate pair, which UTF-8 has no word for."""
    return text.encode(errors="surrogatepass")


def frames(content: bytes) -> Iterator[bytes]:
    """One record of RecordIO: cut where the content holds the magic number at a multiple of four, which is left out."""
    parts, begin, at = [], 0, content.find(_MAGIC)
    while at >= 0:
        if at % 4 == 0:
            parts.append(content[begin:at])
            begin = at + len(_MAGIC)
            at = content.find(_MAGIC, begin)
        else:
            at = content.find(_MAGIC, at + 1)
    parts.append(content[begin:])
    for number, part in enumerate(parts):
        if len(part) > _LARGEST_RECORD:
            raise OSError(0, f"an object of {len(content):,} bytes is larger than a record of RecordIO")
        flag = _WHOLE if len(parts) == 1 else _FIRST if not number else _LAST if number == len(parts) - 1 else _MIDDLE
        yield _MAGIC + struct.pack("<I", flag << 29 | len(part))
        yield part + b"\0" * (-len(part) % 4)


def write(descriptor: int, content: bytes) -> None:
    """Write all of it."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def guarded(order: dict[str, Any]) -> None:
    """Write the pipes of a channel; what is in the way of that is said, and the pipe stays open."""
    try:
        stream(order["stem"], order["pieces"], order["wrapped"])
    except OSError as error:
        name = f"{error.filename} " if error.filename else ""
        os.write(sys.stdout.fileno(), f"the pipe {order['name']}: {name}{error.strerror}\n".encode())
        threading.Event().wait()


def main(path: str) -> None:
    """Write all pipes that an order names, until this process is ended."""
    orders = json.loads(Path(path).read_text(encoding="utf-8"))
    threads = [threading.Thread(target=guarded, args=(order,), daemon=True) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
