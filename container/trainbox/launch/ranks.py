"""Pure: who starts the processes of a host, how many there are, and what an agent of torch elastic is told."""

import sys
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.contract.environment import Machine
from trainbox.contract.job import Job
from trainbox.contract.settings import MOST_PROCESSES_PER_HOST
from trainbox.errors import HyperparameterError, ProgramError
from trainbox.launch.program import Program

#: The bundled script that is written for ranks.
BUNDLED = "pytorch_train.py"
#: The bundled script of which every GPU has a process.
XGBOOST = "xgboost_train.py"
#: What SDK v2 sets for `distribution={"torch_distributed": …}`, `{"pytorchddp": …}` and `{"smdistributed": …}`.
_SMDDP = "sagemaker_distributed_dataparallel_enabled"
_SWITCHES = ("sagemaker_torch_distributed_enabled", "sagemaker_pytorch_ddp_enabled", _SMDDP)
_MPI = "sagemaker_mpi_enabled"
_MPI_PROCESSES = "sagemaker_mpi_num_of_processes_per_host"

#: The Python modules that decide who starts the processes.
_MODULES = ("smdistributed", "torch")


class Launch(msgspec.Struct, frozen=True):
    """The decision."""

    by: Literal["plain", "torchrun"]
    processes: int
    #: `None`: the ranks choose by what they have.
    backend: str | None = None
    notes: tuple[str, ...] = ()
    #: The switches of the request that are honoured by this.
    honoured: tuple[str, ...] = ()


def decide(job: Job, program: Program, machine: Machine) -> Launch:
    """Who starts the processes, and how many.

    Raises:
        ProgramError: torchrun is asked for, and the program is none it can start, or torch is not there.
        HyperparameterError: The backend cannot be had on this host, or too many processes are asked for.
    """
    settings = job.settings
    switches = _switches(job)
    mpi = bool(job.reserved.get(_MPI))
    # mpirun starts programs of any kind: without torch these are no ranks of it.
    without_torch = mpi and not switches and not _is_bundled(job, program) and "torch" not in machine.modules
    if not modules_needed(job, program) or (settings.launcher == "auto" and without_torch):
        return Launch("plain", settings.processes_per_host or _processes_of_xgboost(job, program, machine))
    _require_torch(program, machine)
    processes = settings.processes_per_host or _mpi_processes(job) or machine.gpus or 1
    notes = (
        [f"{_MPI} is set: the processes are started by torch elastic, not by mpirun, and get RANK, LOCAL_RANK, …"]
        if mpi
        else []
    )
    return Launch(
        "torchrun",
        processes,
        backend=_backend(job, machine, processes),
        notes=tuple(notes),
        honoured=(*switches, *([_MPI] if mpi else [])),
    )


def modules_needed(job: Job, program: Program) -> tuple[str, ...]:
    """What `decide` has to know whether it is installed; nothing where only the supervisor itself can start it."""
    launcher = job.settings.launcher
    asked = bool(_switches(job)) or bool(job.reserved.get(_MPI)) or _is_bundled(job, program)
    return _MODULES if launcher == "torchrun" or (launcher == "auto" and asked) else ()


def _switches(job: Job) -> tuple[str, ...]:
    return tuple(switch for switch in _SWITCHES if job.reserved.get(switch))


def _is_bundled(job: Job, program: Program) -> bool:
    return job.settings.program is None and program.name == BUNDLED


def _require_torch(program: Program, machine: Machine) -> None:
    if program.command[0] != sys.executable:
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


def agent_argv(program: Program, arguments: tuple[str, ...], *, processes: int, scratch: Path) -> tuple[str, ...]:
    """The command of the agent: what the ranks run stands behind it as it would stand behind `python`."""
    # -P: the agent must not take a user's `queue.py` for the standard library's; the ranks get their own path.
    agent = (sys.executable, "-P", "-m", "trainbox.elastic", str(processes), str(scratch))
    return (*agent, *program.command[1:], *arguments)
