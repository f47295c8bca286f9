"""Answer a request: bytes to rows, rows to predictions, predictions to bytes; without processes and HTTP.

A worker makes one `Service` for its model. `read` and `write` are apart, so that requests that arrive together can be
predicted in one call; `answer` does all three steps.
"""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np

from trainbox.contract.hosting import Hosting, Predictor
from trainbox.errors import ContractError, DataError, ResourceError
from trainbox.serving.bodies.decode import LINE_FORMATS, LineCounter, decode
from trainbox.serving.bodies.encode import (
    encode_csv,
    encode_json,
    encode_json_lines,
    encode_plain_csv,
    encode_values,
)
from trainbox.serving.bodies.encode_binary import encode_arrow, encode_npy, encode_parquet, encode_recordio
from trainbox.serving.bodies.features import FeaturePlan, Matrix, plan_features, translate
from trainbox.serving.bodies.media_types import (
    OUTPUT_TYPES,
    OutputFormat,
    OutputType,
    choose_output_type,
    read_input_type,
)
from trainbox.serving.bodies.outputs import (
    Column,
    Kind,
    check_extras,
    check_outputs,
    default_outputs,
    find_kind,
    select,
)
from trainbox.serving.bodies.request_errors import RequestError, encode_error

_BINARY: Mapping[OutputFormat, Callable[[Sequence[Column]], bytes]] = {
    "NumPy": encode_npy,
    "recordio-protobuf": encode_recordio,
    "Parquet": encode_parquet,
    "Arrow": encode_arrow,
}


class Answer(msgspec.Struct, frozen=True):
    """What is sent back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    #: The number of rows predicted.
    rows: int = 0


class Question(msgspec.Struct, frozen=True, eq=False):
    """A request that can be answered."""

    rows: Matrix
    output: OutputType
    #: What the answer holds; nothing: the numbers of the model as they are.
    outputs: tuple[str, ...] = ()
    #: Whether the first line of the body is no row.
    has_header: bool = False


class Service(msgspec.Struct, frozen=True, eq=False):
    """A model, and how it is asked and answers."""

    hosting: Hosting
    predictor: Predictor
    plan: FeaturePlan
    kind: Kind
    #: The content type of an answer where a request leaves it open.
    default_type: str
    outputs: tuple[str, ...]


def make_service(hosting: Hosting, predictor: Predictor) -> Service:
    """Derive from a model's card and the variables how requests are read and answered.

    Raises:
        ContractError: A variable does not fit the model.
    """
    card, kind = predictor.card, find_kind(predictor)
    try:
        check_outputs(hosting.outputs, kind, predictor)
        check_extras(hosting.outputs, predictor)
    except DataError as error:
        raise ContractError(f"SAGEMAKER_INFERENCE_OUTPUT: {error.message}", hint=error.hint) from error
    default = hosting.default_accept.partition(";")[0].strip().lower()
    if default and default != "*/*" and default not in OUTPUT_TYPES:
        raise ContractError(
            f"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT={hosting.default_accept!r} cannot be given",
            hint=f"it is one of {', '.join(OUTPUT_TYPES)}",
        )
    if default in {"", "*/*"}:
        default = "text/csv" if card.framework == "xgboost" else "application/json"
    plan = plan_features(card, most_bytes=hosting.max_body_bytes, is_batch=hosting.batch is not None)
    return Service(hosting, predictor, plan, kind, default, hosting.outputs or default_outputs(kind, card))


def answer(
    body: bytes, content_type: str, accept: str, hosting: Hosting, predictor: Predictor, *, request_id: str = ""
) -> Answer:
    """Answer one request.

    Args:
        body: The bytes, decompressed.
        content_type: The header of this name; empty if there is none.
        accept: The header of this name; empty if there is none.
        hosting: What SageMaker says to the container.
        predictor: The model.
        request_id: For the answer to a request that cannot be used.
    """
    return respond(make_service(hosting, predictor), body, content_type, accept, request_id=request_id)


def respond(service: Service, body: bytes, content_type: str, accept: str, *, request_id: str = "") -> Answer:
    """Answer one request, as `answer` does."""
    try:
        question = read(service, body, content_type, accept)
        if question is None:
            return Answer(HTTPStatus.NO_CONTENT, (), b"")
        return write(service, question, predict(service, question))
    except DataError as error:
        return refuse(service, translate(service.plan, error), request_id=request_id)


def read(service: Service, body: bytes, content_type: str, accept: str) -> Question | None:
    """Read a request; None if its body is empty.

    Raises:
        RequestError: It cannot be answered.
    """
    if not body:
        return None
    kind = read_input_type(content_type, takes_images=bool(service.plan.shape))
    output = choose_output(service, accept)
    try:
        decoded = decode(body, kind, service.plan)
        if service.hosting.batch is not None and kind.format in LINE_FORMATS:
            lines = LineCounter()
            lines.add(body)
            lines.check(decoded.rows.shape[0] + decoded.has_header)
    except DataError as error:
        raise translate(service.plan, error) from error
    except (ResourceError, MemoryError) as error:
        raise RequestError(
            "there is not enough memory to read the request",
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            hint="send fewer rows in a request",
        ) from error
    return Question(decoded.rows, output, chosen_outputs(service, output), decoded.has_header)


def chosen_outputs(service: Service, output: OutputType) -> tuple[str, ...]:
    """Return what an answer holds; an array has the numbers of the model unless something is chosen."""
    if output.format == "NumPy":
        return output.outputs or service.hosting.outputs
    return output.outputs or service.outputs


def choose_output(service: Service, accept: str) -> OutputType:
    """Choose the content type of an answer, and what it holds.

    Raises:
        RequestError: 406: `Accept` allows none, or asks for an output that the model has not.
    """
    output = choose_output_type(accept, service.default_type)
    if output.outputs:
        try:
            check_outputs(output.outputs, service.kind, service.predictor)
        except DataError as error:
            raise RequestError(error.message, status=HTTPStatus.NOT_ACCEPTABLE, hint=error.hint) from error
    return output


def predict(service: Service, question: Question) -> Any:  # noqa: ANN401 - an array
    """Return what the model gives for the rows of a request; nothing for no rows."""
    if not question.rows.shape[0]:
        return np.empty(0, np.float32)
    return service.predictor.predict(question.rows)


def write(service: Service, question: Question, numbers: Any) -> Answer:  # noqa: ANN401 - an array
    """Return the answer to a request, from what the model gives for its rows: (n,) or (n, c)."""
    body = encode_rows(service, question, numbers)
    headers = (("Content-Type", content_type_of(question.output)),)
    return Answer(HTTPStatus.OK, headers, body, int(question.rows.shape[0]))


def content_type_of(output: OutputType) -> str:
    """Return the header of an answer; text says that it is UTF-8."""
    return f"{output.name}; charset=utf-8" if output.name.startswith("text/") else output.name


def refuse(service: Service, error: RequestError, *, request_id: str = "") -> Answer:
    """Return the answer to a request that cannot be used."""
    body = encode_error(error, shows_values=service.hosting.shows_values, request_id=request_id)
    return Answer(error.status, (("Content-Type", "application/json"),), body)


def encode_rows(service: Service, question: Question, numbers: Any) -> bytes:  # noqa: ANN401 - an array
    """Return the body of the answer to a request, from what the model gives for its rows."""
    numbers = np.asarray(numbers)
    if numbers.ndim > 1 and numbers.shape[1:] == (1,):
        numbers = numbers[:, 0]
    names, kind, hosting = question.outputs, question.output.format, service.hosting
    columns = [Column(name, []) for name in names] or [Column("score", numbers)]
    if names and len(numbers):
        columns = select(names, numbers, question.rows, service.predictor, service.kind)
    if kind in _BINARY:
        return _BINARY[kind](columns)
    if kind == "JSON" and hosting.batch is None:
        return encode_json(columns)
    if kind == "CSV":
        body = encode_csv(columns) if names else encode_plain_csv(numbers)
    else:
        body = encode_json_lines(columns) if names or kind == "JSON Lines" else encode_values(numbers)
    if hosting.batch is None:
        # The built-in ends no line of chosen outputs.
        return body + b"\n" if body and not (names and kind == "CSV") else body
    # A line for each line: a header has an empty one.
    body = b"\n" + body if question.has_header else body
    return body + b"\n" if body and hosting.ends_with_newline else body
