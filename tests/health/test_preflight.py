"""The checks before the script: a real supervisor on each host, and no script where a host is not sound."""

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.process_hosts import Hosts
from tests.support.trees import Run, Tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.process

SCRIPT = "print('the script ran', flush=True)\n"
RAN = "the script ran"
#: As a container has it that nobody has told anything.
BY_DEFAULT = {"TRAINBOX_PREFLIGHT": "", "TRAINBOX_PEER_TIMEOUT_SECONDS": "20"}
#: Of a socket, in /proc/net/tcp (Linux, `include/net/tcp_states.h`).
_LISTENING = "0A"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path, 2) as hosts:
        for tree in hosts.trees.values():
            tree.program(SCRIPT)
        yield hosts


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as tree:
        yield tree.channel("train", {"data.csv": "1,2\n"}).program(SCRIPT)


def run(hosts: Hosts, env: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Run]:
    """`train` on every host, some with variables of their own."""
    started = {host: tree.start({**BY_DEFAULT, **(env or {}).get(host, {})}) for host, tree in hosts.trees.items()}
    return {host: hosts.trees[host].finish(process) for host, process in started.items()}


def checks(tree: Tree) -> dict[str, str]:
    """What was checked before the script ran, and with which result."""
    reports = (tree.root / "output/data/health").glob("*.json")
    found = [finding for report in reports for finding in json.loads(report.read_text())["findings"]]
    return {finding["check"]: finding["status"] for finding in found}


def printed(ended: Run) -> list[str]:
    """The status of each finding whose line the log has."""
    lines = ended.stdout.decode().partition(RAN)[0].splitlines()
    return [json.loads(line)["status"] for line in lines if line.startswith('{"check"')]


@pytest.mark.long
def test_several_hosts_are_checked_before_the_script_by_default(two: Hosts) -> None:
    ended = run(two)
    assert {host: (each.code, each.failure) for host, each in ended.items()} == dict.fromkeys(two.hosts, (0, None))
    for host, each in ended.items():
        found = checks(two.trees[host])
        assert {"host.disk", "host.channel", "versions.torch", "host.arrival"} <= {*found}
        assert "pass" not in printed(each)
        assert f" checks passed: {two.trees[host].root}/output/data/health\n" in each.log
        assert each.stdout.decode().splitlines()[-1] == RAN
        assert "health: sound" in each.log
        assert (two.trees[host].root / f"output/data/health/{host}.json").exists()
    assert "collective.pair" in checks(two.trees[two.hosts[0]])


def test_one_process_is_not_checked_unless_that_is_asked_for(one: Tree) -> None:
    ended = one.run(TRAINBOX_PREFLIGHT="")
    assert (ended.code, ended.stdout.decode()) == (0, f"{RAN}\n")
    assert "checking the health" not in ended.log
    asked = one.hyperparameters(trainbox_preflight="fast").run(TRAINBOX_PREFLIGHT="off")
    assert asked.code == 0
    assert "host.write" in checks(one)


def test_what_passes_is_printed_where_no_report_can_be_written(one: Tree) -> None:
    one.write("output/data/health", "a file where a directory belongs")
    ended = one.hyperparameters(trainbox_preflight="fast").run()
    assert ended.code == 0, ended.log
    assert "the health report cannot be written" in ended.log
    assert "pass" in printed(ended)


def test_off_leaves_several_processes_unchecked(one: Tree) -> None:
    ended = one.hyperparameters(processes_per_host=2, trainbox_preflight="off").run(TRAINBOX_PREFLIGHT="")
    assert (ended.code, ended.stdout.decode()) == (0, f"{RAN}\n{RAN}\n")


def test_a_fault_of_the_configuration_ends_all_hosts_before_the_script(two: Hosts) -> None:
    first, second = two.hosts
    (two.trees[second].root / "input/data/train/data.csv").unlink()
    ended = run(two)
    for host in two.hosts:
        assert ended[host].code == 64, ended[host].log
        assert str(ended[host].failure).startswith(f"CONFIGURATION {second} train host.channel: ")
        assert "\nhint: " in str(ended[host].failure)
        assert RAN not in ended[host].stdout.decode()
        assert f"FAILED: CONFIGURATION {second} train host.channel" in ended[host].log
        assert {*printed(ended[host])} <= {"fail", "warn"}
    assert "fail" in printed(ended[first])
    assert (two.trees[first].root / f"output/data/health/{first}.json").exists()


@pytest.mark.long
def test_a_rank_that_sends_wrong_numbers_ends_all_hosts_as_hardware(two: Hosts) -> None:
    second = two.hosts[1]
    ranks = {"PROCESSES_PER_HOST": "2"}
    ended = run(
        two, {host: {**ranks, "TRAINBOX_HEALTH_DRILL": "wrong 1" if host == second else ""} for host in two.hosts}
    )
    for each in ended.values():
        assert each.code == 78, each.log
        assert str(each.failure).startswith(f"HARDWARE {second} ")
        assert "collective.local: " in str(each.failure)
        assert RAN not in each.stdout.decode()


@pytest.mark.long
def test_a_host_that_never_comes_is_named(two: Hosts) -> None:
    first, second = two.hosts
    tree = two.trees[first]
    ended = tree.finish(tree.start({**BY_DEFAULT, "TRAINBOX_PEER_TIMEOUT_SECONDS": "3"}))
    assert ended.code == 78
    assert str(ended.failure).startswith(f"HARDWARE {second} - host.arrival: never arrived")


def test_a_stop_ends_the_checks_and_starts_no_script(two: Hosts) -> None:
    tree = two.trees[two.hosts[0]]
    process = tree.start({**BY_DEFAULT, "TRAINBOX_PEER_TIMEOUT_SECONDS": "60"})
    # Its host's part of the exchange is open: the checks run, and wait for the second host.
    eventually(lambda: _listens(two.hosts[0]), "the checks of the first host")
    process.send_signal(signal.SIGTERM)
    ended = tree.finish(process)
    assert ended.code == 143
    assert str(ended.failure).startswith("ClientError: stopped by a signal during the checks before the script")
    assert RAN not in ended.stdout.decode()


def _listens(host: str) -> bool:
    """Whether somebody waits there; closed connections of the test before have its address for a minute, too."""
    number = "".join(f"{int(part):02X}" for part in reversed(host.split(".")))
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(fields[1].startswith(f"{number}:") and fields[3] == _LISTENING for fields in sockets)


def test_checks_that_break_are_no_verdict_and_say_how_to_do_without(one: Tree, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif '--preflight' in sys.orig_argv: os._exit(3)\n")
    ended = one.run(TRAINBOX_PREFLIGHT="fast", PYTHONPATH=str(tmp_path))
    assert ended.code == 12
    assert str(ended.failure).startswith("AlgorithmError: the checks before the script ended with exit code 3")
    assert "trainbox_preflight=off" in str(ended.failure)
    assert RAN not in ended.stdout.decode()


def test_a_preflight_that_is_none_is_refused(one: Tree) -> None:
    ended = one.hyperparameters(trainbox_preflight="quick").run()
    assert ended.code == 2
    assert "expected auto or off or fast or full" in str(ended.failure)
