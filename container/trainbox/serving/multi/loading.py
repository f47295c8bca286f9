"""Load a model of a multi-model endpoint: its files, its libraries, its own namespace."""

import contextlib
import importlib
import itertools
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import msgspec

from trainbox import files
from trainbox.contract.hosting import Hosting
from trainbox.contract.job import default_in_environment
from trainbox.contract.text import short
from trainbox.data.formats.byte_stream import Readable
from trainbox.errors import DataError, ProgramError
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.hooks.namespace import Namespace
from trainbox.serving.hooks.requirements import check_requirements
from trainbox.serving.models.find import FoundModel, find_model, list_model, load
from trainbox.serving.multi.api import LoadModel
from trainbox.serving.responder import ModelResponder, Request, Responder, Response

T = TypeVar("T")
_MOST_FILES = 10_000
_MODULES = {
    "xgboost": "trainbox.xgboost.predictor",
    "scikit-learn": "sklearn",
    "pytorch": "torch",
    "onnx": "onnxruntime",
}


class Candidate(msgspec.Struct, frozen=True):
    """A model that can be tried."""

    name: str
    url: str
    hosting: Hosting
    found: FoundModel
    #: Of its files.
    bytes: int


def find_candidate(hosting: Hosting, asked: LoadModel) -> Candidate:
    """Look at the files of a model; nothing of it runs.

    Args:
        hosting: Of the endpoint.
        asked: Its name and its directory.

    Raises:
        RequestError: There is no such directory where models may be.
        DataError: There is no model in it.
        ProgramError: Its module cannot be used.
    """
    directory = _find_directory(hosting.layout.root, asked.url)
    own = msgspec.structs.replace(hosting, model_path=directory, model_name=asked.name)
    try:
        found = find_model(own, list_model(own))
        below = itertools.islice(files.walk_below(directory), _MOST_FILES)
        size = sum(status.st_size for path, status in below if path.suffix != ".gz")
    except (RecursionError, MemoryError) as error:  # of the parser
        raise ProgramError(f"the code of {short(asked.name)} is nested too deeply to be read") from error
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    return Candidate(asked.name, asked.url, own, found, size)


def _find_directory(root: Path, url: str) -> Path:
    try:
        directory, root = Path(url).resolve(strict=True), root.resolve()
    except FileNotFoundError as error:
        raise RequestError(f"url={short(url, 200)} does not exist", status=HTTPStatus.NOT_FOUND) from error
    except (OSError, RuntimeError) as error:  # a name that is too long; links that lead to each other
        raise RequestError(f"url={short(url, 200)} cannot be read") from error
    if not directory.is_relative_to(root) or not directory.is_dir():
        raise RequestError(f"url={short(url, 200)} is not a directory below {root}", hint="models lie there")
    return directory


def import_library(candidate: Candidate) -> None:
    """Import the library of a model before its trial, or each trial would.

    The code of another model may need all of scikit-learn, of which a server of one model leaves parts out.

    Args:
        candidate: The model.
    """
    name = _MODULES.get(candidate.found.framework or "")
    if name is None or (name == "sklearn" and candidate.hosting.code == "never"):
        return
    default_in_environment("OMP_WAIT_POLICY", "passive")
    with contextlib.suppress(ImportError):  # who loads it says so
        importlib.import_module(name)


def try_candidate(candidate: Candidate) -> Responder:
    """Load a model in its trial: what `load_candidate` does, once what its code asks for is known to be there.

    Raises:
        RequirementsError: It asks for packages that are not there.
    """
    module = candidate.found.module
    if module is not None:
        check_requirements(module.path.parent, candidate.hosting.installs)
    return load_candidate(candidate)


def load_candidate(candidate: Candidate) -> Responder:
    """Load a model and answer the rows of its card.

    Args:
        candidate: The model.

    Raises:
        DataError: It cannot be loaded, or its answers are not those of training.
        HookError: A hook has raised an error.
    """
    found = candidate.found
    code = found.model_dir / "code"
    if found.module is None and not (found.may_run_code and code.is_dir()):
        responder: Responder = ModelResponder(candidate.hosting, load(found))
        responder.check()
        return responder
    namespace = Namespace()
    with namespace.active():
        if found.module is None:
            responder = ModelResponder(candidate.hosting, load(found))
        else:
            from trainbox.serving.hooks.responder import HookResponder  # noqa: PLC0415 - only a model with code has one

            responder = HookResponder(candidate.hosting, found)
        responder.check()
    return NamespacedResponder(responder, namespace)


class NamespacedResponder:
    """A model whose code is active only while it answers.

    Args:
        responder: The model.
        namespace: Of its code.
    """

    def __init__(self, responder: Responder, namespace: Namespace) -> None:
        self._responder = responder
        self._namespace = namespace
        self.name = responder.name
        self.joins = responder.joins

    def check(self) -> None:
        """Answer the rows of the model's card."""
        with self._namespace.active():
            self._responder.check()

    def warm_up(self, threads: int) -> None:
        """Answer those rows, with so many threads from now on."""
        with self._namespace.active():
            self._responder.warm_up(threads)

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        with self._namespace.active():
            return _begun(self._responder.answer(request))

    def answer_together(self, requests: Sequence[Request]) -> list[Response]:
        """Answer several."""
        with self._namespace.active():
            return [_begun(response) for response in self._responder.answer_together(requests)]

    def answer_blocks(self, request: Request, body: Readable) -> Response:
        """Answer a request whose body is still coming."""
        with self._namespace.active():
            return _begun(self._responder.answer_blocks(request, body))

    def execution_parameters(self) -> Response | None:
        """Answer `/execution-parameters` where the model's module does."""
        with self._namespace.active():
            return self._responder.execution_parameters()


def _begun(response: Response) -> Response:
    """Have an iterator make its first part here, where it can import what it needs."""
    if isinstance(response.body, bytes):
        return response
    parts = response.body
    first = next(parts, None)
    body = iter(()) if first is None else _chained(first, parts)
    return msgspec.structs.replace(response, body=body)


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield first
        yield from rest
    finally:
        close = getattr(rest, "close", None)
        if close is not None:
            close()
