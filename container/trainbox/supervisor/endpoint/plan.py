"""Pure: what `serve` starts, and how many workers."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from trainbox.contract.hosting import Hosting
from trainbox.contract.layout import ROOT_VARIABLE
from trainbox.errors import ContractError, DataError, ProgramError, RequirementsError, SecretError
from trainbox.supervisor.plan import Child, Plan
from trainbox.supervisor.restart_policy import Readiness, RestartPolicy
from trainbox.system.worker_page import MOST_WORKERS

LOADER = "loader"
PROGRAM = ("-m", "trainbox.serving")
#: SageMaker sends SIGKILL 30 s after SIGTERM.
GRACE_SECONDS = 28.0
#: What a worker needs for itself beside what it shares with the loader, without its request.
WORKER_BYTES = 32 * 2**20
#: Of a worker that has ended, whatever for: it comes back at once, and later where it does not stay.
WORKER_RESTARTS = RestartPolicy(limit=20, window_seconds=60.0, first_pause_seconds=0.02, longest_pause_seconds=2.0)
#: Of one that ends before all have been ready: that it can be at all is not known yet.
FIRST_RESTARTS = RestartPolicy(limit=2, window_seconds=60.0, first_pause_seconds=0.02)
_LOADER_RESTARTS = 3
#: glibc raises its own limits to what it has freed once, and then keeps it: a worker that has read 25 MB of CSV twice
#: kept 63 MB. With these, blocks of a large request are returned at once, and those of others never (mallopt(3)).
_ALLOCATOR = {"MMAP": 4 * 2**20, "TRIM": 16 * 2**20}
#: A loader that leaves with one of these has said what must be changed first.
_FINAL = (ContractError, DataError, ProgramError, RequirementsError, SecretError)
#: A request is there as bytes, as text and as numbers.
_BODIES = 3
_MIB = 2**20


def plan_loader(
    hosting: Hosting,
    env: Mapping[str, str],
    *,
    program: tuple[str, ...] = PROGRAM,
    descriptors: tuple[int, ...],
    is_ready: Callable[[int], bool],
) -> Plan:
    """Plan the loader, which loads the model and forks the workers.

    Args:
        hosting: The contract, read.
        env: The environment of `serve`.
        program: What Python runs.
        descriptors: Of its socket to the supervisor, of the page of the workers, and where there are many models of the
            memory that keeps which ones are loaded.
        is_ready: Whether all workers of the loader with this process id are.
    """
    given = zip(("--link", "--page", "--store"), map(str, descriptors), strict=False)
    argv = (sys.executable, "-P", *program, *(part for pair in given for part in pair))
    defaults = dict.fromkeys(("PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONDONTWRITEBYTECODE"), "1")
    # With one thread OpenMP makes no team, which no fork would survive: xgboost#8040. Workers set their own number.
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    root = hosting.layout.root
    memory = {f"MALLOC_{name}_THRESHOLD_": str(size) for name, size in _ALLOCATOR.items()}
    child = Child(
        LOADER,
        argv,
        environment={**defaults, **memory, **env, **threads, ROOT_VARIABLE: str(root.absolute())},
        directory=root if root.is_dir() else Path("/"),
        hang_seconds=hosting.timeout_seconds,
        readiness=Readiness(is_ready, hosting.startup_seconds),
        descriptors=descriptors,
    )
    restart = RestartPolicy(
        limit=_LOADER_RESTARTS,
        window_seconds=max(60.0, 2 * hosting.startup_seconds),
        final_codes=frozenset(error.exit_code for error in _FINAL),
    )
    return Plan((child,), GRACE_SECONDS, restart=restart)


class Capacity(msgspec.Struct, frozen=True):
    """What the container has for workers."""

    cpus: int
    gpus: int = 0
    memory_bytes: int | None = None
    #: Whether there is a /dev/shm; serverless endpoints have none.
    has_shared_memory: bool = True


class WorkerCount(msgspec.Struct, frozen=True):
    """How many workers, and why."""

    count: int
    reason: str


def count_workers(hosting: Hosting, capacity: Capacity, loader_bytes: int) -> WorkerCount:
    """Decide how many workers there are.

    Args:
        hosting: The contract; what it says counts.
        capacity: Of the container.
        loader_bytes: What the loader uses with the model loaded.
    """
    # Of many models, others take over from all workers at once.
    most = MOST_WORKERS // 4 if hosting.is_multi_model else MOST_WORKERS
    if hosting.workers is not None:
        return WorkerCount(min(hosting.workers, most), "SAGEMAKER_MODEL_SERVER_WORKERS")
    if capacity.gpus and not hosting.is_multi_model:
        return WorkerCount(capacity.gpus, "one for each GPU")
    if not capacity.has_shared_memory:
        return WorkerCount(1, "there is no /dev/shm: taken for a serverless endpoint")
    if capacity.memory_bytes is not None:
        each = WORKER_BYTES + _BODIES * hosting.max_body_bytes
        room = max(1, (capacity.memory_bytes - loader_bytes) // each)
        if room < capacity.cpus:
            limit = f"the container has {capacity.memory_bytes // _MIB:,} MiB of memory"
            return WorkerCount(room, f"{limit}, and each may need {each // _MIB:,} MiB beside the model")
    return WorkerCount(min(capacity.cpus, most), "one for each processor of the container")
