"""Pure: what is tried next with the collectives, and what follows from all that was tried.

Local ranks first; then pairs of hosts, and each suspect again with a host that is proven; then all. Who could not do
it with anybody is bad; who could with somebody is not. Where all pairs work and the whole does not, the hosts knock at
each other's doors: two that cannot reach each other are named as a pair.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import Literal

import msgspec

from trainbox.health.probe_protocol import HostGroupResult, ProbeReply

Group = tuple[str, ...]
#: With no host that is proven, each meets so many others: up to 7 hosts, everyone meets everyone.
_MEETINGS = 3
#: A round of one group has nothing to be compared with.
_TRIPLE = 3
BisectionStage = Literal["ready", "local", "pairs", "again", "world", "reach"]
STAGES: tuple[BisectionStage, ...] = ("ready", "local", "pairs", "again", "world", "reach")
#: Of the best bandwidth over gloo, which shares processors with everything else; of the median over NCCL.
_LEAST_OF_BEST = 0.2
_LEAST_OF_MEDIAN = 0.7
#: A latency counts against a pair only if it is so many times that of the others, and milliseconds.
_MOST_TIMES = 10.0
_MOST_LATENCY_US = 2000.0
#: With two ranks a bad sender and a bad receiver look the same.
_CONCLUSIVE_RANKS = 3
_LONGEST_REASON = 200


def plan_first_round(hosts: Sequence[str]) -> tuple[Group, ...]:
    """Neighbours in pairs; of an odd number the last makes the first pair a triple. One host alone meets nobody."""
    if len(hosts) < 2:  # noqa: PLR2004 - a pair
        return ()
    even = len(hosts) - len(hosts) % 2
    groups = [tuple(hosts[place : place + 2]) for place in range(0, even, 2)]
    groups[0] += tuple(hosts[even:])
    return tuple(groups)


def plan_second_round(hosts: Sequence[str], suspects: Collection[str]) -> tuple[Group, ...]:
    """Each suspect meets a host that is proven good, and does so as the first of its group.

    The proven share the suspects evenly. Where nobody is proven, each host meets the next ones in a ring: whoever is
    in a group that works is good. Three hosts have made one group, which nothing can be compared with: then each meets
    each in any case.

    Args:
        hosts: All hosts.
        suspects: Those whose group of the first round did not work, or was slow.
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
    """How many groups of a round one host may be the first of: so many ports it has to offer."""
    return _MEETINGS


def explain_unreachable(broken: Collection[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Explain pairs that cannot reach each other by as few parts as possible.

    Returns:
        The hosts that more than one pair has in common, each the one that explains most of the pairs left; and the
        pairs that remain: with them it is the way between the two.
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
    """What one host says after each stage."""

    ranks: int
    #: Processes that want a processor, for each that there is.
    load: float = 0.0
    reply: ProbeReply = ProbeReply()
    #: Why its ranks cannot do anything any more.
    broken: str = ""


class StageResult(msgspec.Struct, frozen=True):
    """One stage, as it went."""

    stage: BisectionStage
    groups: tuple[Group, ...]
    replies: Mapping[str, HostReply]
    #: Why hosts said nothing.
    silent: Mapping[str, str] = {}


class GroupResult(msgspec.Struct, frozen=True):
    """One group, as it went."""

    members: Group
    #: By host, in the order of the members.
    by_host: Mapping[str, HostGroupResult]

    @property
    def faults(self) -> Mapping[str, str]:
        """What went wrong, by host; empty where the sum is exact everywhere."""
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
        """What went wrong on a host, or else on the first one where something did."""
        return self.faults.get(host) or next(iter(self.faults.values()))

    @property
    def bandwidth(self) -> float:
        """Gigabytes per second of the slowest rank; 0 where nothing was measured."""
        return min((rank.bandwidth for result in self.by_host.values() for rank in result.ranks), default=0.0)

    @property
    def latency(self) -> float:
        """Microseconds of the slowest rank."""
        return max((rank.latency for result in self.by_host.values() for rank in result.ranks), default=0.0)

    def suspects(self) -> list[tuple[str, int]]:
        """Host and local rank of those who send wrong numbers to all others, or hear them from all others."""
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
    """The next stage and its groups; None where there is nothing more to learn.

    Args:
        rounds: All stages so far; the first is `ready`, in which every host says how many ranks it has.
        backend: How strict the comparison of bandwidths can be.
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
        # Two hosts have met already.
        return (hosts,) if len(hosts) > 2 else ()  # noqa: PLR2004
    return (hosts,) if any(one.faults for one in group_results(rounds, "world")) else ()


def group_results(rounds: Sequence[StageResult], *stages: BisectionStage) -> list[GroupResult]:
    """All groups of some stages."""
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
    """Groups that are exact, and slow beside the others."""
    exact = [one for one in groups if not one.faults]
    if not exact:
        return []
    least = min_bandwidth(exact, backend)
    most = max_latency(exact)
    return [one for one in exact if one.bandwidth < least or one.latency > most]


def min_bandwidth(groups: Sequence[GroupResult], backend: str) -> float:
    """What a group is to have, in gigabytes per second."""
    bandwidths = [one.bandwidth for one in groups if not one.faults]
    return _LEAST_OF_MEDIAN * median(bandwidths) if backend == "nccl" else _LEAST_OF_BEST * max(bandwidths)


def max_latency(groups: Sequence[GroupResult]) -> float:
    """What a group may have, in microseconds."""
    return max(_MOST_LATENCY_US, _MOST_TIMES * min(one.latency for one in groups if not one.faults))


def find_slow_hosts(rounds: Sequence[StageResult], backend: str) -> list[str]:
    """Hosts that were slow with everybody they could do it with: never in a group that was as fast as the others."""
    groups = [one for one in group_results(rounds, "pairs", "again") if not one.faults]
    late = find_slow_groups(groups, backend)
    fast = {host for one in groups if one not in late for host in one.members}
    return [host for host in rounds[0].replies if host not in fast and any(host in one.members for one in late)]


class Attributed(msgspec.Struct, frozen=True):
    """One part that is bad."""

    check: str
    host: str
    #: A local rank's device, another host, or empty: the host itself.
    device: str
    reason: str
    #: Whether it concerns no host more than the others.
    everywhere: bool = False


def attribute(rounds: Sequence[StageResult], backend: str) -> list[Attributed]:
    """Who is bad after these stages; empty where nobody is, or nobody can be told yet."""
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
            # Only a proven partner proves something; who had none is not named.
            mine = [one for one in failed if host in one.members and proven & {*one.members}]
            if host not in proven and mine:
                device = next((name for one in groups if (name := _device(one, host))), "")
                yield Attributed("collective.pair", host, device, mine[0].reason(host))
        return
    # Nobody could do it with anybody. Of two hosts either may be to blame; of more, hardly all.
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
        # Hosts that could not do it with each other, but each with another one: then it is the way between them.
        pairs = tuple(
            (one.members[0], " ".join(one.members[1:])) for one in group_results(rounds, "pairs") if one.faults
        )
    for host in hosts:
        yield Attributed("collective.world", host, "", "cannot be reached by more than one host")
    for host, other in pairs:
        yield Attributed("collective.world", host, other, "these two cannot reach each other")
    for host in late:
        # A way that loses packets is open, and too slow for a sum that waits for all.
        why = f"slow with every host it met, and then: {world.reason(host)}"
        yield Attributed("collective.world", host, "", why)
    if hosts or pairs or late:
        return
    for host, rank in named:
        yield Attributed("collective.world", host, f"rank{rank}", "wrong sum")
    if not named:
        first = next(iter(world.faults))
        yield Attributed("collective.world", first, "", world.reason(first), everywhere=True)


def _device(one: GroupResult, host: str) -> str:
    """The one rank of the host that is to blame, if that can be told: others waited for it, or heard it wrong."""
    ranks = one.by_host[host].ranks if host in one.by_host else ()
    bad = [rank.local for rank in ranks if rank.broken]
    if not any(rank.waited for result in one.by_host.values() for rank in result.ranks):
        bad = [rank for name, rank in one.suspects() if name == host]
    return f"rank{bad[0]}" if len(bad) == 1 else ""
