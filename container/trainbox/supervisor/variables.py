"""Pure: the variables of a job's processes besides `SM_*`: their ranks as torchrun sets them, and the network."""

from collections.abc import Mapping

from trainbox.contract.cluster.ranks import RANK_VARIABLES
from trainbox.contract.cluster.world import world_hosts
from trainbox.contract.environment import Machine
from trainbox.contract.job import Job
from trainbox.supervisor.launcher_choice import Launch

#: What libfabric and NCCL's plug-in need to be told where there is an EFA (aws-ofi-nccl, "Environment variables").
_EFA = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
#: One host alone may not resolve its own name (`docker run` by hand).
_HERE = "127.0.0.1"
LOOPBACK = "lo"


def shared_variables(job: Job, launch: Launch, machine: Machine, env: Mapping[str, str]) -> dict[str, str]:
    """Return what all processes of this host get, with any launcher: the address of rank 0, threads and network.

    Args:
        job: The contract.
        launch: Who starts the processes, and how many.
        machine: What the host has.
        env: What is set already, and stays.
    """
    per_rank = {"OMP_NUM_THREADS": str(max(1, machine.cpus // launch.processes))} if launch.processes > 1 else {}
    backend = {"TRAINBOX_BACKEND": launch.backend} if launch.backend else {}
    defaults = {"MASTER_ADDR": master_address(job), **per_rank}
    return {
        "MASTER_PORT": str(job.port),  # of the request, if it names one
        **{name: value for name, value in defaults.items() if not env.get(name)},
        **backend,
        **network_variables(job, machine, env),
    }


def master_address(job: Job) -> str:
    """Return where the ranks meet: the first host of the world, or loopback where there is only one host."""
    return _HERE if len(job.hosts) == 1 else world_hosts(job)[0]


def process_variables(job: Job, launch: Launch, machine: Machine, env: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the environment of each process that the supervisor starts itself: `env`, and its place among the ranks.

    A process alone in its world has none. One process on a host of several GPUs is a rank of its own, but not that of
    one device: `LOCAL_RANK` is left out, and libraries that start the other processes of a host (Lightning) do so.

    Args:
        job: The contract.
        launch: Who starts the processes, and how many.
        machine: What the host has.
        env: What all processes of this host have.
    """
    world, count = world_hosts(job), launch.processes
    if len(world) * count == 1 or job.current_host not in world:
        return [dict(env)]
    host_rank = world.index(job.current_host)
    # A variable that the container has left over must not mix with these.
    base = {name: value for name, value in env.items() if name not in RANK_VARIABLES}
    base |= {
        "WORLD_SIZE": str(len(world) * count),
        "GROUP_RANK": str(host_rank),
        "GROUP_WORLD_SIZE": str(len(world)),
        "NODE_RANK": str(host_rank),
        "MASTER_ADDR": master_address(job),  # rank 0 is there, whatever the container says
    }
    if count == 1 and machine.gpus > 1:
        return [base | {"RANK": str(host_rank)}]
    base |= {"LOCAL_WORLD_SIZE": str(count)}
    return [base | {"RANK": str(host_rank * count + local), "LOCAL_RANK": str(local)} for local in range(count)]


def network_variables(job: Job, machine: Machine, env: Mapping[str, str]) -> dict[str, str]:
    """What NCCL, gloo and libfabric need to know of the network; nothing that the request says itself.

    SageMaker may name an interface that the host does not have (`ethwe`): told of it, NCCL finds none at all. The ranks
    of one host meet on loopback, where nobody else reaches them; NCCL, whose peers must know a secret of 64 bits of the
    first one, keeps the interface with which it finds its way between GPUs.
    """
    name = job.network_interface
    names = {"NCCL_SOCKET_IFNAME": name, "GLOO_SOCKET_IFNAME": LOOPBACK if len(job.hosts) == 1 else name}
    found = {
        variable: name
        for variable, name in names.items()
        if name and (machine.interfaces is None or name in machine.interfaces)
    }
    if machine.efa:
        found |= _EFA
    return {key: value for key, value in found.items() if key not in env}
