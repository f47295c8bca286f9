"""Who predicts when: quick requests in the event loop, slow ones in one thread beside it, those that meet together.

There is no timer: requests that have come in one turn of the loop, or while the thread was busy, are answered by one
call of the model where it gives a row the same bits alone and among others.
"""

import asyncio
import os
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from resource import RUSAGE_THREAD, getrusage, struct_rusage
from typing import Any, TypeAlias

import msgspec

from trainbox.data.formats.byte_stream import Readable
from trainbox.errors import TrainboxError
from trainbox.log_lines import emit
from trainbox.serving.responder import Request, Responder, Response
from trainbox.system.worker_page import Slot, WorkerField

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: As many requests may wait for a prediction in progress.
MOST_WAITING = 64
#: As many bytes are answered together.
_MOST_BYTES = 2**20
#: Predictions that take longer, and bodies that are longer, leave the event loop alone.
_LOOP_SECONDS = 0.001
_LOOP_BYTES = 16 * 1024
#: One that takes so long is slow at once; of those in between several in a row count, or a busy machine would.
_SLOW_SECONDS = 0.05
_SLOW, _SLOWEST = 3, 6


class Overloaded(Exception):  # noqa: N818 - an answer, not an error
    """More requests wait than may."""


class BrokenAnswer(Exception):  # noqa: N818 - the end of an answer, not an error
    """An answer ends before its end: its first part has been sent.

    Args:
        status: What it would have been, had it been known in time.
        text: Why.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Waiting(msgspec.Struct, eq=False):
    request: Request
    #: Takes the answer; None where it is not wanted any more.
    deliver: Callable[[Response | None], None]
    #: Ends when the client goes.
    gone: "asyncio.Task[None] | None" = None


class Predictions:
    """The predictions of a worker; one at a time.

    Args:
        slot: Of the worker.
        responder: What answers.
        shows_values: Whether an answer may have the text of an exception.
    """

    def __init__(self, slot: Slot, responder: Responder, *, shows_values: bool = True) -> None:
        self._words = slot.words
        self._responder = responder
        self._shows_values = shows_values
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._together: list[_Waiting] = []
        self._queue: deque[_Waiting] = deque()
        self._is_busy = False
        self._count = 0
        self._slowness = 0

    async def answer(self, request: Request, receive: Receive) -> Response | None:
        """Answer a request; None where its client has gone before its turn.

        Raises:
            Overloaded: Too many wait.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Response | None] = loop.create_future()
        deliver = partial(_settle, answered)
        if self._is_quick(request.body):
            if not self._responder.joins:
                return self._answer_in_loop([request])[0]
            self.answer_soon(request, deliver)
            return await answered
        if len(self._queue) >= MOST_WAITING:
            raise Overloaded
        gone = loop.create_task(wait_for_end(receive))
        self._queue.append(_Waiting(request, deliver, gone))
        self._work_on(loop)
        try:
            return await answered
        finally:
            gone.cancel()

    async def answer_blocks(self, request: Request, body: Readable) -> Response:
        """Answer a request whose body is still coming, once those that came before have been answered."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._responder.answer_blocks, request, body
        )

    async def execution_parameters(self) -> Response | None:
        """Answer `/execution-parameters` by the user's module; None where that has no hook for it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._responder.execution_parameters)

    async def next_part(self, parts: Iterator[bytes], request_id: str) -> bytes | None:
        """Return the next part of an answer that is made bit by bit; None at its end.

        Raises:
            BrokenAnswer: It cannot be made.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, _next, parts, request_id)

    async def close(self, parts: Iterator[bytes]) -> None:
        """Close what makes an answer bit by bit, where its client has gone before the end."""
        close = getattr(parts, "close", None)
        if close is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, close)

    # -- those that meet together ----------------------------------------------------------------------------------

    def _is_quick(self, body: bytes) -> bool:
        return len(body) <= _LOOP_BYTES and self._slowness < _SLOW and not self._is_busy

    def answers_soon(self, body: bytes) -> bool:
        """Return whether `answer_soon` may be asked: a request with this body is answered in this turn of the loop."""
        return self._responder.joins and self._is_quick(body)

    def answer_soon(self, request: Request, deliver: Callable[[Response | None], None]) -> None:
        """Answer a request with all others that come in this turn of the loop."""
        self._together.append(_Waiting(request, deliver))
        if len(self._together) == 1:
            asyncio.get_running_loop().call_soon(self._answer_together)

    # -- in the loop -----------------------------------------------------------------------------------------------

    def _answer_together(self) -> None:
        """Answer all that have come in this turn."""
        together, self._together = self._together, []
        if self._is_busy:
            self._queue.extend(together)
            return
        _deliver(together, self._answer_in_loop([each.request for each in together]))

    def _answer_in_loop(self, requests: Sequence[Request]) -> list[Response]:
        before, began = getrusage(RUSAGE_THREAD), time.perf_counter()
        try:
            return self._answer(requests)
        finally:
            seconds = time.perf_counter() - began
            if seconds > _LOOP_SECONDS * len(requests):
                seconds = _seconds_of_its_own(seconds, before)
            if seconds > _SLOW_SECONDS:
                self._slowness = _SLOWEST
            else:
                self._slowness = self._slowness + 1 if seconds > _LOOP_SECONDS * len(requests) else 0

    def _work_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the thread take what waits, unless it is at something."""
        if self._queue and not self._is_busy:
            self._is_busy = True
            loop.run_in_executor(self._thread, self._work, self._take(), loop)

    def _take(self) -> list[_Waiting]:
        """Take from the queue what is answered by one call."""
        taken = [self._queue.popleft()]
        size = len(taken[0].request.body)
        while self._responder.joins and self._queue and size + len(self._queue[0].request.body) <= _MOST_BYTES:
            size += len(self._queue[0].request.body)
            taken.append(self._queue.popleft())
        return taken

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _work(self, taken: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        wanted = [each for each in taken if each.gone is None or not each.gone.done()]
        began, busy = time.perf_counter(), time.thread_time()
        answers = self._answer([each.request for each in wanted]) if wanted else []
        # Beside the loop, it has also waited for that: what counts is its own time, and a pause of its own.
        seconds, busy = time.perf_counter() - began, time.thread_time() - busy
        loop.call_soon_threadsafe(self._end_work, taken, wanted, answers, max(busy, seconds - _SLOW_SECONDS), loop)

    def _end_work(
        self,
        taken: list[_Waiting],
        wanted: list[_Waiting],
        answers: list[Response],
        seconds: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._is_busy = False
        self._slowness = _SLOWEST if seconds > _LOOP_SECONDS * max(1, len(wanted)) else max(0, self._slowness - 1)
        _deliver(wanted, answers)
        for each in taken:
            if each not in wanted:
                each.deliver(None)
        self._work_on(loop)

    # -- in either -------------------------------------------------------------------------------------------------

    def _answer(self, requests: Sequence[Request]) -> list[Response]:
        """Have the responder answer; a defect of it is an answer, too, with the place."""
        self._count += 1
        self._words[WorkerField.PREDICTION] = self._count
        try:
            if len(requests) == 1:
                return [self._responder.answer(requests[0])]
            return self._responder.answer_together(requests)
        except Exception as error:  # noqa: BLE001 - the one place where what escapes a model becomes an answer
            if len(requests) > 1:
                return [self._answer([request])[0] for request in requests]
            emit(f"id={requests[0].id}\n{traceback.format_exc()}")
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}"  # noqa: PTH119 - a name
            text = f": {error}" if self._shows_values else ""
            return [error_response(500, f"{type(error).__name__}{text} (at {place})", requests[0].id)]
        finally:
            self._words[WorkerField.PREDICTION] = 0


def _next(parts: Iterator[bytes], request_id: str) -> bytes | None:
    try:
        return next(parts, None)
    except TrainboxError as error:
        raise BrokenAnswer(getattr(error, "status", 500), error.message) from error
    except Exception as error:  # what escapes a model while it makes an answer: as in `_answer`
        emit(f"id={request_id}\n{traceback.format_exc()}")
        raise BrokenAnswer(500, f"{type(error).__name__}: {error}") from error


def error_response(status: int, text: str, request_id: str = "") -> Response:
    """Return the answer to a request that has none, for a person to read."""
    body = {"error": text, "id": request_id} if request_id else {"error": text}
    return Response(status, msgspec.json.encode(body), (("content-type", "application/json"),), note=text)


def _deliver(waiting: Sequence[_Waiting], answers: Sequence[Response]) -> None:
    for each, response in zip(waiting, answers, strict=True):
        each.deliver(response)


def _seconds_of_its_own(seconds: float, before: struct_rusage) -> float:
    """Return how many of some seconds are this thread's own: where it has waited for no other, those of a processor."""
    after = getrusage(RUSAGE_THREAD)
    if after.ru_nvcsw > before.ru_nvcsw:
        return seconds
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _settle(answered: "asyncio.Future[Response | None]", response: Response | None) -> None:
    if not answered.done():
        answered.set_result(response)


async def wait_for_end(receive: Receive) -> None:
    """Wait until the client has gone: nothing else comes after the body."""
    while (await receive())["type"] != "http.disconnect":
        pass
