"""Messages between the health check and its program of ranks, as JSON lines."""

import msgspec


class GroupTask(msgspec.Struct, frozen=True):
    """One group of ranks that this host is part of."""

    group: int
    #: Number of ranks of the group.
    world: int
    #: Rank of this host's first rank in the group, and the number of its ranks.
    first: int
    ranks: int
    #: Address and port of the store on the first rank of the group.
    address: str
    port: int
    backend: str
    #: Timeout; after it the rank is killed.
    seconds: float
    largest_bytes: int


class RankResult(msgspec.Struct, frozen=True):
    """Results of one rank, or why it has none."""

    local: int
    #: Count of wrong numbers in its results.
    wrong: int = 0
    #: Ranks of the group whose broadcasts arrived wrong; tested only if the sum was wrong.
    wrong_from: tuple[int, ...] = ()
    #: Bus bandwidth in GB/s (1e9 bytes).
    bandwidth: float = 0.0
    #: Microseconds for the sum of one number.
    latency: float = 0.0
    #: The error it reported itself: it timed out waiting for other ranks, or lost them.
    waited: str = ""
    #: How it ended if it reported nothing: it hung or died.
    broken: str = ""


class HostGroupResult(msgspec.Struct, frozen=True):
    """Results of the ranks of one host in one group."""

    group: int
    ranks: tuple[RankResult, ...]


class ProbeRequest(msgspec.Struct, frozen=True):
    """Request to the program of ranks: groups to run, or hosts to connect to."""

    tasks: tuple[GroupTask, ...] = ()
    #: Hosts to connect to, with their ports.
    targets: tuple[tuple[str, int], ...] = ()


class ProbeReply(msgspec.Struct, frozen=True):
    """Reply to a request. The first one is sent without a request, as soon as the program is ready."""

    groups: tuple[HostGroupResult, ...] = ()
    #: Targets to which no connection could be made.
    unreached: tuple[str, ...] = ()
    #: Free ports of this host for groups that it leads; the last one already accepts connections.
    ports: tuple[int, ...] = ()
