"""End a process that does not leave by itself, with the error that its main thread had no chance to raise."""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable

from trainbox.errors import TrainboxError, last_words

#: What a process that is being ended may take for its last words: whoever reads them may be slow.
LAST_WORDS_SECONDS = 0.5


def end_process(error: TrainboxError, thread: int, before: Callable[[], None] | None = None) -> None:
    """End this process at once, with an error that its main thread had no chance to raise.

    It is written as `errors.end_as_declared` would have done it, for that is where the supervisor looks.

    Args:
        error: Why.
        thread: The main thread.
        before: What to do just before the end, which takes no time: the main thread may break where it waits for that.
    """
    speaker = threading.Thread(target=_speak, args=(error, thread), daemon=True)
    speaker.start()
    speaker.join(LAST_WORDS_SECONDS)
    if before is not None:
        before()
    os._exit(error.exit_code)


def _speak(error: TrainboxError, thread: int) -> None:
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - there is no other way to see where a thread is
    stack = traceback.extract_stack(frame) if frame is not None else []
    if error.hint:
        text = last_words(error, stack)
    else:
        lines = [*traceback.format_list(stack), *traceback.format_exception_only(error)]
        text = "".join(["Traceback (most recent call last):\n", *lines])
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
