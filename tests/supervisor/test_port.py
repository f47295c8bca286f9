"""Where the processes of a job meet is one number: in the plan, in each process, and in the checks before them."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.contract.environment import Machine
from trainbox.contract.job import read_job
from trainbox.errors import ContractError
from trainbox.health import command
from trainbox.health.host import Subject
from trainbox.supervisor.plan import Plan, plan
from trainbox.supervisor.preflight import plan_checks
from trainbox.supervisor.program.choice import choose, resolve

JOBS: Mapping[str, Mapping[str, str]] = {
    "a script": {},
    "a script in several processes": {"processes_per_host": "2"},
    "torchrun": {"trainbox_launcher": "torchrun", "processes_per_host": "2"},
    "XGBoost": {"trainbox_script": "xgboost"},
    "XGBoost on GPUs": {"trainbox_script": "xgboost", "device": "cuda"},
    "a forest": {"trainbox_script": "random_forest"},
    "PyTorch": {"trainbox_script": "pytorch"},
}
SCRATCH = Path("/scratch")


def planned(root: Path, hyperparameters: Mapping[str, str], env: Mapping[str, str]) -> tuple[Plan, Plan]:
    """What runs on the second of two hosts, and the checks before it."""
    config = root / "input/config"
    config.mkdir(parents=True)
    (root / "code").mkdir()
    (root / "code/train.py").touch()
    script = {} if "trainbox_script" in hyperparameters else {"sagemaker_program": "train.py"}
    (config / "hyperparameters.json").write_text(json.dumps({**hyperparameters, **script}))
    (config / "resourceconfig.json").write_text(json.dumps({"hosts": ["one", "two"], "current_host": "two"}))
    job = read_job(root, env)
    choice = choose(job)
    program = resolve(choice, Path(choice.source.location))
    made = plan(job, program, env=env, machine=Machine(cpus=4, gpus=2, modules=("torch",)), scratch=SCRATCH)
    return made, plan_checks(job, made, env=env, scratch=SCRATCH)


def subject_of(checks: Plan) -> Subject:
    """What the program of the checks looks at."""
    (program,) = checks.children
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.read_subject(parser.parse_args(program.argv[4:]), program.environment)


@pytest.mark.parametrize("given", [None, "31000"])
@pytest.mark.parametrize("hyperparameters", JOBS.values(), ids=JOBS.keys())
def test_processes_meet_at_the_port_that_the_preflight_has_proved_free(
    tmp_path: Path, hyperparameters: Mapping[str, str], given: str | None
) -> None:
    env = {"TRAINBOX_ROOT": str(tmp_path), **({"MASTER_PORT": given} if given else {})}
    made, checks = planned(tmp_path, hyperparameters, env)
    expected = int(given or 29400)
    named = {child.environment["MASTER_PORT"] for child in made.children if "RANK" in child.environment}
    assert named <= {str(expected)}
    assert {read_job(tmp_path, child.environment).port for child in made.children} == {expected}
    assert made.preflight == "fast"
    assert subject_of(checks).port == expected


@pytest.mark.parametrize(
    "wrong", ["http", "0", "-1", "65536", "29400.0", " 29400", "٢٩٤٠٠", pytest.param("9" * 5000, id="long")]
)
def test_a_wrong_port_is_named(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ContractError, match=r"the variable MASTER_PORT: found .* expected a number from 1 to 65535"):
        read_job(tmp_path, {"MASTER_PORT": wrong})


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    assert read_job(tmp_path, {"MASTER_PORT": ""}).port == 29400


def test_the_address_of_a_service_that_kubernetes_calls_master_is_no_port(tmp_path: Path) -> None:
    service = {"MASTER_PORT": "tcp://10.0.0.9:29500", "MASTER_SERVICE_HOST": "10.0.0.9"}
    made, checks = planned(tmp_path, {"processes_per_host": "2"}, {"TRAINBOX_ROOT": str(tmp_path), **service})
    assert {child.environment["MASTER_PORT"] for child in made.children} == {"29400"}
    assert subject_of(checks).port == 29400


@pytest.mark.parametrize(("port", "exchange"), [("29400", 29401), ("1", 2), ("65535", 65534)])
def test_the_hosts_exchange_what_they_found_beside_the_port_of_the_ranks(
    tmp_path: Path, port: str, exchange: int
) -> None:
    _, checks = planned(tmp_path, {}, {"TRAINBOX_ROOT": str(tmp_path), "MASTER_PORT": port})
    subject = subject_of(checks)
    assert (subject.port, subject.exchange_port) == (int(port), exchange)
