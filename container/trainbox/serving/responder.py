"""What a worker asks for an answer: a `Responder`, whatever the model and the formats are."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from trainbox.contract.hosting import Hosting, Predictor
from trainbox.serving.answer import make_service, respond
from trainbox.serving.find import find_model, list_model, load
from trainbox.serving.self_test import sample_matrix, self_test


class Request(msgspec.Struct, frozen=True):
    """A request whose body has come."""

    #: By their names in lower case.
    headers: Mapping[str, str]
    body: bytes
    #: That of the log and of the answer.
    id: str = ""


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

    def answer(self, request: Request) -> Response:
        """Answer one request. Whatever its body is, that is no exception but an answer."""


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
        self.name = f"{card.algorithm} ({card.objective}), {card.features.count:,} features"

    def check(self) -> None:
        """Answer the rows of the model's card."""
        error = self_test(self._predictor)
        if error is not None:
            raise error

    def warm_up(self, threads: int) -> None:
        """Answer those rows, with so many threads from now on."""
        self._predictor.set_threads(threads)
        if self._predictor.card.samples:
            self._predictor.predict(sample_matrix(self._predictor.card))

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        headers = request.headers
        given, accept = headers.get("content-type", ""), headers.get("accept", "")
        found = respond(self._service, request.body, given, accept, request_id=request.id)
        return Response(found.status, found.body, found.headers, rows=found.rows)


def load_responder(hosting: Hosting) -> Responder:
    """Load the model.

    Raises:
        DataError: There is none, or it cannot be used.
    """
    return ModelResponder(hosting, load(find_model(hosting, list_model(hosting))))
