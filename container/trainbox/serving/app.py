"""The routes of a worker, as an ASGI application: requests in, answers out, one line in the log for each."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from functools import partial
from io import BytesIO
from typing import Any, Self, TypeAlias

import msgspec

from trainbox.contract.hosting import Hosting
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.body_pipe import BodyPipe
from trainbox.serving.content_coding import HEADER, DecompressedBody, decompress, is_compressed
from trainbox.serving.counters import metrics_text
from trainbox.serving.predictions import (
    MOST_WAITING,
    BrokenAnswer,
    Overloaded,
    Predictions,
    error_response,
    wait_for_end,
)
from trainbox.serving.request_log import RequestLog
from trainbox.serving.responder import Request, Responder, Response
from trainbox.serving.whole_request import WholeRequest
from trainbox.system.worker_page import PageField, WorkerPage

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Mapping[str, str]

REQUEST_ID = "x-trainbox-request-id"
_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_JSON = ("content-type", "application/json")
#: A body may pause for so long, and what nobody wants of it is read for so long.
_BODY_SECONDS = 30.0
_REST_SECONDS = 5.0
_REST_BYTES = 256 * 2**20
_MB = 2**20


class Unusable(Exception):  # noqa: N818 - an answer, not an error
    """A request that is answered before its body has been read whole."""

    def __init__(self, status: int, text: str, *, reads_rest: bool = True) -> None:
        super().__init__(text)
        self.status = status
        self.reads_rest = reads_rest

    @classmethod
    def of(cls, error: RequestError, *, reads_rest: bool) -> Self:
        """Return the same of an error."""
        hint = f"; {error.hint}" if error.hint else ""
        return cls(error.status, f"{error.message}{hint}", reads_rest=reads_rest)


class App:
    """The application.

    Args:
        hosting: The contract, read.
        page: What the workers share.
        number: Of this worker.
        responder: What answers.
    """

    def __init__(self, hosting: Hosting, page: WorkerPage, number: int, responder: Responder) -> None:
        self._hosting = hosting
        self._page = page
        self._header = page.header
        slot = page.slot(number)
        self._words = slot.words
        self._predictions = Predictions(slot, responder, shows_values=hosting.shows_values)
        self._log = RequestLog(hosting, page, number)
        self._routes: dict[str, tuple[str, Callable[[], Awaitable[Response]]]] = {
            "/ping": ("GET", self._ping),
            "/execution-parameters": ("GET", self._execution_parameters),
            "/metrics": ("GET", self._metrics),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, method = scope["path"], scope["method"]
        if path == "/invocations" and method == "POST":
            await self._invoke(scope, receive, send)
            return
        allowed, answer = self._routes.get(path, ("", None))
        if answer is not None and method in {allowed, "HEAD"}:
            await self._send(await answer(), send)
        elif answer is not None or path == "/invocations":
            allowed = allowed or "POST"
            problem = error_response(405, f"{path} takes {allowed}, not {method}")
            await self._send(msgspec.structs.replace(problem, headers=(*problem.headers, ("allow", allowed))), send)
        else:
            await self._send(error_response(404, f"there is no {path}: ask /ping, /invocations, /metrics"), send)

    # -- the small routes ------------------------------------------------------------------------------------------

    async def _ping(self) -> Response:
        """Healthy once all workers were ready; this one answers, so one is."""
        if self._header[PageField.DRAINING]:
            return error_response(503, "the server is stopping")
        if not self._header[PageField.OPEN]:
            return error_response(503, "not every worker has answered the sample rows of the model")
        return Response(200)

    async def _execution_parameters(self) -> Response:
        """What suits this server in a batch transform job: as many requests at a time as there are workers."""
        chosen = await self._predictions.execution_parameters()
        if chosen is not None:
            return chosen
        workers = max(1, self._header[PageField.WORKERS])
        batch = self._hosting.batch
        asked = batch.strategy if batch is not None else None
        body = {
            "MaxConcurrentTransforms": workers,
            "BatchStrategy": asked or "MULTI_RECORD",
            "MaxPayloadInMB": max(1, min(100 // workers, 25)),
        }
        return Response(200, msgspec.json.encode(body), (_JSON,))

    async def _metrics(self) -> Response:
        text = metrics_text(self._page)
        return Response(200, text.encode(), (("content-type", "text/plain; version=0.0.4; charset=utf-8"),))

    # -- invocations -----------------------------------------------------------------------------------------------

    async def _invoke(
        self, scope: Message, receive: Receive, send: Send, model: str = "", path: str = "/invocations"
    ) -> None:
        """Answer a request for predictions.

        Args:
            scope: Of the request, with `receive` and `send`.
            receive: Gives its body.
            send: Takes the answer.
            model: Which, of several.
            path: As the log has it.
        """
        began, request_id = self._log.begin()
        status, rows, note = 499, 0, "the client has gone"
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if self._hosting.max_body_bytes:
                response = await self._respond(headers, request_id, receive, model)
                if response is not None:
                    await self._send(response, send, request_id, headers, receive)
            else:
                response = await self._invoke_by_blocks(Request(headers, b"", request_id, model), receive, send)
            if response is not None:
                status, rows, note = response.status, response.rows, response.note
        except BrokenAnswer as broken:  # to return is to close the connection
            status, note = broken.status, str(broken)
        finally:
            self._log.end(path, status, rows, began, f"id={request_id}{note and f' {note}'}")

    def answer_whole(self, given: list[tuple[bytes, bytes]], body: bytes, whole: WholeRequest) -> bool:
        """Answer `POST /invocations` in this turn of the loop, where that is quick and nothing is special about it.

        Args:
            given: The headers, with names in lower case.
            body: What has come with them: all of it.
            whole: Takes the answer.

        Returns:
            Whether it is answered; otherwise it has to be called as an ASGI application.
        """
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in given}
        if not 0 < len(body) <= self._hosting.max_body_bytes or not self._predictions.answers_soon(body):
            return False
        if HEADER in headers or _ATTRIBUTES in headers:
            return False
        began, request_id = self._log.begin()
        end = partial(self._end_whole, whole, request_id, began)
        self._predictions.answer_soon(Request(headers, body, request_id), end)
        return True

    def _end_whole(self, whole: WholeRequest, request_id: str, began: int, response: Response | None) -> None:
        response = response or Response(499)
        try:
            whole.answer(response, request_id, closes=bool(self._header[PageField.DRAINING]))
        finally:
            note = response.note and f" {response.note}"
            self._log.end("/invocations", response.status, response.rows, began, f"id={request_id}{note}")

    async def _invoke_by_blocks(self, request: Request, receive: Receive, send: Send) -> Response | None:
        """Answer a request of any length while it comes; None where the client has gone."""
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        loop = asyncio.get_running_loop()
        pipe = BodyPipe(message["body"], loop, _BODY_SECONDS)
        rest = _nothing if not message["more_body"] else receive
        feeding = loop.create_task(pipe.feed(rest))
        try:
            response = await self._predictions.answer_blocks(request, DecompressedBody(request.headers, pipe))
            await self._send(response, send, request.id, request.headers)
        finally:
            feeding.cancel()
        return response

    async def _respond(self, headers: Headers, request_id: str, receive: Receive, model: str = "") -> Response | None:
        """Read the body and answer; None where the client has gone."""
        try:
            is_gzip = _is_compressed(headers)
            body = await self._read(headers, receive)
            if is_gzip and body is not None:
                headers = {name: value for name, value in headers.items() if name != HEADER}
                body = await self._decompress(body)
        except Unusable as unusable:
            problem = error_response(unusable.status, str(unusable), request_id)
            return msgspec.structs.replace(problem, rest=unusable.reads_rest)
        if body is None:
            return None
        try:
            return await self._predictions.answer(Request(headers, body, request_id, model), receive)
        except Overloaded:
            text = f"{MOST_WAITING} requests wait for this worker: send fewer at a time, or use more workers"
            problem = error_response(503, text, request_id)
            return msgspec.structs.replace(problem, headers=(*problem.headers, ("retry-after", "1")))

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Read the body, within its limits; None where the client has gone."""
        limit = self._hosting.max_body_bytes
        length = headers.get("content-length", "")
        if limit and length.isdecimal() and int(length) > limit:
            # Who waits for "100 Continue" sends nothing of it.
            raise Unusable(413, _too_large(int(length), limit), reads_rest="expect" not in headers)
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body: bytes = message["body"]
        if not message["more_body"]:
            return body
        # It gives away its buffer, where parts that are joined are in memory twice; what has not come takes none.
        whole = BytesIO(bytes(int(length)) if length.isdecimal() else b"")
        size = whole.write(body)
        while message["more_body"]:
            if limit and size > limit:
                raise Unusable(413, _too_large(size, limit, at_least=True))
            try:
                message = await asyncio.wait_for(receive(), _BODY_SECONDS)
            except TimeoutError:
                text = f"the body has paused for {_BODY_SECONDS:g} s after {size:,} bytes"
                raise Unusable(408, text, reads_rest=False) from None
            if message["type"] == "http.disconnect":
                return None
            size += whole.write(message["body"])
        if limit and size > limit:
            raise Unusable(413, _too_large(size, limit), reads_rest=False)
        whole.truncate()
        return whole.getvalue()

    async def _decompress(self, body: bytes) -> bytes:
        """Decompress a body, within the same limit."""
        try:
            return await asyncio.to_thread(decompress, body, self._hosting.max_body_bytes)
        except RequestError as error:
            raise Unusable.of(error, reads_rest=False) from error

    # -- answers ---------------------------------------------------------------------------------------------------

    async def _send(
        self,
        response: Response,
        send: Send,
        request_id: str = "",
        given: Headers | None = None,
        receive: Receive | None = None,
    ) -> None:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        body = response.body
        if isinstance(body, bytes):
            headers.append((b"content-length", str(len(body)).encode()))
        if request_id:
            headers.append((REQUEST_ID.encode(), request_id.encode()))
        if given and _ATTRIBUTES in given and not any(name.lower() == _ATTRIBUTES for name, _ in response.headers):
            headers.append((_ATTRIBUTES.encode(), given[_ATTRIBUTES].encode("latin-1")))
        if self._header[PageField.DRAINING] or response.rest is not None:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if not isinstance(body, bytes):
            await self._stream(body, send, receive, request_id)
        elif response.rest and receive is not None:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await _read_rest(receive)  # to close while the client writes would take back the answer
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": body})

    async def _stream(self, parts: Iterator[bytes], send: Send, receive: Receive | None, request_id: str) -> None:
        """Send each part as it comes; what makes them is closed when the client leaves.

        Raises:
            BrokenAnswer: A part cannot be made, or nobody takes it.
        """
        gone = asyncio.get_running_loop().create_task(wait_for_end(receive)) if receive is not None else None
        is_whole = False
        try:
            while (part := await self._predictions.next_part(parts, request_id)) is not None:
                if gone is not None and gone.done():
                    raise BrokenAnswer(499, "the client has gone")
                await send({"type": "http.response.body", "body": part, "more_body": True})
            is_whole = True
            await send({"type": "http.response.body", "body": b""})
        finally:
            if gone is not None:
                gone.cancel()
            if not is_whole:
                await self._predictions.close(parts)


def _is_compressed(headers: Headers) -> bool:
    try:
        return is_compressed(headers)
    except RequestError as error:
        raise Unusable.of(error, reads_rest="expect" not in headers) from error


def _too_large(size: int, limit: int, *, at_least: bool = False) -> str:
    had = f"{size:,} bytes" + (" and more" if at_least else "")
    return f"the body has {had}, and at most {limit:,} ({limit / _MB:g} MB) are taken: TRAINBOX_MAX_BODY_MB sets that"


async def _nothing() -> Message:
    """The end of a body that has come."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def _read_rest(receive: Receive) -> None:
    """Read what the client still sends, for a while."""
    size = 0
    try:
        async with asyncio.timeout(_REST_SECONDS):
            message = await receive()
            while message["type"] == "http.request" and size < _REST_BYTES and message["more_body"]:
                size += len(message["body"])
                message = await receive()
    except TimeoutError:
        return
