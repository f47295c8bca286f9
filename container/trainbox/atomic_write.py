"""A file appears whole or not at all: it is written aside, brought to the disk and renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def writing(path: Path, *, aside: str = ".part") -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the name `path` once the block has ended without an exception.

    Args:
        path: The name; what had it before stays whole until then.
        aside: What is put behind the name meanwhile. In the same directory: elsewhere a rename may be a copy.

    Raises:
        OSError: It cannot be written; nothing remains.
    """
    part = path.with_name(f".{path.name}{aside}")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a small file whole.

    Raises:
        OSError: It cannot be written; nothing remains.
    """
    with writing(path) as file:
        file.write(content)
