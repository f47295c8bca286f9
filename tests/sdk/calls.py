"""Run examples of a page in an SDK's environment, with nothing behind its HTTP: `calls.py EXAMPLES.json REQUESTS.json`.

What the SDK asks of AWS is written down, in order: the operation and the parameters as it sends them.
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session

IDENTITY = b"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:iam::111122223333:user/me</Arn><UserId>me</UserId><Account>111122223333</Account>
</GetCallerIdentityResult></GetCallerIdentityResponse>"""
#: The SDKs ask whether their bucket is there before they upload source.
BUCKETS = b"""<ListAllMyBucketsResult><Buckets><Bucket><Name>no-bucket</Name>
<CreationDate>2026-01-01T00:00:00.000Z</CreationDate></Bucket></Buckets></ListAllMyBucketsResult>"""
#: A person may rarely ask IAM what a role may do; the SDK goes on without.
DENIED = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
#: What SageMaker answers. The SDKs read back the job that they have created.
NAME = "job"
ANSWERS = {
    "CreateTrainingJob": {"TrainingJobArn": f"arn:aws:sagemaker:eu-central-1:111122223333:training-job/{NAME}"},
    "CreateHyperParameterTuningJob": {
        "HyperParameterTuningJobArn": f"arn:aws:sagemaker:eu-central-1:111122223333:hyper-parameter-tuning-job/{NAME}"
    },
}


class Body(io.BytesIO):
    """The body of an answer, as urllib3 gives it."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        """All of it at once."""
        yield self.read()


def answer(recorded: list[tuple[str, dict[str, Any]]], request: AWSPreparedRequest) -> AWSResponse:
    """Write a request down and answer it."""
    target = request.headers.get("X-Amz-Target", b"")
    operation = (target.decode() if isinstance(target, bytes) else target).rpartition(".")[2]
    content, status, headers = b"", 200, {"ETag": '"0"', "x-amz-bucket-region": "eu-central-1"}
    if operation:
        given = json.loads(request.body or b"{}")
        recorded.append((operation, given))
        content = json.dumps({**given, "CreationTime": 0, **ANSWERS.get(operation, {})}).encode()
        headers["Content-Type"] = "application/x-amz-json-1.1"
    elif "//sts." in request.url:
        content = IDENTITY
    elif "//iam." in request.url:
        content, status = DENIED, 403
    elif request.method == "GET" and urlsplit(request.url).path == "/":
        content = BUCKETS
    return AWSResponse(request.url, status, headers, Body(content))


def main() -> None:
    """Run each example in a namespace of its own."""
    recorded: list[tuple[str, dict[str, Any]]] = []
    URLLib3Session.send = lambda _session, request: answer(recorded, request)
    for example in json.loads(Path(sys.argv[1]).read_text()):
        exec(compile(example, "example", "exec"), {"__name__": "example"})
    Path(sys.argv[2]).write_text(json.dumps(recorded))


if __name__ == "__main__":
    main()
