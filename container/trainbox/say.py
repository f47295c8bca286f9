"""trainbox's own log lines: on stderr, one each, none with the value of a secret; and what children say there."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from trainbox import errors
from trainbox.contract.secrets import without_secrets
from trainbox.contract.text import visible
from trainbox.errors import TrainboxError

PREFIX = "trainbox: "


def say(text: str, *, hidden: Sequence[str] = ()) -> None:
    """Write one line to stderr; if nobody reads it any more, the job goes on without it.

    Args:
        text: What happened; each of its lines gets the prefix, and no control character reaches a terminal.
        hidden: Values to leave out (`Job.secrets`).
    """
    try:
        sys.stderr.write(as_lines(text, hidden))
        sys.stderr.flush()
    except OSError:
        return


def as_lines(text: str, hidden: Sequence[str] = ()) -> str:
    """What `say` writes."""
    return PREFIX + visible(without_secrets(text, hidden)).replace("\n", "\n" + PREFIX) + "\n"


def last_words(error: TrainboxError, trace: str) -> str:
    """What to say, in place of a traceback, of an error of ours that ends a script: what, what to do, and where.

    `contract.cause` reads it back, and `train` does not say it again.

    Args:
        error: Why the script ends.
        trace: The traceback that Python would print.
    """
    from trainbox.contract.cause import find_cause  # noqa: PLC0415 - only who fails needs its many expressions

    found = find_cause(trace, Path(sys.argv[0]).absolute().parent)
    where = [f"at {found.where}"] if found and found.where else []
    # That of the tree: where others derive from it is of no use to who reads a log.
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return "\n".join([f"FAILED: {error.fault}: {name}: {error.message}", f"hint: {error.hint}", *where])


def kept_words() -> BinaryIO:
    """A file in memory to be a child's stderr: what it says shall be read only where it fails.

    A file with a name would need a temporary directory, which a container whose own files are read-only may lack.
    """
    return os.fdopen(os.memfd_create("trainbox-stderr"), "w+b")
