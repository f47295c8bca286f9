"""A page of memory that the workers of a server share with who watches them: counters, heartbeats, last words.

Each worker writes its own slot, and nobody else does; a number is 8 bytes at a multiple of 8, which no reader ever sees
half written. It is no file: a container needs no place for it.
"""

import mmap
import os
from collections.abc import Iterator
from enum import IntEnum

#: As many workers as a page has slots for.
MOST_WORKERS = 1024
#: Of the requests of a worker: the upper ends of the classes of a histogram, in seconds; the last has none.
SECONDS_CLASSES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_WORD_BYTES = 8
_SLOT_WORDS = 64
_TEXT_BYTES = 1536
_SLOT_BYTES = _SLOT_WORDS * _WORD_BYTES + _TEXT_BYTES
_HEADER_BYTES = 512


class WorkerField(IntEnum):
    """The numbers of a slot, by their places."""

    #: Goes up several times a second as long as the worker's event loop runs.
    HEARTBEAT = 0
    #: 1 once it has answered the rows of the card.
    READY = 1
    #: Requests that have come and are not answered.
    IN_FLIGHT = 2
    #: Which prediction is in progress, counted from 1; 0 for none.
    PREDICTION = 3
    #: When the last request came or was answered, in nanoseconds of the monotonic clock.
    LAST_REQUEST = 4
    #: Answers by their class.
    ANSWERS_2XX = 5
    ANSWERS_4XX = 6
    ANSWERS_5XX = 7
    ROWS = 8
    NANOSECONDS = 9
    RSS_BYTES = 10
    CONNECTIONS = 11
    #: Of `LAST_WORDS`.
    WORDS_BYTES = 12
    #: 1 where it listens itself: connections cannot be handed to it.
    LISTENS = 13
    #: The first class of the histogram.
    HISTOGRAM = 16


class PageField(IntEnum):
    """The numbers of the page itself."""

    #: 1 from a request to stop on: answers end their connections.
    DRAINING = 0
    #: 1 once all workers were ready together.
    OPEN = 1
    #: How many workers there are.
    WORKERS = 2
    #: How often a worker was replaced.
    RESTARTS = 3
    #: How many slots are or were in use: where workers take over from others, both have one for a while.
    SLOTS = 4


#: What says something of one process; the next one begins with 0. The rest are counters, which only go up.
_OF_PROCESS = (
    WorkerField.READY,
    WorkerField.IN_FLIGHT,
    WorkerField.PREDICTION,
    WorkerField.RSS_BYTES,
    WorkerField.CONNECTIONS,
    WorkerField.WORDS_BYTES,
)


class Slot:
    """The part of one worker.

    Args:
        memory: Of the page.
        number: Of the worker.
    """

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        start = _HEADER_BYTES + number * _SLOT_BYTES
        view = memoryview(memory)
        self.words = view[start : start + _SLOT_WORDS * _WORD_BYTES].cast("Q")
        self._text = view[start + _SLOT_WORDS * _WORD_BYTES : start + _SLOT_BYTES]

    def begin(self) -> None:
        """Another process has this number from now on."""
        for word in _OF_PROCESS:
            self.words[word] = 0

    def leave_words(self, text: str) -> None:
        """Say why this process is about to end."""
        content = text.encode(errors="replace")[-_TEXT_BYTES:]
        self._text[: len(content)] = content
        self.words[WorkerField.WORDS_BYTES] = len(content)

    @property
    def last_words(self) -> str:
        """What it has said."""
        return bytes(self._text[: self.words[WorkerField.WORDS_BYTES]]).decode(errors="replace")


class WorkerPage:
    """The whole page.

    Args:
        descriptor: Of `make_page`, here or in a parent.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _HEADER_BYTES + MOST_WORKERS * _SLOT_BYTES)
        self.header = memoryview(self._memory)[:_HEADER_BYTES].cast("Q")

    def slot(self, number: int) -> Slot:
        """Return the slot of a worker, counted from 0."""
        return Slot(self._memory, number)

    def slots(self) -> Iterator[Slot]:
        """Yield the slots of all workers, of those that have ended, too: their counters still count."""
        for number in range(self.header[PageField.SLOTS]):
            yield self.slot(number)


def make_page() -> WorkerPage:
    """Make an empty page.

    Raises:
        OSError: There is no memory for it.
    """
    descriptor = os.memfd_create("trainbox-workers")
    os.ftruncate(descriptor, _HEADER_BYTES + MOST_WORKERS * _SLOT_BYTES)
    return WorkerPage(descriptor)
