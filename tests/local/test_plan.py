"""A request becomes a plan: pure, so that it can be compared."""

import datetime as dt
import json
from pathlib import Path

import msgspec

from trainbox.local.backends.isolation import Isolation
from trainbox.local.inputs.source import ChannelSource
from trainbox.local.plan import HostPlan, Mount, plan_run
from trainbox.local.request import RunRequest
from trainbox.local.results.record import JobRecord
from trainbox.local.source import Source

OUT = Path("/results/job")
REQUEST = RunRequest(
    script="train.py",
    source=Source(Path("/src"), ("train.py",), 10),
    channels={"a": ChannelSource(Path("/data/a.csv"), is_file=True), "train": ChannelSource(Path("/data/train"))},
    hyperparameters={"eta": "0.1"},
    env={"MINE": "1"},
    inherited={"PATH": "/bin", "SM_HPS": "old", "TRAINBOX_ROOT": "/old", "RANK": "3", "SAGEMAKER_PROGRAM": "old.py"},
    job_name="job",
    out=OUT,
    isolation=Isolation(kind="root", at_opt_ml=True, can_name_hosts=True),
    started=dt.datetime(2026, 11, 5, tzinfo=dt.UTC),
)


def content(host: HostPlan, name: str) -> dict[str, object]:
    return msgspec.convert(json.loads(host.files[f"input/config/{name}.json"]), dict[str, object])


def changed(**fields: object) -> RunRequest:
    return msgspec.structs.replace(REQUEST, **fields)


def test_the_same_request_gives_the_same_plan() -> None:
    assert plan_run(REQUEST) == plan_run(changed())


def test_a_host_finds_the_files_that_the_cloud_writes() -> None:
    (host,) = plan_run(REQUEST).hosts
    assert content(host, "hyperparameters") == {
        "eta": "0.1",
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": "/opt/ml/code",
    }
    file_channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    assert content(host, "inputdataconfig") == {"a": file_channel, "train": file_channel}
    assert content(host, "resourceconfig") == {
        "current_host": "algo-1",
        "current_instance_type": "local",
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1"],
        "instance_groups": [
            {"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": ["algo-1"]}
        ],
        "network_interface_name": "lo",
    }
    assert content(host, "checkpointconfig") == {"LocalPath": "/opt/ml/checkpoints"}


def test_a_bundled_script_is_named_and_not_copied() -> None:
    (host,) = plan_run(changed(source=None, script="xgboost_train", processes=2)).hosts
    assert content(host, "hyperparameters") == {
        "eta": "0.1",
        "trainbox_script": "xgboost_train",
        "processes_per_host": "2",
    }


def test_inputs_are_mounted_read_only_before_the_tree_hides_what_lies_below_opt_ml() -> None:
    (host,) = plan_run(REQUEST).hosts
    tree = OUT / ".trainbox" / "algo-1"
    assert host.root == Path("/opt/ml")
    assert host.mounts == (
        Mount(Path("/data/a.csv"), tree / "input/data/a/a.csv", read_only=True),
        Mount(Path("/data/train"), tree / "input/data/train", read_only=True),
        Mount(OUT / "checkpoints", tree / "checkpoints"),
        Mount(OUT / ".trainbox" / "etc-hosts", Path("/etc/hosts"), read_only=True),
        Mount(tree, Path("/opt/ml")),
    )
    assert not host.links
    assert "TRAINBOX_ROOT" not in host.environment


def test_where_nothing_can_be_mounted_links_and_a_root_stand_in() -> None:
    (host,) = plan_run(changed(isolation=Isolation(reason="no"))).hosts
    tree = OUT / ".trainbox" / "algo-1"
    assert host.mounts == ()
    assert host.links == {
        "input/data/a/a.csv": Path("/data/a.csv"),
        "input/data/train": Path("/data/train"),
        "checkpoints": OUT / "checkpoints",
    }
    assert host.environment["TRAINBOX_ROOT"] == str(tree)
    assert content(host, "hyperparameters")["sagemaker_submit_directory"] == str(tree / "code")


def test_hosts_are_sorted_as_sagemaker_sorts_them() -> None:
    plan = plan_run(changed(hosts=11))
    assert [host.name for host in plan.hosts][:3] == ["algo-1", "algo-10", "algo-11"]
    assert content(plan.hosts[2], "resourceconfig")["current_host"] == "algo-11"


def test_hosts_that_cannot_be_named_are_loopback_addresses() -> None:
    nowhere = Isolation(reason="no")
    assert [host.name for host in plan_run(changed(hosts=2, isolation=nowhere)).hosts] == ["127.0.0.1", "127.0.0.2"]
    assert [host.name for host in plan_run(changed(hosts=1, isolation=nowhere)).hosts] == ["algo-1"]


def test_the_variables_of_another_job_are_not_passed_on() -> None:
    plan = plan_run(REQUEST)
    assert plan.removed == ("RANK", "SAGEMAKER_PROGRAM", "SM_HPS", "TRAINBOX_ROOT")
    apart = {"PIP_TARGET": "/opt/ml/packages", "PYTHONPATH": "/opt/ml/packages"}
    own = {"TRAINING_JOB_NAME": "job", "TRAINBOX_PREFLIGHT": "off"}
    assert plan.hosts[0].environment == {"PATH": "/bin", "MINE": "1", **own, **apart}


def test_the_persons_own_variable_wins_over_the_inherited_one() -> None:
    plan = plan_run(changed(env={"TRAINBOX_GRACE_SECONDS": "1"}, inherited={"TRAINBOX_GRACE_SECONDS": "9"}))
    assert plan.removed == ()
    assert plan.hosts[0].environment["TRAINBOX_GRACE_SECONDS"] == "1"


def test_an_attempt_follows_the_one_before() -> None:
    record = JobRecord(job_name="job", attempt=4, started="", script="")
    assert plan_run(REQUEST).attempt == 1
    assert plan_run(changed(previous=record)).attempt == 5


def test_a_module_and_raw_arguments_are_told_as_the_cloud_is_told_them() -> None:
    raw = ("--x", "a b", 'é"')
    (host,) = plan_run(changed(script="pkg/train.py", module="pkg.train", raw_arguments=raw)).hosts
    told = content(host, "hyperparameters")
    assert told == {
        "eta": "0.1",
        "trainbox_module": "pkg.train",
        "sagemaker_submit_directory": "/opt/ml/code",
        "trainbox_raw_arguments": json.dumps(raw),
    }
