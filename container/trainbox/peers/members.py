"""Who trains one model together: the processes of a job on all its hosts, in one order that all of them know."""

from collections.abc import Mapping

import msgspec

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


def find_members(job: Job, env: Mapping[str, str]) -> Members:
    """The members of a job: its hosts in the order that SageMaker gives, on each its processes.

    Args:
        job: The contract.
        env: The environment of this process: `LOCAL_RANK` and `LOCAL_WORLD_SIZE` say which process of its host it is
            where there are several (the hyperparameter `processes_per_host`).

    Raises:
        ContractError: The variables contradict each other, or the hosts of the job.
    """
    local_size = _read_number(env, "LOCAL_WORLD_SIZE", 1)
    local_rank = _read_number(env, "LOCAL_RANK", 0)
    if local_size < 1 or local_rank >= local_size:
        raise ContractError(f"LOCAL_RANK is {local_rank}, and LOCAL_WORLD_SIZE is {local_size}")
    if local_size == 1:
        names, name = job.hosts, job.current_host
    else:
        names = tuple(f"{host}/{number}" for host in job.hosts for number in range(local_size))
        name = f"{job.current_host}/{local_rank}"
    members = Members(names, name, _HERE if len(job.hosts) == 1 else job.hosts[0], job.name)
    for variable, expected in (("WORLD_SIZE", members.size), ("RANK", members.rank)):
        found = _read_number(env, variable, expected)
        if found != expected:
            raise ContractError(
                f"{variable} is {found}; {len(job.hosts)} host(s) with {local_size} process(es) make it {expected}",
                hint="let processes_per_host start the processes, which sets all of these variables",
            )
    return members


def _read_number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    if text and not text.isdecimal():
        raise ContractError(f"the variable {name}: found {text!r}, expected a whole number, 0 or more")
    return int(text) if text else default
