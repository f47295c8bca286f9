"""Pure: the variables of a rank: torchrun's, `NODE_RANK`, defaults for NCCL and cuBLAS, and trainbox's own."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed import is_nccl_available
from torch.distributed.elastic.agent.server.api import Worker, WorkerGroup

from trainbox.contract.cluster.progress import PROGRESS_VARIABLE
from trainbox.contract.job import Job
from trainbox.launcher.ranks.program import ERROR_FILE_VARIABLE, STACKS_FILE_VARIABLE

#: Set unless the request does. Async error handling 3 lets the flight recorder dump (pytorch #121055), where
#: torchrun's 1 does not; the names are those of torch 2.13's ProcessGroupNCCL.hpp and FlightRecorder.hpp.
_NCCL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "TORCH_NCCL_ENABLE_MONITORING": "1",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "120",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_NCCL_PROPAGATE_ERROR": "1",
    "TORCH_FR_BUFFER_SIZE": "20000",
    "TORCH_INCLUDE_STACK_TRACE": "0",
}
#: Without a workspace of a fixed size cuBLAS may give other bits from run to run where several streams use it, and
#: torch.use_deterministic_algorithms raises: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
_CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def rank_variables(
    group: WorkerGroup, worker: Worker, job: Job, scratch: Path, *, attempt: int, env: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of a rank.

    Args:
        group: The ranks of this host, and their rendezvous.
        worker: This rank.
        job: The contract.
        scratch: The directory of the files that ranks and agent exchange.
        attempt: The number of restarts before.
        env: The variables that are set already; they are kept.
    """
    defaults = {**_NCCL, **_CUBLAS, "TORCH_FR_DUMP_TEMP_FILE": str(hang_directory(job) / "flight_")}
    return {
        **{name: value for name, value in defaults.items() if name not in env},
        **_as_torchrun(group, worker, job, attempt),
        ERROR_FILE_VARIABLE: str(error_file(scratch, worker.local_rank)),
        PROGRESS_VARIABLE: str(progress_file(scratch)),
        STACKS_FILE_VARIABLE: str(stacks_file(scratch, worker.local_rank)),
    }


def _as_torchrun(group: WorkerGroup, worker: Worker, job: Job, attempt: int) -> dict[str, str]:
    spec = group.spec
    return {
        "RANK": str(worker.global_rank),
        "LOCAL_RANK": str(worker.local_rank),
        "WORLD_SIZE": str(worker.world_size),
        "LOCAL_WORLD_SIZE": str(spec.local_world_size),
        "GROUP_RANK": str(group.group_rank),
        "NODE_RANK": str(group.group_rank),  # Lightning and scripts for torchrun's --node-rank read this one
        "GROUP_WORLD_SIZE": str(group.group_world_size),
        "ROLE_RANK": str(worker.role_rank),
        "ROLE_WORLD_SIZE": str(worker.role_world_size),
        "ROLE_NAME": spec.role,
        "MASTER_ADDR": str(group.master_addr),
        "MASTER_PORT": str(group.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "TORCHELASTIC_MAX_RESTARTS": str(job.settings.max_restarts),
        "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
        "TORCHELASTIC_USE_AGENT_STORE": str(spec.rdzv_handler.use_agent_store),
    }


def read_versions() -> dict[str, str]:
    """Return the versions that must be the same on all hosts."""
    versions = {"torch": str(torch.__version__)}
    if is_nccl_available():
        numbers: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        versions["NCCL"] = ".".join(map(str, numbers))
    return versions


def hang_directory(job: Job) -> Path:
    """Return the directory for stacks and NCCL's flight recorder dumps after a hang."""
    return job.layout.output_data_dir / "hang"


def error_file(scratch: Path, local_rank: int) -> Path:
    """Return the file of the exception of a rank."""
    return scratch / f"error-{local_rank}.json"


def stacks_file(scratch: Path, local_rank: int) -> Path:
    """Return the file of the stacks of a rank."""
    return scratch / f"stacks-{local_rank}.txt"


def progress_file(scratch: Path) -> Path:
    """Return the file of the progress of the ranks of this host."""
    return scratch / "progress"
