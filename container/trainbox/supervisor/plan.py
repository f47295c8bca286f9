"""Pure: a `Job` and its `Program` become a `Plan`: the child processes of this host, to print, compare or run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.contract.cluster.ranks import find_members_beyond
from trainbox.contract.cluster.world import GROUPS, world_hosts
from trainbox.contract.credentials.peer_key import as_handed_on, without_peer_key
from trainbox.contract.environment import DISTRIBUTION_SWITCHES, Machine, variables
from trainbox.contract.job import Job
from trainbox.contract.layout import ROOT_VARIABLE
from trainbox.contract.settings import as_text
from trainbox.errors import ContractError
from trainbox.supervisor.launcher_choice import Launch, agent_argv, decide
from trainbox.supervisor.program.choice import Program
from trainbox.supervisor.restart_policy import NEVER_RESTART, Readiness, RestartPolicy
from trainbox.supervisor.variables import process_variables, shared_variables


class Child(msgspec.Struct, frozen=True):
    """One process to start."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    #: After so many seconds in which its process is stopped (SIGSTOP) it is killed; 0 never looks.
    hang_seconds: float = 0.0
    #: When it counts as ready; None from its start on.
    readiness: Readiness | None = None
    #: What it inherits beside the standard streams, under the same numbers.
    descriptors: tuple[int, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What the supervisor runs on this host."""

    children: tuple[Child, ...]
    grace_seconds: float
    notes: tuple[str, ...] = ()
    #: Processes that run the script, whoever starts them.
    processes: int = 1
    #: What runs beside the children for their sake, and ends with them: how it ends itself decides nothing.
    sidecars: tuple[Child, ...] = ()
    #: The directory that agent, ranks and sidecars share, to be made first; None where there are none.
    scratch: Path | None = None
    #: The checks of the hosts' health before all that.
    preflight: Literal["off", "fast", "full"] = "off"
    #: After so long the children are killed.
    limit_seconds: float = float("inf")
    #: What becomes of a child that has ended: a job fails with it, a server starts it again.
    restart: RestartPolicy = NEVER_RESTART


#: The child that starts the ranks itself; it leaves its report in the scratch directory.
AGENT = "agent"
#: The sidecar that listens to the GPUs; what it finds is in the scratch directory.
WATCH = "the watch over the GPUs"
#: Where that would be, for those who only want to see the plan.
SCRATCH = Path("/dev/shm/trainbox")  # noqa: S108 - nothing is made there


def plan(job: Job, program: Program, *, env: Mapping[str, str], machine: Machine, scratch: Path = SCRATCH) -> Plan:
    """Plan one child per process of this host, or an agent of torch elastic that starts them.

    Args:
        job: The contract, read.
        program: What to start.
        env: The environment of the supervisor; the children get it and what is added here.
        machine: What the host has.
        scratch: A directory for what all that run here tell each other; it does not exist yet.

    Raises:
        ProgramError: The launcher that is asked for cannot start this program.
        HyperparameterError: The host lacks what the request asks for.
        ContractError: The platform has started more hosts than the contract names.
    """
    launch = decide(job, program, machine) if job.current_host in world_hosts(job) else _outside()
    _require_known_members(job, launch, env)
    named = variables(job, entry_point=program.name, env=env, machine=machine)
    base = {**without_peer_key(env), **_defaults(env), **named.values, **_passed_on(job)}
    base |= shared_variables(job, launch, machine, base)
    children = (
        (_agent(job, program, launch, base, scratch),)
        if launch.by == "torchrun"
        else tuple(_processes(job, program, process_variables(job, launch, machine, base)))
    )
    sidecars = (_watch(program, base, scratch),) if machine.gpus else ()
    return Plan(
        children=children,
        grace_seconds=job.settings.grace_seconds,
        notes=(*named.notes, *launch.notes, *_not_launched(job, launch), *_about_world(job, launch, machine)),
        processes=launch.processes,
        sidecars=sidecars,
        scratch=scratch if sidecars or launch.by == "torchrun" else None,
        preflight=_preflight(job, launch, machine),
    )


def _preflight(job: Job, launch: Launch, machine: Machine) -> Literal["off", "fast", "full"]:
    """Choose the checks: by default where a faulty host would hold up others, or where there is a GPU."""
    asked = job.settings.preflight
    if asked != "auto":
        return asked
    # In Studio's local mode a host does not know the addresses of the others.
    several = len(job.hosts) * launch.processes > 1 and not job.settings.studio_local_mode
    return "fast" if several or machine.gpus else "off"


def _agent(job: Job, program: Program, launch: Launch, environment: Mapping[str, str], scratch: Path) -> Child:
    """Plan the agent. The ranks get the user's directory on their path; the agent itself must not have it."""
    argv = agent_argv(program, processes=launch.processes, scratch=scratch)
    limit = job.settings.hang_seconds
    return Child(name=AGENT, argv=argv, environment=environment, directory=program.directory, hang_seconds=limit)


def _watch(program: Program, environment: Mapping[str, str], scratch: Path) -> Child:
    """Plan the watch over the GPUs: NVML runs in a separate process, since it may hang in a driver, or crash."""
    argv = (sys.executable, "-P", "-m", "trainbox.health", "--watch", "--into", str(scratch))
    return Child(name=WATCH, argv=argv, environment=environment, directory=program.directory)


def _defaults(env: Mapping[str, str]) -> dict[str, str]:
    """Return defaults for Python scripts: unbuffered output, and a stack on a crash."""
    return {name: "1" for name in ("PYTHONUNBUFFERED", "PYTHONFAULTHANDLER") if name not in env}


def _passed_on(job: Job) -> dict[str, str]:
    """Return the variables that sagemaker-training sets besides `SM_*`, and those that the toolkit in the script reads.

    The root is the important one: a script that guessed it would write its model to the wrong place.
    """
    return {
        ROOT_VARIABLE: str(job.layout.root),
        "SAGEMAKER_JOB_NAME": as_text(job.reserved.get("sagemaker_job_name")),
        "SAGEMAKER_REGION": as_text(job.reserved.get("sagemaker_region")) or job.region,
        "CURRENT_HOST": job.current_host,
        "TRAINBOX_GRACE_SECONDS": str(job.settings.grace_seconds),
    }


def _python_path(program: Program, env: Mapping[str, str]) -> str:
    return ":".join(filter(None, [str(program.directory), env.get("PYTHONPATH", "")]))


def _not_launched(job: Job, launch: Launch) -> list[str]:
    """Return a note for each launcher that the request asks for and this version does not have."""
    return [
        f"{switch} is set, but this version of trainbox has no such launcher: the script is started as it is"
        for switch in DISTRIBUTION_SWITCHES
        if job.reserved.get(switch) and switch not in launch.honoured
    ]


def _require_known_members(job: Job, launch: Launch, env: Mapping[str, str]) -> None:
    """Refuse variables of another launcher: torch elastic overrides them, and each host would train alone."""
    others = find_members_beyond(env, launch.processes) if launch.by == "torchrun" and len(job.hosts) == 1 else ""
    if others:
        raise ContractError(
            f"{others}, but {job.layout.config_dir / 'resourceconfig.json'} names one host with {launch.processes}"
            " process(es): each host would train alone",
            hint="name all hosts in resourceconfig.json, or unset the variable for hosts that have nothing to do with"
            " each other",
        )


def _outside() -> Launch:
    """Return the launch of a host outside the training groups: it runs the script once, as sagemaker-training does."""
    return Launch("plain", 1, honoured=DISTRIBUTION_SWITCHES)


def _about_world(job: Job, launch: Launch, machine: Machine) -> list[str]:
    """Return notes on hosts that do not train together, and on GPUs that the script has to use itself."""
    world, groups = world_hosts(job), job.reserved.get(GROUPS)
    if job.current_host not in world:
        return [f"{GROUPS} names {', '.join(world)}: on this host the script is started once, without a rank"]
    named = isinstance(groups, list) and any(group.name in groups for group in job.instance_groups)
    notes = [f"{GROUPS} names no instance group of this job: all hosts train together"] if groups and not named else []
    waiting = machine.gpus - launch.processes
    if (job.settings.program or job.settings.module) and waiting > 0:
        notes.append(
            f"{launch.processes} process(es) for {machine.gpus} GPUs: {waiting} GPU(s) wait unless the script itself"
            f" uses them; processes_per_host={machine.gpus} starts a process for each"
        )
    return notes


def _processes(job: Job, program: Program, environments: list[dict[str, str]]) -> list[Child]:
    """Plan the script, once for each environment."""
    several = len(environments) > 1
    key = _key(job, program, processes=len(environments))
    return [
        Child(
            name=f"rank {environment['RANK']}" if several else "script",
            argv=(*program.command, *job.argv),
            environment={**environment, **key, "PYTHONPATH": _python_path(program, environment)},
            directory=program.directory,
            hang_seconds=job.settings.hang_seconds,
        )
        for environment in environments
    ]


def _key(job: Job, program: Program, *, processes: int) -> dict[str, str]:
    """Return the variable of the job's key, for a script that authenticates itself to other processes."""
    has_others = len(job.hosts) > 1 or processes > 1
    needed = has_others and program.needs_key
    return as_handed_on(job.peer_key) if needed else {}


def install_plan(
    argv: tuple[str, ...],
    program_directory: Path,
    *,
    env: Mapping[str, str],
    grace_seconds: float,
    hang_seconds: float = 0.0,
    python: str = sys.executable,
) -> Plan:
    """Plan one step before the script: pip, supervised like any child."""
    # -P: pip must not take a user's `queue.py` or `types.py` for the standard library's.
    command = (python, "-P", "-m", "pip", *argv)
    child = Child("pip", argv=command, environment=env, directory=program_directory, hang_seconds=hang_seconds)
    return Plan(children=(child,), grace_seconds=grace_seconds)
