"""A plan says everything about the processes of this host before any of them runs."""

import json
import sys
from pathlib import Path

from trainbox.contract.environment import Machine
from trainbox.contract.job import read_job
from trainbox.supervisor.plan import Plan, install_plan, plan
from trainbox.supervisor.program.choice import Program

PROGRAM = Program(name="train.py", command=("python", "train.py"), directory=Path("/code"))


def planned(tmp_path: Path, hyperparameters: dict[str, str] | None = None, *, hosts: int = 1, **env: str) -> Plan:
    config = tmp_path / "input/config"
    config.mkdir(parents=True)
    names = [f"algo-{number}" for number in range(1, hosts + 1)]
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters or {}))
    (config / "resourceconfig.json").write_text(json.dumps({"hosts": names, "current_host": names[-1]}))
    return plan(read_job(tmp_path, env), PROGRAM, env=env, machine=Machine(cpus=2))


def test_one_process_gets_the_hyperparameters_and_no_rank(tmp_path: Path) -> None:
    (child,) = planned(tmp_path, {"eta": "0.1", "sagemaker_program": '"train.py"'}).children
    assert child.argv == ("python", "train.py", "--eta", "0.1")
    assert child.directory == Path("/code")
    assert child.environment["SM_HP_ETA"] == "0.1"
    assert child.environment["SM_USER_ENTRY_POINT"] == "train.py"
    assert "RANK" not in child.environment


def test_several_processes_get_the_ranks_of_torchrun(tmp_path: Path) -> None:
    children = planned(tmp_path, {"processes_per_host": "2"}, hosts=3).children
    assert [child.name for child in children] == ["rank 4", "rank 5"]
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [[child.environment[name] for name in names] for child in children] == [
        ["4", "0", "6", "2", "algo-1"],
        ["5", "1", "6", "2", "algo-1"],
    ]


def test_the_environment_of_the_container_is_passed_on_and_its_choices_are_kept(tmp_path: Path) -> None:
    (child,) = planned(tmp_path, OWN="1", PYTHONUNBUFFERED="0", PYTHONPATH="/lib", TRAINBOX_GRACE_SECONDS="9").children
    assert child.environment["OWN"] == "1"
    assert child.environment["PYTHONUNBUFFERED"] == "0"
    assert child.environment["PYTHONFAULTHANDLER"] == "1"
    assert child.environment["PYTHONPATH"] == "/code:/lib"
    assert child.environment["TRAINBOX_GRACE_SECONDS"] == "9.0"


def test_every_process_is_told_the_tree(tmp_path: Path) -> None:
    for asked in ({}, {"processes_per_host": "2"}):
        root = tmp_path / str(len(asked))
        assert {child.environment["TRAINBOX_ROOT"] for child in planned(root, asked).children} == {str(root)}


def test_the_grace_of_the_job_is_that_of_the_plan(tmp_path: Path) -> None:
    assert planned(tmp_path, TRAINBOX_GRACE_SECONDS="9").grace_seconds == 9


def test_what_cannot_be_a_variable_is_noted(tmp_path: Path) -> None:
    made = planned(tmp_path, {"a=b": "1", "long": "x" * 200_000})
    assert any("is no name of a variable" in note for note in made.notes)
    assert any(note.startswith("SM_HP_LONG is longer than Linux passes in one variable") for note in made.notes)
    assert "SM_HP_LONG" not in made.children[0].environment


def test_pip_is_that_of_the_interpreter_and_does_not_import_from_the_users_code() -> None:
    (child,) = install_plan(("install", "x"), Path("/code"), env={"A": "1"}, grace_seconds=0).children
    assert child.argv == (sys.executable, "-P", "-m", "pip", "install", "x")
    assert child.directory == Path("/code")


def test_a_launcher_that_is_asked_for_and_missing_is_said(tmp_path: Path) -> None:
    notes = planned(tmp_path, {"sagemaker_mpi_enabled": "true"}).notes
    assert any("sagemaker_mpi_enabled is set" in note for note in notes)
    assert planned(tmp_path / "other", {"sagemaker_mpi_enabled": "false"}).notes == ()


def test_the_request_may_name_the_port_of_the_ranks(tmp_path: Path) -> None:
    children = planned(tmp_path, {"processes_per_host": "2"}, MASTER_PORT="4711").children
    assert {child.environment["MASTER_PORT"] for child in children} == {"4711"}
