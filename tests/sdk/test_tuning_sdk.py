"""The code of `trainbox tune --print` runs in both SDKs, and asks SageMaker for what the request of boto3 says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.aws_calls import Call, check_call
from tests.support.printed_searches import bundled_search, everything, seed_search
from tests.support.sdk_calls import record_calls
from trainbox.contract.hyperparameters import decode
from trainbox.tuning.printed.boto3_request import to_tuning_request
from trainbox.tuning.printed.sdk_v2 import print_sdk_v2
from trainbox.tuning.printed.sdk_v3 import print_sdk_v3
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec
from trainbox.tuning.search_space import Resource

pytestmark = pytest.mark.sdk

PRINTERS = {"v2": print_sdk_v2, "v3": print_sdk_v3}


def searches(directory: Path) -> list[TuningJobSpec]:
    """A bundled script, a script of a directory, Hyperband, and a job on spot instances with a file system."""
    spec = bundled_search()
    settings = msgspec.structs.replace(
        spec.search, strategy="Hyperband", early_stopping=False, resource=Resource(1, 27)
    )
    hyperband = msgspec.structs.replace(spec, search=settings, parents=())
    return [bundled_search(), seed_search(str(directory)), hyperband, everything()]


@pytest.fixture(scope="module", params=sorted(PRINTERS))
def pairs(
    request: pytest.FixtureRequest, sdk_python: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For each search what an SDK sends, and the request as trainbox writes it."""
    directory = tmp_path_factory.mktemp("tuning")
    source = directory / "src"
    source.mkdir()
    (source / "train.py").write_text("print('Test AUC: 0.5')\n")
    specs = searches(source)
    printed = [PRINTERS[request.param](spec) for spec in specs]
    bucket = "Session: {DefaultS3Bucket: no-bucket}"
    recorded = record_calls(sdk_python[request.param], directory, printed, modules=bucket)
    sent = [given for operation, given in recorded if operation == "CreateHyperParameterTuningJob"]
    return list(zip(sent, map(to_tuning_request, specs), strict=True))


Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


def test_what_an_sdk_sends_is_a_request_that_aws_takes(pairs: Pairs) -> None:
    for sent, _ in pairs:
        assert check_call(Call("sagemaker", "create_hyper_parameter_tuning_job", sent)) == []


def test_an_sdk_asks_for_the_search_of_the_request(pairs: Pairs) -> None:
    for sent, expected in pairs:
        name = sent["HyperParameterTuningJobName"]
        assert len(name) <= 32
        assert name.startswith(expected["HyperParameterTuningJobName"][:10])
        assert _config(sent) == _config(expected)
        assert _warm_start(sent) == _warm_start(expected)


def test_an_sdk_asks_for_the_job_of_the_request(pairs: Pairs) -> None:
    for sent, expected in pairs:
        there, here = sent["TrainingJobDefinition"], expected["TrainingJobDefinition"]
        for same in ("AlgorithmSpecification", "RoleArn", "StoppingCondition"):
            assert there[same] == here[same], same
        assert there["OutputDataConfig"]["S3OutputPath"] == here["OutputDataConfig"]["S3OutputPath"]
        assert there.get("Environment", {}) == here.get("Environment", {})
        for name in ("CheckpointConfig", "RetryStrategy", "EnableManagedSpotTraining"):
            assert (there.get(name) or None) == here.get(name), name
        # SDK v2 uses the member that only tuning jobs have.
        resources = there.get("HyperParameterTuningResourceConfig") or there["ResourceConfig"]
        assert resources == here["ResourceConfig"]
        assert _channels(there) == _channels(here)
        static = {name: decode(text) for name, text in here["StaticHyperParameters"].items()}
        sent_static = {name: decode(text) for name, text in there["StaticHyperParameters"].items()}
        uploaded = {"sagemaker_program", "sagemaker_submit_directory"}
        assert {name: sent_static[name] for name in static.keys() - uploaded} == {
            name: value for name, value in static.items() if name not in uploaded
        }
        if "sagemaker_program" in static:
            assert sent_static["sagemaker_program"] == "train.py"
            assert str(sent_static["sagemaker_submit_directory"]).endswith("sourcedir.tar.gz")


def _config(request: dict[str, Any]) -> dict[str, Any]:
    config = dict(request["HyperParameterTuningJobConfig"])
    ranges = {kind: found for kind, found in config["ParameterRanges"].items() if found}
    # SDK v3 1.27 takes a seed of 0 for none.
    return {"RandomSeed": 0, **config, "ParameterRanges": ranges}


def _warm_start(request: dict[str, Any]) -> tuple[str, set[str]] | None:
    found = request.get("WarmStartConfig")
    if found is None:
        return None
    parents = {each["HyperParameterTuningJobName"] for each in found["ParentHyperParameterTuningJobs"]}
    return found["WarmStartType"], parents


def _channels(definition: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, with the defaults written out; without the channels that carry an SDK's own code."""
    channels = {}
    for each in definition["InputDataConfig"]:
        (source,) = each["DataSource"].values()
        distribution = {"S3DataDistributionType": "FullyReplicated"} if "S3Uri" in source else {}
        channels[each["ChannelName"]] = {**each, "DataSource": {**distribution, **source}}
    return {name: each for name, each in channels.items() if name not in {"sm_drivers", "code"}}
