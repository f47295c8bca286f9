"""The loader: loads the model once, answers the rows of its card, and forks the workers, which share the memory.

It runs no event loop and has one thread, or no fork of it were safe. What becomes of workers is decided by the
supervisor: the loader forks whom it is asked for, and tells who has ended.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeAlias

from trainbox.contract.environment import GPU_VARIABLE
from trainbox.contract.hosting import Hosting
from trainbox.contract.job import add_to_environment
from trainbox.errors import TrainboxError, last_words
from trainbox.serving import worker
from trainbox.serving.app import App
from trainbox.serving.responder import Responder, load_responder
from trainbox.serving.responder import prepare as prepare_module
from trainbox.system.cgroup import read_cpus
from trainbox.system.loader_protocol import (
    ForkWorker,
    GiveUp,
    ListenerClosed,
    LoaderLink,
    ModelLoaded,
    ServerIdle,
    WorkerEnded,
    WorkerForked,
    WorkersReplaced,
)
from trainbox.system.machine import read_machine
from trainbox.system.memory import read_rss
from trainbox.system.worker_page import PageField, WorkerField, WorkerPage

#: After a request to stop: the server ends once no request has come for so long, and after so long in any case.
IDLE_SECONDS = 1.0
DRAIN_SECONDS = 20.0
#: What workers have to end what they are at.
_END_SECONDS = 5.0
_TICK_SECONDS = 0.05
_ANSWER_SECONDS = 1.0
Prepare: TypeAlias = Callable[[Hosting], None]
Load: TypeAlias = Callable[[Hosting], Responder]


def run(
    hosting: Hosting, *, link: int, page: int, prepare: Prepare = prepare_module, load: Load = load_responder
) -> int:
    """Load the model, then fork workers until the supervisor asks for the end.

    Args:
        hosting: The contract, read.
        link: The descriptor of the socket to the supervisor.
        page: That of the page of the workers.
        prepare: Is called once, before the model is loaded.
        load: Loads the model.

    Returns:
        The exit code.

    Raises:
        DataError: There is no model, or it cannot be used.
    """
    for descriptor in (link, page):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while a model loads, Ctrl-C is no exception of it
    started = time.monotonic()
    is_per_worker = read_machine().gpus > 0  # CUDA does not survive a fork
    prepare(hosting)
    responder = None if is_per_worker else _checked(load(hosting))
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page that has an object
    loader = ModelLoader(hosting, LoaderLink(socket.socket(fileno=link)), WorkerPage(page), responder, load)
    loader.listen()
    name = responder.name if responder is not None else "each worker loads the model for itself: there is a GPU"
    loader.link.send(ModelLoaded(name, time.monotonic() - started, read_rss()))
    return loader.run()


def _checked(responder: Responder) -> Responder:
    responder.check()
    return responder


class ModelLoader:
    """The loop of the loader.

    Args:
        hosting: The contract, read.
        link: To the supervisor.
        page: Of the workers.
        responder: The loaded model; None where each worker loads it for itself.
        load: Loads it there.
    """

    #: What answers HTTP in a worker.
    app: type[App] = App
    #: How long the loop waits if nothing happens.
    patience: float | None = None

    def __init__(
        self,
        hosting: Hosting,
        link: LoaderLink,
        page: WorkerPage,
        responder: Responder | None,
        load: Load,
    ) -> None:
        self._hosting = hosting
        self.link = link
        self._page = page
        self._responder = responder
        self._load = load
        self._workers: dict[int, int] = {}
        self._draining_since: float | None = None
        self._is_closed = False
        self._code = 0
        self._cpus = read_cpus()

    def listen(self) -> None:
        """Handle signals from now on."""
        self._awake, write = os.pipe()
        for end in (self._awake, write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._wakes = write
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        if self._draining_since is None:
            self._draining_since = time.monotonic()
            self._page.header[PageField.DRAINING] = 1

    def run(self) -> int:
        """Fork and reap until the supervisor asks for the end, or is gone; the exit code."""
        while self._draining_since is None or not self._is_idle(self._draining_since):
            if not self._turn(self.patience if self._draining_since is None else _TICK_SECONDS) or self._code:
                self._end_workers(signal.SIGKILL)
                return self._code or 1
        self._wait_for_closed()
        self._end_workers(signal.SIGTERM)
        return 0

    def _turn(self, timeout: float | None) -> bool:
        """Do what there is to do; whether the supervisor is still there."""
        link = self.link.fileno()
        readable, _, _ = select.select([link, self._awake, *self.waits_for()], [], [], timeout)
        if self._awake in readable:
            os.read(self._awake, 4096)
        self._reap()
        self.serve(readable)
        return link not in readable or self._follow()

    def waits_for(self) -> Sequence[int]:
        """Return descriptors that the loop waits for, too."""
        return ()

    def serve(self, readable: Sequence[int]) -> None:
        """Do what a loader of another kind has to do; once in each turn of the loop."""

    def note_replaced(self) -> None:
        """All workers have been forked since the supervisor was told of a change."""

    def note_ended(self, pid: int, status: int) -> None:
        """A process that is no worker has ended."""

    def close_own(self) -> None:
        """Close, in a process that was forked, what is the loader's alone."""
        signal.set_wakeup_fd(-1)
        self.link.close()
        os.close(self._awake)
        os.close(self._wakes)

    def _follow(self) -> bool:
        received = self.link.receive()
        if received is None:
            return False
        message, descriptors = received
        if isinstance(message, ForkWorker):
            self._fork(message.worker, descriptors[0])
        elif isinstance(message, GiveUp):
            self._code = message.code
        elif isinstance(message, ListenerClosed):
            self._is_closed = True
        elif isinstance(message, WorkersReplaced):
            self.note_replaced()
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            number = self._workers.pop(pid, None)
            if number is not None:
                self.link.send(WorkerEnded(number, pid, status))
            else:
                self.note_ended(pid, status)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _is_idle(self, since: float) -> bool:
        """Whether no request has come for a while, or it is time to end in any case."""
        now = time.monotonic()
        if now - since > DRAIN_SECONDS or not self._workers:
            return True
        in_flight = sum(slot.words[WorkerField.IN_FLIGHT] for slot in self._page.slots())
        last = max((slot.words[WorkerField.LAST_REQUEST] for slot in self._page.slots()), default=0) / 1e9
        return not in_flight and now - max(last, since) > IDLE_SECONDS

    def _wait_for_closed(self) -> None:
        """Have the supervisor accept no more, and hand over what it has accepted."""
        self.link.send(ServerIdle())
        until = time.monotonic() + _ANSWER_SECONDS
        while not self._is_closed and time.monotonic() < until and self._turn(_TICK_SECONDS):
            pass

    def _end_workers(self, number: int) -> None:
        until = time.monotonic() + _END_SECONDS
        for pid in tuple(self._workers):
            os.kill(pid, number)
        while self._workers and time.monotonic() < until:
            select.select([self._awake], [], [], _TICK_SECONDS)
            self._forget_ended()
        for pid in tuple(self._workers):
            os.kill(pid, signal.SIGKILL)

    def _forget_ended(self) -> None:
        for pid in tuple(self._workers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._workers[pid]

    # -- workers ---------------------------------------------------------------------------------------------------

    def _fork(self, number: int, channel: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            self._be_worker(number, channel)
        os.close(channel)
        self._workers[pid] = number
        self.link.send(WorkerForked(number, pid))

    def _be_worker(self, number: int, channel: int) -> None:
        """What is left of this process is a worker."""
        code = 1
        try:
            for each in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the loader says when
            self.close_own()
            self._page.slot(number).begin()
            responder = self._responder if self._responder is not None else self._load_on_gpu(number)
            threads = max(1, self._cpus // max(1, self._page.header[PageField.WORKERS]))
            code = worker.run(worker.Seat(self._hosting, self._page, number, channel, threads, self.app), responder)
        except BaseException as error:  # the top of this process: it is told, and comes no further than the end below
            text = traceback.format_exc()
            if isinstance(error, TrainboxError):
                text, code = last_words(error, traceback.extract_tb(error.__traceback__)), error.exit_code
            self._page.slot(number).leave_words(text)
            sys.stderr.write(text)
            raise
        finally:
            with contextlib.suppress(OSError):  # nobody reads what it writes: it must end here all the same
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _load_on_gpu(self, number: int) -> Responder:
        """Load the model where this worker alone computes: each sees one GPU, in turn, which is its first."""
        visible = self._hosting.visible_gpus or tuple(str(place) for place in range(read_machine().gpus))
        add_to_environment({GPU_VARIABLE: visible[number % len(visible)]})
        return _checked(self._load(self._hosting))
