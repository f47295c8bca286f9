"""Answers by the user's `inference.py`, and by ours where it lacks a hook."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np

from trainbox.contract.hosting import Hosting
from trainbox.errors import DataError
from trainbox.log_lines import emit
from trainbox.serving.answer import Question, Service, choose_output, make_service, read, write
from trainbox.serving.features import translate
from trainbox.serving.find import Found, Module, load
from trainbox.serving.hook_context import make_context
from trainbox.serving.hook_defaults import DEFAULT_ACCEPT, DEFAULTS
from trainbox.serving.hooks import Defaults, HookError, answer_with_hooks, load_hooks, load_user_model
from trainbox.serving.request_errors import RequestError, encode_error
from trainbox.serving.responder import Request, Response, warm_up
from trainbox.serving.self_test import self_test

_ANY = ("", "*/*")
_BODY_HOOKS = ("input_fn", "transform_fn")


class HookResponder:
    """Answers by hooks.

    Args:
        hosting: The contract, read.
        found: The model, with `module`.
        module: The user's.

    Raises:
        ProgramError: The module cannot be used, or one of its hooks has raised an error.
        DataError: The model is ours, and cannot be loaded.
    """

    joins = False

    def __init__(self, hosting: Hosting, found: Found, module: Module) -> None:
        self._hosting = hosting
        self._model_dir = str(found.model_dir)
        self._hooks = load_hooks(module)
        if "model_fn" in self._hooks:  # else `load` does
            for note in found.notes:
                emit(note)
        start = make_context(self._model_dir)
        self._model = load_user_model(self._hooks, found.model_dir, lambda: load(found), start)
        #: Of a model of ours.
        self._service = None if "model_fn" in self._hooks else make_service(hosting, self._model)
        self.name = f"{module.path.name} with {', '.join(self._hooks.functions)}"

    def check(self) -> None:
        """Answer the rows of the model's card, where the model is ours."""
        if self._service is not None and (error := self_test(self._model)) is not None:
            raise error

    def warm_up(self, threads: int) -> None:
        """Answer those rows in a worker."""
        if self._service is not None:
            warm_up(self._model, threads)

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Answer requests, one by one."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Response:
        headers = request.headers
        accept = headers.get("accept", "")
        if accept in _ANY:
            accept = self._service.default_type if self._service else self._hosting.default_accept or DEFAULT_ACCEPT
        if not request.body and self._service is not None and not any(hook in self._hooks for hook in _BODY_HOOKS):
            return Response(HTTPStatus.NO_CONTENT)
        try:
            found = answer_with_hooks(
                self._hooks,
                self._model,
                request.body,
                headers.get("content-type", ""),
                accept,
                context=make_context(self._model_dir, headers, request.id),
                defaults=DEFAULTS if self._service is None else _defaults_of(self._service, accept),
            )
        except HookError as error:
            emit(f"id={request.id}: {error}")
            body = {"error": error.message, "hint": error.hint, "id": request.id}
            return Response(error.status, msgspec.json.encode(body), (("content-type", "application/json"),))
        except DataError as error:
            return self._refuse(error, request.id)
        return Response(found.status, found.body, (("content-type", found.content_type), *found.headers))

    def _refuse(self, error: DataError, request_id: str) -> Response:
        if not isinstance(error, RequestError):
            unnamed = RequestError(error.message, hint=error.hint)
            error = unnamed if self._service is None else translate(self._service.plan, error)
        body = encode_error(error, shows_values=self._hosting.shows_values, request_id=request_id)
        return Response(error.status, body, (("content-type", "application/json"),))


def _defaults_of(service: Service, accept: str) -> Defaults:
    """Return ours for one request: what it asks for is known from its body to its answer."""
    asked: list[Question] = []

    def decode(body: bytes, content_type: str) -> Any:  # noqa: ANN401 - an array
        question = read(service, body, content_type, accept)
        if question is None:
            raise RequestError("the body is empty", hint="send the rows in the body")
        asked.append(question)
        return question.rows

    def predict(rows: Any, model: Any) -> Any:  # noqa: ANN401 - arrays
        return model.predict(rows)

    def encode(numbers: Any, given: str) -> tuple[bytes, str]:  # noqa: ANN401 - an array
        numbers = np.asarray(numbers)
        if not asked:
            asked.append(Question(np.empty((len(numbers), 0), np.float32), choose_output(service, given)))
        found = write(service, asked[0], numbers)
        return found.body, dict(found.headers)["Content-Type"]

    return Defaults(decode, predict, encode)
