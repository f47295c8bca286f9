"""Faults of a cluster of four hosts, each with what must be named: for the tests and for `make bench-health`."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tests.support.cluster import Cluster, Ended

HARDWARE = 78
CONFIGURATION = 64
_PAIRS = "collectives: pairs"
_WORLD = "collectives: world"


class Fault(msgspec.Struct, frozen=True):
    """One kind."""

    #: Plant it and run.
    run: Callable[[Cluster], list[Ended]]
    #: What of the findings of the first host that runs on must not pass: checks to look at (by how they begin), hosts,
    #: and devices where they say more than the host.
    checks: tuple[str, ...]
    hosts: frozenset[str]
    devices: frozenset[str] | None = None
    codes: frozenset[int] = frozenset({HARDWARE})
    processes: int = 1
    #: Seconds for which a host that does not come is waited for.
    patience: float = 15.0


def _slow(cluster: Cluster) -> list[Ended]:
    cluster[2].slow()
    return cluster.run()


def _shaped(cluster: Cluster) -> list[Ended]:
    cluster[1].shape()
    return cluster.run()


def _lossy(cluster: Cluster) -> list[Ended]:
    cluster[3].lose(0.3)
    return cluster.run()


def _cut_pair(cluster: Cluster) -> list[Ended]:
    """Two that meet each other first."""
    cluster[2].cut_off(cluster[3])
    return cluster.run()


def _cut_across(cluster: Cluster) -> list[Ended]:
    """Two that meet in the world only."""
    cluster[1].cut_off(cluster[3])
    return cluster.run()


def _island(cluster: Cluster) -> list[Ended]:
    """One that reaches the first host alone."""
    cluster[3].cut_off(cluster[1])
    cluster[3].cut_off(cluster[2])
    return cluster.run()


def _unplugged(cluster: Cluster) -> list[Ended]:
    return cluster.run_until(_PAIRS, cluster[2].unplug, without=(2,))


def _frozen(cluster: Cluster) -> list[Ended]:
    return cluster.run_until(_PAIRS, lambda: cluster[1].signal(signal.SIGSTOP), without=(1,))


def _frozen_in_world(cluster: Cluster) -> list[Ended]:
    return cluster.run_until(_WORLD, lambda: cluster[3].signal(signal.SIGSTOP), without=(3,))


def _killed(cluster: Cluster) -> list[Ended]:
    return cluster.run_until(_PAIRS, lambda: cluster[3].signal(signal.SIGKILL), without=(3,))


def _drilled(place: int, what: str) -> Callable[[Cluster], list[Ended]]:
    def run(cluster: Cluster) -> list[Ended]:
        cluster[place].drill(what)
        return cluster.run()

    return run


def _missing(cluster: Cluster) -> list[Ended]:
    return cluster.run(without=(2,))


def _nameless(cluster: Cluster) -> list[Ended]:
    cluster[1].knows([host for host in cluster.hosts if host is not cluster[3]])
    return cluster.run()


def _skewed(cluster: Cluster) -> list[Ended]:
    cluster[2].pretend("torch", "9.9.9")
    return cluster.run()


def _full(cluster: Cluster) -> list[Ended]:
    cluster[1].fill_disk()
    return cluster.run()


_COLLECTIVE = ("collective.",)
_SOFT = frozenset({0})
FAULTS: Mapping[str, Fault] = {
    "slow link (tc tbf)": Fault(_slow, _COLLECTIVE, frozenset({"algo-3"}), codes=_SOFT),
    "slow link (tc htb)": Fault(_shaped, _COLLECTIVE, frozenset({"algo-2"}), codes=_SOFT),
    # So slow that it may meet a deadline.
    "loss (iptables statistic)": Fault(_lossy, _COLLECTIVE, frozenset({"algo-4"}), codes=_SOFT | {HARDWARE}),
    "partition of a pair": Fault(_cut_pair, ("collective.world",), frozenset({"algo-3"}), frozenset({"algo-4"})),
    "partition across pairs": Fault(_cut_across, ("collective.world",), frozenset({"algo-2"}), frozenset({"algo-4"})),
    "partition of a host": Fault(_island, _COLLECTIVE, frozenset({"algo-4"})),
    "link down": Fault(_unplugged, ("host.arrival",), frozenset({"algo-3"})),
    "host frozen": Fault(_frozen, ("host.arrival",), frozenset({"algo-2"})),
    "host frozen in the world": Fault(_frozen_in_world, ("host.arrival",), frozenset({"algo-4"})),
    "host killed": Fault(_killed, ("host.arrival",), frozenset({"algo-4"})),
    "wrong sum": Fault(_drilled(2, "wrong 0"), _COLLECTIVE, frozenset({"algo-3"})),
    "wrong sum of one rank of three": Fault(
        _drilled(1, "wrong 1"), _COLLECTIVE, frozenset({"algo-2"}), frozenset({"rank1"}), processes=3
    ),
    "rank hangs": Fault(_drilled(0, "hang 0"), _COLLECTIVE, frozenset({"algo-1"})),
    "rank dies": Fault(_drilled(3, "die 0"), _COLLECTIVE, frozenset({"algo-4"})),
    "host never arrives": Fault(_missing, ("host.arrival",), frozenset({"algo-3"}), patience=5.0),
    "name does not resolve": Fault(
        _nameless, ("host.dns",), frozenset({"algo-2"}), frozenset({"algo-4"}), codes=frozenset({CONFIGURATION})
    ),
    "versions differ": Fault(_skewed, ("versions.",), frozenset({"algo-3"}), codes=frozenset({CONFIGURATION})),
    "disk full": Fault(_full, ("host.disk", "host.write"), frozenset({"algo-2"}), codes=frozenset({CONFIGURATION})),
}


def judge(fault: Fault, ended: list[Ended]) -> str:
    """What is not as it must be; empty if the fault is named exactly."""
    first = ended[0]
    named = {one for one in first.named() if any(str(one[0]).startswith(check) for check in fault.checks)}
    strange = [one for one in first.named() - named if str(one[0]).startswith(("collective.", "host.arrival"))]
    hosts, devices = {one[1] for one in named}, {one[2] for one in named}
    codes = {one.host: one.code for one in ended}
    agreed = len({*codes.values()}) == 1 and {*codes.values()} <= fault.codes
    faults = [
        f"hosts {hosts or 'none'}" if hosts != fault.hosts else "",
        f"devices {devices}" if fault.devices is not None and devices != fault.devices else "",
        "" if agreed else f"exit codes {codes}",
        f"also {strange}" if strange else "",
    ]
    return ", ".join(filter(None, faults))


def run(name: str, directory: Path) -> tuple[str, list[Ended]]:
    """Plant one kind of fault in a new cluster of four, and hold what comes of it against what must."""
    fault = FAULTS[name]
    with Cluster(directory, 4, processes=fault.processes, patience=fault.patience) as cluster:
        ended = fault.run(cluster)
    return judge(fault, ended), ended
