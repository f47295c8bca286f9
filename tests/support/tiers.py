"""Which tier a test is of, and what a test of the fast tier may not do: it fails at once, by an audit hook.

A test is fast unless it is marked: `process` starts processes, opens sockets or sleeps; `system` needs several hosts,
torchrun's agents, an engine, SDKs or network namespaces, or kills at many moments. What needs one of these has a
marker for its kind: that makes it `system`.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import NoReturn, SupportsIndex

import pytest

TIERS = ("fast", "process", "system")
#: What a test of the system tier needs, or does much of.
KINDS = ("cluster", "docker", "hosting", "incumbent", "kills", "namespaces", "registry", "sdk")
#: A sleep that lets another thread go on is no wait.
_SHORT_S = 0.01
_SLEEP = time.sleep
#: What matplotlib asks for this machine's fonts, when it is first imported here: it keeps the answer.
_FONTS = ("fc-list", "system_profiler")
_PROCESSES = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "subprocess.Popen",
}


def sort(item: pytest.Item) -> None:
    """Give an item the marker of its tier where it has none.

    Raises:
        pytest.UsageError: It has two.
    """
    marked = {marker.name for marker in item.iter_markers()}
    tiers = marked.intersection(TIERS)
    if len(tiers) > 1:
        raise pytest.UsageError(f"{item.nodeid} is marked as of two tiers: {', '.join(sorted(tiers))}")
    if not tiers:
        item.add_marker("system" if marked.intersection(KINDS) else "fast")


class Guard:
    """Watches what this process does while a fast test runs. A hook cannot be taken out again, so there is one."""

    def __init__(self) -> None:
        self._watches = False
        self._done: list[str] = []
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def over(self, item: pytest.Item) -> Iterator[None]:
        """While the block runs, if the item is fast; it fails though the code under test has swallowed that."""
        if item.get_closest_marker("fast") is None:
            yield
            return
        self._done.clear()
        self._watches = True
        time.sleep, given_back = self._sleep, time.sleep  # Python 3.11 tells no audit hook of it
        try:
            yield
        finally:
            time.sleep = given_back
            self._watches = False
        if self._done:
            raise pytest.fail.Exception(self._done[0], pytrace=False)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._watches and (done := _too_much(event, arguments)):
            self._refuse(done)

    def _sleep(self, seconds: float | SupportsIndex) -> None:
        if float(seconds) > _SHORT_S:
            self._refuse(f"sleep for {seconds} s")
        _SLEEP(seconds)

    def _refuse(self, done: str) -> NoReturn:
        self._done.append(f"a fast test may not {done}: mark it @pytest.mark.process")
        raise pytest.fail.Exception(self._done[-1])


def _too_much(event: str, arguments: tuple[object, ...]) -> str | None:
    """What is done that is no part of a fast test, in words."""
    if event == "subprocess.Popen" and arguments[0] in _FONTS:
        return None
    if event in _PROCESSES:
        return f"start a process ({event})"
    if event in {"socket.bind", "socket.connect"}:
        ours = arguments[0]
        inside = isinstance(ours, socket.socket) and ours.family == socket.AF_UNIX
        return None if inside else f"use the network ({event} {arguments[1]})"
    return None
