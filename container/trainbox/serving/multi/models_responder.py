"""What a worker has of all models: the one that a request names answers it."""

from collections.abc import Iterator, Sequence

import msgspec

from trainbox.contract.hosting import Hosting
from trainbox.data.formats.byte_stream import Readable
from trainbox.serving.multi.api import as_response, not_found
from trainbox.serving.multi.exchange import Exchange
from trainbox.serving.responder import Request, Responder, Response


class LoadedModel(msgspec.Struct, frozen=True):
    """A model, and where it was loaded from."""

    url: str
    responder: Responder


class ModelsResponder:
    """Answers for all models. The loader adds and removes some; a worker has those that it was forked with.

    Args:
        hosting: The contract, read.
        exchange: How workers ask the loader.
    """

    name = "an endpoint of many models"

    def __init__(self, hosting: Hosting, exchange: Exchange) -> None:
        self.models: dict[str, LoadedModel] = {}
        self.exchange = exchange
        self.joins = hosting.joins_requests
        self._threads = 1
        self._warm: set[str] = set()

    def check(self) -> None:
        """Each model was checked when it was loaded."""

    def warm_up(self, threads: int) -> None:
        """Note how many threads a model may use: each is told before its first request, or workers would start late."""
        self._threads = threads

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        responder = self._find(request.model)
        return responder.answer(request) if responder is not None else as_response(not_found(request.model))

    def answer_together(self, requests: Sequence[Request]) -> list[Response]:
        """Answer several: those for one model together, where it joins requests."""
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.model, []).append(place)
        answers = {
            place: response
            for name, own in places.items()
            for place, response in zip(own, self._answer_all(name, [requests[each] for each in own]), strict=True)
        }
        return [answers[place] for place in range(len(requests))]

    def answer_blocks(self, request: Request, body: Readable) -> Response:
        """Answer a request whose body is still coming."""
        responder = self._find(request.model)
        if responder is None:
            return as_response(not_found(request.model))
        return responder.answer_blocks(request, body)

    def execution_parameters(self) -> None:
        """A batch transform job has one model: SageMaker offers none for many."""

    def _answer_all(self, name: str, requests: Sequence[Request]) -> Iterator[Response]:
        responder = self._find(name)
        if responder is not None and responder.joins and len(requests) > 1:
            yield from responder.answer_together(requests)
        else:
            yield from map(self.answer, requests)

    def _find(self, name: str) -> Responder | None:
        found = self.models.get(name)
        if found is None:
            return None
        if name not in self._warm:
            found.responder.warm_up(self._threads)
            self._warm.add(name)
        return found.responder
