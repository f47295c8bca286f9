"""Parse the variables, named as by torchrun, that tell the processes of a job apart and where they meet."""

from collections.abc import Mapping

import msgspec

from trainbox.errors import ContractError

#: Where the processes of a job meet on the first host unless `MASTER_PORT` says otherwise: torchrun's default for its
#: rendezvous. Below 32768, where Linux gives ports to clients.
DEFAULT_PORT = 29400
LAST_PORT = 65535
#: What a launcher of several processes sets for each of them.
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

#: How many processes a launcher started: torchrun and Kubernetes' PyTorchJob, Open MPI, MPICH, srun.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


class Ranks(msgspec.Struct, frozen=True):
    """The place of a process among all processes of its job, and among those of its host; both count from 0."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def read_ranks(env: Mapping[str, str], *, hosts: int = 1, host_rank: int = 0) -> Ranks:
    """Return the place of this process: one process on each host where no variable says otherwise.

    Some launchers set only a part of the variables. The others follow from them and from the hosts of the job.

    Args:
        env: The environment of the process.
        hosts: How many hosts the job has.
        host_rank: The place of this host among them.

    Raises:
        ContractError: A variable is not a number, or the variables contradict each other.
    """
    given = {name: _read_count(env, name, least=int(name.endswith("SIZE"))) for name in RANK_VARIABLES}
    rank, world_size, local_rank, local_world_size = given.values()
    if local_world_size is None:
        local_world_size = max(1 if world_size is None else -(-world_size // hosts), (local_rank or 0) + 1)
    if local_rank is None:
        local_rank = 0 if rank is None else rank % local_world_size
    if rank is None:
        rank = host_rank * local_world_size + local_rank
    if world_size is None:
        world_size = max(hosts * local_world_size, rank + 1)
    if not (rank < world_size and local_rank < local_world_size <= world_size):
        said = ", ".join(f"{name} is {value}" for name, value in given.items() if value is not None)
        raise ContractError(
            f"contradicting variables on host {host_rank + 1} of {hosts}: {said}",
            hint="RANK counts from 0 to WORLD_SIZE - 1, LOCAL_RANK from 0 to LOCAL_WORLD_SIZE - 1; torchrun, or"
            " processes_per_host, sets all four",
        )
    return Ranks(rank, world_size, local_rank, local_world_size)


def find_members_beyond(env: Mapping[str, str], count: int) -> str:
    """Return what says that another launcher started more processes than these, such as "WORLD_SIZE is 2"; else "".

    Args:
        env: The environment of the process.
        count: How many processes are known of.
    """
    found = ((name, _whole_number(env.get(name, ""))) for name in _SIZES)
    return next((f"{name} is {size}" for name, size in found if size is not None and size > count), "")


def _read_count(env: Mapping[str, str], name: str, *, least: int) -> int | None:
    text = env.get(name, "")
    count = _whole_number(text)
    if text and (count is None or count < least):
        raise ContractError(f"the variable {name}: found {text!r}, expected a whole number, {least} or more")
    return count


def read_port(env: Mapping[str, str]) -> int:
    """Return the port of `MASTER_PORT`, or the default where it is not set.

    Raises:
        ContractError: The value is not a port.
    """
    text = env.get("MASTER_PORT", "")
    # In a pod this is the address of a service that is named "master", if there is one.
    if not text or (text.startswith("tcp://") and env.get("MASTER_SERVICE_HOST")):
        return DEFAULT_PORT
    port = _whole_number(text)
    if port is None or not 0 < port <= LAST_PORT:
        raise ContractError(
            f"the variable MASTER_PORT: found {text!r}, expected a number from 1 to {LAST_PORT}",
            hint=f"name a port that is free on the first host, or leave it out for {DEFAULT_PORT}",
        )
    return port


def _whole_number(text: str) -> int | None:
    """Return a number written in plain digits; None for any other text."""
    try:
        return int(text) if text.isascii() and text.isdecimal() else None
    except ValueError:  # more digits than Python converts
        return None
