"""The dispatcher of a server: it accepts connections while the supervisor waits, and gives each to a worker in turn.

It is what the supervisor's loop waits with: a selector that sees to its own sockets and timers meanwhile, and returns
when something of the loop's is there.
"""

import contextlib
import functools
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from trainbox.clock import Clock
from trainbox.contract.hosting import Hosting
from trainbox.log_lines import emit
from trainbox.supervisor.endpoint.plan import Capacity, count_workers
from trainbox.supervisor.endpoint.refusals import Refusals
from trainbox.supervisor.endpoint.worker_table import Worker, WorkerTable
from trainbox.supervisor.outcome import Change
from trainbox.system.loader_protocol import (
    ListenerClosed,
    LoaderLink,
    Message,
    ModelLoaded,
    ModelsChanged,
    ServerIdle,
    WorkerEnded,
    WorkerForked,
    WorkersReplaced,
)
from trainbox.system.worker_page import PageField, WorkerField, WorkerPage

#: How long a connection waits for the next worker, where there was one before.
_PATIENCE_SECONDS = 2.0
_RETRY_SECONDS = 0.02
_MOST_WAITING = 1024
_MOST_ACCEPTED = 64


class _Own(msgspec.Struct, frozen=True):
    """The data of a key that is no affair of the loop."""

    act: Callable[[], None]


class Dispatcher(selectors.BaseSelector):
    """The selector.

    Args:
        hosting: The contract, read.
        listener: Bound, and listening.
        link: To the loader.
        page: Of the workers.
        capacity: Of the container.
        clock: The time.
    """

    def __init__(
        self,
        hosting: Hosting,
        listener: socket.socket,
        link: LoaderLink,
        page: WorkerPage,
        capacity: Capacity,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._hosting = hosting
        self._listener: socket.socket | None = listener
        self._link = link
        self._page = page
        self._capacity = capacity
        self._clock = clock
        self._inner = selectors.DefaultSelector()
        self._table = WorkerTable(page, link, hosting.timeout_seconds, hosting.startup_seconds, clock)
        self._refusals = Refusals(self._reason, self._watch, self._inner.unregister)
        self._waiting: deque[tuple[socket.socket, float]] = deque()
        self._loader = 0
        self._started = clock()
        self._look_at = float("inf")
        self._is_listening = False
        listener.setblocking(False)
        self._listen()
        self._watch(link, self._receive)

    # -- what the loop asks for ------------------------------------------------------------------------------------

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 - typeshed's
        """Wait for something of the loop's."""
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401 - likewise
        """Wait for it no longer."""
        return self._inner.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return what the loop waits for."""
        known = self._inner.get_map() or {}
        return {key: known[key] for key in known if not isinstance(known[key].data, _Own)}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401 - likewise
        """Return the key of something."""
        return self._inner.get_key(fileobj)

    def close(self) -> None:
        """The plan has ended: close everything."""
        self._stop_listening()
        for connection, _ in self._waiting:
            connection.close()
        self._link.close()
        self._inner.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve until something of the loop's is there, or the time is over."""
        until = float("inf") if timeout is None else self._clock() + timeout
        while True:
            due = min(until, self._look())
            wait = None if due == float("inf") else max(0.0, due - self._clock())
            theirs: list[tuple[selectors.SelectorKey, int]] = []
            for key, events in self._inner.select(wait):
                if isinstance(key.data, _Own):
                    key.data.act()
                else:
                    theirs.append((key, events))
            if theirs or self._clock() >= until:
                return theirs

    def note(self, change: Change) -> None:
        """The loader has started, is ready or has ended."""
        if change.state == "ended":
            self._end_workers()
        elif change.state == "started":
            self._page.header[PageField.OPEN] = 0
            self._loader, self._started, self._look_at = change.pid, self._clock(), float("-inf")

    def _end_workers(self) -> None:
        """What the workers had not taken waits for those of the next loader."""
        self._page.header[PageField.OPEN] = 0
        for worker in self._table.retiring:
            self._inner.unregister(worker.channel)
        for connection in self._table.end():
            self._keep(connection)
        with contextlib.suppress(BlockingIOError):
            while self._link.receive():  # of the one that has ended
                pass
        self._loader = 0

    # -- connections -----------------------------------------------------------------------------------------------

    def _watch(self, fileobj: socket.socket | LoaderLink, act: Callable[[], None]) -> None:
        self._inner.register(fileobj, selectors.EVENT_READ, _Own(act))

    def _listen(self) -> None:
        if self._listener is not None and not self._is_listening:
            self._watch(self._listener, self._accept)
            self._is_listening = True

    def _pause(self) -> None:
        if self._listener is not None and self._is_listening:
            self._inner.unregister(self._listener)
            self._is_listening = False

    def _stop_listening(self) -> None:
        self._pause()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        for _ in range(_MOST_ACCEPTED):
            if self._listener is None or not self._accept_one(self._listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:  # too many open files, no memory: others wait in the kernel
            emit(f"no connection can be accepted for the moment: {error.strerror}")
            self._pause()
            self._look_at = min(self._look_at, self._clock() + _RETRY_SECONDS)
            return False
        if not self._page.header[PageField.OPEN]:
            self._refusals.add(connection, self._clock())
        elif not self._hand_over(connection):
            self._keep(connection)
        return True

    def _hand_over(self, connection: socket.socket) -> bool:
        if any(worker.give(connection) for worker in self._table.in_turn()):
            connection.close()
            return True
        return False

    def _keep(self, connection: socket.socket) -> None:
        """Let a connection wait for a worker: one that has ended is replaced in no time."""
        if len(self._waiting) >= _MOST_WAITING:
            self._refusals.add(connection, self._clock())
            return
        self._waiting.append((connection, self._clock()))
        self._look_at = min(self._look_at, self._clock() + _RETRY_SECONDS)

    def _serve_waiting(self, now: float) -> None:
        for _ in range(len(self._waiting)):
            connection, since = self._waiting.popleft()
            if self._page.header[PageField.OPEN] and self._hand_over(connection):
                continue
            if now - since > _PATIENCE_SECONDS:
                self._refusals.add(connection, now)
            else:
                self._waiting.append((connection, since))

    def _reason(self) -> str:
        """Why there is no answer yet."""
        if self._page.header[PageField.DRAINING]:
            return "the server is stopping"
        if self._page.header[PageField.OPEN]:
            return "no worker is free"
        ready = sum(worker.is_ready for worker in self._table.workers)
        if self._table.workers:
            return (
                f"the model is loaded, and {ready} of {len(self._table.workers)} workers have answered its sample rows"
            )
        return f"the model has been loading for {self._clock() - self._started:.1f} s"

    # -- the loader ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            received = self._link.receive()
            if received is not None:
                self._follow(received[0])

    def _follow(self, message: Message) -> None:
        if isinstance(message, ModelLoaded):
            self._begin(message)
        elif isinstance(message, WorkerForked):
            worker = self._table.find(message.worker)
            if worker is not None:
                worker.pid = message.pid
        elif isinstance(message, WorkerEnded):
            self._replace(message)
        elif isinstance(message, ModelsChanged):
            self._table.replace_all()
            self._look_at = float("-inf")
        elif isinstance(message, ServerIdle):
            while self._listener is not None and self._accept_one(self._listener):
                pass
            self._stop_listening()
            with contextlib.suppress(OSError):
                self._link.send(ListenerClosed())

    def _begin(self, loaded: ModelLoaded) -> None:
        chosen = count_workers(self._hosting, self._capacity, loaded.rss_bytes)
        emit(f"{loaded.model}: loaded in {loaded.seconds:.2f} s, {loaded.rss_bytes // 2**20:,} MiB")
        emit(f"{chosen.count} worker(s): {chosen.reason}")
        self._table.begin(chosen.count)
        self._look_at = float("-inf")

    def _replace(self, ended: WorkerEnded) -> None:
        worker = self._table.find(ended.worker)
        if worker is None or worker.pid != ended.pid:
            return
        for connection in (*worker.take_back(), *worker.take_returned()):
            self._keep(connection)
        if self._listener is None:
            worker.pid = 0  # the server ends
        elif worker in self._table.retiring:
            self._inner.unregister(worker.channel)
            self._table.note_retired(worker, ended.status)
        else:
            self._table.note_end(worker, ended.status)
        self._look_at = float("-inf")

    # -- workers that take over ------------------------------------------------------------------------------------

    def _replace_workers(self) -> None:
        """Once those that take over are ready: have the others retire, and tell the loader when they have begun to."""
        for worker in self._table.promote():
            self._watch(worker.channel, functools.partial(self._take_returned, worker))
            worker.retire()
        if self._table.is_replaced():
            with contextlib.suppress(OSError):
                self._link.send(WorkersReplaced())

    def _take_returned(self, worker: Worker) -> None:
        """Give what a worker that retires has given back to the others."""
        for connection in worker.take_returned():
            if not self._hand_over(connection):
                self._keep(connection)
        if worker.has_begun_to_retire:
            self._look_at = float("-inf")

    def _look(self) -> float:
        """Do what is due; when to look again."""
        now = self._clock()
        refusals = self._refusals.close_late(now)
        if now >= self._look_at:
            self._look_at = self._table.look(self._loader) if self._table.workers else float("inf")
            self._replace_workers()
            for connection in self._table.take_back():
                self._keep(connection)
            if not self._page.header[PageField.OPEN] and self._table.are_ready:
                self._open(now)
            self._listen()
            if self._waiting:
                self._serve_waiting(now)
                self._look_at = min(self._look_at, now + _RETRY_SECONDS) if self._waiting else self._look_at
            if self._table.workers and (self._table.successors or not self._page.header[PageField.OPEN]):
                self._look_at = min(self._look_at, now + _RETRY_SECONDS)
        return min(self._look_at, refusals)

    def _open(self, now: float) -> None:
        self._page.header[PageField.OPEN] = 1
        emit(f"serving on port {self._hosting.port}, {now - self._started:.2f} s after the start")
        if any(slot.words[WorkerField.LISTENS] for slot in self._page.slots()):
            self._stop_listening()  # the workers do
