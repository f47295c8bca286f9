"""Channels of a job that a script does not read: more often than not their names are misspelt."""

from collections.abc import Collection

from trainbox.contract.text import did_you_mean
from trainbox.say import say

#: What the bundled scripts read as rows, and what they read in another way.
_ROWS, _OTHERS = ("train", "validation", "test"), ("code", "model")


def say_unread(given: Collection[str], read: Collection[str]) -> None:
    """Say which channels have no effect.

    Args:
        given: The names of all channels of the job.
        read: Those that the script reads as rows.
    """
    meant = [name for name in _ROWS if name not in given]
    for name in sorted({*given} - {*read, *_OTHERS}):
        say(f"the channel {name!r} is not read{did_you_mean(name, meant)}")
