"""trainbox's own log lines: on stderr, one each, none with the value of a secret; and what children say there."""

import os
import sys
from collections.abc import Sequence
from typing import BinaryIO

from trainbox import errors
from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.text import visible

PREFIX = errors.PREFIX


def emit(text: str, *, hidden: Sequence[str] = ()) -> None:
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
    """Return the lines that `emit` writes."""
    return PREFIX + visible(without_secrets(text, hidden)).replace("\n", "\n" + PREFIX) + "\n"


def kept_words() -> BinaryIO:
    """A file in memory to be a child's stderr: what it says shall be read only where it fails.

    A file with a name would need a temporary directory, which a container whose own files are read-only may lack.
    """
    return os.fdopen(os.memfd_create("trainbox-stderr"), "w+b")
