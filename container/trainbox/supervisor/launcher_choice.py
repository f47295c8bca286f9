"""Pure: which launcher starts the processes of a host, how many, and the command of torch elastic's agent."""

import sys
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.contract.cluster.world import world_hosts
from trainbox.contract.environment import Machine
from trainbox.contract.job import Job
from trainbox.contract.setting_values import MOST_PROCESSES_PER_HOST
from trainbox.errors import HyperparameterError, ProgramError
from trainbox.supervisor.program.choice import BUNDLED, TREES, XGBOOST, Program

#: What SDK v2 sets for `distribution={"torch_distributed": …}`, `{"pytorchddp": …}` and `{"smdistributed": …}`.
_SMDDP = "sagemaker_distributed_dataparallel_enabled"
_SWITCHES = ("sagemaker_torch_distributed_enabled", "sagemaker_pytorch_ddp_enabled", _SMDDP)
_MPI = "sagemaker_mpi_enabled"
_MPI_PROCESSES = "sagemaker_mpi_num_of_processes_per_host"

#: The Python modules that decide who starts the processes.
_MODULES = ("smdistributed", "torch")


class Launch(msgspec.Struct, frozen=True):
    """The launcher of a job and the number of its processes."""

    by: Literal["plain", "torchrun"]
    processes: int
    #: `None`: the ranks choose by what they have.
    backend: str | None = None
    notes: tuple[str, ...] = ()
    #: The switches of the request that are honoured by this.
    honoured: tuple[str, ...] = ()


def decide(job: Job, program: Program, machine: Machine) -> Launch:
    """Decide which launcher starts the processes, and how many.

    Raises:
        ProgramError: torchrun is asked for, and the program is none it can start, or torch is not there.
        HyperparameterError: The backend cannot be had on this host, too many processes are asked for, or a setting
            has no effect on this program, such as a drill.
    """
    settings = job.settings
    why = _why_torchrun(job, program)
    if why is None or not (why.is_must or "torch" in machine.modules):
        _require_no_ranks_settings(job, program)
        plain_notes = (f"launcher plain, though {why.said}: torch is not installed",) if why and why.said else ()
        processes = settings.processes_per_host or _processes_of_xgboost(job, program, machine)
        return Launch("plain", processes, notes=plain_notes)
    _require_torch(program, machine)
    mpi = bool(job.reserved.get(_MPI))
    processes = settings.processes_per_host or _mpi_processes(job) or machine.gpus or 1
    _require_drills_can_happen(job, program, processes)
    notes = [f"launcher torchrun: {why.said} (trainbox_launcher=plain turns it off)"] if why.said else []
    if mpi:
        notes.append(
            f"{_MPI} is set: the processes are started by torch elastic, not by mpirun, and get RANK, LOCAL_RANK, …"
        )
    return Launch(
        "torchrun",
        processes,
        backend=_backend(job, machine, processes),
        notes=tuple(notes),
        honoured=(*_switches(job), *([_MPI] if mpi else [])),
    )


def modules_needed(job: Job, program: Program) -> tuple[str, ...]:
    """Return the modules of which `decide` needs to know whether they are installed; empty for the plain launcher."""
    return () if _why_torchrun(job, program) is None else _MODULES


class _Why(msgspec.Struct, frozen=True):
    """Why torchrun starts the processes."""

    #: Of a choice that `auto` makes and the request does not; empty where there is nothing to explain.
    said: str = ""
    #: Whether it is an error where torch is not installed; else the program is started without.
    is_must: bool = True


def _why_torchrun(job: Job, program: Program) -> _Why | None:
    """Whether request or program ask for torchrun."""
    settings = job.settings
    if settings.launcher != "auto":
        return _Why() if settings.launcher == "torchrun" else None
    if _switches(job) or _is_bundled(job, program):
        return _Why()
    asked = _only_for_ranks(job)
    if program.is_python and not _is_tree(job, program):
        watched = (
            ["trainbox_hang_seconds"] if "trainbox_hang_seconds" in settings.given and settings.hang_seconds else []
        )
        given = [*asked, *watched]
        reasons = [f"{program.session} imports trainbox.torch"] if program.session else []
        reasons += [f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} given"] if given else []
        if reasons:
            return _Why(", ".join(reasons), is_must=bool(asked))
    # mpirun starts programs of any kind: without torch these are no ranks of it.
    return _Why(is_must=False) if job.reserved.get(_MPI) else None


def _only_for_ranks(job: Job) -> list[str]:
    """Return the settings of the request that only torchrun honours. 0 restarts hold for every launcher."""
    settings = job.settings
    names = ["trainbox_drill", *(["trainbox_max_restarts"] if settings.max_restarts else []), "trainbox_start_seconds"]
    return [name for name in names if name in settings.given]


def _require_no_ranks_settings(job: Job, program: Program) -> None:
    """Require that settings for ranks have an effect: a restart or rehearsal asked for in vain is an error."""
    asked = _only_for_ranks(job)
    if not asked:
        return
    if job.settings.launcher == "plain":
        why, hint = "the launcher is plain", "leave trainbox_launcher out, or set it to torchrun"
    elif _is_tree(job, program):
        why, hint = f"the bundled {program.name} has no ranks of torchrun", "leave it out"
    else:
        why = f"the launcher torchrun starts Python scripts, and {program.name!r} is none"
        hint = "leave it out, or make a Python script or a module (trainbox_module) the program of the job"
    verb = "has" if len(asked) == 1 else "have"
    raise HyperparameterError(f"{' and '.join(asked)} {verb} no effect: {why}", hint=hint)


def _require_drills_can_happen(job: Job, program: Program, processes: int) -> None:
    drills = job.settings.drills
    if drills and _is_tree(job, program):
        raise HyperparameterError(
            f"trainbox_drill has no effect: the bundled {program.name} reports no steps", hint="leave it out"
        )
    ranks = len(world_hosts(job)) * processes
    beyond = next((drill for drill in drills if drill.rank >= ranks), None)
    if beyond:
        there = "rank 0 alone" if ranks == 1 else f"ranks 0 to {ranks - 1}"
        raise HyperparameterError(
            f"trainbox_drill: '{beyond}' cannot happen: the job has {there}",
            hint="name a rank that it has, or ask for more processes_per_host (`trainbox run --processes N`)",
        )


def _is_tree(job: Job, program: Program) -> bool:
    return job.settings.program is None and program.name in TREES


def _switches(job: Job) -> tuple[str, ...]:
    return tuple(switch for switch in _SWITCHES if job.reserved.get(switch))


def _is_bundled(job: Job, program: Program) -> bool:
    return job.settings.program is None and program.name == BUNDLED


def _require_torch(program: Program, machine: Machine) -> None:
    if not program.is_python:
        raise ProgramError(
            f"the launcher torchrun starts Python scripts, and {program.name!r} is none",
            hint="trainbox_launcher=plain starts any program",
        )
    if "torch" not in machine.modules:
        raise ProgramError(
            "the launcher torchrun needs torch, which is not installed",
            hint="name torch in a requirements.txt beside the script, or install it in the image",
        )


def _mpi_processes(job: Job) -> int | None:
    value = job.reserved.get(_MPI_PROCESSES)
    if isinstance(value, int) and value > MOST_PROCESSES_PER_HOST:
        raise HyperparameterError(f"{_MPI_PROCESSES}: found {value}, expected 1 to {MOST_PROCESSES_PER_HOST}")
    return value if isinstance(value, int) and value >= 1 else None


def _processes_of_xgboost(job: Job, program: Program, machine: Machine) -> int:
    """XGBoost trains on one GPU a process, each on its own rows; other programs are started once."""
    is_ours = job.settings.program is None and program.name == XGBOOST
    hyperparameters = job.hyperparameters
    on_gpus = hyperparameters.get("device") == "cuda" or hyperparameters.get("tree_method") == "gpu_hist"
    return max(1, machine.gpus) if is_ours and on_gpus else 1


def _backend(job: Job, machine: Machine, processes: int) -> str | None:
    backend = job.settings.backend
    if backend is None and job.reserved.get(_SMDDP):
        if "smdistributed" not in machine.modules:
            raise HyperparameterError(
                f"{_SMDDP} asks for the backend smddp, and the module smdistributed is not installed",
                hint="trainbox_backend=nccl does the same reductions with what torch brings",
            )
        backend = "smddp"
    if backend in {"nccl", "smddp"} and processes > machine.gpus:
        raise HyperparameterError(
            f"the backend {backend} needs a GPU for each process: {processes} process(es), {machine.gpus} GPU(s)",
            hint="fewer processes_per_host, an instance with more GPUs, or trainbox_backend=gloo",
        )
    return backend


def agent_argv(program: Program, *, processes: int, scratch: Path) -> tuple[str, ...]:
    """The command of the agent: what the ranks run stands behind it as it would stand behind `python`.

    The arguments of the script do not: they may be secret, and `ps` shows those of an agent to all users. It reads the
    job itself.
    """
    # -P: the agent must not take a user's `queue.py` for the standard library's; the ranks get their own path.
    agent = (sys.executable, "-P", "-m", "trainbox.launcher", str(processes), str(scratch))
    return (*agent, *program.command[1:])
