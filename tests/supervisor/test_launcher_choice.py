"""Who starts the processes of a host, how many, and what they are told: decided before any of them runs."""

import json
import sys
from pathlib import Path

import pytest

from trainbox.contract.environment import Machine
from trainbox.contract.job import read_job
from trainbox.errors import HyperparameterError, ProgramError
from trainbox.supervisor.plan import Plan, plan
from trainbox.supervisor.program.choice import Program

SCRIPT = Program(name="train.py", command=(sys.executable, "train.py"), directory=Path("/code"))
WITH_TORCH = Machine(cpus=8, modules=("torch",))


def planned(
    tmp_path: Path,
    hyperparameters: dict[str, str],
    machine: Machine = WITH_TORCH,
    program: Program = SCRIPT,
    interface: str = "eth0",
    **env: str,
) -> Plan:
    config = tmp_path / "input/config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    resources = {"hosts": ["algo-1"], "current_host": "algo-1", "network_interface_name": interface}
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    return plan(read_job(tmp_path, env), program, env=env, machine=machine, scratch=Path("/scratch"))


def test_torchrun_is_one_child_that_starts_the_ranks(tmp_path: Path) -> None:
    made = planned(tmp_path, {"trainbox_launcher": "torchrun", "processes_per_host": "4", "eta": "1"})
    (child,) = made.children
    assert child.name == "agent"
    agent = (sys.executable, "-P", "-m", "trainbox.launcher", "4", "/scratch")
    assert child.argv == (*agent, "train.py"), "arguments may be secret, and every user sees those of a process"
    assert made.processes == 4
    assert child.environment["OMP_NUM_THREADS"] == "2"
    assert "PYTHONPATH" not in child.environment


@pytest.mark.parametrize(
    ("hyperparameters", "machine", "processes"),
    [
        ({}, WITH_TORCH, 1),
        ({}, Machine(gpus=4, modules=("torch",)), 4),
        ({"processes_per_host": "2"}, Machine(gpus=4, modules=("torch",)), 2),
        ({"sagemaker_mpi_enabled": "true", "sagemaker_mpi_num_of_processes_per_host": "3"}, WITH_TORCH, 3),
    ],
)
def test_there_are_as_many_ranks_as_asked_for_else_as_gpus(
    tmp_path: Path, hyperparameters: dict[str, str], machine: Machine, processes: int
) -> None:
    assert planned(tmp_path, {"trainbox_launcher": "torchrun", **hyperparameters}, machine).processes == processes


@pytest.mark.parametrize(
    ("hyperparameters", "name", "processes"),
    [
        ({"device": "cuda"}, "xgboost_train.py", 4),
        ({"tree_method": "gpu_hist"}, "xgboost_train.py", 4),
        ({"device": "cuda", "processes_per_host": "2"}, "xgboost_train.py", 2),
        ({"device": "cuda:1"}, "xgboost_train.py", 1),
        ({"device": "cpu"}, "xgboost_train.py", 1),
        ({"device": "cuda"}, "train.py", 1),
    ],
)
def test_the_bundled_xgboost_has_a_process_for_each_gpu_it_is_to_use(
    tmp_path: Path, hyperparameters: dict[str, str], name: str, processes: int
) -> None:
    program = Program(name=name, command=(sys.executable, name), directory=Path("/code"))
    assert planned(tmp_path, hyperparameters, Machine(gpus=4), program).processes == processes


@pytest.mark.parametrize(
    ("hyperparameters", "name", "child"),
    [
        ({}, "train.py", "script"),
        ({"sagemaker_torch_distributed_enabled": "true"}, "train.py", "agent"),
        ({"sagemaker_torch_distributed_enabled": "false"}, "train.py", "script"),
        ({"sagemaker_pytorch_ddp_enabled": "true"}, "train.py", "agent"),
        ({"sagemaker_mpi_enabled": "true"}, "train.py", "agent"),
        ({"sagemaker_torch_distributed_enabled": "true", "trainbox_launcher": "plain"}, "train.py", "script"),
        ({}, "pytorch_train.py", "agent"),
        ({"sagemaker_program": "pytorch_train.py"}, "pytorch_train.py", "script"),
    ],
)
def test_auto_means_torchrun_where_the_request_speaks_of_it(
    tmp_path: Path, hyperparameters: dict[str, str], name: str, child: str
) -> None:
    program = Program(name=name, command=(sys.executable, name), directory=Path("/code"))
    assert [one.name for one in planned(tmp_path, hyperparameters, program=program).children] == [child]


def test_what_is_honoured_is_not_said_to_be_missing(tmp_path: Path) -> None:
    assert planned(tmp_path, {"sagemaker_torch_distributed_enabled": "true"}).notes == ()
    (note,) = planned(tmp_path, {"sagemaker_mpi_enabled": "true"}).notes
    assert "by torch elastic, not by mpirun" in note


def test_mpi_may_not_ask_for_more_processes_than_planning_can_bear(tmp_path: Path) -> None:
    asked = {"sagemaker_mpi_enabled": "true", "sagemaker_mpi_num_of_processes_per_host": "9" * 300}
    with pytest.raises(HyperparameterError, match="expected 1 to 1024"):
        planned(tmp_path, asked)


def test_the_data_parallel_library_is_used_where_it_is_there(tmp_path: Path) -> None:
    asked = {"sagemaker_distributed_dataparallel_enabled": "true"}
    machine = Machine(gpus=8, modules=("smdistributed", "torch"))
    assert planned(tmp_path, asked, machine).children[0].environment["TRAINBOX_BACKEND"] == "smddp"
    with pytest.raises(HyperparameterError, match="smdistributed is not installed") as caught:
        planned(tmp_path, asked, Machine(gpus=8, modules=("torch",)))
    assert "trainbox_backend=nccl" in caught.value.hint
    chosen = planned(tmp_path, {**asked, "trainbox_backend": "gloo"})
    assert chosen.children[0].environment["TRAINBOX_BACKEND"] == "gloo"


def test_what_cannot_be_started_is_said_at_once(tmp_path: Path) -> None:
    asked = {"trainbox_launcher": "torchrun"}
    shell = Program(name="run.sh", command=("/bin/sh", "./run.sh"), directory=Path("/code"))
    with pytest.raises(ProgramError, match="starts Python scripts"):
        planned(tmp_path, asked, program=shell)
    with pytest.raises(ProgramError, match="torch, which is not installed"):
        planned(tmp_path, asked, Machine())
    with pytest.raises(HyperparameterError, match=r"2 process\(es\), 1 GPU\(s\)"):
        planned(
            tmp_path,
            {**asked, "trainbox_backend": "nccl", "processes_per_host": "2"},
            Machine(gpus=1, modules=("torch",)),
        )


def test_an_interface_that_does_not_exist_is_not_exported(tmp_path: Path) -> None:
    asked = {"trainbox_launcher": "torchrun"}
    machine = Machine(interfaces=("eth0", "lo"), modules=("torch",))
    there = planned(tmp_path, asked, machine).children[0].environment
    assert (there["NCCL_SOCKET_IFNAME"], there["GLOO_SOCKET_IFNAME"]) == ("eth0", "lo")
    missing = planned(tmp_path, asked, machine, interface="ethwe").children[0].environment
    assert ("NCCL_SOCKET_IFNAME" in missing, missing["GLOO_SOCKET_IFNAME"]) == (False, "lo")
    without = planned(tmp_path, asked, Machine(interfaces=("eth0",), modules=("torch",))).children[0].environment
    assert "GLOO_SOCKET_IFNAME" not in without
    own = planned(tmp_path, asked, machine, NCCL_SOCKET_IFNAME="ib0").children[0].environment
    assert own["NCCL_SOCKET_IFNAME"] == "ib0"


def test_an_efa_that_is_there_is_used(tmp_path: Path) -> None:
    asked = {"trainbox_launcher": "torchrun"}
    machine = Machine(efa=True, modules=("torch",))
    assert planned(tmp_path, asked, machine).children[0].environment["FI_PROVIDER"] == "efa"
    assert "FI_PROVIDER" not in planned(tmp_path, asked).children[0].environment
    assert planned(tmp_path, asked, machine, FI_PROVIDER="tcp").children[0].environment["FI_PROVIDER"] == "tcp"


def test_threads_that_are_asked_for_stay(tmp_path: Path) -> None:
    asked = {"trainbox_launcher": "torchrun", "processes_per_host": "16"}
    assert planned(tmp_path, asked).children[0].environment["OMP_NUM_THREADS"] == "1"
    assert planned(tmp_path, asked, OMP_NUM_THREADS="3").children[0].environment["OMP_NUM_THREADS"] == "3"


# -- who starts a script of the user's own ----------------------------------------------------------------------------

SESSION = Program(name="train.py", command=(sys.executable, "train.py"), directory=Path("/code"), session="lib/loop.py")
SHELL = Program(name="run.sh", command=("/bin/sh", "./run.sh"), directory=Path("/code"))
MODULE = Program(name="pkg/train.py", command=(sys.executable, "-m", "pkg.train"), directory=Path("/code"))
FOREST = Program(
    name="random_forest_train.py", command=(sys.executable, "random_forest_train.py"), directory=Path("/code")
)
OWN = {"sagemaker_program": "train.py"}


@pytest.mark.parametrize(
    ("program", "hyperparameters", "said"),
    [
        (SESSION, {}, "lib/loop.py imports trainbox.torch"),
        (SCRIPT, {"trainbox_drill": "kill 0@3"}, "trainbox_drill is given"),
        (MODULE, {"trainbox_max_restarts": "2"}, "trainbox_max_restarts is given"),
        (SCRIPT, {"trainbox_start_seconds": "60"}, "trainbox_start_seconds is given"),
        (SCRIPT, {"trainbox_hang_seconds": "60"}, "trainbox_hang_seconds is given"),
        (
            SESSION,
            {"trainbox_hang_seconds": "60", "trainbox_max_restarts": "1"},
            "lib/loop.py imports trainbox.torch, trainbox_max_restarts and trainbox_hang_seconds are given",
        ),
    ],
)
def test_auto_chooses_torchrun_for_what_only_torchrun_can_do_and_says_why(
    tmp_path: Path, program: Program, hyperparameters: dict[str, str], said: str
) -> None:
    made = planned(tmp_path, {**OWN, **hyperparameters}, program=program)
    assert [child.name for child in made.children] == ["agent"]
    assert made.notes == (f"launcher torchrun: {said} (trainbox_launcher=plain turns it off)",)


@pytest.mark.parametrize(
    ("program", "hyperparameters"),
    [
        (SCRIPT, {}),
        (SCRIPT, {"trainbox_max_restarts": "0"}),
        (SCRIPT, {"trainbox_hang_seconds": "0"}),
        (SHELL, {"trainbox_hang_seconds": "60"}),
        (SESSION, {"trainbox_launcher": "plain"}),
        (SESSION, {"trainbox_launcher": "plain", "trainbox_hang_seconds": "60", "trainbox_max_restarts": "0"}),
    ],
)
def test_others_are_started_by_the_supervisor_itself_without_a_word(
    tmp_path: Path, program: Program, hyperparameters: dict[str, str]
) -> None:
    made = planned(tmp_path, {**OWN, **hyperparameters}, program=program)
    assert ([child.name for child in made.children], made.notes) == (["script"], ())


@pytest.mark.parametrize(("program", "why"), [(SESSION, "lib/loop.py imports"), (SCRIPT, "trainbox_hang_seconds is")])
def test_without_torch_auto_says_that_it_starts_the_script_without_a_launcher(
    tmp_path: Path, program: Program, why: str
) -> None:
    given = {} if program is SESSION else {"trainbox_hang_seconds": "60"}
    made = planned(tmp_path, {**OWN, **given}, Machine(), program=program)
    assert [child.name for child in made.children] == ["script"]
    (note,) = made.notes
    assert note.startswith(f"launcher plain, though {why}")
    assert note.endswith("torch is not installed")


@pytest.mark.parametrize(
    ("program", "hyperparameters", "said"),
    [
        (SESSION, {"trainbox_launcher": "plain", "trainbox_drill": "kill 0@3"}, "trainbox_drill has no effect: the la"),
        (SCRIPT, {"trainbox_launcher": "plain", "trainbox_max_restarts": "3"}, "trainbox_max_restarts has no effect"),
        (
            SCRIPT,
            {"trainbox_launcher": "plain", "trainbox_start_seconds": "3", "trainbox_max_restarts": "3"},
            "trainbox_max_restarts and trainbox_start_seconds have no effect: the launcher is plain",
        ),
        (SHELL, {"trainbox_drill": "kill 0@3"}, "starts Python scripts, and 'run.sh' is none"),
        (SHELL, {"trainbox_max_restarts": "3"}, "starts Python scripts, and 'run.sh' is none"),
    ],
)
def test_what_only_torchrun_can_do_is_refused_where_it_does_not_start_the_script(
    tmp_path: Path, program: Program, hyperparameters: dict[str, str], said: str
) -> None:
    with pytest.raises(HyperparameterError) as raised:
        planned(tmp_path, {**OWN, **hyperparameters}, program=program)
    assert said in raised.value.message


@pytest.mark.parametrize("launcher", ["auto", "plain", "torchrun"])
def test_the_bundled_tree_scripts_cannot_be_drilled(tmp_path: Path, launcher: str) -> None:
    asked = {"trainbox_script": "random_forest", "trainbox_launcher": launcher, "trainbox_drill": "kill 0@3"}
    with pytest.raises(HyperparameterError, match="trainbox_drill has no effect"):
        planned(tmp_path, asked, program=FOREST)
    watched = {"trainbox_script": "random_forest", "trainbox_hang_seconds": "60"}
    assert [child.name for child in planned(tmp_path, watched, program=FOREST).children] == ["script"]


def test_drills_without_torch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="torch, which is not installed"):
        planned(tmp_path, {**OWN, "trainbox_drill": "kill 0@3"}, Machine())


@pytest.mark.parametrize(
    ("drill", "processes", "there"),
    [("kill 1@3", "1", "rank 0 alone"), ("kill 0@3, freeze 5@3", "4", "ranks 0 to 3")],
)
def test_a_drill_of_a_rank_that_does_not_exist_is_refused(
    tmp_path: Path, drill: str, processes: str, there: str
) -> None:
    with pytest.raises(HyperparameterError, match=rf"cannot happen: the job has {there}"):
        planned(tmp_path, {**OWN, "trainbox_drill": drill, "processes_per_host": processes})
    assert planned(tmp_path, {**OWN, "trainbox_drill": "kill 7@3", "processes_per_host": "8"}).processes == 8
