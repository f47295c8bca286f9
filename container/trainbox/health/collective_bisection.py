"""Pure: finds faulty hosts by running collectives on smaller groups of hosts.

First the local ranks of each host, then pairs of hosts, then each suspect again with a proven host, then all hosts. A
host that fails with every partner is faulty; a host that succeeds with one is not. If all pairs work and all hosts
together fail, the hosts connect to each other's port; an unreachable pair is reported as a pair.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import Literal

import msgspec

from trainbox.health.probe_protocol import HostGroupResult, ProbeReply

Group = tuple[str, ...]
#: Partners of each host if no host is proven; with up to 7 hosts these are all pairs.
_MEETINGS = 3
#: Three hosts make one group, which cannot be compared with another.
_TRIPLE = 3
BisectionStage = Literal["ready", "local", "pairs", "again", "world", "reach"]
STAGES: tuple[BisectionStage, ...] = ("ready", "local", "pairs", "again", "world", "reach")
#: Share of the best bandwidth (gloo, which shares CPUs with everything else) and of the median (NCCL).
_LEAST_OF_BEST = 0.2
_LEAST_OF_MEDIAN = 0.7
#: A pair is slow if its latency exceeds both this multiple of the best and this time.
_MOST_TIMES = 10.0
_MOST_LATENCY_US = 2000.0
#: With two ranks a faulty sender cannot be told from a faulty receiver.
_CONCLUSIVE_RANKS = 3
_LONGEST_REASON = 200


def plan_first_round(hosts: Sequence[str]) -> tuple[Group, ...]:
    """Pair neighbours; the last of an odd number of hosts joins the first pair. One host has no group."""
    if len(hosts) < 2:  # noqa: PLR2004 - a pair
        return ()
    even = len(hosts) - len(hosts) % 2
    groups = [tuple(hosts[place : place + 2]) for place in range(0, even, 2)]
    groups[0] += tuple(hosts[even:])
    return tuple(groups)


def plan_second_round(hosts: Sequence[str], suspects: Collection[str]) -> tuple[Group, ...]:
    """Pair each suspect, as the first of its group, with a proven host.

    The proven hosts share the suspects evenly. If no host is proven, each host is paired with the next ones in a ring:
    every host of a group that works is good. Three hosts were one group, which cannot be compared with another: they
    are paired in all combinations.

    Args:
        hosts: All hosts.
        suspects: Hosts whose group of the first round failed or was slow.
    """
    if len(hosts) == _TRIPLE:
        return _ring(hosts)
    if not suspects:
        return ()
    proven = [host for host in hosts if host not in suspects]
    if not proven:
        return _ring(hosts)
    return tuple(
        (suspect, proven[place % len(proven)])
        for place, suspect in enumerate(host for host in hosts if host in suspects)
    )


def _ring(hosts: Sequence[str]) -> tuple[Group, ...]:
    groups: dict[frozenset[str], Group] = {}
    for place, host in enumerate(hosts):
        for further in range(1, min(_MEETINGS, len(hosts) - 1) + 1):
            other = hosts[(place + further) % len(hosts)]
            groups.setdefault(frozenset((host, other)), (host, other))
    return tuple(groups.values())


def max_led_groups() -> int:
    """Return the largest number of groups of a round that one host leads, each of which needs a port."""
    return _MEETINGS


def explain_unreachable(broken: Collection[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Explain the pairs that cannot reach each other by as few faults as possible.

    Returns:
        Hosts that several pairs have in common, each chosen because it explains most of the remaining pairs; and the
        pairs that are left, where the network between the two is faulty.
    """
    left = {frozenset(pair): pair for pair in broken}
    hosts: list[str] = []
    while left:
        counted = {host: sum(host in pair for pair in left) for pair in left for host in sorted(pair)}
        most = max(counted.values())
        if most == 1:
            break
        worst = min(host for host, count in counted.items() if count == most)
        hosts.append(worst)
        left = {key: pair for key, pair in left.items() if worst not in key}
    return tuple(hosts), tuple(sorted((min(pair), max(pair)) for pair in left.values()))


class HostReply(msgspec.Struct, frozen=True):
    """Reply of one host after each stage."""

    ranks: int
    #: Load average divided by the number of CPUs.
    load: float = 0.0
    reply: ProbeReply = ProbeReply()
    #: Why its program of ranks failed.
    broken: str = ""


class StageResult(msgspec.Struct, frozen=True):
    """One stage with the replies of all hosts."""

    stage: BisectionStage
    groups: tuple[Group, ...]
    replies: Mapping[str, HostReply]
    #: Why hosts did not reply.
    silent: Mapping[str, str] = {}


class GroupResult(msgspec.Struct, frozen=True):
    """Results of one group of hosts."""

    members: Group
    #: By host; hosts without a report are missing.
    by_host: Mapping[str, HostGroupResult]

    @property
    def faults(self) -> Mapping[str, str]:
        """Errors by host; empty if the sum is exact on all ranks."""
        faults = {}
        for host in self.members:
            ranks = self.by_host[host].ranks if host in self.by_host else ()
            broken = [rank.broken for rank in ranks if rank.broken] + [rank.waited for rank in ranks if rank.waited]
            if not ranks:
                faults[host] = "no report"
            elif broken:
                faults[host] = broken[0][:_LONGEST_REASON]
            elif any(rank.wrong for rank in ranks):
                faults[host] = "wrong sum"
        return faults

    def reason(self, host: str) -> str:
        """Return the error of a host, or else the first error of the group."""
        return self.faults.get(host) or next(iter(self.faults.values()))

    @property
    def bandwidth(self) -> float:
        """GB/s of the slowest rank; 0 if nothing was measured."""
        return min((rank.bandwidth for result in self.by_host.values() for rank in result.ranks), default=0.0)

    @property
    def latency(self) -> float:
        """Latency of the slowest rank in microseconds."""
        return max((rank.latency for result in self.by_host.values() for rank in result.ranks), default=0.0)

    def suspects(self) -> list[tuple[str, int]]:
        """Return host and local rank of the ranks that send wrong numbers to all others or receive them from all."""
        ranks = [(host, rank) for host in self.members if host in self.by_host for rank in self.by_host[host].ranks]
        places = [(host, rank.local) for host, rank in ranks]
        heard = [set(rank.wrong_from) for _, rank in ranks]
        if len(places) < _CONCLUSIVE_RANKS:
            return []
        others = len(places) - 1
        return [
            place
            for number, place in enumerate(places)
            if sum(number in one for one in heard) == others or len(heard[number]) == others
        ]


def plan_next(rounds: Sequence[StageResult], *, backend: str) -> tuple[BisectionStage, tuple[Group, ...]] | None:
    """Return the next stage and its groups; None if no further stage would tell more.

    Args:
        rounds: All stages so far; the first is `ready`, in which every host reports the number of its ranks.
        backend: Of the collectives; decides how strictly bandwidths are compared.
    """
    if any(one.silent or any(reply.broken for reply in one.replies.values()) for one in rounds) or attribute(
        rounds, backend
    ):
        return None
    hosts = tuple(rounds[0].replies)
    for stage in STAGES[STAGES.index(rounds[-1].stage) + 1 :]:
        groups = _groups(stage, hosts, rounds, backend)
        if groups:
            return stage, groups
    return None


def _groups(stage: BisectionStage, hosts: Group, rounds: Sequence[StageResult], backend: str) -> tuple[Group, ...]:
    if stage == "local":
        return tuple((host,) for host in hosts if rounds[0].replies[host].ranks > 1)
    if stage == "pairs":
        return plan_first_round(hosts)
    if stage == "again":
        groups = group_results(rounds, "pairs")
        suspects = {host for one in groups if one.faults for host in one.members}
        suspects |= {host for one in find_slow_groups(groups, backend) for host in one.members}
        return plan_second_round(hosts, suspects)
    if stage == "world":
        # Two hosts were already a pair.
        return (hosts,) if len(hosts) > 2 else ()  # noqa: PLR2004
    return (hosts,) if any(one.faults for one in group_results(rounds, "world")) else ()


def group_results(rounds: Sequence[StageResult], *stages: BisectionStage) -> list[GroupResult]:
    """Return the results of all groups of the given stages."""
    return [
        GroupResult(members, {host: part for host in members if (part := _find_result(one, host, number)) is not None})
        for one in rounds
        if one.stage in stages
        for number, members in enumerate(one.groups)
    ]


def _find_result(one: StageResult, host: str, number: int) -> HostGroupResult | None:
    if host not in one.replies:
        return None
    return next((result for result in one.replies[host].reply.groups if result.group == number), None)


def find_slow_groups(groups: Sequence[GroupResult], backend: str) -> list[GroupResult]:
    """Return the groups with exact sums that are slow compared with the others."""
    exact = [one for one in groups if not one.faults]
    if not exact:
        return []
    least = min_bandwidth(exact, backend)
    most = max_latency(exact)
    return [one for one in exact if one.bandwidth < least or one.latency > most]


def min_bandwidth(groups: Sequence[GroupResult], backend: str) -> float:
    """Return the lowest accepted bandwidth in GB/s."""
    bandwidths = [one.bandwidth for one in groups if not one.faults]
    return _LEAST_OF_MEDIAN * median(bandwidths) if backend == "nccl" else _LEAST_OF_BEST * max(bandwidths)


def max_latency(groups: Sequence[GroupResult]) -> float:
    """Return the highest accepted latency in microseconds."""
    return max(_MOST_LATENCY_US, _MOST_TIMES * min(one.latency for one in groups if not one.faults))


def find_slow_hosts(rounds: Sequence[StageResult], backend: str) -> list[str]:
    """Return the hosts that were slow with every partner with which the sum was exact."""
    groups = [one for one in group_results(rounds, "pairs", "again") if not one.faults]
    late = find_slow_groups(groups, backend)
    fast = {host for one in groups if one not in late for host in one.members}
    return [host for host in rounds[0].replies if host not in fast and any(host in one.members for one in late)]


class Attributed(msgspec.Struct, frozen=True):
    """One part of the cluster that is faulty."""

    check: str
    host: str
    #: Device of a local rank, another host, or empty for the host itself.
    device: str
    reason: str
    #: Whether all hosts are affected alike.
    everywhere: bool = False


def attribute(rounds: Sequence[StageResult], backend: str) -> list[Attributed]:
    """Return the parts identified as faulty so far; empty if none, or not yet attributable."""
    bad = [
        Attributed("collective.local", one.members[0], _device(one, one.members[0]), one.reason(one.members[0]))
        for one in group_results(rounds, "local")
        if one.faults
    ]
    stages = {one.stage for one in rounds}
    if "again" in stages:
        bad += _attribute_pairs(rounds)
    if "reach" in stages:
        bad += _attribute_connections(rounds, backend)
    return bad


def _attribute_pairs(rounds: Sequence[StageResult]) -> Iterator[Attributed]:
    groups = group_results(rounds, "pairs", "again")
    proven = {host for one in groups if not one.faults for host in one.members}
    failed = [one for one in group_results(rounds, "again") if one.faults]
    if proven:
        for host in rounds[0].replies:
            # A failure is conclusive only with a proven partner; hosts without one are not named.
            mine = [one for one in failed if host in one.members and proven & {*one.members}]
            if host not in proven and mine:
                device = next((name for one in groups if (name := _device(one, host))), "")
                yield Attributed("collective.pair", host, device, mine[0].reason(host))
        return
    # No pair works. Of two hosts either may be faulty; of more, hardly all.
    everywhere = len(rounds[0].replies) > 2  # noqa: PLR2004
    for one in group_results(rounds, "pairs"):
        named = one.suspects()
        if named:
            yield from (Attributed("collective.pair", host, f"rank{rank}", "wrong sum") for host, rank in named)
        else:
            first, *others = one.members
            yield Attributed("collective.pair", first, " ".join(others), one.reason(first), everywhere)


def _attribute_connections(rounds: Sequence[StageResult], backend: str) -> Iterator[Attributed]:
    world = group_results(rounds, "world")[0]
    reach = rounds[-1]
    closed = {(host, other) for host, reply in reach.replies.items() for other in reply.reply.unreached}
    hosts, pairs = explain_unreachable(closed)
    named = [] if closed else world.suspects()
    late = [] if closed or named else find_slow_hosts(rounds, backend)
    if not closed and not late:
        # Hosts that fail with each other but succeed with another one: the network between them is faulty.
        pairs = tuple(
            (one.members[0], " ".join(one.members[1:])) for one in group_results(rounds, "pairs") if one.faults
        )
    for host in hosts:
        yield Attributed("collective.world", host, "", "cannot be reached by more than one host")
    for host, other in pairs:
        yield Attributed("collective.world", host, other, "these two cannot reach each other")
    for host in late:
        # A link that loses packets accepts connections, but is too slow for a sum over all hosts.
        why = f"slow with every host it was paired with, then: {world.reason(host)}"
        yield Attributed("collective.world", host, "", why)
    if hosts or pairs or late:
        return
    for host, rank in named:
        yield Attributed("collective.world", host, f"rank{rank}", "wrong sum")
    if not named:
        first = next(iter(world.faults))
        yield Attributed("collective.world", first, "", world.reason(first), everywhere=True)


def _device(one: GroupResult, host: str) -> str:
    """Return the one faulty rank of the host, if it is known: others waited for it, or received wrong numbers."""
    ranks = one.by_host[host].ranks if host in one.by_host else ()
    bad = [rank.local for rank in ranks if rank.broken]
    if not any(rank.waited for result in one.by_host.values() for rank in result.ranks):
        bad = [rank for name, rank in one.suspects() if name == host]
    return f"rank{bad[0]}" if len(bad) == 1 else ""
