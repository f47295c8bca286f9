"""`--channel NAME=PLACE[,OPTION…]` and `--hosts GROUP=N,…`: what is understood, refused, and given to which host."""

import argparse
import datetime as dt
import json
from pathlib import Path

import msgspec
import pytest

from trainbox.cli.screen.summary import docker_command, resume_command
from trainbox.contract.environment import Machine, variables
from trainbox.contract.job import read_job
from trainbox.errors import RunError
from trainbox.local.backends.isolation import Isolation
from trainbox.local.inputs import pipe_writer
from trainbox.local.inputs.channel_flags import read_channel_flags
from trainbox.local.inputs.hosts import HostGroup, Hosts, read_hosts
from trainbox.local.inputs.options import Options
from trainbox.local.inputs.source import ChannelSource, read_channels
from trainbox.local.plan import HostPlan, Mount, RunPlan, plan_run
from trainbox.local.request import RunRequest

ONE = Hosts(1)
GROUPS = read_hosts("workers=2,evaluators=1")
_MOUNTS = Isolation(kind="root", at_opt_ml=True, can_name_hosts=True)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("data/b.csv", "data/a.csv", "data/more/c.csv", "with,comma/d.csv", "one.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1,2\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def channels_of(here: Path, hosts: Hosts, *flags: str) -> dict[str, ChannelSource]:
    given = read_channel_flags(flags, env={"HOME": str(here)}, cwd=here)
    return read_channels(given.channels, hosts, env={"HOME": str(here)}, places=given.places)


def read(here: Path, value: str, hosts: Hosts = ONE) -> ChannelSource:
    return channels_of(here, hosts, f"train={value}")["train"]


def plan(here: Path, *channels: str, hosts: Hosts = ONE, isolation: Isolation = _MOUNTS) -> RunPlan:
    request = RunRequest(
        script="xgboost_train",
        channels=channels_of(here, hosts, *channels),
        hosts=hosts.count,
        groups=hosts.groups,
        job_name="job",
        out=here / "out",
        isolation=isolation,
        started=dt.datetime(2026, 11, 29, tzinfo=dt.UTC),
    )
    return plan_run(request)


def config(host: HostPlan, name: str) -> dict[str, object]:
    return msgspec.convert(json.loads(host.files[f"input/config/{name}.json"]), dict[str, object])


def names(host: HostPlan, channel: str = "train") -> list[str]:
    return [entry.name for entry in host.shares[channel].files or ()]


# ---- what is understood ----


def test_options_stand_behind_a_place_that_exists(here: Path) -> None:
    found = read(here, "data,sharded,content_type=text/csv")
    assert found.path == here / "data"
    assert found.options == Options(sharded=True, content_type="text/csv")


@pytest.mark.parametrize(
    "name", ["with,comma", "data,sharded", "data,pipe,fastfile", "data,content_type=x", "a,,b", ","]
)
def test_a_comma_may_be_part_of_a_name(here: Path, name: str) -> None:
    (here / name).mkdir(exist_ok=True)
    assert read(here, name) == ChannelSource(here / name)
    (here / name / "a.csv").write_text("1,2\n")
    assert read(here, f"{name},sharded").path == here / name
    assert read(here, f"{name},sharded").options.sharded


def test_values_of_lists_have_commas(here: Path) -> None:
    found = read(here, "data,groups=workers,evaluators,sharded,content_type=text/csv", GROUPS)
    assert found.options.groups == ("workers", "evaluators")
    assert found.options.sharded


@pytest.mark.parametrize(
    "value",
    ["data", "one.csv", "data,sharded,pipe", "data,fastfile,content_type=text/csv", "with,comma,pipe,groups=workers"],
)
def test_a_channel_as_a_flag_is_read_back_as_the_same(here: Path, value: str) -> None:
    found = read(here, value, GROUPS)
    assert read(Path("/"), found.as_flag(), GROUPS) == found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere,sharded", "/nowhere"),
        ("data,shraded", "'shraded' is not an option of a channel - did you mean 'sharded'?"),
        ("data,", "'' is not an option"),
        ("data,sharded,sharded", "sharded is given twice"),
        ("data,content_type=a,content_type=b", "content_type is given twice"),
        ("data,sharded=yes", "the option sharded takes no value"),
        ("data,content_type", "the option content_type needs a value"),
        ("data,content_type=", "is not a content type"),
        ("data,pipe,fastfile", "pipe and fastfile are two input modes"),
        ("data,record_wrapper=RecordIO", "has no effect on files"),
        ("data,pipe,record_wrapper=recordio", "expected None or RecordIO - did you mean 'RecordIO'?"),
        ("data,groups=workers", "the hosts form no groups"),
        ("data,attributes=a", "attributes are those of an augmented manifest"),
        ("data,manifest=none.json", "none.json cannot be read"),
        ("data,manifest=", "the option manifest needs a value"),
        ("data,manifest=one.csv,fastfile", "FastFile mode takes no manifest"),
        ("empty,sharded", "there is no file in"),
        ("empty,pipe", "there is no file in"),
    ],
)
def test_what_is_wrong_or_has_no_effect_is_refused(here: Path, value: str, said: str) -> None:
    with pytest.raises(RunError) as caught:
        read(here, value)
    assert said in str(caught.value)
    assert "hint" in str(caught.value)


def test_an_unknown_group_is_answered_with_those_that_there_are(here: Path) -> None:
    with pytest.raises(RunError, match=r"there is no group 'wrokers' - did you mean 'workers'\?"):
        read(here, "data,groups=wrokers", GROUPS)


def test_no_channel_lies_where_the_pipe_of_another_does(here: Path) -> None:
    with pytest.raises(RunError, match="the pipe of epoch 0 of channel train has this name"):
        channels_of(here, ONE, "train=data,pipe", "train_0=data")


# ---- manifests ----


def manifest(here: Path, entries: object) -> str:
    (here / "list.json").write_text(json.dumps(entries))
    return "data,manifest=list.json"


def test_a_manifest_chooses_the_files_of_a_channel_in_its_order(here: Path) -> None:
    value = manifest(here, [{"prefix": "s3://bucket/data/"}, "more/c.csv", "a.csv"])
    host = plan(here, f"train={value}").hosts[0]
    assert names(host) == ["more/c.csv", "a.csv"]
    assert host.mounts[0].read_only


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "through a pipe alone"),
        ([], "expected a JSON list"),
        (["a.csv"], "expected the prefix"),
        ([{"prefix": "data/"}, "a.csv"], "expected the prefix"),
        ([{"prefix": "s3://bucket/"}], "there is no name behind the prefix"),
        ([{"prefix": "s3://bucket/"}, 3], "entry 2 is '3', expected a name"),
        ([{"prefix": "s3://bucket/"}, "../one.csv"], "cannot be a file below the channel"),
        ([{"prefix": "s3://bucket/"}, "/etc/passwd"], "cannot be a file below the channel"),
        ([{"prefix": "s3://bucket/"}, "a.csv", "a.csv"], "named twice"),
        ([{"prefix": "s3://bucket/"}, "z.csv"], "there is no"),
    ],
)
def test_a_manifest_that_is_none_is_refused(here: Path, entries: object, said: str) -> None:
    with pytest.raises(RunError) as caught:
        read(here, manifest(here, entries))
    assert said in str(caught.value)


def augmented(here: Path, *lines: object) -> str:
    (here / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return "data,pipe,manifest=list.jsonl"


def test_an_augmented_manifest_brings_its_attributes_in_their_order(here: Path) -> None:
    value = augmented(
        here,
        {"label": {"x": 1}, "source-ref": "s3://bucket/set/data/a.csv", "other": 0},
        {"source-ref": "s3://bucket/set/data/more/c.csv", "label": "cat"},
    )
    share = plan(here, f"train={value},attributes=source-ref,label,record_wrapper=RecordIO").hosts[0].shares["train"]
    assert share.stream is not None
    assert share.stream.wrapped
    pieces = [piece.path or piece.text for piece in share.stream.pieces]
    assert pieces == [here / "data/a.csv", '{"x":1}', here / "data/more/c.csv", "cat"]


@pytest.mark.parametrize(
    ("line", "options", "said"),
    [
        ({"source-ref": "s3://b/a.csv"}, ",attributes=source-ref,lable", "no attribute 'lable'"),
        ({"source-ref": "a.csv"}, ",attributes=source-ref", "expected s3://BUCKET/KEY"),
        ({"source-ref": "s3://b/z.csv"}, ",attributes=source-ref", "'z.csv' is not below"),
        ({"source-ref": "s3://b/../z.csv"}, ",attributes=source-ref", "cannot be a file"),
        ({"source-ref": "s3://b/a.csv"}, "", "which attributes?"),
    ],
)
def test_an_augmented_manifest_that_cannot_be_streamed_is_refused(
    here: Path, line: object, options: str, said: str
) -> None:
    with pytest.raises(RunError) as caught:
        read(here, augmented(here, line) + options)
    assert said in str(caught.value)


def test_an_augmented_manifest_comes_through_a_pipe_alone(here: Path) -> None:
    augmented(here, {"source-ref": "s3://b/a.csv"})
    with pytest.raises(RunError, match="through a pipe alone"):
        read(here, "data,manifest=list.jsonl,attributes=source-ref")


# ---- what a host gets ----


def test_each_host_gets_its_shard_and_all_files_go_to_one(here: Path) -> None:
    planned = plan(here, "train=data,sharded", hosts=Hosts(2))
    shards = [names(host) for host in planned.hosts]
    assert shards == [["a.csv", "more/c.csv"], ["b.csv"]]
    for host in planned.hosts:
        assert config(host, "inputdataconfig")["train"] == {
            "TrainingInputMode": "File",
            "S3DistributionType": "ShardedByS3Key",
            "RecordWrapperType": "None",
        }
        directory = here / "out/.trainbox/inputs" / host.name / "train"
        assert host.mounts[0] == Mount(directory, host.tree / "input/data/train", read_only=True)
    assert not planned.notes


def test_hosts_that_get_no_file_are_named(here: Path) -> None:
    planned = plan(here, "train=data,sharded", hosts=Hosts(5))
    assert planned.notes == ("channel train has 3 files for 5 hosts: algo-4, algo-5 get none, as on SageMaker",)
    assert names(planned.hosts[4]) == []
    assert plan(here, "train=data,sharded").notes == ("channel train is sharded over one host, which gets all of it",)


def test_where_nothing_can_be_mounted_a_shard_is_links(here: Path) -> None:
    isolation = Isolation(reason="none here", can_name_hosts=True)
    first, second = plan(here, "train=data,sharded", hosts=Hosts(2), isolation=isolation).hosts
    assert first.links["input/data/train/more/c.csv"] == here / "data/more/c.csv"
    assert "input/data/train/b.csv" in second.links
    assert not first.views


def test_content_type_and_record_wrapper_are_told_as_sagemaker_does(here: Path) -> None:
    host = plan(
        here, "train=data,pipe,content_type=text/csv,record_wrapper=RecordIO", "test=data,fastfile", "code=one.csv"
    ).hosts[0]
    assert config(host, "inputdataconfig") == {
        "code": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"},
        "test": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"},
        "train": {
            "ContentType": "text/csv",
            "TrainingInputMode": "Pipe",
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "RecordIO",
        },
    }
    assert list(host.streams) == ["input/data/train"]
    assert not any("train" in mount.target.name for mount in host.mounts), "no directory of a channel in Pipe mode"


def test_groups_are_told_as_sagemaker_does(here: Path) -> None:
    planned = plan(here, "train=data,groups=workers,sharded", "test=one.csv", hosts=GROUPS)
    last = planned.hosts[2]
    assert config(last, "resourceconfig") == {
        "current_host": "algo-3",
        "current_instance_type": "local",
        "current_group_name": "evaluators",
        "hosts": ["algo-1", "algo-2", "algo-3"],
        "instance_groups": [
            {"instance_group_name": "workers", "instance_type": "local", "hosts": ["algo-1", "algo-2"]},
            {"instance_group_name": "evaluators", "instance_type": "local", "hosts": ["algo-3"]},
        ],
        "network_interface_name": "lo",
    }
    assert [list(config(host, "inputdataconfig")) for host in planned.hosts] == [["test", "train"]] * 2 + [["test"]]
    assert [names(host) for host in planned.hosts[:2]] == [["a.csv", "more/c.csv"], ["b.csv"]]


def test_scripts_find_their_group_in_the_variables(here: Path, tmp_path: Path) -> None:
    host = plan(here, "train=data,groups=workers", hosts=GROUPS).hosts[2]
    root = tmp_path / "root"
    for name, text in host.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    found = variables(read_job(root, {}), entry_point="train.py", env={}, machine=Machine()).values
    assert found["SM_CURRENT_INSTANCE_GROUP"] == "evaluators"
    assert json.loads(found["SM_CURRENT_INSTANCE_GROUP_HOSTS"]) == ["algo-3"]
    assert json.loads(found["SM_INSTANCE_GROUPS"]) == ["workers", "evaluators"]
    assert found["SM_IS_HETERO"] == "true"
    assert json.loads(found["SM_CHANNELS"]) == []


def test_hosts_are_numbered_through_all_groups() -> None:
    assert Hosts(3, (HostGroup("workers", 2), HostGroup("evaluators", 1))) == GROUPS
    assert read_hosts(GROUPS.text) == GROUPS
    assert read_hosts("4") == Hosts(4)


@pytest.mark.parametrize("text", ["", "two", "a=", "=2", "a=1,,b=1", "a=x", "1,2"])
def test_hosts_that_are_neither_a_number_nor_groups_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="workers=2,evaluators=1"):
        read_hosts(text)


def test_a_shown_command_asks_for_the_same(here: Path) -> None:
    (here / "list.json").write_text(json.dumps([{"prefix": "s3://bucket/"}, "a.csv"]))
    planned = plan(here, "train=data,manifest=list.json,groups=workers", "test=with,comma,sharded", hosts=GROUPS)
    for command in (resume_command(planned.request), docker_command(planned.request)):
        assert f"train={here}/data,manifest={here}/list.json,groups=workers" in command
        assert f"test={here}/with,comma,sharded" in command
        assert "workers=2,evaluators=1" in command


# ---- RecordIO ----


def test_a_record_is_cut_where_it_holds_the_magic_number() -> None:
    magic = pipe_writer._MAGIC
    assert b"".join(pipe_writer.frames(b"abc")) == magic + b"\3\0\0\0" + b"abc\0"
    cut = list(pipe_writer.frames(b"abcd" + magic + b"ef"))
    assert cut == [magic + b"\4\0\0\x20", b"abcd", magic + b"\2\0\0\x60", b"ef\0\0"]
    whole = list(pipe_writer.frames(b"abc" + magic + b"d"))
    assert whole == [magic + b"\x08\0\0\0", b"abc" + magic + b"d"], "not at a multiple of four"
