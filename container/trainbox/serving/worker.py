"""A worker: an event loop with the connections that it is given, and the model that it was forked with."""

import asyncio
import contextlib
import signal
import socket
import time

import msgspec
import uvloop

from trainbox.contract.hosting import Hosting
from trainbox.serving.app import App
from trainbox.serving.connections import Connections
from trainbox.serving.responder import Responder
from trainbox.system.loader_protocol import CONNECTION, RETIRE, RETIRING
from trainbox.system.memory import read_rss
from trainbox.system.worker_page import WorkerField, WorkerPage

_BEAT_SECONDS = 0.25
_SWEEP_SECONDS = 1.0
_RSS_SECONDS = 5.0
_END_SECONDS = 4.0
#: A request of an endpoint may take 8 minutes, where its answer is a stream.
_RETIRE_SECONDS = 600.0
_TICK_SECONDS = 0.01


class Seat(msgspec.Struct, frozen=True):
    """What a worker is forked with."""

    hosting: Hosting
    page: WorkerPage
    #: Of the worker, counted from 0.
    number: int
    #: The descriptor that connections come through.
    channel: int
    #: For the model to use.
    threads: int
    #: What answers HTTP.
    app: type[App] = App


def run(seat: Seat, responder: Responder) -> int:
    """Answer the rows of the model's card, then requests, until the loader or the supervisor asks for the end.

    Args:
        seat: What this worker was forked with.
        responder: What answers.

    Returns:
        The exit code.
    """
    responder.warm_up(seat.threads)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(WorkerLoop(seat, responder).run())
    return 0


class WorkerLoop:
    """The loop.

    Args:
        seat: What this worker was forked with.
        responder: What answers.
    """

    def __init__(self, seat: Seat, responder: Responder) -> None:
        self._hosting = seat.hosting
        self._words = seat.page.slot(seat.number).words
        self._channel = socket.socket(fileno=seat.channel)
        self._channel.setblocking(False)
        self._is_retiring = False
        self._connections = Connections(seat.app(seat.hosting, seat.page, seat.number, responder), number=seat.number)

    async def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor or the loader has gone; what has come is answered."""
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, self._ended.set)
        if self._connections.can_be_given:
            loop.add_reader(self._channel.fileno(), self._take)
        else:
            await self._connections.listen(self._hosting.address, self._hosting.port)
            self._words[WorkerField.LISTENS] = 1
        self._beat(loop, 0.0, 0.0)
        self._words[WorkerField.READY] = 1
        await self._ended.wait()
        await self._drain()

    def _take(self) -> None:
        """Take the connections that have been handed over."""
        with contextlib.suppress(BlockingIOError):
            while True:
                content, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
                if not content:  # the supervisor has gone, or the loader: no more will come
                    asyncio.get_running_loop().remove_reader(self._channel.fileno())
                    self._ended.set()
                    return
                for descriptor in descriptors:
                    self._words[WorkerField.LAST_REQUEST] = time.monotonic_ns()
                    self._connections.add(socket.socket(fileno=descriptor), is_kept=self._hosting.is_multi_model)
                if content == RETIRE and not self._is_retiring:
                    self._retire()

    def _retire(self) -> None:
        """Others have taken over: give them the connections, and end once the last request is answered."""
        loop = asyncio.get_running_loop()
        self._is_retiring = True
        self._connections.give_back(self._give)
        self._begin_to_retire(loop)
        self._end_retired(loop, loop.time() + _RETIRE_SECONDS)

    def _give(self, descriptor: int) -> bool:
        try:
            socket.send_fds(self._channel, [CONNECTION], [descriptor])
        except OSError:  # full
            return False
        return True

    def _begin_to_retire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell the supervisor, once none that waits for a request is left."""
        with contextlib.suppress(BlockingIOError):
            if not self._connections.has_idle and self._channel.send(RETIRING):
                return
        loop.call_later(_TICK_SECONDS, self._begin_to_retire, loop)

    def _end_retired(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        is_busy = self._connections.has_idle or len(self._connections) or self._words[WorkerField.IN_FLIGHT]
        if loop.time() > until or not is_busy:
            self._ended.set()
        else:
            loop.call_later(_TICK_SECONDS, self._end_retired, loop, until)

    def _beat(self, loop: asyncio.AbstractEventLoop, swept: float, measured: float) -> None:
        """Show that the loop runs, and end connections that only hold it up."""
        now = loop.time()
        self._words[WorkerField.HEARTBEAT] += 1
        if now - swept >= _SWEEP_SECONDS:
            self._connections.close_slow(now)
            self._words[WorkerField.CONNECTIONS], swept = len(self._connections), now
        if now - measured >= _RSS_SECONDS:
            self._words[WorkerField.RSS_BYTES], measured = read_rss(), now
        loop.call_later(_BEAT_SECONDS, self._beat, loop, swept, measured)

    async def _drain(self) -> None:
        """End what is in progress; nothing new comes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _END_SECONDS
        self._take()
        await asyncio.sleep(_TICK_SECONDS)
        while self._words[WorkerField.IN_FLIGHT] and loop.time() < until:  # noqa: ASYNC110 - shared memory has no event
            await asyncio.sleep(_TICK_SECONDS)
        self._connections.close_all()
        await asyncio.sleep(_TICK_SECONDS)  # for what is still to be written
