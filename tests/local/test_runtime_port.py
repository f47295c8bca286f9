"""`trainbox serve --runtime-port`: boto3's client of sagemaker-runtime asks the model of a folder."""

import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from tests.support.waiting import LIMIT, eventually

pytestmark = pytest.mark.process

TRAINBOX = (sys.executable, "-m", "trainbox")
#: A part comes at once, and the next one when the file is there that the request names.
HOOKS = """
import os, pathlib, signal, time


def model_fn(model_dir):
    return "no model"


def transform_fn(model, body, content_type, accept, context):
    verb, _, argument = body.partition(" ")
    if verb == "stream":
        return parts(argument)
    if verb == "bad":
        raise ValueError(f"{argument} cannot be used")
    headers = {name: context.get_request_header(name) for name in ("Authorization", "X-Amzn-SageMaker-Inference-Id")}
    return f"{verb} {content_type} {accept} {headers}", "text/plain"


def parts(place):
    try:
        yield from made(place)
    finally:
        pathlib.Path(f"{place}-closed").touch()


def made(place):
    yield "first,"
    while not pathlib.Path(place).exists():
        time.sleep(0.01)
    if pathlib.Path(place).read_text() == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    yield "last"
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The `endpoint_url` that the command prints."""
    here = tmp_path_factory.mktemp("served")
    (here / "model" / "code").mkdir(parents=True)
    (here / "model" / "code" / "inference.py").write_text(HOOKS)
    argv = [*TRAINBOX, "serve", "model", "--port", "0", "--runtime-port", "0", "--workers", "2"]
    with (
        (here / "log").open("wb") as log,
        subprocess.Popen(argv, cwd=here, stdout=subprocess.PIPE, stderr=log) as server,
    ):
        assert server.stdout is not None
        line = next((line for line in server.stdout if b"sagemaker-runtime" in line), b"")
        assert line, (here / "log").read_text()
        yield line.split(b'"')[3].decode()
        server.terminate()
        assert server.wait(LIMIT) == 0, (here / "log").read_text()


@pytest.fixture
def runtime(url: str) -> Iterator[Any]:
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    once = Config(retries={"total_max_attempts": 1})
    client = boto3.client("sagemaker-runtime", endpoint_url=url, region_name="eu-central-1", config=once, **keys)
    with contextlib.closing(client):
        yield client


def test_invoke_endpoint_gets_the_answer_of_the_model(runtime: Any) -> None:
    answer = runtime.invoke_endpoint(
        EndpointName="any-name",
        ContentType="text/csv",
        Accept="text/plain",
        Body=b"echo",
        CustomAttributes="trace=1",
        InferenceId="7",
    )
    seen = {"Authorization": None, "X-Amzn-SageMaker-Inference-Id": "7"}
    assert answer["Body"].read().decode() == f"echo text/csv text/plain {seen}"
    assert answer["ContentType"].startswith("text/plain")
    assert answer["CustomAttributes"] == "trace=1"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["ResponseMetadata"]["RequestId"]


def test_what_the_model_refuses_is_a_model_error(runtime: Any) -> None:
    with pytest.raises(runtime.exceptions.ModelError) as caught:
        runtime.invoke_endpoint(EndpointName="e", Body=b"bad row", ContentType="text/csv")
    said = caught.value.response
    assert said["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert said["OriginalStatusCode"] == 500
    assert "row cannot be used" in json.loads(said["OriginalMessage"])["error"]
    with pytest.raises(runtime.exceptions.ModelError):
        runtime.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"bad row", ContentType="text/csv")


def test_each_part_of_a_stream_arrives_before_the_next_one_is_made(runtime: Any, tmp_path: Path) -> None:
    body = f"stream {tmp_path / 'go'}".encode()
    answer = runtime.invoke_endpoint_with_response_stream(EndpointName="e", Body=body, ContentType="text/csv")
    with contextlib.closing(answer["Body"]) as stream:
        events = iter(stream)
        assert next(events) == {"PayloadPart": {"Bytes": b"first,"}}
        (tmp_path / "go").write_text("on")
        assert b"".join(event["PayloadPart"]["Bytes"] for event in events) == b"last"


def test_a_stream_whose_worker_dies_ends_with_an_error(runtime: Any, tmp_path: Path) -> None:
    body = f"stream {tmp_path / 'go'}".encode()
    answer = runtime.invoke_endpoint_with_response_stream(EndpointName="e", Body=body, ContentType="text/csv")
    events = iter(answer["Body"])
    next(events)
    (tmp_path / "go").write_text("die")
    with contextlib.closing(answer["Body"]), pytest.raises(EventStreamError, match="ModelStreamError") as caught:
        list(events)
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"


def test_a_client_that_leaves_closes_what_makes_the_parts(runtime: Any, tmp_path: Path) -> None:
    body = f"stream {tmp_path / 'go'}".encode()
    answer = runtime.invoke_endpoint_with_response_stream(EndpointName="e", Body=body, ContentType="text/csv")
    with contextlib.closing(answer["Body"]) as stream:
        next(iter(stream))
    (tmp_path / "go").write_text("on")
    eventually((tmp_path / "go-closed").exists, "the end of the generator")


def test_a_variable_of_boto3_leads_an_unchanged_program_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
        "ACCESS_KEY_ID": "any",
        "SECRET_ACCESS_KEY": "any",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with contextlib.closing(boto3.client("sagemaker-runtime", region_name="eu-central-1")) as client:
        answer = client.invoke_endpoint(EndpointName="churn", ContentType="text/csv", Body=b"echo")
        assert answer["Body"].read().startswith(b"echo text/csv")


def test_what_the_runtime_of_aws_refuses_is_refused(runtime: Any, url: str) -> None:
    with pytest.raises(ClientError, match="UnknownOperationException"):
        runtime.invoke_endpoint_async(EndpointName="e", InputLocation="s3://bucket/row.csv")
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(f"{url}/endpoints/e/invocations", b"echo", timeout=LIMIT)
    refused.value.close()
