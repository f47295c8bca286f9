"""Who trains together: hosts in SageMaker's order, on each its processes."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.comm import Members, find_members
from trainbox.contract.cluster.ranks import read_ranks
from trainbox.contract.job import Job, read_job
from trainbox.errors import ContractError

HOSTS = ("algo-1", "algo-10", "algo-2")


def job_of(tmp_path: Path, *hosts: str, current: str) -> Job:
    config = tmp_path / "input/config"
    config.mkdir(parents=True)
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": current, "hosts": hosts}))
    return read_job(tmp_path, {"TRAINING_JOB_NAME": "boost"})


def found(job: Job, env: Mapping[str, str]) -> Members:
    return find_members(job, read_ranks(env, hosts=len(job.hosts), host_rank=job.host_rank))


def test_hosts_stand_in_the_order_that_sagemaker_gives_and_the_first_leads(tmp_path: Path) -> None:
    members = found(job_of(tmp_path, *HOSTS, current="algo-10"), {})
    assert members == Members(HOSTS, "algo-10", "algo-1", "boost")
    assert (members.rank, members.size, members.is_first) == (1, 3, False)


def test_several_processes_of_a_host_are_members_of_their_own(tmp_path: Path) -> None:
    env = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "RANK": "5", "WORLD_SIZE": "6", "MASTER_ADDR": "algo-1"}
    members = found(job_of(tmp_path, *HOSTS, current="algo-2"), env)
    assert members.names == ("algo-1/0", "algo-1/1", "algo-10/0", "algo-10/1", "algo-2/0", "algo-2/1")
    assert (members.name, members.rank, members.address) == ("algo-2/1", 5, "algo-1")


def test_processes_of_one_host_meet_on_its_loopback(tmp_path: Path) -> None:
    env = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "WORLD_SIZE": "2"}
    members = found(job_of(tmp_path, "algo-1", current="algo-1"), env)
    assert (members.names, members.address) == (("algo-1/0", "algo-1/1"), "127.0.0.1")
    assert members.is_first


def test_one_process_of_one_host_is_alone(tmp_path: Path) -> None:
    members = found(job_of(tmp_path, "algo-1", current="algo-1"), {})
    assert (members.names, members.size, members.is_first) == (("algo-1",), 1, True)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"WORLD_SIZE": "4"}, r"WORLD_SIZE is 4; 3 host\(s\) with 2 process\(es\) make it 6"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "1"}, r"WORLD_SIZE is 4; 3 host\(s\) with 1 process\(es\) make it 3"),
        ({"RANK": "0"}, "RANK is 0; .* make it 1"),
    ],
)
def test_variables_that_contradict_the_hosts_of_the_job_are_named(
    tmp_path: Path, env: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        found(job_of(tmp_path, *HOSTS, current="algo-10"), env)
