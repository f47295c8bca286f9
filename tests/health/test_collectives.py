"""Collectives between hosts that are network namespaces, with faults that are real: each is named, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, can_make_hosts, tool
from tests.support.faults import FAULTS, HARDWARE, run

pytest.importorskip("torch")
_NO_HOSTS = can_make_hosts()
pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(bool(_NO_HOSTS), reason=f"no hosts can be made here: {_NO_HOSTS}"),
]

#: One of each way to be found; `make bench-health` plants all kinds, several times each.
KINDS = (
    "slow link (tc tbf)",
    "partition across pairs",
    "host frozen",
    "wrong sum of one rank of three",
)


#: In the namespace of the second host: a listener. In that of the first: which connections to it fail.
LISTENER = (
    "import socket; listener = socket.create_server(('', 29777), backlog=1024); print('open', flush=True); input()"
)
CONNECT = """
import sys
from trainbox.health.collective_ranks import find_unreachable
print(find_unreachable([(sys.argv[1], 29777)] * 8))
"""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long) if kind in KINDS[1:3] else kind for kind in KINDS]
)
def test_a_fault_among_four_hosts_is_named_exactly(kind: str, tmp_path: Path) -> None:
    bad, ended = run(kind, tmp_path)
    assert not bad, "\n".join(one.log for one in ended)


def test_every_kind_of_fault_says_what_must_be_named() -> None:
    assert len(FAULTS) >= 10
    assert all(fault.hosts and fault.checks for fault in FAULTS.values())


@pytest.mark.representative
def test_three_healthy_hosts_meet_as_a_triple_in_pairs_and_all_together(tmp_path: Path) -> None:
    with Cluster(tmp_path, 3) as cluster:
        ended = cluster.run()
    assert [one.code for one in ended] == [0, 0, 0]
    first = ended[0]
    assert first.named() == set()
    met = {(one["host"], one["device"]) for one in first.findings if one["check"] == "collective.pair"}
    assert {frozenset(f"{host} {device}".split()) for host, device in met} == {
        frozenset(("algo-1", "algo-2", "algo-3")),
        frozenset(("algo-1", "algo-2")),
        frozenset(("algo-2", "algo-3")),
        frozenset(("algo-3", "algo-1")),
    }
    assert "collective.bandwidth" in {one["check"] for one in first.findings}  # of its report
    # What the others print is about themselves alone.
    assert {one["host"] for one in ended[2].findings} == {"algo-3"}


def test_a_rank_that_dies_on_one_of_two_hosts_is_found_by_its_own_host(tmp_path: Path) -> None:
    with Cluster(tmp_path, 2, processes=2) as cluster:
        cluster[1].drill("die 1")
        ended = cluster.run()
    assert [one.code for one in ended] == [HARDWARE, HARDWARE]
    assert ended[0].named() == {("collective.local", "algo-2", "rank1")}
    assert "HARDWARE algo-2 rank1 collective.local: killed by signal 9" in ended[0].log
    sound = {one["value"] for one in ended[0].findings if (one["check"], one["host"]) == ("collective.local", "algo-1")}
    assert sound == {"exact"}


def test_a_way_that_loses_packets_is_an_open_one_and_a_partition_is_not(tmp_path: Path) -> None:
    def unreached(cluster: Cluster) -> str:
        return cluster[0].inside(sys.executable, "-c", CONNECT, cluster[1].address).strip()

    with Cluster(tmp_path, 2) as cluster:
        cluster[1].lose(0.3)
        listener = subprocess.Popen(
            ["ip", "netns", "exec", cluster[1].space, sys.executable, "-c", LISTENER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"open\n"
            assert unreached(cluster) == "()"
            cluster[1].cut_off(cluster[0])
            assert unreached(cluster) == str((cluster[1].address,) * 8)


def test_one_host_has_nobody_to_meet_and_nothing_of_its_ranks_outlives_the_checks(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1, processes=2) as cluster:
        cluster[0].drill("hang 1")
        (ended,) = cluster.run()
        assert tool("ip", "netns", "pids", cluster[0].space) == ""
    assert ended.code == HARDWARE
    (bad,) = (one for one in ended.findings if one["status"] == "fail")
    assert (bad["check"], bad["host"], bad["device"]) == ("collective.local", "algo-1", "rank1")
    assert "not finished after" in str(bad["value"])
    checks = {str(one["check"]) for one in ended.findings}
    assert {check for check in checks if check.startswith("collective.")} == {"collective.local"}
