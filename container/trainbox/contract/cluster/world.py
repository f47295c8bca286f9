"""Pure: which hosts of a job train together: those of the instance groups that the request names, else all."""

import msgspec

from trainbox.contract.job import Job
from trainbox.errors import ContractError

#: What SDK v2 sends for `distribution={…, "instance_groups": […]}`: a list of names.
GROUPS = "sagemaker_distribution_instance_groups"


def world_hosts(job: Job) -> tuple[str, ...]:
    """Return the hosts whose processes are ranks of one world, in the order of their ranks.

    A list that names no group of the job names all hosts.
    """
    names = job.reserved.get(GROUPS)
    if not isinstance(names, list):
        return job.hosts
    hosts = [host for group in job.instance_groups if group.name in names for host in group.hosts if host in job.hosts]
    return tuple(dict.fromkeys(hosts)) or job.hosts


def in_world(job: Job) -> Job:
    """Return the job as its ranks see it: `hosts` are those that train together.

    Raises:
        ContractError: This host is none of them.
    """
    hosts = world_hosts(job)
    if job.current_host not in hosts:
        raise ContractError(
            f"{job.current_host} does not take part in the training: {GROUPS} names {', '.join(hosts)}",
            hint="let the script branch on SM_CURRENT_INSTANCE_GROUP before it joins the other ranks, or name all"
            " instance groups",
        )
    return job if hosts == job.hosts else msgspec.structs.replace(job, hosts=hosts)
