"""trainbox's own log lines: on stderr, one each, none with the value of a secret."""

import sys
from collections.abc import Sequence

from trainbox.contract.hyperparameters import without_secrets

PREFIX = "trainbox: "


def say(text: str, *, hidden: Sequence[str] = ()) -> None:
    """Write one line to stderr; if nobody reads it any more, the job goes on without it.

    Args:
        text: What happened; each of its lines gets the prefix.
        hidden: Values to leave out (`Job.secrets`).
    """
    line = PREFIX + without_secrets(text, hidden).replace("\n", "\n" + PREFIX) + "\n"
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:
        return
