"""Pure: a `Job` and its `Program` become a `Plan`: the child processes of this host, to print, compare or run."""

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trainbox.contract.environment import DISTRIBUTION_SWITCHES, Machine, variables
from trainbox.contract.hyperparameters import arguments
from trainbox.contract.job import Job
from trainbox.contract.settings import as_text
from trainbox.launch.program import Program

#: torchrun's default; any port works where a container has a network of its own, the request may name another.
MASTER_PORT = "29500"


class Child(msgspec.Struct, frozen=True):
    """One process to start."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path


class Plan(msgspec.Struct, frozen=True):
    """What the supervisor runs on this host."""

    children: tuple[Child, ...]
    grace_seconds: float
    notes: tuple[str, ...] = ()


def plan(job: Job, program: Program, *, env: Mapping[str, str], machine: Machine) -> Plan:
    """One child per process of this host.

    Args:
        job: The contract, read.
        program: What to start.
        env: The environment of the supervisor; the children get it and what is added here.
        machine: What the host has.
    """
    named = variables(job, entry_point=program.name, env=env, machine=machine)
    argv = (*program.command, *arguments(job.hyperparameters, job.settings.arguments))
    base = {**env, **_defaults(env), **named.values, **_passed_on(job), "PYTHONPATH": _python_path(program, env)}
    children = tuple(
        Child(name=name, argv=argv, environment={**base, **ranks}, directory=program.directory)
        for name, ranks in _processes(job, env)
    )
    notes = (*named.notes, *_not_launched(job))
    return Plan(children=children, grace_seconds=job.settings.grace_seconds, notes=notes)


def _defaults(env: Mapping[str, str]) -> dict[str, str]:
    """What a log needs of a Python script, unless the request says otherwise: lines at once, and a stack on a crash."""
    return {name: "1" for name in ("PYTHONUNBUFFERED", "PYTHONFAULTHANDLER") if name not in env}


def _passed_on(job: Job) -> dict[str, str]:
    """Variables sagemaker-training sets beside `SM_*`, and ours that the toolkit in the script reads."""
    return {
        "SAGEMAKER_JOB_NAME": as_text(job.reserved.get("sagemaker_job_name")),
        "SAGEMAKER_REGION": as_text(job.reserved.get("sagemaker_region")) or job.region,
        "CURRENT_HOST": job.current_host,
        "TRAINBOX_GRACE_SECONDS": str(job.settings.grace_seconds),
    }


def _python_path(program: Program, env: Mapping[str, str]) -> str:
    return ":".join(filter(None, [str(program.directory), env.get("PYTHONPATH", "")]))


def _not_launched(job: Job) -> list[str]:
    """What the request asks for and this version does not do must not pass in silence."""
    return [
        f"{switch} is set, but this version of trainbox has no such launcher: the script is started as it is"
        for switch in DISTRIBUTION_SWITCHES
        if job.reserved.get(switch)
    ]


def _processes(job: Job, env: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """A name and the extra variables of each process: none for one per host, torchrun's for several."""
    per_host = job.settings.processes_per_host
    if per_host == 1:
        return [("script", {})]
    return [
        (
            f"rank {job.host_rank * per_host + local_rank}",
            {
                "RANK": str(job.host_rank * per_host + local_rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(len(job.hosts) * per_host),
                "LOCAL_WORLD_SIZE": str(per_host),
                "MASTER_ADDR": job.hosts[0],
                "MASTER_PORT": env.get("MASTER_PORT", MASTER_PORT),
            },
        )
        for local_rank in range(per_host)
    ]


def install_plan(
    argv: tuple[str, ...], program_directory: Path, *, env: Mapping[str, str], grace_seconds: float
) -> Plan:
    """The plan of one step before the script: pip, run and supervised like any child."""
    # -P: pip must not take a user's `queue.py` or `types.py` for the standard library's.
    command = (sys.executable, "-P", "-m", "pip", *argv)
    child = Child(name="pip", argv=command, environment=env, directory=program_directory)
    return Plan(children=(child,), grace_seconds=grace_seconds)
