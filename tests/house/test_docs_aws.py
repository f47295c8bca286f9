"""What the pages ask of AWS is what AWS's API models have: calls of boto3, commands of the CLI, policies."""

import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from tests.support.aws_calls import check_call, check_command, find_calls
from tests.support.snippets import DOCS, PAGES, find_blocks, find_commands
from trainbox import Metric

SUBMITTED = "\n".join(find_blocks(DOCS / "submit-a-job.md", "python"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_of_boto3_has_an_operation_and_parameters_that_it_takes(page: Path) -> None:
    calls = [call for block in find_blocks(page, "python") if "boto3" in block for call in find_calls(block)]
    assert [wrong for call in calls for wrong in check_call(call)] == []


def test_the_pages_that_show_a_call_are_seen() -> None:
    shown = {
        page.name: [call.method for block in find_blocks(page, "python") for call in find_calls(block)]
        for page in PAGES
        if any("boto3.client" in block for block in find_blocks(page, "python"))
    }
    assert {"spot-training.md", "submit-a-job.md", "tuning-job.md", "data-sources.md", "network-isolation.md"} <= set(
        shown
    )
    assert all(shown.values()), shown


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"S3Prefix"', '"S3prefix"', "is none of"),
        ("MaxRuntimeInSeconds", "MaxRuntime", "Unknown parameter"),
        ('"InstanceCount": 1', '"InstanceCount": "1"', "Invalid type"),
        ("churn-001", "churn_001", "does not match"),
        ("create_training_job", "create_training", "has no create_training"),
        ('RoleArn="arn:aws:iam::111122223333:role/churn-training",', "", "Missing required parameter"),
    ],
)
def test_a_call_that_aws_would_reject_is_found(before: str, after: str, message: str) -> None:
    assert before in SUBMITTED
    wrong = [text for call in find_calls(SUBMITTED.replace(before, after)) for text in check_call(call)]
    assert any(message in text for text in wrong), wrong


@pytest.mark.parametrize(
    "made",
    [
        "boto3.client('sagemaker')",
        "boto3.Session(profile_name='me').client('sagemaker', region_name='eu-central-1')",
        "session.client('sagemaker')",
    ],
)
def test_a_call_is_found_however_its_client_and_its_parameters_are_made(made: str) -> None:
    variable = f"client = {made}\nclient.describe_training_job(TrainingJobName='a', Nme='b')"
    at_once = f"{made}.describe_training_job(**{{'TrainingJobName': 'a', **{{'Nme': 'b'}}}})"
    base = f"request = {{'Nme': 'b'}}\nclient = {made}\nclient.describe_training_job(TrainingJobName='a', **request)"
    for source in (variable, at_once, base):
        (call,) = find_calls(source)
        assert "Nme" in str(check_call(call)), source
    for source in ("client.describe_training_job('a')", "client.describe_training_job(**load())"):
        (call,) = find_calls(f"client = {made}\n{source}")
        assert check_call(call), source
    assert find_calls(f"{made}.get_waiter('training_job_completed_or_stopped').wait(TrainingJobName='a')") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_cli_is_one(page: Path) -> None:
    commands = [line for line in find_commands(page) if line.startswith("aws ")]
    assert [wrong for line in commands for wrong in check_command(line)] == []


def test_a_command_that_the_cli_would_reject_is_found() -> None:
    assert check_command("aws sagemaker describe-training-job --job-name x") == [
        "aws sagemaker describe-training-job --job-name x: no option --job-name",
        "aws sagemaker describe-training-job --job-name x: --training-job-name is missing",
    ]
    assert check_command("aws sagemaker describe-job --training-job-name x")
    assert check_command("aws sagemaker wait training-job-done --training-job-name x")


def test_the_role_of_a_job_can_be_taken_by_sagemaker_and_names_each_action() -> None:
    trust, policy = (json.loads(text) for text in find_blocks(DOCS / "submit-a-job.md", "json"))
    assert trust["Statement"][0]["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    statements: list[dict[str, Any]] = policy["Statement"]
    actions = [action for each in statements for action in _listed(each["Action"])]
    assert not [action for action in actions if "*" in action]
    # These two have no resource to name.
    everywhere = [each["Sid"] for each in statements if each["Resource"] == "*"]
    assert everywhere == ["LogInToEcr", "WriteMetrics"]
    assert {"s3:GetObject", "s3:PutObject", "s3:ListBucket", "ecr:BatchGetImage", "logs:PutLogEvents"} <= set(actions)


def test_the_policy_reaches_every_place_that_the_calls_name() -> None:
    policy = json.loads(find_blocks(DOCS / "submit-a-job.md", "json")[1])
    resources = [name for each in policy["Statement"] for name in _listed(each["Resource"])]
    prefixes = [name.removeprefix("arn:aws:s3:::").removesuffix("*") for name in resources if ":s3:" in name]
    places = [word.strip('",)') for word in SUBMITTED.split() if "s3://" in word]
    assert places
    for place in places:
        path = place.partition("s3://")[2]
        assert any(path.startswith(prefix) and "/" in prefix for prefix in prefixes), place


def test_every_option_of_the_table_is_a_field_of_the_request() -> None:
    rows = re.findall(r"^\|[^|]+\| `([A-Z][A-Za-z0-9.]+)`", (DOCS / "submit-a-job.md").read_text(), re.MULTILINE)
    assert len(rows) >= 15
    model = botocore.session.get_session().get_service_model("sagemaker")
    for row in rows:
        shape = model.operation_model("CreateTrainingJob").input_shape
        for name in row.split("."):
            shape = getattr(shape, "member", shape).members[name]


def test_the_regex_of_the_tuning_job_is_that_of_the_metric() -> None:
    (call,) = [call for block in find_blocks(DOCS / "tuning-job.md", "python") for call in find_calls(block)]
    (metric,) = call.parameters["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"]
    assert metric == {"Name": "validation:accuracy", "Regex": Metric("validation:accuracy", "maximize").regex}


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
