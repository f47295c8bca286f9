"""The loader of many models: it tries, loads and unloads them, and has the workers forked anew.

The package's docstring has the whole way of a load. Here every step is short: what takes time is a process of its own,
or the load itself, during which no worker is forked.
"""

import ctypes
import gc
import os
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence

import msgspec

from trainbox.contract.hosting import Hosting
from trainbox.contract.job import add_to_environment
from trainbox.contract.text import short
from trainbox.errors import ProgramError, TrainboxError
from trainbox.log_lines import emit
from trainbox.serving import connections
from trainbox.serving.loader import ModelLoader
from trainbox.serving.multi.api import (
    LoadModel,
    Reply,
    UnloadModel,
    loaded,
    loaded_already,
    not_found,
    stopping,
    unloaded,
)
from trainbox.serving.multi.exchange import Exchange, Ticket
from trainbox.serving.multi.loading import Candidate, find_candidate, import_library, load_candidate, try_candidate
from trainbox.serving.multi.models_app import ModelsApp
from trainbox.serving.multi.models_responder import LoadedModel, ModelsResponder
from trainbox.serving.multi.room import Room, find_room, no_memory, refuse_after, refuse_before
from trainbox.serving.multi.store import Store, StoredModel
from trainbox.serving.multi.trial import Trial, attempt, explain_error
from trainbox.serving.responder import load_responder
from trainbox.system.loader_protocol import LoaderLink, ModelLoaded, ModelsChanged
from trainbox.system.machine import read_machine
from trainbox.system.memory import read_available, read_memory, read_rss
from trainbox.system.worker_page import PageField, WorkerPage

_TICK_SECONDS = 0.25
#: Trials at the same time: one that hangs must not keep the others waiting.
_MOST_TRIALS = 4
#: After so many unloads a full garbage collection runs: models may hold reference cycles.
_UNLOADS_PER_COLLECTION = 16


def run(hosting: Hosting, *, link: int, page: int, store: int) -> int:
    """Load models and fork workers until the supervisor asks for the end.

    Args:
        hosting: The contract, read.
        link: The descriptor of the socket to the supervisor.
        page: That of the page of the workers.
        store: That of the memory which has the models of a loader that has ended.

    Returns:
        The exit code.

    Raises:
        ProgramError: Uvicorn cannot be given connections, which workers hand on here.
    """
    if not connections.can_be_given():
        raise ProgramError(
            "this version of uvicorn cannot be given connections, which an endpoint of many models needs",
            hint="pip install 'trainbox[serving]' installs one that can",
        )
    for descriptor in (link, page, store):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while models load, Ctrl-C is no exception of theirs
    started = time.monotonic()
    if read_machine().gpus:
        emit("an endpoint of many models uses the processors alone: its models do not see the GPU")
        add_to_environment({"CUDA_VISIBLE_DEVICES": ""})  # CUDA does not survive a fork
    to_supervisor = LoaderLink(socket.socket(fileno=link))
    loader = ModelsLoader(hosting, to_supervisor, WorkerPage(page), Exchange(), Store(store))
    loader.load_again()
    loader.freeze()
    loader.listen()
    to_supervisor.send(ModelLoaded(loader.name, time.monotonic() - started, read_rss()))
    return loader.run()


class _Tried(msgspec.Struct, frozen=True):
    """A load whose trial runs."""

    ticket: Ticket
    candidate: Candidate
    trial: Trial
    #: How many processes the kernel had killed for memory before.
    memory_kills: int
    #: Who has asked for the same meanwhile.
    others: list[Ticket] = msgspec.field(default_factory=list)


class ModelsLoader(ModelLoader):
    """The loop of the loader.

    Args:
        hosting: The contract, read.
        link: To the supervisor.
        page: Of the workers.
        exchange: Of the workers' requests.
        store: What the next loader finds.
    """

    app = ModelsApp

    def __init__(self, hosting: Hosting, link: LoaderLink, page: WorkerPage, exchange: Exchange, store: Store) -> None:
        self._all = ModelsResponder(hosting, exchange)
        super().__init__(hosting, link, page, self._all, load_responder)
        self._header = page.header
        self._exchange = exchange
        self._store = store
        self._asked: deque[Ticket] = deque()
        self._tried: dict[int, _Tried] = {}
        #: Changes that the workers do not have yet: those they are being forked for, and those that came since.
        self._renewing: list[tuple[Ticket, Reply]] = []
        self._changed: list[tuple[Ticket, Reply]] = []
        self._unloads = 0

    @property
    def name(self) -> str:
        """What the log says at the start."""
        count = len(self._all.models)
        return f"{self._all.name}, {count:,} of them loaded" if count else f"{self._all.name}, none of them loaded yet"

    # -- the loop --------------------------------------------------------------------------------------------------

    def waits_for(self) -> Sequence[int]:
        """Wait for workers that ask, too."""
        return (self._exchange.fileno(),)

    def serve(self, readable: Sequence[int]) -> None:
        """Take what workers ask for, start trials, and have workers forked for what has changed."""
        if self._exchange.fileno() in readable:
            while (ticket := self._exchange.receive()) is not None:
                self._asked.append(ticket)
        for tried in self._tried.values():
            tried.trial.look(is_stopping=bool(self._header[PageField.DRAINING]))
        while self._asked and (len(self._tried) < _MOST_TRIALS or isinstance(self._asked[0].change, UnloadModel)):
            self._begin(self._asked.popleft())
        self._renew()
        self.patience = _TICK_SECONDS if self._tried else None

    def note_replaced(self) -> None:
        """The workers have what has changed: answer."""
        renewed, self._renewing = self._renewing, []
        for ticket, reply in renewed:
            ticket.answer(reply)
        self._renew()

    def _renew(self) -> None:
        """Have workers forked that have what has changed; one time after the other."""
        if self._changed and not self._renewing:
            self._renewing, self._changed = self._changed, []
            self.freeze()
            self.link.send(ModelsChanged())

    def note_ended(self, pid: int, status: int) -> None:
        """A trial has ended, or what a model has started."""
        tried = self._tried.pop(pid, None)
        if tried is None:
            return
        kills = (read_memory().kills or 0) - tried.memory_kills
        report = tried.trial.conclude(status, memory_kills=kills)
        refusal = report.refusal or refuse_after(self._room(), report.bytes)
        if refusal is None:
            refusal = self._take_in(tried)
        if refusal is not None:
            for ticket in (tried.ticket, *tried.others):
                self._refuse(ticket, refusal)

    def close_own(self) -> None:
        """Close, in a process that was forked, what is the loader's alone."""
        super().close_own()
        self._exchange.close_loader()
        for ticket in (*self._asked, *(ticket for ticket, _ in (*self._renewing, *self._changed))):
            ticket.worker.close()
        for ticket in (ticket for tried in self._tried.values() for ticket in (tried.ticket, *tried.others)):
            ticket.worker.close()

    def freeze(self) -> None:
        """Keep collections out of what all workers share: one would copy every page that has an object."""
        gc.collect()
        gc.freeze()

    # -- load ------------------------------------------------------------------------------------------------------

    def _begin(self, ticket: Ticket) -> None:
        change = ticket.change
        if self._header[PageField.DRAINING]:
            ticket.answer(stopping())
        elif isinstance(change, UnloadModel):
            self._unload(ticket, change.name)
        elif change.name in self._all.models:
            self._answer_unchanged(ticket, loaded_already(change.name))
        else:
            self._begin_load(ticket, change)

    def _begin_load(self, ticket: Ticket, asked: LoadModel) -> None:
        """Start the trial of a model, unless it runs already or its files say enough."""
        same = next((tried for tried in self._tried.values() if tried.candidate.name == asked.name), None)
        if same is not None:
            same.others.append(ticket)
            return
        try:
            candidate = find_candidate(self._hosting, asked)
        except TrainboxError as error:
            self._refuse(ticket, explain_error(error))
            return
        refusal = refuse_before(self._room(), candidate.bytes)
        if refusal is not None:
            self._refuse(ticket, refusal)
            return
        import_library(candidate)
        kills = read_memory().kills or 0
        try:
            trial = Trial(lambda: try_candidate(candidate), self.close_own, self._hosting.startup_seconds)
        except OSError as error:  # of fork or pipe
            self._refuse(ticket, no_memory(f"no process can be started for its trial: {error.strerror}"))
            return
        self._tried[trial.pid] = _Tried(ticket, candidate, trial, kills)

    def _answer_unchanged(self, ticket: Ticket, reply: Reply) -> None:
        """Answer that there is nothing to do; where the workers do not know that yet, when they do."""
        changing = {other.change.name for other, _ in (*self._renewing, *self._changed)}
        if ticket.change.name in changing:
            self._changed.append((ticket, reply))
        else:
            ticket.answer(reply)

    def _room(self) -> Room | None:
        workers = self._header[PageField.WORKERS]
        return find_room(read_available(), workers=workers, largest_body=self._hosting.max_body_bytes)

    def _take_in(self, tried: _Tried) -> Reply | None:
        """Load a model whose trial went well; why it could not be."""
        candidate = tried.candidate
        self._write(StoredModel(candidate.name, candidate.url, is_loaded=False))
        told_before = msgspec.structs.replace(candidate.found, notes=())
        refusal = self._load_here(msgspec.structs.replace(candidate, found=told_before))
        self._write()
        if refusal is not None:
            return refusal
        seconds = time.monotonic() - tried.trial.began
        emit(f"model {short(candidate.name)} is loaded from {candidate.url}: {seconds:.2f} s")
        if threading.active_count() > 1:
            emit(f"model {short(candidate.name)} has started a thread, which the workers do not have: start it later")
        self._changed.append((tried.ticket, loaded()))
        self._changed += [(ticket, loaded_already(candidate.name)) for ticket in tried.others]
        return None

    def _load_here(self, candidate: Candidate) -> Reply | None:
        """Load a model in this process; why it could not be."""
        responder, refusal = attempt(lambda: load_candidate(candidate))
        if responder is not None:
            self._all.models[candidate.name] = LoadedModel(candidate.url, responder)
        return refusal

    def load_again(self) -> None:
        """Load what the loader before this one had loaded; what it was loading when it ended is left out."""
        for record in self._store.read():
            if not record.is_loaded:
                emit(f"model {short(record.name)} is not loaded again: the loader ended while it loaded it")
                continue
            try:
                candidate = find_candidate(self._hosting, LoadModel(record.name, record.url))
            except TrainboxError as error:
                emit(f"model {short(record.name)} is not loaded again: {error.message}")
                continue
            import_library(candidate)
            self._write(StoredModel(record.name, record.url, is_loaded=False))
            refusal = self._load_here(candidate)
            if refusal is not None:
                emit(f"model {short(record.name)} is not loaded again: {refusal.text}")
        self._write()

    def _write(self, *more: StoredModel) -> None:
        records = [StoredModel(name, model.url) for name, model in self._all.models.items()]
        self._store.write([*records, *more])

    def _refuse(self, ticket: Ticket, reply: Reply) -> None:
        name = short(ticket.change.name)
        emit(f"model {name} is not loaded: {reply.text}")
        ticket.answer(reply)

    # -- unload ----------------------------------------------------------------------------------------------------

    def _unload(self, ticket: Ticket, name: str) -> None:
        model = self._all.models.pop(name, None)
        if model is None:
            self._answer_unchanged(ticket, not_found(name))
            return
        self._write()
        emit(f"model {short(name)} is unloaded")
        left = weakref.ref(model.responder)
        del model
        self._unloads += 1
        if left() is not None or self._unloads % _UNLOADS_PER_COLLECTION == 0:
            gc.unfreeze()  # `freeze` collects what is part of a cycle
        _return_memory()
        self._changed.append((ticket, unloaded(name)))


def _return_memory() -> None:
    """Give what was freed back to the kernel; the allocator of the C library alone keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
