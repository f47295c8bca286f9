"""Which rank a process is, by its job and its variables; refused where it would train alone by mistake."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.contract.cluster.ranks import Ranks
from trainbox.contract.cluster.world import GROUPS
from trainbox.contract.job import Job, read_job
from trainbox.errors import ContractError
from trainbox.torch.world import find_ranks

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
#: What torchrun gives the ranks of one host that knows of no other: `torchrun --standalone --nproc-per-node=2`.
STANDALONE = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
}


def job_of(root: Path, hosts: int = 1, *, current: int = 1, groups: list[str] | None = None) -> Job:
    config = root / "input/config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "hyperparameters.json").write_text(json.dumps({GROUPS: json.dumps(groups)} if groups else {}))
    names = [f"algo-{number + 1}" for number in range(hosts)]
    resources = {
        "hosts": names,
        "current_host": f"algo-{current}",
        "instance_groups": [
            {"instance_group_name": "reader", "hosts": names[:1]},
            {"instance_group_name": "trainer", "hosts": names[1:]},
        ],
    }
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    return read_job(root, {})


def test_without_a_launcher_one_host_is_alone(tmp_path: Path) -> None:
    assert find_ranks(job_of(tmp_path), {"PATH": "/bin", "SM_HOSTS": '["algo-1"]'}) == Ranks(0, 1, 0, 1)
    assert find_ranks(job_of(tmp_path), TORCHRUN) == Ranks(3, 4, 1, 2)
    with pytest.raises(ContractError, match="WORLD_SIZE: found 'x'"):
        find_ranks(job_of(tmp_path), {**TORCHRUN, "WORLD_SIZE": "x"})
    with pytest.raises(ContractError, match="LOCAL_RANK is not set, though RANK is"):
        find_ranks(job_of(tmp_path), {**TORCHRUN, "LOCAL_RANK": ""})


def test_a_process_for_all_gpus_of_its_host_is_the_rank_of_its_host(tmp_path: Path) -> None:
    assert find_ranks(job_of(tmp_path, 2), {"RANK": "1", "WORLD_SIZE": "2"}) == Ranks(1, 2, 0, 1)
    with pytest.raises(ContractError, match="LOCAL_RANK is not set, though RANK is"):
        find_ranks(job_of(tmp_path, 2), {"RANK": "1", "WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("hosts", "env", "message"),
    [
        (2, {}, r"RANK is not set, though the job has 2 hosts \(algo-1, algo-2\): each would train alone"),
        (1, {"SM_HOSTS": '["a", "b"]'}, r"RANK is not set, though the job has 2 hosts \(a, b\)"),
        (1, {"SM_HOSTS": "a,b"}, "SM_HOSTS: found 'a,b', expected a JSON list"),
        (1, {"WORLD_SIZE": "2"}, "RANK is not set, though WORLD_SIZE is 2: each process would train alone"),
        (1, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "though OMPI_COMM_WORLD_SIZE is 2"),
        (1, {"SLURM_STEP_NUM_TASKS": "4"}, "though SLURM_STEP_NUM_TASKS is 4"),
        (2, STANDALONE, "rank 1 of 2 would train without other hosts of this job, which has 2: algo-1, algo-2"),
        (3, {**TORCHRUN, "GROUP_WORLD_SIZE": "2"}, "rank 3 of 4 would train without other hosts"),
        (2, {**STANDALONE, "GROUP_WORLD_SIZE": ""}, "rank 1 of 2 would train without other hosts"),
        (2, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "rank 0 of 1 would train"),
    ],
)
def test_no_process_trains_without_other_members_of_its_job(
    tmp_path: Path, hosts: int, env: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        find_ranks(job_of(tmp_path, hosts), env)
    assert caught.value.hint


def test_hosts_that_the_request_leaves_out_are_no_members(tmp_path: Path) -> None:
    two = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}
    assert find_ranks(job_of(tmp_path, 3, current=3, groups=["trainer"]), two) == Ranks(1, 2, 0, 1)
    every = '["algo-1", "algo-2"]'
    assert find_ranks(job_of(tmp_path, 2, current=2, groups=["trainer"]), {"SM_HOSTS": every}) == Ranks(0, 1, 0, 1)
    with pytest.raises(ContractError, match="algo-1 does not take part in the training: ") as caught:
        find_ranks(job_of(tmp_path, 3, groups=["trainer"]), {})
    assert "SM_CURRENT_INSTANCE_GROUP" in caught.value.hint
