"""What a worker asks for an answer: a `Responder`, whatever the model and the formats are."""

import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib import import_module
from typing import Any, Protocol

import msgspec
import numpy as np

from trainbox.contract.hosting import Hosting, Predictor
from trainbox.data.formats.byte_stream import Readable
from trainbox.serving.bodies.answer import Answer, Question, make_service, read, refuse, respond, write
from trainbox.serving.bodies.answer_blocks import answer_blocks
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.hooks.requirements import install_requirements
from trainbox.serving.models.find import find_model, list_model, load
from trainbox.serving.models.self_test import sample_matrix, self_test

#: Rows are predicted one by one unless so many in one call are quicker.
_MOST_ALONE = 4
#: What it takes to join them, as a part of the call.
_JOINING = 0.25
#: A call takes as long as the quickest of so many, or of those in so many nanoseconds.
_TRIES, _TRIES_NS = 5, 2_000_000


class Request(msgspec.Struct, frozen=True):
    """A request whose body has come."""

    #: By their names in lower case.
    headers: Mapping[str, str]
    body: bytes
    #: That of the log and of the answer.
    id: str = ""
    #: Of several models: which.
    model: str = ""


class Response(msgspec.Struct, frozen=True):
    """An answer."""

    status: int
    #: Of an iterator each part is sent as it comes.
    body: bytes | Iterator[bytes] = b""
    headers: tuple[tuple[str, str], ...] = ()
    #: How many rows were answered.
    rows: int = 0
    #: What the log says beside.
    note: str = ""
    #: Where the connection ends with this answer: whether the rest of the request is read before.
    rest: bool | None = None


class Responder(Protocol):
    """A loaded model that answers requests."""

    @property
    def name(self) -> str:
        """What it is, in a few words for the log."""

    def check(self) -> None:
        """Answer the rows of the model's card.

        Raises:
            DataError: The answers are not those of training.
        """

    def warm_up(self, threads: int) -> None:
        """Answer those rows in a worker, after the fork, and with so many threads from now on."""

    @property
    def joins(self) -> bool:
        """Whether requests that arrive together may be answered together: a row has the same bits alone."""

    def answer(self, request: Request) -> Response:
        """Answer one request. Whatever its body is, that is no exception but an answer."""

    def answer_together(self, requests: Sequence[Request]) -> list[Response]:
        """Answer several, as `answer` does each."""

    def answer_blocks(self, request: Request, body: Readable) -> Response:
        """Answer a request whose body is still coming; the answer may be an iterator, which reads on."""

    def execution_parameters(self) -> Response | None:
        """Answer `/execution-parameters` where the user's module does; None where it does not."""


class ModelResponder:
    """Answers by a predictor.

    Args:
        hosting: The contract, read.
        predictor: The model.

    Raises:
        ContractError: A variable does not fit the model.
    """

    def __init__(self, hosting: Hosting, predictor: Predictor) -> None:
        self._predictor = predictor
        self._service = make_service(hosting, predictor)
        card = predictor.card
        self.joins = hosting.joins_requests and predictor.is_rowwise
        self._fewest = 2
        objective = f" ({card.objective})" if card.objective else ""
        self._samples = sample_matrix(card) if card.samples else None  # once, and not in each worker
        self.name = f"{card.algorithm}{objective}, {card.features.count:,} features"

    def check(self) -> None:
        """Answer the rows of the model's card."""
        error = self_test(self._predictor)
        if error is not None:
            raise error
        if self.joins and self._samples is not None:
            self._fewest = _fewest_together(self._predictor, self._samples)

    def warm_up(self, threads: int) -> None:
        """Answer those rows, with so many threads from now on."""
        self._predictor.set_threads(threads)
        if self._samples is not None:
            self._predictor.predict(self._samples)

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        given, accept = _types(request)
        return _as_response(respond(self._service, request.body, given, accept, request_id=request.id))

    def answer_together(self, requests: Sequence[Request]) -> list[Response]:
        """Answer several: by one call of the model, where they are enough to make that worth while."""
        if len(requests) < self._fewest:
            return [self.answer(request) for request in requests]
        read_ = [self._read(request) for request in requests]
        questions = [each for each in read_ if isinstance(each, Question)]
        if not all(isinstance(each.rows, np.ndarray) and len(each.rows) for each in questions) or not questions:
            return [self.answer(request) for request in requests]
        numbers = np.asarray(self._predictor.predict(np.concatenate([each.rows for each in questions])))
        answers, end = list[Response](), 0
        for each in read_:
            if isinstance(each, Question):
                start, end = end, end + len(each.rows)
                answers.append(_as_response(write(self._service, each, numbers[start:end])))
            else:
                answers.append(each)
        return answers

    def answer_blocks(self, request: Request, body: Readable) -> Response:
        """Answer a request whose body is still coming, in memory that does not grow with it."""
        given, accept = _types(request)
        try:
            found = answer_blocks(self._service, body, given, accept)
        except RequestError as error:
            return _as_response(refuse(self._service, error, request_id=request.id))
        return Response(HTTPStatus.OK, found.blocks, found.headers)

    def execution_parameters(self) -> None:
        """Leave the answer to the server."""

    def _read(self, request: Request) -> Question | Response:
        """Read a request; what cannot be used, or has no rows, is answered at once."""
        given, accept = _types(request)
        try:
            return read(self._service, request.body, given, accept) or Response(HTTPStatus.NO_CONTENT)
        except RequestError as error:
            return _as_response(refuse(self._service, error, request_id=request.id))


def _fewest_together(predictor: Predictor, rows: Any) -> int:  # noqa: ANN401 - dense or sparse
    """Return how many rows one call predicts quicker than as many calls do; XGBoost has a quicker way for one row."""
    alone = _time_of(predictor, rows[:1]) / (1 + _JOINING)
    counts = range(2, min(_MOST_ALONE, rows.shape[0]) + 1)
    return next((count for count in counts if _time_of(predictor, rows[:count]) < count * alone), _MOST_ALONE + 1)


def _time_of(predictor: Predictor, rows: Any) -> int:  # noqa: ANN401 - dense or sparse
    """Return the nanoseconds of processor time that a call takes."""
    times: list[int] = []
    while len(times) < _TRIES and sum(times) < _TRIES_NS:
        began = time.thread_time_ns()
        predictor.predict(rows)
        times.append(time.thread_time_ns() - began)
    return min(times)


def _types(request: Request) -> tuple[str, str]:
    return request.headers.get("content-type", ""), request.headers.get("accept", "")


def _as_response(found: Answer) -> Response:
    return Response(found.status, found.body, found.headers, rows=found.rows)


def prepare(hosting: Hosting) -> None:
    """Install what the user's module asks for; once, also where each worker loads the model for itself.

    Raises:
        DataError: There is no model.
        ProgramError: The user's module cannot be used.
        RequirementsError: What that asks for cannot be installed.
    """
    module = find_model(hosting, list_model(hosting)).module
    if module is not None:
        install_requirements(module.path.parent, hosting.installs)


def load_responder(hosting: Hosting) -> Responder:
    """Load the model, with the user's hooks where there are any.

    Raises:
        DataError: There is no model, or it cannot be used.
        ProgramError: The user's module cannot be.
    """
    if hosting.batch is not None:
        import_module("pyarrow.csv")  # tables come: once here, and not in each worker
    found = find_model(hosting, list_model(hosting))
    if found.module is not None:
        from trainbox.serving.hooks.responder import HookResponder  # noqa: PLC0415 - only a model that brings code has one

        return HookResponder(hosting, found)
    return ModelResponder(hosting, load(found))
