"""Who trains one model together: the processes of a job on all its hosts, in one order that all of them know."""

import msgspec

from trainbox.contract.cluster.ranks import Ranks
from trainbox.contract.cluster.world import in_world
from trainbox.contract.credentials.peer_key import PeerKey
from trainbox.contract.job import Job
from trainbox.errors import ContractError

_HERE = "127.0.0.1"


class Members(msgspec.Struct, frozen=True):
    """The processes of a job that train one model together, as one of them sees it."""

    #: "algo-1", or "algo-1/0", "algo-1/1" where a host has several processes; the first leads.
    names: tuple[str, ...]
    #: This one.
    name: str
    #: Of the leader's host.
    address: str
    #: What tells this job from others on the same network.
    job: str = ""
    #: By which they prove that they belong to it; None where the job has none.
    key: PeerKey | None = None

    @property
    def rank(self) -> int:
        """The place of this one among all, from 0."""
        return self.names.index(self.name)

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def is_first(self) -> bool:
        """Whether this one leads: the others connect to it, and it writes what is written once."""
        return self.name == self.names[0]


def find_members(job: Job, ranks: Ranks) -> Members:
    """The members of a job: the hosts of its world in the order that SageMaker gives, on each its processes.

    Args:
        job: The contract.
        ranks: The place of this process.

    Raises:
        ContractError: This host is not in the world, or the job has other processes than its hosts and their number on
            this one make it.
    """
    job = in_world(job)
    local_size = ranks.local_world_size
    if local_size == 1:
        names, name = job.hosts, job.current_host
    else:
        names = tuple(f"{host}/{number}" for host in job.hosts for number in range(local_size))
        name = f"{job.current_host}/{ranks.local_rank}"
    members = Members(names, name, _HERE if len(job.hosts) == 1 else job.hosts[0], job.name, job.peer_key)
    for variable, found, expected in (
        ("WORLD_SIZE", ranks.world_size, members.size),
        ("RANK", ranks.rank, members.rank),
    ):
        if found != expected:
            raise ContractError(
                f"{variable} is {found}; {len(job.hosts)} host(s) with {local_size} process(es) make it {expected}",
                hint="let processes_per_host start the processes, which sets all of these variables",
            )
    return members
