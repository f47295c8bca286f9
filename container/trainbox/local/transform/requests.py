"""Sends the requests of a transform job: again where that may help, and in words where it did not."""

import threading
from http.client import HTTPResponse

from trainbox.errors import DataError, RunError
from trainbox.local.endpoints.endpoint import Endpoint, EndpointAnswer
from trainbox.local.endpoints.refusal import in_words, read_refusal
from trainbox.local.transform.options import ExecutionParameters, TransformPlan, parse_execution_parameters
from trainbox.local.transform.records import MiniBatch

#: API ModelClientConfig: InvocationsMaxRetries.
MOST_RETRIES = 3
_FIRST_PAUSE_SECONDS = 0.2
_OK, _TOO_MANY, _SERVER = 200, 429, 500


def ask_execution_parameters(endpoint: Endpoint) -> ExecutionParameters:
    """Ask how a container wants its requests; one that does not say takes SageMaker's defaults.

    Raises:
        RunError: No answer came.
        ContractError: The answer is not what SageMaker reads.
    """
    answer = endpoint.get("/execution-parameters")
    return parse_execution_parameters(answer.body) if answer.status == _OK else ExecutionParameters()


def send_batch(endpoint: Endpoint, batch: MiniBatch, plan: TransformPlan, stop: threading.Event) -> bytes:
    """Send one request, up to four times while the server is the one that fails, and return its answer.

    Raises:
        DataError: The model refuses these rows, or fails; says which row of the input.
        RunError: It does not answer.
    """
    pause = _FIRST_PAUSE_SECONDS
    for tries in range(MOST_RETRIES + 1):
        try:
            answer = endpoint.invoke(batch.body, content_type=plan.content_type, accept=plan.accept)
        except RunError:
            if tries == MOST_RETRIES or stop.is_set():
                raise
        else:
            if answer.is_good:
                return answer.body
            if tries == MOST_RETRIES or stop.is_set() or not _may_help(answer):
                raise refused(answer, batch)
        stop.wait(pause)
        pause *= 2
    raise AssertionError("the last try returns or raises")


def _may_help(answer: EndpointAnswer) -> bool:
    return answer.status == _TOO_MANY or answer.status >= _SERVER


def refused(answer: EndpointAnswer, batch: MiniBatch | None) -> DataError:
    """Return the error for an answer that is no prediction, with the row of the input.

    Args:
        answer: Of the model.
        batch: The rows that it was asked for; None where they are all of the input.
    """
    refusal = read_refusal(answer)
    row = refusal.row
    if batch is None:
        place = f"row {row:,}: " if row is not None else ""
    else:
        known = row is not None and 0 < row <= len(batch.records)
        place = f"{f'row {batch.records[row - 1].number:,}' if known and row else batch.rows}: "
    return DataError(f"{place}{in_words(answer, refusal)}", hint=refusal.hint or "")


def check_stream(response: HTTPResponse) -> None:
    """Check the status of an answer that is read as it comes.

    Raises:
        DataError: The model refuses the input, or fails.
    """
    answer = EndpointAnswer(response.status, response.getheader("Content-Type", ""), b"")
    if not answer.is_good:
        raise refused(EndpointAnswer(answer.status, answer.content_type, response.read()), None)
