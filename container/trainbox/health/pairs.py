"""Pure: which hosts meet for a collective, so that two rounds of small groups tell a bad host from its partner."""

from collections.abc import Collection, Sequence

Group = tuple[str, ...]

#: With no host that is proven, each meets so many others: up to 7 hosts, everyone meets everyone.
_MEETINGS = 3
#: A round of one group has nothing to be compared with.
_TRIPLE = 3


def first_round(hosts: Sequence[str]) -> tuple[Group, ...]:
    """Neighbours in pairs; of an odd number the last makes the first pair a triple. One host alone meets nobody."""
    if len(hosts) < 2:  # noqa: PLR2004 - a pair
        return ()
    even = len(hosts) - len(hosts) % 2
    groups = [tuple(hosts[place : place + 2]) for place in range(0, even, 2)]
    groups[0] += tuple(hosts[even:])
    return tuple(groups)


def second_round(hosts: Sequence[str], suspects: Collection[str]) -> tuple[Group, ...]:
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


def most_led() -> int:
    """How many groups of a round one host may be the first of: so many ports it has to offer."""
    return _MEETINGS


def blame(broken: Collection[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
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
