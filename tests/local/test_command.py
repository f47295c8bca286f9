"""A command line, a file and a request of the API become the same job, and the same plan."""

import argparse
import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trainbox.cli.run import add_arguments
from trainbox.cli.run_command import read_command
from trainbox.contract.job_request import from_request, read_spec, to_request
from trainbox.contract.job_spec import JobSpec
from trainbox.errors import RunError
from trainbox.local import request as request_module
from trainbox.local.backends.confinement import Confinement
from trainbox.local.backends.engine import Image
from trainbox.local.backends.isolation import Isolation, in_containers
from trainbox.local.local_options import LocalOptions
from trainbox.local.plan import RunPlan, plan_run
from trainbox.local.request import RunRequest, read_request

NOW = dt.datetime(2026, 11, 29, 22, 0, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "find_isolation", lambda: Isolation(kind="root", at_opt_ml=True))
    monkeypatch.setattr(request_module, "find_free_port", lambda: 23456)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    files = {"src/train.py": "print(1)\n", "src/pkg/fit.py": "", "data/a.csv": "1,2\n", "data/b.csv": "1,2\n"}
    files["lists/two.json"] = '[{"prefix": "s3://bucket/data/"}, "b.csv", "a.csv"]'
    files["lists/lines.json"] = '{"source-ref": "s3://bucket/data/a.csv", "label": 1}\n'
    files["one file, with a comma.csv"] = "1,2\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def parse(here: Path, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[JobSpec, LocalOptions]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_args(arguments[:place])
    args.raw_arguments = arguments[place + 1 :]
    return read_command(args, env=env or {}, cwd=here)


def plan(spec: JobSpec, options: LocalOptions) -> RunPlan:
    planned = plan_run(read_request(spec, options, now=NOW))
    # The key of each attempt is drawn anew.
    added = {name: value for name, value in planned.added.items() if name != "TRAINBOX_PEER_KEY"}
    hosts = tuple(
        msgspec.structs.replace(
            host, environment={name: value for name, value in host.environment.items() if name != "TRAINBOX_PEER_KEY"}
        )
        for host in planned.hosts
    )
    request = msgspec.structs.replace(planned.request, peer_key=None)
    return msgspec.structs.replace(planned, added=added, hosts=hosts, request=request)


@pytest.mark.parametrize(
    "arguments",
    [
        ["src/train.py"],
        ["src/train.py", "--source-dir", ".", "--hp", "eta=0.1", "--hp", 'quoted="x"', "--env", "MINE=1"],
        ["xgboost", "--channel", "train=data", "--channel", "one=one file, with a comma.csv", "--max-run", "60"],
        ["-m", "pkg.fit", "--source-dir", "src", "--job-name", "my-job", "--", "--x", "a b", ""],
        ["-m", "json.tool"],
        ["src/train.py", "--hosts", "2", "--processes", "2", "--channel", "train=data,sharded,content_type=text/csv"],
        [
            *("src/train.py", "--hosts", "workers=2,evaluators=1", "--channel"),
            "train=data,pipe,record_wrapper=RecordIO,groups=workers",
        ],
        ["src/train.py", "--channel", "train=data,manifest=lists/two.json"],
        ["src/train.py", "--channel", "train=data,pipe,manifest=lists/lines.json,attributes=source-ref,label"],
        ["src/train.py", "--channel", "train=data,fastfile", "--stop-after", "9", "--kill", "0@1", "--out", "result"],
        ["src/train.py", "--hp", "processes_per_host=3"],
    ],
)
def test_a_command_a_file_and_a_request_give_the_same_plan(here: Path, arguments: list[str]) -> None:
    spec, options = parse(here, *arguments)
    body = to_request(spec)
    (here / "job.json").write_text(json.dumps(body))
    from_command = plan(spec, options)
    assert plan(read_spec(here / "job.json"), options) == from_command
    assert plan(from_request(body), options) == from_command
    assert from_request(body) == spec


def ask(here: Path, body: dict[str, Any], **options: Any) -> RunRequest:
    return read_request(from_request(body), LocalOptions(env={}, directory=here, **options), now=NOW)


def channel(name: str, uri: str, **more: Any) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **more}


def manifest(uri: str, kind: str = "ManifestFile", **more: Any) -> dict[str, Any]:
    source = {"S3DataType": kind, "S3Uri": uri}
    return {"ChannelName": "train", "DataSource": {"S3DataSource": source}, **more}


def body(here: Path, **more: Any) -> dict[str, Any]:
    own = {"sagemaker_program": '"train.py"', "sagemaker_submit_directory": f'"file://{here}/src"'}
    return {"TrainingJobName": "job", "HyperParameters": own, **more}


def test_a_request_says_what_is_run_and_where_its_inputs_lie(here: Path) -> None:
    found = ask(
        here,
        body(
            here,
            InputDataConfig=[channel("train", f"file://{here}/data", InputMode="Pipe")],
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 30},
            StoppingCondition={"MaxRuntimeInSeconds": 60},
            AlgorithmSpecification={
                "TrainingInputMode": "FastFile",
                "MetricDefinitions": [{"Name": "m", "Regex": "m=(.)"}],
            },
            RoleArn="arn:aws:iam::123456789012:role/x",
        ),
    )
    assert (found.script, found.source and found.source.directory) == ("train.py", here / "src")
    assert (found.channels["train"].options.mode, found.hosts, found.max_run) == ("Pipe", 2, 60)
    assert [each.name for each in found.metric_definitions] == ["m"]
    assert found.notes == ("no effect on this machine: RoleArn, ResourceConfig.VolumeSizeInGB",)
    host = plan_run(found).hosts[1]
    assert json.loads(host.files["input/config/resourceconfig.json"])["current_instance_type"] == "ml.m5.large"


def test_the_input_mode_of_the_algorithm_is_that_of_channels_that_say_none(here: Path) -> None:
    algorithm = {"TrainingInputMode": "Pipe"}
    channels = [channel("train", f"file://{here}/data"), channel("other", f"file://{here}/data", InputMode="File")]
    found = ask(here, body(here, AlgorithmSpecification=algorithm, InputDataConfig=channels))
    assert {name: each.options.mode for name, each in found.channels.items()} == {"train": "Pipe", "other": "File"}


def test_where_the_objects_of_a_manifest_lie_is_an_option_of_this_machine(here: Path) -> None:
    channels = [manifest(f"file://{here}/lists/two.json")]
    found = ask(here, body(here, InputDataConfig=channels), places={"train": f"file://{here}/data"})
    assert [entry.name for entry in found.channels["train"].files or ()] == ["b.csv", "a.csv"]
    augmented = [manifest(f"file://{here}/lists/lines.json", "AugmentedManifestFile", InputMode="Pipe")]
    with pytest.raises(RunError, match="where the objects of an augmented manifest lie here is not said"):
        ask(here, body(here, InputDataConfig=augmented))


def test_a_directory_of_a_file_system_is_that_of_this_machine(here: Path) -> None:
    place = {"FileSystemId": "fs-12345678", "FileSystemType": "EFS", "DirectoryPath": str(here / "data")}
    source = {"FileSystemDataSource": {**place, "FileSystemAccessMode": "rw"}}
    found = ask(here, body(here, InputDataConfig=[{"ChannelName": "train", "DataSource": source}]))
    assert found.channels["train"].path == here / "data"
    assert found.notes == ("no effect on this machine: FileSystemAccessMode rw",)


def in_containers_of(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever image a job asks for is there."""
    found = in_containers(Image(name, memory=1), Confinement(network="none", user="1000:1000"))
    monkeypatch.setattr(request_module, "find_containers", lambda *_: found)


def test_an_image_without_a_script_runs_its_own_train(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_containers_of(monkeypatch, "mine:1")
    algorithm = {"TrainingInputMode": "File", "TrainingImage": "mine:1"}
    own = {"TrainingJobName": "job", "AlgorithmSpecification": algorithm, "HyperParameters": {"eta": "1"}}
    (host,) = plan_run(ask(here, own, docker=True)).hosts
    assert (host.argv, host.entrypoint) == (("train",), ())
    assert json.loads(host.files["input/config/hyperparameters.json"]) == {"eta": "1"}


def test_a_command_of_the_request_is_that_of_the_container(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_containers_of(monkeypatch, "mine:1")
    algorithm = {"TrainingInputMode": "File", "TrainingImage": "mine:1"}
    command = {"ContainerEntrypoint": ["/bin/bash", "-c"], "ContainerArguments": ["echo $0", "x"]}
    (host,) = plan_run(ask(here, body(here, AlgorithmSpecification=algorithm | command), docker=True)).hosts
    assert (host.entrypoint, host.argv) == (("/bin/bash", "-c"), ("echo $0", "x"))
    written = json.loads(host.files["input/config/hyperparameters.json"])
    assert written == {"sagemaker_program": "train.py", "sagemaker_submit_directory": f"file://{here}/src"}
    (host,) = plan_run(ask(here, body(here, AlgorithmSpecification=algorithm | command))).hosts
    assert host.argv[-6:] == ("/usr/bin/env", "--", "/bin/bash", "-c", "echo $0", "x")


def test_an_archive_of_source_is_left_to_the_supervisor(here: Path) -> None:
    own = {"sagemaker_program": "train.py", "sagemaker_submit_directory": "s3://bucket/source.tar.gz"}
    found = ask(here, {"TrainingJobName": "job", "HyperParameters": own})
    assert found.source is None
    written = json.loads(plan_run(found).hosts[0].files["input/config/hyperparameters.json"])
    assert written == own


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"InputDataConfig": [channel("train", "file:///nowhere")]}, "InputDataConfig, channel train: there is no"),
        ({"InputDataConfig": [channel("train", "data")]}, "InputDataConfig, channel train: 'data' is no place"),
        ({"InputDataConfig": [channel("tr ain", "file:///")]}, "channel tr ain: SageMaker takes names"),
        ({"InputDataConfig": [channel("a", "file:///opt"), channel("a", "file:///opt")]}, "channel a: given twice"),
        ({"InputDataConfig": [channel("a", "file:///opt", CompressionType="Gzip")]}, "nothing is decompressed"),
        ({"InputDataConfig": [channel("a", "file:///opt", RecordWrapperType="RecordIO")]}, "has no effect on files"),
        ({"InputDataConfig": [manifest("s3://b/list.json")]}, "the manifest s3://b/list.json is not on this machine"),
        ({"InputDataConfig": [manifest("file:///nowhere.json")]}, "the manifest /nowhere.json cannot be read"),
        ({"InputDataConfig": [manifest("file:///", InputMode="FastFile")]}, "FastFile mode takes no manifest"),
        ({"ResourceConfig": {"InstanceType": "x", "InstanceCount": 0}}, "ResourceConfig, hosts 0: expected 1 to 100"),
        ({"TrainingJobName": "my_job"}, "TrainingJobName 'my_job'"),
        ({"Environment": {"A-B": "1"}}, "Environment A-B: SageMaker takes names"),
        ({"HyperParameters": {"trainbox_script": "xgbost"}}, "did you mean 'xgboost_train'"),
        ({"HyperParameters": {"trainbox_luancher": "x", "trainbox_script": "xgboost"}}, "'trainbox_luancher'"),
        ({"HyperParameters": {"processes_per_host": "0", "trainbox_script": "xgboost"}}, "processes_per_host 0"),
        ({"HyperParameters": {}}, "no script is named"),
        ({"AlgorithmSpecification": {"ContainerArguments": ["-c"]}}, "ContainerArguments: without containers"),
        ({"CheckpointConfig": {"S3Uri": "s3://b", "LocalPath": "/opt/ml/x"}}, "CheckpointConfig.LocalPath /opt/ml/x"),
        (
            {"HyperParameters": {"sagemaker_program": "a.py", "sagemaker_submit_directory": "file:///nowhere"}},
            "there is no directory /nowhere",
        ),
    ],
)
def test_what_no_job_here_can_have_is_named_by_its_member(here: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError) as caught:
        ask(here, body(here, **more))
    assert said in str(caught.value)
    assert "--" not in caught.value.message
