"""Too little memory, threads or files while a channel is read: told apart from what is wrong with its data."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pyarrow as pa

from trainbox.errors import ResourceError
from trainbox.limits import Resource, describe_limits

_BY_NUMBER: dict[int, Resource] = {
    errno.ENOMEM: "memory",
    errno.EAGAIN: "threads",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
}
# Libraries in C++ have no class for it (`std::system_error`, `std::bad_alloc`), and Python none for threads.
_BY_WORDS: dict[str, Resource] = {
    "can't start new thread": "threads",
    "Failed to launch worker thread": "threads",
    "Resource temporarily unavailable": "threads",
    "Cannot allocate memory": "memory",
    "bad_alloc": "memory",
    "malloc of size": "memory",
    "realloc of size": "memory",
}
_WORDING: dict[Resource, tuple[str, str]] = {
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
def naming_shortage(what: str) -> Iterator[None]:
    """Turn a lack of memory, threads or files within the block into an error that says so.

    Args:
        what: What is read: a file as messages name it, or a channel.

    Raises:
        ResourceError: With the limits that hold here.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, pa.ArrowException) as error:
        lacking = find_shortage(error)
        if lacking is None:
            raise
        raise describe_shortage(what, lacking, error) from error


@cache
def prove_threads() -> None:
    """Start as many threads as reading takes, all at once, and end them; once in a process.

    They are Arrow's own, one of it that reads, and one that reads ahead. Where Arrow cannot start one, its CSV reader
    raises, but waits for itself when the process ends (seen with 26.0: `BackgroundGenerator::Cleanup` in a thread of
    the pool that it waits for), and Parquet's has been seen to crash: better not let them begin.

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


def find_shortage(error: BaseException) -> Resource | None:
    """What was lacking; None for an error of any other kind."""
    if isinstance(error, MemoryError):  # NumPy's and Arrow's are such, too
        return "memory"
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_NUMBER.get(error.errno)
    if isinstance(error, pa.ArrowInvalid) or not isinstance(error, (RuntimeError, OSError, pa.ArrowException)):
        return None  # which quotes the content
    text = str(error)
    return next((lacking for words, lacking in _BY_WORDS.items() if words in text), None)


def describe_shortage(what: str, lacking: Resource, error: BaseException) -> ResourceError:
    """The error, with the library's own words and the limits that hold here."""
    message, hint = _WORDING[lacking]
    said = str(error).strip().partition("\n")[0]
    # A thread that cannot start may lack the memory for its stack.
    limits = describe_limits({lacking, "memory"} if lacking == "threads" else {lacking})
    return ResourceError(
        f"{what}: {message}{f': {said}' if said else ''}" + (f"; limits here: {limits}" if limits else ""), hint=hint
    )
