"""The routes of a worker for many models: those of one model, and the API by which SageMaker loads and unloads."""

import time
from http import HTTPStatus

import msgspec

from trainbox.contract.hosting import Hosting
from trainbox.contract.text import short
from trainbox.log_lines import emit
from trainbox.serving.app import App, Message, Receive, Send, Unusable
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.multi import api
from trainbox.serving.multi.exchange import Change
from trainbox.serving.multi.models_responder import ModelsResponder
from trainbox.serving.responder import Responder, Response
from trainbox.serving.whole_request import WholeRequest
from trainbox.system.worker_page import PageField, WorkerField, WorkerPage

_SHOWN_NAME = 80
_ALLOWED = {"list": "GET, POST", "describe": "GET, DELETE", "invoke": "POST"}


class ModelsApp(App):
    """The application.

    Args:
        hosting: The contract, read.
        page: What the workers share.
        number: Of this worker.
        responder: Of all models.
    """

    def __init__(self, hosting: Hosting, page: WorkerPage, number: int, responder: Responder) -> None:
        super().__init__(hosting, page, number, responder)
        if not isinstance(responder, ModelsResponder):
            raise TypeError(responder)
        self._responder = responder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, method = scope["path"], scope["method"]
        if path == "/invocations" and method == "POST":
            await self._invoke_by_header(scope, receive, send)
            return
        if not path.startswith("/models"):
            await super().__call__(scope, receive, send)
            return
        try:
            target = api.read_target(scope["raw_path"])
        except RequestError as error:
            await self._send(api.problem(error.status, error.message, error.hint), send)
            return
        if target is None:
            text = f"there is no {short(path)}: ask /models, /models/{{name}} or /models/{{name}}/invoke"
            await self._send(api.problem(HTTPStatus.NOT_FOUND, text), send)
        elif target.action == "invoke" and method == "POST":
            await self._invoke_model(target.name, scope, receive, send)
        else:
            await self._administer(target, scope, receive, send)

    def answer_whole(self, given: list[tuple[bytes, bytes]], body: bytes, whole: WholeRequest) -> bool:
        """Leave it to what finds the model."""
        del given, body, whole
        return False

    # -- predictions -----------------------------------------------------------------------------------------------

    async def _invoke_model(self, name: str, scope: Message, receive: Receive, send: Send) -> None:
        await self._invoke(scope, receive, send, name, f"/models/{short(name, _SHOWN_NAME)[1:-1]}/invoke")

    async def _invoke_by_header(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a client that knows one path alone and names the model in a header: SageMaker's SDK in local mode."""
        named = [value for name, value in scope["headers"] if name == api.TARGET_MODEL.encode()]
        if not named:
            text = "this endpoint has many models, and the request names none"
            hint = "POST /models/{name}/invoke, or name it in the header X-Amzn-SageMaker-Target-Model"
            await self._send(api.problem(HTTPStatus.BAD_REQUEST, text, hint), send)
            return
        await self._invoke_model(named[0].decode("utf-8", errors="replace"), scope, receive, send)

    async def _metrics(self) -> Response:
        """Add how many models there are."""
        name, counted = "trainbox_models_loaded", await super()._metrics()
        text = f"# HELP {name} Models that are loaded.\n# TYPE {name} gauge\n{name} {len(self._responder.models)}\n"
        body = counted.body if isinstance(counted.body, bytes) else b""
        return msgspec.structs.replace(counted, body=body + text.encode())

    # -- models ----------------------------------------------------------------------------------------------------

    async def _administer(self, target: api.Target, scope: Message, receive: Receive, send: Send) -> None:
        """List, describe, load or unload: a request like others, which a server that stops answers first."""
        began = time.monotonic_ns()
        self._words[WorkerField.IN_FLIGHT] += 1
        self._words[WorkerField.LAST_REQUEST] = began
        status = 499
        try:
            response = await self._answer(target, scope, receive)
            if response is not None:
                status = response.status
                await self._send(response, send, receive=receive)
        finally:
            ended = time.monotonic_ns()
            self._words[WorkerField.IN_FLIGHT] -= 1
            self._words[WorkerField.LAST_REQUEST] = ended
            if scope["method"] not in {"GET", "HEAD"}:
                path = short(scope["path"], _SHOWN_NAME)[1:-1]
                emit(f"{scope['method']} {path} {status} {(ended - began) / 1e6:.1f} ms")

    async def _answer(self, target: api.Target, scope: Message, receive: Receive) -> Response | None:
        """Return the answer; None where the client has gone."""
        try:
            match target.action, scope["method"]:
                case "list", "POST":
                    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                    body = await self._read(headers, receive)
                    return None if body is None else await self._change(api.read_load(body))
                case "describe", "DELETE":
                    return await self._change(api.UnloadModel(target.name))
                case "list" | "describe", "GET" | "HEAD":
                    return self._describe(target, scope["query_string"])
        except RequestError as error:
            return api.problem(error.status, error.message, error.hint)
        except Unusable as unusable:
            return msgspec.structs.replace(api.problem(unusable.status, str(unusable)), rest=unusable.reads_rest)
        allowed = _ALLOWED[target.action]
        told = api.problem(HTTPStatus.METHOD_NOT_ALLOWED, f"this path takes {allowed}, not {scope['method']}")
        return msgspec.structs.replace(told, headers=(*told.headers, ("allow", allowed)))

    def _describe(self, target: api.Target, query: bytes) -> Response:
        models = self._responder.models
        if target.action == "list":
            return api.json_response(api.list_page({name: model.url for name, model in models.items()}, query))
        if target.name not in models:
            return api.as_response(api.not_found(target.name))
        return api.json_response(api.describe_model(target.name, models[target.name].url))

    async def _change(self, change: Change) -> Response:
        if self._header[PageField.DRAINING]:
            return api.as_response(api.stopping())
        return api.as_response(await self._responder.exchange.ask(change))
