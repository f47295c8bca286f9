"""`trainbox tune --print`: the code is Python, AWS's model takes the request, and both have the search."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.support.aws_calls import Call, check_call, find_calls
from tests.support.printed_searches import bundled_search, channel, everything, seed_search
from trainbox.contract.job_spec import (
    AlgorithmSpecification,
    JobSpec,
    LocalScript,
    ResourceConfig,
    ResourceGroup,
)
from trainbox.errors import RunError
from trainbox.tuning.printed.boto3_request import print_boto3, to_tuning_request
from trainbox.tuning.printed.places import short_name
from trainbox.tuning.printed.python_code import CodeCall, write_code
from trainbox.tuning.printed.sdk_v2 import print_sdk_v2
from trainbox.tuning.printed.sdk_v3 import print_sdk_v3
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec
from trainbox.tuning.search_space import CategoricalRange, ContinuousRange, IntegerRange, Resource

PRINTERS = (print_boto3, print_sdk_v2, print_sdk_v3)


def with_search(spec: TuningJobSpec, **changes: object) -> TuningJobSpec:
    return msgspec.structs.replace(spec, search=msgspec.structs.replace(spec.search, **changes))


def hyperband() -> TuningJobSpec:
    return with_search(bundled_search(), strategy="Hyperband", early_stopping=False, resource=Resource(1, 27))


def grid() -> TuningJobSpec:
    ranges = (IntegerRange("max_depth", 3, 6), CategoricalRange("booster", ("gbtree", "dart")))
    return with_search(bundled_search(), strategy="Grid", ranges=ranges)


def hostile() -> TuningJobSpec:
    """Texts that end a string, a comment or a line of shell."""
    bad = "x'\"\\\n\r\t\u2028`$(touch /tmp/x)`; é"
    spec = seed_search(f"/home/{bad}/src")
    job = msgspec.structs.replace(
        spec.job, hyper_parameters={"text": bad, bad: "1"}, input_data_config=(channel("train", f"file:///{bad}"),)
    )
    spec = msgspec.structs.replace(spec, name=bad, job=job)
    return with_search(spec, ranges=(CategoricalRange("kind", (bad, "\\")),))


SEARCHES: tuple[Callable[[], TuningJobSpec], ...] = (seed_search, bundled_search, everything, hyperband, grid)


@pytest.mark.parametrize("search", SEARCHES)
def test_the_request_is_one_that_aws_takes(search: Callable[[], TuningJobSpec]) -> None:
    request = to_tuning_request(search())
    assert check_call(Call("sagemaker", "create_hyper_parameter_tuning_job", request)) == []


@pytest.mark.parametrize("search", [*SEARCHES, hostile])
def test_the_code_for_boto3_sends_that_request(search: Callable[[], TuningJobSpec]) -> None:
    (call,) = find_calls(print_boto3(search()))
    assert (call.service, call.method) == ("sagemaker", "create_hyper_parameter_tuning_job")
    assert call.parameters == to_tuning_request(search())


def test_a_search_becomes_the_members_of_the_request() -> None:
    request = to_tuning_request(bundled_search())
    assert request["HyperParameterTuningJobName"] == "churn-xgboost-2026-11-30-04-47-2"
    config = request["HyperParameterTuningJobConfig"]
    assert config["ParameterRanges"] == {
        "ContinuousParameterRanges": [
            {"Name": "eta", "MinValue": "1e-05", "MaxValue": "0.3", "ScalingType": "Logarithmic"},
            {"Name": "subsample", "MinValue": "0.5", "MaxValue": "0.99", "ScalingType": "ReverseLogarithmic"},
        ],
        "IntegerParameterRanges": [{"Name": "max_depth", "MinValue": "3", "MaxValue": "10", "ScalingType": "Auto"}],
        "CategoricalParameterRanges": [{"Name": "booster", "Values": ["gbtree", "dart"]}],
    }
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 20, "MaxParallelTrainingJobs": 4}
    assert (config["TrainingJobEarlyStoppingType"], config["RandomSeed"]) == ("Auto", 7)
    definition = request["TrainingJobDefinition"]
    metrics = definition["AlgorithmSpecification"]["MetricDefinitions"]
    assert [each["Name"] for each in metrics] == ["validation:auc", "validation:logloss"]
    assert metrics[0]["Regex"] == bundled_search().search.objective.regex
    assert definition["StaticHyperParameters"]["trainbox_script"] == "xgboost"
    assert definition["StaticHyperParameters"]["monotone_constraints"] == "[1, -1]"
    assert request["WarmStartConfig"]["WarmStartType"] == "TransferLearning"


def test_a_tuned_hyperparameter_is_not_static_and_a_secret_is_a_reference() -> None:
    for text in (printer(seed_search()) for printer in PRINTERS):
        assert '"n-estimators": "100"' not in text
        assert "hunter2" not in text
        assert "{{resolve:secretsmanager:YOUR-SECRET}}" in text


def test_a_password_in_a_url_or_an_argument_is_not_printed() -> None:
    spec = seed_search()
    script = LocalScript(file="t.py", source_dir="file:///s", arguments=("--api-key", "hunter2-a", "--n", "3"))
    job = msgspec.structs.replace(
        spec.job, script=script, hyper_parameters={"db": "postgres://me:hunter2-b@db/x", "rate": "1"}, environment={}
    )
    for printer in PRINTERS:
        text = printer(msgspec.structs.replace(spec, job=job))
        assert "hunter2" not in text
        assert "YOUR-SECRET" in text
        assert "--n" in text


def test_what_this_machine_has_is_uploaded_first_and_what_it_does_not_know_is_marked() -> None:
    text = print_boto3(seed_search())
    assert "#   tar -czf sourcedir.tar.gz -C /home/me/src .\n" in text
    assert "#   aws s3 cp --recursive '/data/my train' s3://YOUR-BUCKET/forest-search/data/train/\n" in text
    assert "role/YOUR-ROLE" in text
    assert "trainbox:YOUR-TAG" in text
    # The SDKs upload the source themselves.
    for code in (print_sdk_v2(seed_search()), print_sdk_v3(seed_search())):
        assert "tar -czf" not in code
        assert 'source_dir="/home/me/src"' in code


def test_an_image_of_a_registry_and_a_role_stay_as_they_are() -> None:
    image = "222233334444.dkr.ecr.us-east-1.amazonaws.com/mine:1"
    job = JobSpec(
        algorithm_specification=AlgorithmSpecification(training_image=image),
        role_arn="arn:aws:iam::222233334444:role/tuning",
    )
    definition = to_tuning_request(msgspec.structs.replace(bundled_search(), job=job))["TrainingJobDefinition"]
    assert definition["AlgorithmSpecification"]["TrainingImage"] == image
    assert definition["RoleArn"] == "arn:aws:iam::222233334444:role/tuning"


def test_a_module_is_uploaded_as_an_archive() -> None:
    job = msgspec.structs.replace(seed_search().job, script=LocalScript(module="app.train", source_dir="file:///src"))
    for printer in PRINTERS:
        text = printer(msgspec.structs.replace(seed_search(), job=job))
        assert "tar -czf sourcedir.tar.gz -C /src ." in text
        assert '"trainbox_module": "app.train"' in text


def test_a_grid_is_written_as_categories_and_has_its_own_size() -> None:
    config = to_tuning_request(grid())["HyperParameterTuningJobConfig"]
    assert config["ParameterRanges"] == {
        "CategoricalParameterRanges": [
            {"Name": "max_depth", "Values": ["3", "4", "5", "6"]},
            {"Name": "booster", "Values": ["gbtree", "dart"]},
        ]
    }
    assert config["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 8


def test_hyperband_has_its_resources() -> None:
    config = to_tuning_request(hyperband())["HyperParameterTuningJobConfig"]
    assert config["StrategyConfig"] == {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 27}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "Hyperband"}, "no early stopping with Hyperband"),
        ({"strategy": "Grid"}, "eta is continuous"),
        ({"seed": 2**31}, "the seed 2147483648"),
        ({"strategy": "Grid", "ranges": (IntegerRange("n", 1, 31),)}, "n has 31 values"),
        ({"strategy": "Grid", "ranges": (IntegerRange("n", 1, 10**12),)}, "n has 1000000000000 values"),
    ],
)
def test_a_search_that_sagemaker_would_refuse_is_refused_here(changes: dict[str, object], message: str) -> None:
    for printer in PRINTERS:
        with pytest.raises(RunError, match=message):
            printer(with_search(bundled_search(), **changes))


def test_a_job_that_a_tuning_job_cannot_have_is_refused_here() -> None:
    groups = (ResourceGroup(instance_group_name="a", instance_count=1),)
    for job, message in (
        (
            JobSpec(algorithm_specification=AlgorithmSpecification(container_entrypoint=("run",))),
            "ContainerEntrypoint",
        ),
        (JobSpec(resource_config=ResourceConfig(instance_groups=groups)), "instance groups"),
    ):
        for printer in PRINTERS:
            with pytest.raises(RunError, match=message):
                printer(msgspec.structs.replace(bundled_search(), job=job))


@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize("search", [*SEARCHES, hostile])
def test_the_code_is_python_of_a_few_statements(
    search: Callable[[], TuningJobSpec], printer: Callable[[TuningJobSpec], str]
) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    text = printer(search())
    assert all(isinstance(node, allowed) for node in ast.parse(text).body)
    for line in text.splitlines():
        assert line.isprintable()


@pytest.mark.process
def test_the_code_is_formatted_as_formatters_do_it(tmp_path: Path) -> None:
    for search in SEARCHES:
        for printer in PRINTERS:
            (tmp_path / f"{search.__name__}_{printer.__name__}.py").write_text(printer(search()))
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff), "format", "--check", "--diff", "--isolated", "--line-length", "120", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a_b", "a-b"), ("-9-", "9"), ("…", "tuning"), ("x" * 40, "x" * 32), (f"{'x' * 31}-y", "x" * 31)],
)
def test_a_name_is_one_that_sagemaker_takes(name: str, expected: str) -> None:
    assert short_name(name) == expected


def test_values_are_written_as_they_are_read() -> None:
    values = [1, -2.5, 1e-05, True, None, "a'b", 'a"b', "both'\"", "back\\slash", "end\\", "new\nline", "é\u2028", ""]
    assert ast.literal_eval(write_code(values)) == values
    assert write_code({"a": CodeCall("f", (float("inf"),))}) == '{"a": f(float("inf"))}'


def test_a_range_of_floats_keeps_every_digit() -> None:
    spec = with_search(bundled_search(), ranges=(ContinuousRange("x", 0.1 + 0.2, 1.0),))
    (found,) = to_tuning_request(spec)["HyperParameterTuningJobConfig"]["ParameterRanges"]["ContinuousParameterRanges"]
    assert float(found["MinValue"]) == 0.1 + 0.2
