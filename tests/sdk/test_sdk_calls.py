"""The calls of both SDKs in the pages: each becomes a request that AWS's model takes, with what the page promises."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name

from tests.support.aws_calls import Call, check_call
from tests.support.sdk_calls import record_calls
from tests.support.snippets import DOCS, find_blocks
from trainbox import Metric
from trainbox.contract.job_request import from_request, to_request

pytestmark = pytest.mark.sdk

PAGES = ("spot-training.md", "submit-a-job.md", "tuning-job.md", "deploy.md")
IMPORTS = {"v2": r"from sagemaker\.estimator", "v3": r"from sagemaker\.(train|serve)\b"}
#: Examples for a local mode ask no SageMaker.
LOCAL = "local"
IMAGE = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/trainbox:0123456789ab-cpu"

Requests = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module", params=["v2", "v3"])
def requests(
    request: pytest.FixtureRequest, sdk_python: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Requests:
    """What an SDK asks of SageMaker when the examples of the pages run, in their order."""
    directory = tmp_path_factory.mktemp("calls")
    examples = [
        block
        for page in PAGES
        for block in find_blocks(DOCS / page, "python")
        if re.search(IMPORTS[request.param], block) and LOCAL not in block.lower()
    ]
    assert len(examples) == len(PAGES)
    definition = {"Name": "validation:accuracy", "Regex": Metric("validation:accuracy", "maximize").regex}
    (directory / "metric-definitions.json").write_text(json.dumps([definition]))
    recorded = record_calls(sdk_python[request.param], directory, examples)
    return [(operation, given) for operation, given in recorded if operation.startswith("Create")]


def test_the_calls_of_an_sdk_are_requests_that_aws_takes(requests: Requests) -> None:
    assert [operation for operation, _ in requests[:3]] == [
        "CreateTrainingJob",
        "CreateTrainingJob",
        "CreateHyperParameterTuningJob",
    ]
    for operation, given in requests:
        assert check_call(Call("sagemaker", xform_name(operation), given)) == []


def test_a_training_job_of_an_sdk_becomes_a_job_spec_that_says_the_same(requests: Requests) -> None:
    for _, given in requests[:2]:
        spec = from_request(given)
        written = to_request(spec)
        assert from_request(written) == spec
        assert set(written) == set(given)
        assert spec.script is not None
        assert spec.script.name == given["HyperParameters"]["trainbox_script"].strip('"')


def test_a_spot_job_has_its_limits_and_its_checkpoints(requests: Requests) -> None:
    spot = requests[0][1]
    assert spot["EnableManagedSpotTraining"] is True
    assert spot["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert spot["CheckpointConfig"]["S3Uri"] == "s3://training/checkpoints/churn/"


def test_a_job_runs_the_script_of_the_image_on_the_channels_of_the_page(requests: Requests) -> None:
    job = requests[1][1]
    assert job["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert job["HyperParameters"]["trainbox_script"].strip('"') == "xgboost"
    assert {channel["ChannelName"] for channel in job["InputDataConfig"]} == {"train", "validation"}
    assert job["OutputDataConfig"]["S3OutputPath"] == "s3://training/models/churn/"


def test_a_tuning_job_has_the_metric_and_its_range(requests: Requests) -> None:
    tuning = requests[2][1]
    objective = tuning["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    assert (objective["Type"], objective["MetricName"]) == ("Maximize", "validation:accuracy")
    ranges = tuning["HyperParameterTuningJobConfig"]["ParameterRanges"]["ContinuousParameterRanges"]
    assert [(each["Name"], float(each["MinValue"]), float(each["MaxValue"])) for each in ranges] == [("shrink", 0, 0.9)]
    definitions = tuning["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"]
    assert [each["Name"] for each in definitions] == ["validation:accuracy"]
    assert tuning["TrainingJobDefinition"]["StaticHyperParameters"]["trainbox_script"].strip('"') == "nearest_mean"


def created(requests: Requests, operation: str) -> list[dict[str, Any]]:
    """What was asked to be created, once each."""
    found = [given for each, given in requests if each == operation]
    return [given for place, given in enumerate(found) if given not in found[:place]]


def test_a_model_is_the_image_and_the_archive_of_its_job(requests: Requests) -> None:
    archive = "s3://training/models/churn/churn-001/output/model.tar.gz"
    (package,) = created(requests, "CreateModelPackage")
    (packaged,) = package["InferenceSpecification"]["Containers"]
    assert package["ModelPackageGroupName"] == "churn"
    assert package["InferenceSpecification"]["SupportedContentTypes"] == ["text/csv", "application/json"]
    models = created(requests, "CreateModel")
    for container in [packaged, *(model["PrimaryContainer"] for model in models)]:
        assert (container["Image"], container["ModelDataUrl"]) == (IMAGE, archive)
        assert {name for name in container.get("Environment", {}) if not name.startswith("SAGEMAKER_")} == set()
    assert {model["ExecutionRoleArn"] for model in models} == {"arn:aws:iam::111122223333:role/churn-training"}


def test_endpoints_and_transform_jobs_have_what_the_page_gives_them(requests: Requests) -> None:
    configs = {config["EndpointConfigName"]: config for config in created(requests, "CreateEndpointConfig")}
    (variant,) = configs["churn"]["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.m5.large", 1)
    if len(configs) > 1:  # what the page has for SDK v2
        (variant,) = configs["churn-serverless"]["ProductionVariants"]
        assert variant["ServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
        output = configs["churn-async"]["AsyncInferenceConfig"]["OutputConfig"]
        assert output == {"S3OutputPath": "s3://training/answers/", "S3FailurePath": "s3://training/failures/"}
    (job,) = created(requests, "CreateTransformJob")
    assert (job["BatchStrategy"], job["TransformInput"]["SplitType"]) == ("MultiRecord", "Line")
    assert (job["TransformOutput"]["Accept"], job["TransformOutput"]["AssembleWith"]) == ("text/csv", "Line")
