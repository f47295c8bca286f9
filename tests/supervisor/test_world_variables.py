"""What a process is told of its rank, of where ranks meet and of the network, on hosts of one job: before any runs."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.contract.cluster.world import GROUPS
from trainbox.contract.environment import Machine
from trainbox.contract.job import read_job
from trainbox.errors import ContractError, HyperparameterError
from trainbox.supervisor.plan import Plan, plan
from trainbox.supervisor.program.choice import Program

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "GROUP_WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")
SCRIPT = Program(name="train.py", command=(sys.executable, "train.py"), directory=Path("/code"))
READERS_AND_TRAINERS = {"reader": ["algo-1"], "trainer": ["algo-2", "algo-3"]}


def planned(
    root: Path,
    *,
    hosts: int = 1,
    current: int = 1,
    asked: Mapping[str, object] | None = None,
    machine: Machine | None = None,
    groups: Mapping[str, list[str]] | None = None,
    env: Mapping[str, str] | None = None,
) -> Plan:
    """What one host of a job runs."""
    config = root / "input/config"
    config.mkdir(parents=True, exist_ok=True)
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (asked or {}).items()}
    (config / "hyperparameters.json").write_text(json.dumps({"sagemaker_program": "train.py", **values}))
    resources: dict[str, object] = {
        "hosts": [f"algo-{number + 1}" for number in range(hosts)],
        "current_host": f"algo-{current}",
        "instance_groups": [{"instance_group_name": name, "hosts": each} for name, each in (groups or {}).items()],
    }
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    env = env or {}
    return plan(read_job(root, env), SCRIPT, env=env, machine=machine or Machine(cpus=8), scratch=Path("/scratch"))


def told(made: Plan, names: tuple[str, ...] = NAMES) -> list[list[str | None]]:
    return [[child.environment.get(name) for name in names] for child in made.children]


@pytest.mark.parametrize(
    ("hosts", "processes", "expected"),
    [
        (1, 1, [[None] * 7]),
        (2, 1, [["1", "2", "0", "1", "1", "1", "2"]]),
        (1, 2, [["0", "2", "0", "2", "0", "0", "1"], ["1", "2", "1", "2", "0", "0", "1"]]),
        (2, 2, [["2", "4", "0", "2", "1", "1", "2"], ["3", "4", "1", "2", "1", "1", "2"]]),
    ],
)
def test_every_process_of_a_job_with_several_knows_its_place_as_under_torchrun(
    tmp_path: Path, hosts: int, processes: int, expected: list[list[str | None]]
) -> None:
    made = planned(tmp_path, hosts=hosts, current=hosts, asked={"processes_per_host": str(processes)})
    assert told(made) == expected
    address = "algo-1" if hosts > 1 else "127.0.0.1"  # one host alone may not resolve its own name
    assert told(made, MEETING) == [[address, "29400"]] * processes


@pytest.mark.parametrize("asked", [{}, {"processes_per_host": "1"}])
def test_one_process_on_a_host_of_several_gpus_is_a_rank_but_not_that_of_one_device(
    tmp_path: Path, asked: dict[str, str]
) -> None:
    made = planned(tmp_path, hosts=2, current=2, asked=asked, machine=Machine(cpus=8, gpus=4), env={"LOCAL_RANK": "3"})
    assert told(made) == [["1", "2", None, None, "1", "1", "2"]]
    (note,) = made.notes
    assert note.startswith("1 process(es) for 4 GPUs: 3 GPU(s) wait unless the script itself uses them; ")
    each = planned(tmp_path, hosts=2, asked={"processes_per_host": "4"}, machine=Machine(cpus=8, gpus=4))
    assert not each.notes
    one = planned(tmp_path, hosts=2, machine=Machine(cpus=8, gpus=1))
    assert (told(one)[0][2], one.notes) == ("0", ())


def test_the_world_is_the_hosts_of_the_groups_that_the_request_names(tmp_path: Path) -> None:
    def of(current: int, names: object) -> Plan:
        return planned(tmp_path, hosts=3, current=current, asked={GROUPS: names}, groups=READERS_AND_TRAINERS)

    assert told(of(2, ["trainer"]))[0][:2] == ["0", "2"]
    assert told(of(3, ["trainer"]))[0] == ["1", "2", "0", "1", "1", "1", "2"]
    assert {told(of(host, ["trainer"]), MEETING)[0][0] for host in (1, 2, 3)} == {"algo-2"}
    assert told(of(1, ["trainer"])) == [[None] * 7]
    assert of(1, ["trainer"]).notes == (
        f"{GROUPS} names algo-2, algo-3: on this host the script is started once, without a rank",
    )
    assert told(of(1, ["reader"])) == [[None] * 7], "alone in its world"
    for names in (["reader", "trainer"], ["nobody"], "trainer"):
        assert told(of(3, names))[0][:2] == ["2", "3"]
    assert any("names no instance group" in note for note in of(3, ["nobody"]).notes)


def test_a_host_outside_of_the_world_is_no_rank_of_torchrun_either(tmp_path: Path) -> None:
    asked = {GROUPS: ["trainer"], "trainbox_launcher": "torchrun", "processes_per_host": "2"}
    machine = Machine(cpus=8, modules=("torch",))
    groups = READERS_AND_TRAINERS

    def of(current: int, **more: str) -> Plan:
        return planned(tmp_path, hosts=3, current=current, asked={**asked, **more}, machine=machine, groups=groups)

    assert [of(host).children[0].name for host in (1, 2, 3)] == ["script", "agent", "agent"]
    with pytest.raises(HyperparameterError, match="'kill 4@1' cannot happen: the job has ranks 0 to 3"):
        of(2, trainbox_drill="kill 4@1")


@pytest.mark.parametrize("launcher", ["plain", "torchrun"])
def test_network_and_threads_are_the_same_under_every_launcher(tmp_path: Path, launcher: str) -> None:
    machine = Machine(cpus=8, interfaces=("eth0", "lo"), efa=True, modules=("torch",))

    def environment(processes: int, hosts: int = 2, **env: str) -> Mapping[str, str]:
        asked = {"trainbox_launcher": launcher, "processes_per_host": str(processes)}
        return planned(tmp_path, hosts=hosts, asked=asked, machine=machine, env=env).children[0].environment

    two = environment(2, FI_PROVIDER="tcp")
    assert [two[name] for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "FI_EFA_USE_DEVICE_RDMA")] == [
        *("eth0", "eth0", "1")
    ]
    assert (two["FI_PROVIDER"], two["OMP_NUM_THREADS"]) == ("tcp", "4")
    assert environment(2, hosts=1)["GLOO_SOCKET_IFNAME"] == "lo", "where no other host reaches the ranks"
    assert environment(2, hosts=1, GLOO_SOCKET_IFNAME="eth0")["GLOO_SOCKET_IFNAME"] == "eth0"
    assert environment(16)["OMP_NUM_THREADS"] == "1"
    assert environment(2, OMP_NUM_THREADS="3")["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in environment(1)


def test_where_a_platform_has_said_where_ranks_meet_a_process_alone_is_told_so(tmp_path: Path) -> None:
    given = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "RANK": "1", "WORLD_SIZE": "2"}
    (child,) = planned(tmp_path, env=given).children
    assert {name: child.environment[name] for name in given} == given
    several = planned(tmp_path, hosts=2, current=2, env=given)
    assert told(several, MEETING) == [["algo-1", "23456"]]


def test_ranks_do_not_train_alone_where_a_platform_has_started_more_hosts_than_are_named(tmp_path: Path) -> None:
    asked = {"trainbox_launcher": "torchrun", "processes_per_host": "2"}
    machine = Machine(cpus=8, modules=("torch",))
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        with pytest.raises(ContractError, match=f"{name} is 4, but .*resourceconfig.json names one host") as caught:
            planned(tmp_path, asked=asked, machine=machine, env={name: "4"})
        assert caught.value.hint
    for env in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}):
        planned(tmp_path, asked=asked, machine=machine, env=env)
    planned(tmp_path, hosts=4, asked=asked, machine=machine, env={"WORLD_SIZE": "16"})
