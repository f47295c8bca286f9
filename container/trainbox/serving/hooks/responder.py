"""Answers by the user's hooks, and by ours where the module has none."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from trainbox.contract.hosting import NO_EXTRAS, Hosting, Predictor
from trainbox.contract.model_card import ModelCard
from trainbox.data.formats.byte_stream import Readable
from trainbox.errors import DataError
from trainbox.log_lines import emit
from trainbox.serving.bodies.answer import Service, choose_output, make_service, read, write
from trainbox.serving.bodies.features import translate
from trainbox.serving.bodies.request_errors import RequestError, encode_error
from trainbox.serving.hooks.answers import Defaults, answer_with_hooks, encode_parameters
from trainbox.serving.hooks.calls import HookError, load_hooks, load_user_model
from trainbox.serving.hooks.context import Context, make_context
from trainbox.serving.hooks.defaults import as_array, decode_plain, encode_plain, predict_plain
from trainbox.serving.models.find import FoundModel, load
from trainbox.serving.models.self_test import sample_matrix, self_test
from trainbox.serving.responder import Request, Response
from trainbox.system.machine import read_machine

_JSON = "application/json"
_READ_BYTES = 2**20


class HookResponder:
    """A model with the user's module.

    Args:
        hosting: The contract, read.
        found: The model and the module.

    Raises:
        ProgramError: The module cannot be used, or one of its hooks has raised an error.
        DataError: The model cannot be loaded.
    """

    def __init__(self, hosting: Hosting, found: FoundModel) -> None:
        if found.module is None:
            raise DataError(f"{found.model_dir} brings no module")
        self._hosting, self._model_dir = hosting, found.model_dir
        self._gpu = 0 if read_machine().gpus else None  # each worker sees one
        self._ours: Predictor | None = None
        try:
            self._hooks = load_hooks(found.module)
            if "model_fn" in self._hooks:  # else `load` does
                for note in found.notes:
                    emit(note)
            self._model = load_user_model(self._hooks, found.model_dir, lambda: self._load(found), self._context(None))
        except HookError as error:
            if error.__cause__ is not None:
                emit(_traceback(error))
            raise
        predictor = self._ours or (_UserPredictor(found.card, self._model) if found.card is not None else None)
        #: None where nothing says what the rows are.
        self._service: Service | None = make_service(hosting, predictor) if predictor is not None else None
        self.name = f"{found.module.path} ({', '.join(self._hooks.functions)})"

    def _load(self, found: FoundModel) -> Predictor:
        self._ours = load(found)
        return self._ours

    def _context(self, request: Request | None) -> Context:
        headers, request_id = (request.headers, request.id) if request is not None else (None, "")
        name = self._hosting.model_name
        return make_context(str(self._model_dir), headers, request_id, gpu=self._gpu, model_name=name)

    def check(self) -> None:
        """Answer the rows of the card, where the model is one of ours.

        Raises:
            DataError: The answers are not those of training.
        """
        error = self_test(self._ours) if self._ours is not None else None
        if error is not None:
            raise error

    def warm_up(self, threads: int) -> None:
        """Answer those rows, with so many threads from now on."""
        if self._ours is not None:
            self._ours.set_threads(threads)
            if self._ours.card.samples:
                self._ours.predict(sample_matrix(self._ours.card))

    #: A hook is given one request.
    joins = False

    def answer_together(self, requests: Sequence[Request]) -> list[Response]:
        """Answer several, one by one."""
        return [self.answer(request) for request in requests]

    def answer_blocks(self, request: Request, body: Readable) -> Response:
        """Answer a request whose body is still coming: a hook is given the whole."""
        try:
            whole = b"".join(iter(lambda: body.read(_READ_BYTES), b""))
        except RequestError as error:
            return _refuse(error, request, self._hosting)
        return self.answer(Request(request.headers, whole, request.id))

    def execution_parameters(self) -> Response | None:
        """Answer by `execution_parameters_fn`; None where the module has none."""
        try:
            body = encode_parameters(self._hooks, self._context(None))
        except HookError as error:
            return _fail(error, Request({}, b""), self._hosting)
        return None if body is None else Response(HTTPStatus.OK, body, (("content-type", _JSON),))

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        context = self._context(request)
        content_type = request.headers.get("content-type") or _JSON
        accept = request.headers.get("accept", "")
        if accept.strip() in {"", "*/*"}:
            default = self._service.default_type if self._service is not None else _JSON
            accept = self._hosting.default_accept or default
        try:
            found = answer_with_hooks(
                self._hooks,
                self._model,
                request.body,
                content_type,
                accept,
                context=context,
                defaults=self._defaults(),
            )
        except HookError as error:
            return _fail(error, request, self._hosting)
        except DataError as error:
            return _refuse(self._as_request_error(error), request, self._hosting)
        body = found.body if isinstance(found.body, bytes) else _log_errors(found.body, request.id)
        return Response(found.status, body, (*found.headers, ("content-type", found.content_type)))

    def _as_request_error(self, error: DataError) -> RequestError:
        if isinstance(error, RequestError) or self._service is None:
            return error if isinstance(error, RequestError) else RequestError(error.message, hint=error.hint)
        return translate(self._service.plan, error)

    def _defaults(self) -> Defaults:
        service = self._service
        if service is None:
            return Defaults(decode_plain, predict_plain, encode_plain)
        asked = None

        def decode(body: bytes, content_type: str) -> Any:  # noqa: ANN401 - rows
            nonlocal asked
            asked = read(service, body, content_type, "")  # what is accepted may be for the user's output_fn
            if asked is None:
                raise RequestError("the body is empty", hint="send a row or more")
            return asked.rows

        def encode(prediction: Any, accept: str) -> tuple[bytes, str]:  # noqa: ANN401 - numbers
            prediction = as_array(prediction)
            if asked is None or not hasattr(prediction, "shape") or prediction.shape[:1] != asked.rows.shape[:1]:
                return encode_plain(prediction, accept)
            output = choose_output(service, accept)
            chosen = msgspec.structs.replace(asked, output=output, outputs=output.outputs or service.outputs)
            answer = write(service, chosen, prediction)
            return answer.body, dict(answer.headers)["Content-Type"]

        predict: Callable[[Any, Any], Any] = predict_plain
        if self._ours is not None:
            predict = lambda data, _model: service.predictor.predict(data)  # noqa: E731 - one call
        return Defaults(decode, predict, encode)


class _UserPredictor:
    """The user's own model behind a card of ours."""

    is_rowwise = False
    extras = NO_EXTRAS  # nothing says what the model can do

    def __init__(self, card: ModelCard, model: Any) -> None:  # noqa: ANN401 - whatever model_fn returns
        self.card = card
        self._model = model

    def predict(self, rows: Any) -> Any:  # noqa: ANN401 - arrays
        """Return what the model says."""
        return predict_plain(rows, self._model)

    def set_threads(self, count: int) -> None:
        """Leave the threads to the user."""


def _fail(error: HookError, request: Request, hosting: Hosting) -> Response:
    """Return the answer to a request whose hook has failed; the traceback is in the log."""
    emit(f"id={request.id} {_traceback(error)}")
    problem = RequestError(error.message, status=HTTPStatus(error.status), hint=error.hint, redacted=error.redacted)
    return _refuse(problem, request, hosting)


def _traceback(error: HookError) -> str:
    return "".join(traceback.format_exception(error.__cause__ or error)).rstrip()


def _refuse(error: RequestError, request: Request, hosting: Hosting) -> Response:
    body = encode_error(error, shows_values=hosting.shows_values, request_id=request.id)
    return Response(error.status, body, (("content-type", _JSON),), note=error.message)


def _log_errors(parts: Iterator[bytes], request_id: str) -> Iterator[bytes]:
    """Yield the parts; an error among them ends the answer, and its traceback is in the log with the id."""
    try:
        yield from parts
    except HookError as error:
        emit(f"id={request_id} {_traceback(error)}")
        raise
