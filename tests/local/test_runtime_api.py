"""What a client of sagemaker-runtime sends and gets, in bytes; botocore's own parsers read what is written."""

import pytest
from botocore.awsrequest import AWSResponse
from botocore.eventstream import EventStreamBuffer
from botocore.parsers import create_parser
from botocore.session import Session
from hypothesis import given
from hypothesis import strategies as st

from trainbox.local.endpoints.runtime_api import (
    ApiAnswer,
    Invocation,
    api_error,
    headers_for_client,
    headers_for_model,
    model_error,
    payload_part,
    read_invocation,
    stream_error,
)

ONE, STREAM = Invocation("churn"), Invocation("churn", is_stream=True)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/endpoints/churn/invocations", ONE),
        ("/endpoints/churn/invocations?x=1", ONE),
        ("/endpoints/churn/invocations-response-stream", STREAM),
        ("/endpoints/A-1/invocations", Invocation("A-1")),
        (f"/endpoints/{'a' * 63}/invocations", Invocation("a" * 63)),
        (f"/endpoints/{'a' * 64}/invocations", None),
        ("/endpoints/churn/async-invocations", None),
        ("/endpoints//invocations", None),
        ("/endpoints/a/b/invocations", None),
        ("/endpoints/../invocations", None),
        ("/endpoints/churn/invocations/", None),
        ("/endpoints/churn/invocations\n", None),
        ("/invocations", None),
    ],
)
def test_a_path_names_an_endpoint_and_one_of_two_operations(path: str, expected: Invocation | None) -> None:
    assert read_invocation(path) == expected


def test_the_container_gets_the_headers_that_sagemaker_lets_through() -> None:
    given_headers = {
        "Host": "127.0.0.1",
        "Authorization": "AWS4-HMAC-SHA256 Credential=x",
        "X-Amz-Date": "now",
        "Cookie": "a=b",
        "Content-Type": "text/csv",
        "Accept": "application/json",
        "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
        "X-Amzn-SageMaker-Inference-Id": "7",
    }
    reached = {
        "content-type": "text/csv",
        "accept": "application/json",
        "x-amzn-sagemaker-custom-attributes": "trace=1",
        "x-amzn-sagemaker-inference-id": "7",
    }
    assert headers_for_model(given_headers.items(), ONE) == reached
    of_stream = {**given_headers, "Accept": "*/*", "X-Amzn-SageMaker-Accept": "application/json"}
    assert headers_for_model(of_stream.items(), STREAM) == reached
    assert "accept" not in headers_for_model(given_headers.items(), STREAM)


def test_the_client_gets_the_headers_that_the_model_of_the_service_has() -> None:
    answered = {
        "Content-Type": "text/csv; charset=utf-8",
        "Content-Length": "9",
        "X-Trainbox-Request-Id": "1",
        "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
    }
    kept = {"x-amzn-sagemaker-custom-attributes": "trace=1", "x-amzn-invoked-production-variant": "AllTraffic"}
    assert headers_for_client(answered.items(), ONE) == {**kept, "content-type": "text/csv; charset=utf-8"}
    assert headers_for_client(answered.items(), STREAM) == {
        **kept,
        "content-type": "application/vnd.amazon.eventstream",
        "x-amzn-sagemaker-content-type": "text/csv; charset=utf-8",
    }


def parsed(answer: ApiAnswer) -> dict[str, object]:
    """What botocore makes of an answer to InvokeEndpoint."""
    model = Session().get_service_model("sagemaker-runtime").operation_model("InvokeEndpoint")
    response = {"status_code": answer.status, "headers": AWSResponse("", 0, answer.headers, None).headers}
    found: dict[str, object] = create_parser("rest-json").parse({**response, "body": answer.body}, model.output_shape)
    return found


@pytest.mark.parametrize(("status", "whose"), [(400, "client"), (404, "client"), (500, "server"), (0, "server")])
def test_what_a_container_refuses_is_a_model_error_with_all_that_it_said(status: int, whose: str) -> None:
    said = '{"error": "value \\"ä\\" of column 2"}'
    found = parsed(model_error(status, said.encode()))
    assert found["Error"] == {
        "Code": "ModelError",
        "Message": f'Received {whose} error ({status}) from primary with message "{said}".'
        " See the log of trainbox serve.",
    }
    assert model_error(status, b"").status == 424


def test_an_error_of_the_api_has_its_name_and_its_status() -> None:
    found = parsed(api_error(404, "UnknownOperationException", "no such path"))
    assert found["Error"] == {"Code": "UnknownOperationException", "Message": "no such path"}
    assert found["ResponseMetadata"]["HTTPStatusCode"] == 404  # type: ignore[index]  # botocore has no types


@given(st.lists(st.binary(max_size=2000), max_size=5))
def test_the_parts_of_a_stream_arrive_as_they_were_sent(parts: list[bytes]) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(b"".join(map(payload_part, parts)))
    events = [event.to_response_dict() for event in buffer]
    assert [event["body"] for event in events] == parts
    assert {event["headers"][":event-type"] for event in events} <= {"PayloadPart"}
    assert {event["status_code"] for event in events} <= {200}


def test_a_stream_that_breaks_off_ends_with_an_exception_of_the_service() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(stream_error("the worker has died"))
    (event,) = buffer
    found = event.to_response_dict()
    assert found["status_code"] == 400
    assert found["headers"][":exception-type"] == "ModelStreamError"
    assert found["body"] == b'{"Message":"the worker has died","ErrorCode":"StreamBroken"}'
