"""What SageMaker gives becomes one value, or an error that says which file, which key, and what was found."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.cluster.scheduler import DEFAULT_GRACE_SECONDS
from trainbox.contract.config_files import LARGEST_CONFIG_BYTES
from trainbox.contract.environment import Machine, variables
from trainbox.contract.job import Channel, InstanceGroup, Job, read_job
from trainbox.errors import ContractError

# A real one of a heterogeneous cluster, shortened.
RESOURCES = {
    "current_host": "algo-2",
    "current_instance_type": "ml.c5.xlarge",
    "current_group_name": "workers",
    "hosts": ["algo-1", "algo-10", "algo-2"],
    "instance_groups": [
        {"instance_group_name": "head", "instance_type": "ml.g5.xlarge", "hosts": ["algo-1"]},
        {"instance_group_name": "workers", "instance_type": "ml.c5.xlarge", "hosts": ["algo-10", "algo-2"]},
    ],
    "network_interface_name": "eth0",
    "topology": [{"hostName": "algo-1", "capacityUnitId": "0"}],
    "something_new": {"of": 2027},
}
FILES = ["hyperparameters.json", "resourceconfig.json", "inputdataconfig.json", "checkpointconfig.json"]


def read(tmp_path: Path, env: Mapping[str, str] | None = None, **files: object) -> Job:
    config = tmp_path / "input/config"
    config.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    return read_job(tmp_path, env or {})


def test_absent_files_are_the_smallest_job(tmp_path: Path) -> None:
    job = read_job(tmp_path, {})
    assert (job.hosts, job.current_host, job.host_rank, job.is_first_host) == (("algo-1",), "algo-1", 0, True)
    assert job.channels == {}
    assert job.hyperparameters == {}
    assert job.checkpoints_dir == tmp_path / "checkpoints"
    assert not job.has_checkpoint_config
    assert job.settings.grace_seconds == DEFAULT_GRACE_SECONDS
    assert job.notes == (f"no {tmp_path}/input/config/resourceconfig.json: taking this to be the only host, 'algo-1'",)


def test_a_heterogeneous_cluster_is_read_as_it_is_given(tmp_path: Path) -> None:
    job = read(tmp_path, resourceconfig=RESOURCES)
    assert job.hosts == ("algo-1", "algo-10", "algo-2")
    assert (job.host_rank, job.is_first_host) == (2, False)
    assert (job.instance_group, job.instance_type) == ("workers", "ml.c5.xlarge")
    assert job.instance_groups[1] == InstanceGroup("workers", ("algo-10", "algo-2"), "ml.c5.xlarge")
    assert job.resource_config == RESOURCES
    assert job.notes == ()


def test_channels_come_from_the_configuration_and_never_from_the_directory(tmp_path: Path) -> None:
    (tmp_path / "input/data/train-manifest").mkdir(parents=True)
    config = {
        "train": {"TrainingInputMode": "Pipe", "RecordWrapperType": "RecordIO"},
        "a.b-c_1": {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key", "ContentType": "text/csv"},
    }
    job = read(tmp_path, inputdataconfig=config)
    assert list(job.channels) == ["a.b-c_1", "train"]
    assert job.channels["a.b-c_1"] == Channel(
        "a.b-c_1", tmp_path / "input/data/a.b-c_1", "File", "text/csv", "ShardedByS3Key"
    )
    assert job.channels["train"].record_wrapper == "RecordIO"


@pytest.mark.parametrize(
    ("given_path", "found"),
    [("/opt/ml/checkpoints", "checkpoints"), ("/opt/ml/checkpoint", "checkpoint"), ("/mnt/here", "/mnt/here")],
)
def test_the_checkpoint_directory_lies_below_the_root(tmp_path: Path, given_path: str, found: str) -> None:
    job = read(tmp_path, checkpointconfig={"LocalPath": given_path, "S3Uri": "s3://b/c"})
    assert job.checkpoints_dir == tmp_path / found
    assert job.checkpoint_s3_uri == "s3://b/c"
    assert job.has_checkpoint_config


def test_the_users_hyperparameters_are_told_from_those_for_the_container(tmp_path: Path) -> None:
    given_values = {
        "eta": "0.1",
        "sagemaker_program": '"t.py"',
        "trainbox_script": "x",
        "_tuning_objective_metric": "m",
    }
    job = read(tmp_path, hyperparameters=given_values)
    assert job.hyperparameters == {"eta": 0.1}
    assert job.raw_hyperparameters == {"eta": "0.1"}
    assert job.settings.program == "t.py"


@pytest.mark.parametrize(
    ("style", "expected"),
    [("toolkit", ("-a", "x", "-b", "True")), ("json", ("--b", "true", "--a", "x"))],
)
def test_the_arguments_of_the_script_are_those_of_its_variables(
    tmp_path: Path, style: str, expected: tuple[str, ...]
) -> None:
    job = read(tmp_path, hyperparameters={"b": "true", "a": "x", "trainbox_arguments": style})
    assert job.argv == expected
    named = variables(job, entry_point="train.py", env={}, machine=Machine())
    assert tuple(json.loads(named.values["SM_USER_ARGS"])) == job.argv


def test_a_hyperparameter_wins_over_the_variable_and_an_empty_one_does_not(tmp_path: Path) -> None:
    env = {"SAGEMAKER_PROGRAM": "env.py", "TRAINBOX_SCRIPT": "env", "TRAINBOX_GRACE_SECONDS": "7.5"}
    job = read(tmp_path, env, hyperparameters={"sagemaker_program": '"hp.py"', "trainbox_script": ""})
    assert (job.settings.program, job.settings.script, job.settings.grace_seconds) == ("hp.py", "env", 7.5)


@pytest.mark.parametrize(
    ("asked", "platform", "grace"),
    [
        ("", {}, 100),
        ("200", {}, 200),
        ("200", {"TRAINBOX_GRACE_SECONDS": "25"}, 25),
        ("9", {"TRAINBOX_GRACE_SECONDS": "25"}, 9),
        ("", {"TRAINBOX_GRACE_SECONDS": "25"}, 25),
        ("", {"SLURM_JOB_ID": "7"}, 25),
        ("60", {"SLURM_JOB_ID": "7"}, 60),
    ],
)
def test_the_grace_is_no_longer_than_the_platform_gives(
    tmp_path: Path, asked: str, platform: dict[str, str], grace: float
) -> None:
    job = read(tmp_path, platform, hyperparameters={"trainbox_grace_seconds": asked})
    assert job.settings.grace_seconds == grace


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({}, 0),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 143),
        ({"SLURM_JOB_ID": "7"}, 143),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TRAINING_JOB_NAME": "j"}, 0),
        ({"TRAINBOX_STOP_EXIT_CODE": "75"}, 75),
    ],
)
def test_a_stop_has_an_exit_code_of_its_own_where_schedulers_go_by_it(
    tmp_path: Path, env: dict[str, str], code: int
) -> None:
    assert read(tmp_path, env).settings.stop_exit_code == code


def test_secrets_of_variables_and_hyperparameters_are_known_also_under_one_name(tmp_path: Path) -> None:
    job = read(tmp_path, {"API_TOKEN": "of-the-variable"}, hyperparameters={"API_TOKEN": '"of-the-hyperparameter"'})
    assert {"of-the-hyperparameter", "of-the-variable"} < set(job.secrets)


def test_a_secret_is_known_in_every_form_a_message_may_give_it(tmp_path: Path) -> None:
    pem = "-----BEGIN KEY-----\nMIIEvQIBADAN\n=\n"
    quoted = 'it\'s "so"'
    job = read(tmp_path, {"PRIVATE_KEY": pem}, hyperparameters={"pin_token": json.dumps(quoted)})
    for form in (pem, "MIIEvQIBADAN", repr(pem)[1:-1], json.dumps(pem)[1:-1], quoted, json.dumps(quoted)[1:-1]):
        assert form in job.secrets
    assert "=" not in job.secrets


# -- bad input ---------------------------------------------------------------------------------------------------------

CONTENTS = {
    "empty": (b"", "the file is empty, expected a JSON object"),
    "blank": (b" \n\t", "the file is empty, expected a JSON object"),
    "truncated": (b'{"a": "b', "line 1 column 7: Unterminated string starting at, found '\"'"),
    "cut after a key": (b'{"a":', "line 1 column 6: Expecting value, found the end of the file"),
    "not JSON": (b"{'a': 1}", 'line 1 column 2: Expecting property name enclosed in double quotes, found "\'"'),
    "two values": (b"{} {}", "line 1 column 4: Extra data, found '{'"),
    "a list": (b"[]", "found a list, expected a JSON object"),
    "a string": (b'"x"', "found a string, expected a JSON object"),
    "a number": (b"1.5", "found a number, expected a JSON object"),
    "null": (b"null", "found null, expected a JSON object"),
    "true": (b"true", "found a boolean, expected a JSON object"),
    "not UTF-8": (b'{"a": "\xff"}', "byte 7 is not UTF-8, expected JSON in UTF-8"),
    "UTF-16": ('{"a": "b"}'.encode("utf-16"), "byte 0 is not UTF-8, expected JSON in UTF-8"),
    "with a mark": (b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM"),
    "nested too deeply": (b'{"a":' + b"[" * 100_000, "nested too deeply to be read"),
    "a number too long": (b'{"a": ' + b"9" * 5000 + b"}", "holds a number too long to be read"),
    "a NUL": (b'{"a": {"b": ["\\u0000"]}}', "key 'a': found a NUL or half a surrogate pair, expected text"),
    "a NUL in a name": (b'{"a\\u0000": "b"}', "key 'a\\x00': found a NUL or half a surrogate pair, expected text"),
    "half a pair": (b'{"a": "\\ud83d"}', "key 'a': found a NUL or half a surrogate pair, expected text"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS.keys())
def test_a_malformed_file_is_named_with_what_was_found_and_expected(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    read(tmp_path, resourceconfig={"current_host": "algo-1", "hosts": ["algo-1"]})
    path = tmp_path / "input/config" / name
    path.write_bytes(content)
    with pytest.raises(ContractError) as raised:
        read_job(tmp_path, {})
    assert raised.value.message.startswith(f"{path}: ")
    assert message in raised.value.message


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_wrong_kind_or_size_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "input/config" / name
    path.mkdir(parents=True)
    with pytest.raises(ContractError, match="found a directory, expected a file"):
        read_job(tmp_path, {})
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ContractError, match="found a special file, expected a file"):
        read_job(tmp_path, {})
    path.unlink()
    with path.open("wb") as file:
        file.truncate(LARGEST_CONFIG_BYTES + 1)
    with pytest.raises(ContractError, match=r"found 16,777,217 bytes, expected a small JSON object"):
        read_job(tmp_path, {})
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ContractError, match="cannot be read: Too many levels of symbolic links"):
        read_job(tmp_path, {})


HOSTS = {"current_host": "a", "hosts": ["a", "b"]}
WRONG = [
    ("resourceconfig", {}, "missing required field `hosts`"),
    ("resourceconfig", {"hosts": ["a"]}, "missing required field `current_host`"),
    ("resourceconfig", {**HOSTS, "hosts": []}, "key 'hosts': found an empty list, expected the names of all hosts"),
    ("resourceconfig", {**HOSTS, "hosts": ["a", "a"]}, "key 'hosts': found a name twice in ['a', 'a']"),
    ("resourceconfig", {**HOSTS, "current_host": "c"}, "key 'current_host': found 'c', expected one of ['a', 'b']"),
    ("resourceconfig", {**HOSTS, "hosts": "a"}, "Expected `array`, got `str` - at `$.hosts`"),
    ("resourceconfig", {**HOSTS, "hosts": ["a", 2]}, "Expected `str`, got `int` - at `$.hosts[1]`"),
    ("resourceconfig", {**HOSTS, "instance_groups": [{}]}, "- at `$.instance_groups[0]`"),
    ("resourceconfig", {**HOSTS, "topology": [1]}, "Expected `object`, got `int` - at `$.topology[0]`"),
    ("inputdataconfig", {"train": []}, "Expected `object`, got `array`"),
    ("inputdataconfig", {"train": {"TrainingInputMode": "Fast"}}, "Invalid enum value 'Fast'"),
    ("inputdataconfig", {"a/b": {}}, "key 'a/b': expected a channel name"),
    ("inputdataconfig", {"..": {}}, "key '..': expected a channel name"),
    ("inputdataconfig", {"": {}}, "key '': expected a channel name"),
    ("inputdataconfig", {"x" * 65: {}}, "expected a channel name, [A-Za-z0-9.-_], at most 64 characters"),
    ("checkpointconfig", {"LocalPath": 1}, "Expected `str`, got `int` - at `$.LocalPath`"),
    ("checkpointconfig", {"LocalPath": "here"}, "key 'LocalPath': found 'here', expected an absolute path"),
    ("hyperparameters", {"processes_per_host": "two"}, "key 'processes_per_host': found 'two', expected a whole"),
    ("hyperparameters", {"processes_per_host": "0"}, "key 'processes_per_host': found '0', expected a whole"),
    ("hyperparameters", {"trainbox_requirements": "hash"}, "found 'hash', expected any or wheels or hashes or off"),
    ("hyperparameters", {"trainbox_source_bytes": "0"}, "found '0', expected a number of bytes, 1 or more"),
    ("hyperparameters", {"processes_per_host": "1025"}, "found '1025', expected a whole number, 1 to 1024"),
    ("hyperparameters", {"processes_per_host": "9" * 300}, "9', expected a whole number, 1 to 1024"),
    ("hyperparameters", {"trainbox_grace_seconds": "-1"}, "key 'trainbox_grace_seconds': found '-1', expected a n"),
    ("hyperparameters", {"trainbox_stop_exit_code": "256"}, "key 'trainbox_stop_exit_code': found '256', expected an"),
    ("hyperparameters", {"trainbox_grace_seconds": "NaN"}, "key 'trainbox_grace_seconds': found 'nan', expected a"),
    ("hyperparameters", {"trainbox_arguments": "yaml"}, "key 'trainbox_arguments': found 'yaml', expected toolk"),
    ("hyperparameters", {"a": '"\\u0000"'}, "key 'a': found a NUL or half a surrogate pair"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_a_wrong_entry_is_named_with_its_key(
    tmp_path: Path, name: str, content: Mapping[str, object], message: str
) -> None:
    with pytest.raises(ContractError) as raised:
        read(tmp_path, None, **{name: content})
    assert str(tmp_path / f"input/config/{name}.json") in raised.value.message
    assert message in raised.value.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["hosts", "current_host", "instance_groups", "topology", "train", "LocalPath", "processes_per_host", "eta"]
)


@given(name=st.sampled_from(FILES), content=st.dictionaries(keys | st.text(), json_values, max_size=4) | json_values)
def test_any_json_in_any_file_is_a_job_or_a_contract_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: object
) -> None:
    root = tmp_path_factory.getbasetemp() / "any-json"
    config = root / "input/config"
    config.mkdir(parents=True, exist_ok=True)
    for path in config.iterdir():
        path.unlink()
    (config / name).write_text(json.dumps(content))
    try:
        job = read_job(root, {})
    except ContractError as error:
        message = error.message
        assert str(config / name) in message
    else:
        assert job.current_host in job.hosts
