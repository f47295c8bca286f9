"""Exhausted memory, threads or open files while data is read, told apart from faults of the data."""

import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from trainbox.errors import ResourceError
from trainbox.lazy_names import lazy_module
from trainbox.system.cgroup import Resource, describe_limits

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

_BY_ERRNO: dict[int, Resource] = {
    errno.ENOMEM: "memory",
    errno.EAGAIN: "threads",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
}
# Arrow and Python raise general errors for these (`std::system_error`, `std::bad_alloc`, threads).
_BY_MESSAGE: dict[str, Resource] = {
    "can't start new thread": "threads",
    "Failed to launch worker thread": "threads",
    "Resource temporarily unavailable": "threads",
    "Cannot allocate memory": "memory",
    "bad_alloc": "memory",
    "malloc of size": "memory",
    "realloc of size": "memory",
}
_MESSAGES: dict[Resource, tuple[str, str]] = {
    "memory": (
        "not enough memory to read it",
        "use an instance with more memory, or fewer processes per host; or raise the limit",
    ),
    "threads": (
        "no thread could be started to read it",
        "raise the limit: `docker run --pids-limit` or `ulimit -u`; the stack of a thread needs memory, too",
    ),
    "open files": ("too many files are open to read it", "raise the limit: `docker run --ulimit nofile=65536`"),
}


@contextmanager
def translate_resource_errors(shown: str) -> Iterator[None]:
    """Translate errors of exhausted memory, threads or open files into a `ResourceError`.

    Args:
        shown: What is read, for messages: a file or a channel.

    Raises:
        ResourceError: With the limits that hold here.
    """
    try:
        yield
    except with_arrow(MemoryError, RuntimeError, OSError) as error:
        lacking = find_exhausted(error)
        if lacking is None:
            raise
        raise describe_exhausted(shown, lacking, error) from error


def with_arrow(*kinds: type[Exception], name: str = "ArrowException") -> tuple[type[Exception], ...]:
    """Return classes of errors to catch, with one of Arrow's if Arrow is loaded: it may be too late to load it.

    Args:
        kinds: The others.
        name: Of the class of Arrow's.
    """
    loaded = sys.modules.get("pyarrow")
    return (*kinds, getattr(loaded, name)) if hasattr(loaded, name) else kinds


@cache
def check_threads() -> None:
    """Check that the threads which reading needs can be started, once in a process.

    These are Arrow's pool, its reader thread, and one that prefetches. If Arrow cannot start one, its CSV reader raises
    and then blocks the end of the process (seen with 26.0: `BackgroundGenerator::Cleanup` in a thread of the pool that
    it waits for), and its Parquet reader has been seen to crash: so neither is started then.

    Raises:
        RuntimeError: They cannot be started.
    """
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(int(pa.cpu_count()) + 2):
            thread = threading.Thread(target=done.wait, name="trainbox-probe", daemon=True)
            thread.start()
            started.append(thread)
    finally:
        done.set()
        for thread in started:
            thread.join()


def find_exhausted(error: BaseException) -> Resource | None:
    """Return which resource is exhausted; None for any other error."""
    if isinstance(error, MemoryError):  # NumPy's and Arrow's are subclasses
        return "memory"
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno)
    is_invalid = isinstance(error, with_arrow(name="ArrowInvalid"))
    if is_invalid or not isinstance(error, with_arrow(RuntimeError, OSError)):
        return None  # ArrowInvalid quotes the content
    text = str(error)
    return next((lacking for words, lacking in _BY_MESSAGE.items() if words in text), None)


def describe_exhausted(shown: str, lacking: Resource, error: BaseException) -> ResourceError:
    """Return the error, with the library's message and the limits of this process."""
    message, hint = _MESSAGES[lacking]
    detail = str(error).strip().partition("\n")[0]
    # A thread that cannot start may lack the memory for its stack.
    limits = describe_limits({lacking, "memory"} if lacking == "threads" else {lacking})
    return ResourceError(
        f"{shown}: {message}{f': {detail}' if detail else ''}" + (f"; limits here: {limits}" if limits else ""),
        hint=hint,
    )
