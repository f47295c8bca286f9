"""Waiting for gloo's threads before the Python that they belong to ends.

A thread of gloo says first that a collective is done, and drops its tensors after that. For a tensor that Python knows
it takes the GIL; a Python that ends meanwhile (before 3.14) ends the thread instead, and C++ answers with `abort`: a
script that has trained leaves with "terminate called without an active exception" and SIGABRT
(pytorch/pytorch#190489). On a busy machine that was one end in 40 to 100.
"""

import atexit
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trainbox.clock import Clock, Sleep

#: What torch calls them (2.13); where one calls them something else, nothing waits.
_NAME = b"pt_gloo_runloop\n"
_OF_A_LOOK = (b"State:", b"voluntary_ctxt_switches:", b"nonvoluntary_ctxt_switches:")
#: From one look to the next: a thread that waits for the GIL has asked for it twice by then.
_LOOK_SECONDS = 0.01
#: One that is busy for longer is in a collective that will not end well.
_LONGEST_SECONDS = 10.0

#: What the kernel says of each thread, by its id.
Look = Mapping[int, tuple[bytes, ...]]


def wait_at_exit() -> None:
    """Have this process wait for gloo's threads when it ends; it does so once, however often that is asked for."""
    atexit.unregister(wait_for_threads)
    atexit.register(wait_for_threads)


def look() -> Look:
    """What the kernel says of gloo's threads in this process; empty where there is none, or no /proc."""
    found = {}
    for directory in Path("/proc/self/task").glob("[0-9]*"):
        try:
            if (directory / "comm").read_bytes() != _NAME:
                continue
            status = (directory / "status").read_bytes()
        except OSError:  # it has ended
            continue
        found[int(directory.name)] = tuple(line for line in status.splitlines() if line.startswith(_OF_A_LOOK))
    return found


def wait_for_threads(
    look: Callable[[], Look] = look, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep
) -> None:
    """Wait, without the GIL, until gloo's threads have nothing to do, or have been busy for long; at once without any.

    Args:
        look: At the threads.
        clock: In seconds.
        sleep: Waits for so many.
    """
    end = clock() + _LONGEST_SECONDS
    before = look()
    while before and clock() < end:
        sleep(_LOOK_SECONDS)
        now = look()
        if are_at_rest(before, now):
            return
        before = now


def are_at_rest(before: Look, now: Look) -> bool:
    """Whether threads sleep and have not run between two looks; one that waits for the GIL wakes every 5 ms."""
    return before == now and all(state.split()[1] == b"S" for state, *_ in now.values())
