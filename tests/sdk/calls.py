"""Run examples of a page in an SDK's environment, with nothing behind its HTTP: `calls.py EXAMPLES.json REQUESTS.json`.

What the SDK asks of AWS is written down, in order: the operation and the parameters as it sends them.
"""

import io
import json
import re
import sys
import time
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
BUCKETS = b"""<ListAllMyBucketsResult><Owner><ID>me</ID></Owner><Buckets><Bucket>
<Name>sagemaker-eu-central-1-111122223333</Name><CreationDate>2026-01-01T00:00:00Z</CreationDate></Bucket></Buckets></ListAllMyBucketsResult>"""
PREDICTION = b'{"predictions": [{"score": 0.7}]}'
#: What SageMaker answers. The SDKs read back what they have created, and the job that an endpoint is made of.
NAME = "job"
ARN = "arn:aws:sagemaker:eu-central-1:111122223333"
ANSWERS: dict[str, dict[str, Any]] = {
    "CreateTrainingJob": {"TrainingJobArn": f"{ARN}:training-job/{NAME}"},
    "CreateHyperParameterTuningJob": {"HyperParameterTuningJobArn": f"{ARN}:hyper-parameter-tuning-job/{NAME}"},
    "DescribeTrainingJob": {
        "TrainingJobArn": f"{ARN}:training-job/{NAME}",
        "TrainingJobStatus": "Completed",
        "SecondaryStatus": "Completed",
        "TrainingStartTime": 0,
        "TrainingEndTime": 60,
        "ModelArtifacts": {"S3ModelArtifacts": "s3://training/models/churn/churn-001/output/model.tar.gz"},
        "AlgorithmSpecification": {
            "TrainingImage": "111122223333.dkr.ecr.eu-central-1.amazonaws.com/trainbox:0123456789ab-cpu",
            "TrainingInputMode": "File",
        },
        "RoleArn": "arn:aws:iam::111122223333:role/churn-training",
        "InputDataConfig": [],
        "OutputDataConfig": {"S3OutputPath": "s3://training/models/churn/", "KmsKeyId": ""},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        "HyperParameters": {"trainbox_script": "xgboost"},
    },
    "ListTags": {"Tags": []},
    "CreateModel": {"ModelArn": f"{ARN}:model/{NAME}"},
    "CreateEndpointConfig": {"EndpointConfigArn": f"{ARN}:endpoint-config/{NAME}"},
    "CreateEndpoint": {"EndpointArn": f"{ARN}:endpoint/{NAME}"},
    "DescribeEndpoint": {
        "EndpointArn": f"{ARN}:endpoint/{NAME}",
        "EndpointConfigName": NAME,
        "EndpointStatus": "InService",
        "LastModifiedTime": 0,
    },
    "Search": {"Results": []},
    "ListModelPackageGroups": {"ModelPackageGroupSummaryList": []},
    "CreateModelPackageGroup": {"ModelPackageGroupArn": f"{ARN}:model-package-group/{NAME}"},
    "CreateModelPackage": {"ModelPackageArn": f"{ARN}:model-package/{NAME}/1"},
    "CreateTransformJob": {"TransformJobArn": f"{ARN}:transform-job/{NAME}"},
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
    elif request.url.endswith("/invocations"):
        content, headers = PREDICTION, {"Content-Type": "application/json"}
    elif re.fullmatch(r"https://s3[^/]*/", request.url):
        content = BUCKETS
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
    time.sleep = lambda _seconds: None  # there is nothing to wait for
    URLLib3Session.send = lambda _session, request: answer(recorded, request)
    for example in json.loads(Path(sys.argv[1]).read_text()):
        exec(compile(example, "example", "exec"), {"__name__": "example"})
    Path(sys.argv[2]).write_text(json.dumps(recorded))


if __name__ == "__main__":
    main()
