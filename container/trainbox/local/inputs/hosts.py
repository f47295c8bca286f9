"""`--hosts N` and `--hosts workers=2,evaluators=1`: how many hosts a job has, and which instance groups they form."""

import argparse
import re
from collections.abc import Sequence

import msgspec

from trainbox.contract.job import HOMOGENEOUS_GROUP, InstanceGroup
from trainbox.contract.job_spec import ResourceConfig
from trainbox.errors import RunError

#: API ResourceConfig.InstanceGroups, InstanceGroup.InstanceGroupName.
MOST_GROUPS = 5
_LONGEST_NAME = 64
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)
#: What SageMaker takes, but for the signs that separate: here and in `--channel NAME=PLACE,groups=…`.
_NAME = re.compile(r"[!-+\--<>-~]+")
#: What the hosts of a job are told that they are, where the job does not say.
LOCAL_TYPE = "local"


class HostGroup(msgspec.Struct, frozen=True):
    """An instance group, and how many hosts it has."""

    name: str
    count: int
    instance_type: str = LOCAL_TYPE


class Hosts(msgspec.Struct, frozen=True):
    """The hosts of a job: their number, and their groups where they are named."""

    count: int
    groups: tuple[HostGroup, ...] = ()
    #: Of hosts without groups; it decides nothing here.
    instance_type: str = LOCAL_TYPE

    @property
    def text(self) -> str:
        """As the command line has it."""
        return ",".join(f"{group.name}={group.count}" for group in self.groups) or str(self.count)


def read_hosts(text: str) -> Hosts:
    """Parse the value of `--hosts`, for argparse.

    Raises:
        ArgumentTypeError: It is no number and no list of groups.
    """
    if _NUMBER.fullmatch(text):
        return Hosts(int(text))
    groups = []
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        if not name or not _NUMBER.fullmatch(number):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number, or groups as in workers=2,evaluators=1")
        groups.append(HostGroup(name, int(number)))
    return Hosts(sum(group.count for group in groups), tuple(groups))


def hosts_of(config: ResourceConfig) -> Hosts:
    """The hosts of a job by the request: so many, or those of its groups."""
    groups = tuple(
        HostGroup(group.instance_group_name, group.instance_count, group.instance_type or LOCAL_TYPE)
        for group in config.instance_groups
    )
    if groups:
        return Hosts(sum(group.count for group in groups), groups)
    count = 1 if config.instance_count is None else config.instance_count
    return Hosts(count, instance_type=config.instance_type or LOCAL_TYPE)


def check_hosts(hosts: Hosts, *, most: int, flag: str = "--hosts") -> None:
    """Refuse hosts that SageMaker, or this machine, does not give.

    Args:
        hosts: Those asked for.
        most: How many this machine gives.
        flag: How messages name them.

    Raises:
        RunError: Too few or too many, or a group that cannot be.
    """
    for group in hosts.groups:
        if len(group.name) > _LONGEST_NAME or not _NAME.fullmatch(group.name):
            raise RunError(
                f"{flag}: {group.name[:_LONGEST_NAME]!r} is not the name of an instance group",
                hint=f"take letters, digits and dashes, {_LONGEST_NAME} at most",
            )
        if group.count < 1:
            raise RunError(f"{flag}: group {group.name} has {group.count} hosts", hint="a group has one at least")
    names = [group.name for group in hosts.groups]
    if len(set(names)) < len(names):
        raise RunError(f"{flag} {hosts.text}: a group is named twice", hint="name each group once")
    if len(names) > MOST_GROUPS:
        raise RunError(f"{flag}: {len(names)} groups", hint=f"SageMaker refuses more than {MOST_GROUPS}")
    if not 1 <= hosts.count <= most:
        raise RunError(f"{flag} {hosts.text}: expected 1 to {most}")


class Cluster(msgspec.Struct, frozen=True):
    """The hosts of a job by name, and their groups, as `resourceconfig.json` has them."""

    #: Sorted as SageMaker sorts them.
    hosts: tuple[str, ...]
    groups: tuple[InstanceGroup, ...]

    def group_of(self, host: str) -> str:
        """The name of a host's group."""
        return next(group.name for group in self.groups if host in group.hosts)

    def type_of(self, host: str) -> str:
        """The instance type of a host."""
        return next(group.instance_type for group in self.groups if host in group.hosts)

    def hosts_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """The hosts of some groups; of none named, all."""
        chosen = {host for group in self.groups if group.name in names for host in group.hosts}
        return tuple(host for host in self.hosts if host in chosen or not names)


def form_cluster(groups: Sequence[HostGroup], names: Sequence[str], instance_type: str = LOCAL_TYPE) -> Cluster:
    """Put hosts into groups; without groups, into the one that SageMaker makes.

    Args:
        groups: Those asked for.
        names: All hosts in the order of their numbers; a group has neighbours.
        instance_type: Of hosts without groups.
    """
    found, first = [], 0
    for group in groups or (HostGroup(HOMOGENEOUS_GROUP, len(names), instance_type),):
        hosts = tuple(sorted(names[first : first + group.count]))
        found.append(InstanceGroup(group.name, hosts, group.instance_type))
        first += group.count
    return Cluster(tuple(sorted(names)), tuple(found))
