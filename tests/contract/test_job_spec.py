"""A job as data: requests of CreateTrainingJob become it and come back, and what is wrong in them is named."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainbox.contract.job_request import SCRIPT_HYPERPARAMETERS, from_request, read_spec, to_request
from trainbox.contract.job_spec import (
    IGNORED,
    UNSUPPORTED,
    AlgorithmSpecification,
    CheckpointConfig,
    DataSource,
    FileSystemDataSource,
    IgnoredMember,
    InputChannel,
    JobSpec,
    LocalScript,
    MetricDefinition,
    OutputDataConfig,
    ResourceConfig,
    ResourceGroup,
    RetryStrategy,
    S3DataSource,
    ShuffleConfig,
    StoppingCondition,
)
from trainbox.errors import ContractError

_ROLE = "arn:aws:iam::123456789012:role/training"
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_words = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12)
_texts = st.lists(_text, max_size=3).map(tuple)
_modes = st.sampled_from(["File", "Pipe", "FastFile"])
_types = st.sampled_from(["ml.m5.xlarge", "ml.p4d.24xlarge"])

_s3 = st.builds(
    S3DataSource,
    s3_data_type=st.sampled_from(["S3Prefix", "ManifestFile", "AugmentedManifestFile"]),
    s3_uri=st.sampled_from(["s3://bucket/train", "file:///data/a b%20c", "file:///data/ü,x"]),
    s3_data_distribution_type=st.sampled_from(["FullyReplicated", "ShardedByS3Key"]),
    attribute_names=st.lists(_words, max_size=3).map(tuple),
    instance_group_names=st.lists(_words, max_size=2).map(tuple),
)
_file_systems = st.builds(
    FileSystemDataSource,
    file_system_id=st.just("fs-0123456789abcdef0"),
    file_system_access_mode=st.sampled_from(["ro", "rw"]),
    file_system_type=st.sampled_from(["EFS", "FSxLustre"]),
    directory_path=st.just("/data"),
)
_channels = st.builds(
    InputChannel,
    channel_name=_words,
    data_source=st.one_of(
        st.builds(DataSource, s3_data_source=_s3), st.builds(DataSource, file_system_data_source=_file_systems)
    ),
    content_type=st.sampled_from(["", "text/csv"]),
    compression_type=st.sampled_from(["None", "Gzip"]),
    record_wrapper_type=st.sampled_from(["None", "RecordIO"]),
    input_mode=st.none() | _modes,
    shuffle_config=st.none() | st.builds(ShuffleConfig, seed=st.integers(0, 2**32)),
)
_algorithms = st.builds(
    AlgorithmSpecification,
    training_image=st.sampled_from(["", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/trainbox:cpu"]),
    training_input_mode=_modes,
    metric_definitions=st.lists(
        st.builds(MetricDefinition, name=_words, regex=st.just("loss=([0-9.]+)")), max_size=2
    ).map(tuple),
    container_entrypoint=st.sampled_from([(), ("/bin/bash", "-c")]),
    container_arguments=st.sampled_from([(), ("x y", "")]),
)
_scripts = st.one_of(
    st.none(),
    st.builds(LocalScript, file=_words | st.just('"quoted".py'), source_dir=_text, arguments=_texts),
    st.builds(LocalScript, module=_words, source_dir=st.just("file:///src"), arguments=_texts),
    st.builds(LocalScript, name=_words, arguments=_texts),
)
_resources = st.one_of(
    st.just(ResourceConfig()),
    st.builds(ResourceConfig, instance_type=_types, instance_count=st.integers(1, 9)),
    st.builds(
        ResourceConfig,
        instance_groups=st.lists(
            st.builds(
                ResourceGroup, instance_group_name=_words, instance_count=st.integers(1, 3), instance_type=_types
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
    ),
)
_values: dict[str, Any] = {"VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}, "Tags": []}
_values |= {"EnableNetworkIsolation": True, "ResourceConfig.VolumeSizeInGB": 30, "OutputDataConfig.KmsKeyId": "key"}
_ignored = st.sets(st.sampled_from(sorted(_values))).map(
    lambda names: tuple(IgnoredMember(name, json.dumps(_values[name])) for name in IGNORED if name in names)
)
_specs = st.builds(
    JobSpec,
    training_job_name=st.text("abc-1", min_size=1, max_size=63),
    algorithm_specification=_algorithms,
    script=_scripts,
    hyper_parameters=st.dictionaries(_text.filter(lambda name: name not in SCRIPT_HYPERPARAMETERS), _text, max_size=3),
    environment=st.dictionaries(_words, _text, max_size=3),
    input_data_config=st.lists(_channels, max_size=3).map(tuple),
    output_data_config=st.builds(
        OutputDataConfig, s3_output_path=st.just("s3://b/o"), compression_type=st.sampled_from(["GZIP", "NONE"])
    ),
    resource_config=_resources,
    stopping_condition=st.builds(
        StoppingCondition,
        max_runtime_in_seconds=st.none() | st.integers(1, 10**6),
        max_wait_time_in_seconds=st.none() | st.integers(1, 10**6),
        max_pending_time_in_seconds=st.none() | st.just(7200),
    ),
    checkpoint_config=st.none() | st.builds(CheckpointConfig, s3_uri=st.just("s3://b/c"), local_path=_text),
    retry_strategy=st.none() | st.builds(RetryStrategy, maximum_retry_attempts=st.integers(1, 30)),
    enable_managed_spot_training=st.booleans(),
    role_arn=st.just(_ROLE),
    ignored=_ignored,
)


def body(**more: Any) -> dict[str, Any]:
    """A small request, and what else is in it."""
    channel = {"ChannelName": "train", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/t"}}}
    return {
        "TrainingJobName": "job",
        "AlgorithmSpecification": {"TrainingInputMode": "File", "TrainingImage": "image"},
        "RoleArn": _ROLE,
        "InputDataConfig": [channel],
        "OutputDataConfig": {"S3OutputPath": "s3://b/o"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **more,
    }


@given(spec=_specs)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_job_becomes_a_request_and_comes_back(spec: JobSpec) -> None:
    written = to_request(spec)
    assert from_request(json.loads(json.dumps(written))) == spec
    assert to_request(from_request(written)) == written


@pytest.mark.process  # botocore's libraries look for IPv6 when they are imported
@given(spec=_specs)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_botocores_own_model_takes_the_requests(spec: JobSpec) -> None:
    shape = create_training_job()
    validate = pytest.importorskip("botocore.validate")
    validate.validate_parameters(to_request(spec), shape)


@pytest.mark.process
def test_each_training_job_in_the_documentation_becomes_a_job_and_comes_back() -> None:
    pytest.importorskip("botocore.session")
    from tests.support.aws_calls import find_calls  # noqa: PLC0415 - imports botocore
    from tests.support.snippets import PAGES, find_blocks  # noqa: PLC0415

    blocks = [block for page in PAGES for block in find_blocks(page, "python") if "create_training_job" in block]
    calls = [call for block in blocks for call in find_calls(block) if call.method == "create_training_job"]
    assert len(calls) > 2
    for call in calls:
        spec = from_request(call.parameters)
        written = to_request(spec)
        assert from_request(written) == spec
        assert set(written) == set(call.parameters), "what the API does by default may be left out, below"


_shapes: list[Any] = []


def create_training_job() -> Any:
    """The input of CreateTrainingJob in botocore's model, which takes a second to load."""
    session = pytest.importorskip("botocore.session")
    if not _shapes:
        model = session.get_session().get_service_model("sagemaker")
        _shapes.append(model.operation_model("CreateTrainingJob").input_shape)
    return _shapes[0]


@pytest.mark.process
def test_each_member_of_botocores_model_is_read_or_said_to_be_ignored_or_unsupported() -> None:
    def places(shape: Any, path: str = "") -> list[str]:
        if shape.type_name == "list":
            return places(shape.member, path)
        if shape.type_name != "structure":
            return []
        names = [f"{path}{name}" for name in shape.members]
        deeper = [place for name, inner in shape.members.items() for place in places(inner, f"{path}{name}.")]
        return [*names, *deeper]

    def known(kind: type[msgspec.Struct], path: str = "") -> list[str]:
        found = []
        for field in msgspec.structs.fields(kind):
            if kind is JobSpec and field.name in ("script", "ignored"):
                continue
            found.append(f"{path}{field.encode_name}")
            inner = struct_of(field.type)
            found += known(inner, f"{path}{field.encode_name}.") if inner else []
        return found

    said = (*IGNORED, *UNSUPPORTED)
    model = places(create_training_job())
    read = known(JobSpec)
    unsaid = [
        name for name in model if name not in read and not any(name == s or name.startswith(f"{s}.") for s in said)
    ]
    assert unsaid == []
    assert [name for name in (*read, *said) if name not in model] == [], "the API has no such member"


def struct_of(kind: Any) -> type[msgspec.Struct] | None:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for each in getattr(kind, "__args__", ()) if (found := struct_of(each))), None)


@pytest.mark.parametrize(
    ("request_body", "said"),
    [
        (body(HyperParams={}), "it has no member 'HyperParams' - did you mean 'HyperParameters'?"),
        (body(hyper_parameters={}), "did you mean 'HyperParameters'?"),
        (body(VpcConfg={}), "did you mean 'VpcConfig'?"),
        (body(ResourceConfig={"InstanceTyp": "x"}), "ResourceConfig has no member 'InstanceTyp' - did you mean"),
        (body(ResourceConfig={"VolumeSize": 1}), "did you mean 'VolumeSizeInGB'?"),
        (body(InputDataConfig=[{"ChannelNam": "x"}]), "InputDataConfig has no member 'ChannelNam' - did you mean"),
        (body(AlgorithmSpecification={"AlgorithmName": "x"}), "AlgorithmSpecification.AlgorithmName is not supported"),
        (body(ServerlessJobConfig={}), "ServerlessJobConfig is not supported here"),
        (body(Foo=1, Bar=2), "it has no member 'Foo'; it has no member 'Bar'"),
        (
            body(StoppingCondition={"MaxRuntimeInSeconds": "60"}),
            "StoppingCondition.MaxRuntimeInSeconds: expected `float`",
        ),
        (body(StoppingCondition={"MaxRuntimeInSeconds": 0}), "StoppingCondition.MaxRuntimeInSeconds: expected"),
        (body(HyperParameters={"eta": 1}), "HyperParameters[...]: expected `str`, got `int`"),
        (body(HyperParameters=[]), "HyperParameters: expected `object`, got `array`"),
        (body(InputDataConfig={"train": "x"}), "InputDataConfig"),
        (body(RetryStrategy={"MaximumRetryAttempts": 31}), "RetryStrategy.MaximumRetryAttempts"),
        (body(OutputDataConfig={}), "OutputDataConfig: object missing required field `S3OutputPath`"),
        (
            body(InputDataConfig=[{"ChannelName": "train", "DataSource": {}}]),
            "channel 'train': DataSource has 0 of S3DataSource and FileSystemDataSource",
        ),
        (
            body(HyperParameters={"sagemaker_program": "a.py", "trainbox_script": "xgboost"}),
            "sagemaker_program and trainbox_script both say what runs",
        ),
        (body(HyperParameters={"trainbox_raw_arguments": "x"}), "trainbox_raw_arguments: expected a JSON list"),
    ],
)
def test_what_is_wrong_in_a_request_is_named(request_body: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError) as caught:
        from_request(request_body)
    assert said in str(caught.value)


def test_what_sagemaker_takes_and_has_no_effect_here_is_kept_and_told() -> None:
    given_body = body(VpcConfig={"Subnets": ["s"], "SecurityGroupIds": ["g"]}, Tags=[{"Key": "k", "Value": "v"}])
    given_body["ResourceConfig"]["VolumeSizeInGB"] = 30
    spec = from_request(given_body)
    assert [member.sentence for member in spec.ignored] == [
        "VpcConfig has no effect here: the hosts have the network of this machine",
        "Tags has no effect here: nothing here is tagged",
        "ResourceConfig.VolumeSizeInGB has no effect here: the disk is that of this machine",
    ]
    assert to_request(spec) == given_body


def test_the_hyperparameters_that_say_what_runs_become_the_script_as_the_sdk_quotes_them() -> None:
    quoted = {"sagemaker_program": '"train.py"', "sagemaker_submit_directory": '"s3://b/source.tar.gz"', "eta": '"0.1"'}
    spec = from_request(body(HyperParameters=quoted))
    assert spec.script == LocalScript(file="train.py", source_dir="s3://b/source.tar.gz")
    assert spec.hyper_parameters == {"eta": '"0.1"'}


def test_a_job_that_the_api_cannot_say_is_no_request() -> None:
    with pytest.raises(ContractError, match=r"MaxRuntimeInSeconds 1\.5: the API takes whole seconds"):
        to_request(JobSpec(stopping_condition=StoppingCondition(max_runtime_in_seconds=1.5)))
    with pytest.raises(ContractError, match="sagemaker_program: a JobSpec has this one in its script"):
        to_request(JobSpec(hyper_parameters={"sagemaker_program": "x"}))


def test_a_file_is_read_as_the_request_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(body()))
    assert read_spec(path) == from_request(body())
    for content, said in (("[1]", "is not a JSON object"), ("{", "is not a JSON object"), ('{"Foo": 1}', "'Foo'")):
        path.write_text(content)
        with pytest.raises(ContractError, match=said) as caught:
            read_spec(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ContractError, match="cannot be read: No such file"):
        read_spec(tmp_path / "none.json")
