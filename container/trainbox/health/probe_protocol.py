"""What the coordination and the program of the ranks tell each other."""

import msgspec


class GroupTask(msgspec.Struct, frozen=True):
    """One group that this host is part of."""

    group: int
    #: Of all ranks of the group.
    world: int
    #: The place of this host's first rank, and how many it has.
    first: int
    ranks: int
    #: Where the group's first rank listens.
    address: str
    port: int
    backend: str
    #: After this it is ended.
    seconds: float
    largest_bytes: int


class RankResult(msgspec.Struct, frozen=True):
    """What one rank found, or why it found nothing."""

    local: int
    #: Numbers of its results that are wrong.
    wrong: int = 0
    #: Ranks of the group whose own numbers came wrong, looked at only where the sum was wrong.
    wrong_from: tuple[int, ...] = ()
    #: Gigabytes (1e9) per second.
    bandwidth: float = 0.0
    #: Microseconds for one number.
    latency: float = 0.0
    #: Why it gave up: what it says itself. It has waited for others, or lost them.
    waited: str = ""
    #: How it ended, where it could say nothing any more: it hung or died.
    broken: str = ""


class HostGroupResult(msgspec.Struct, frozen=True):
    """What the ranks of this host found in one group."""

    group: int
    ranks: tuple[RankResult, ...]


class ProbeRequest(msgspec.Struct, frozen=True):
    """What is to be done next."""

    tasks: tuple[GroupTask, ...] = ()
    #: Where to knock: host and port.
    targets: tuple[tuple[str, int], ...] = ()


class ProbeReply(msgspec.Struct, frozen=True):
    """What came of a call; the first one comes unasked, once this program is ready."""

    groups: tuple[HostGroupResult, ...] = ()
    #: Hosts that did not answer a knock.
    unreached: tuple[str, ...] = ()
    #: Free ports of this host, for groups that it is the first of; a knock at the last one is answered.
    ports: tuple[int, ...] = ()
