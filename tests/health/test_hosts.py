"""The checks of several hosts, as processes, with faults that are real."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import trainbox
from tests.support.process_hosts import Checked, Hosts
from tests.support.trees import is_alive
from tests.support.waiting import eventually
from trainbox.health.checks import CHECKS

pytestmark = pytest.mark.cluster

KEYS_OF_HOSTS = ("ab" * 32, "cd" * 32)
KEYS = ["check", "host", "device", "status", "value", "limit", "class", "hint"]
#: Mounts a small tmpfs, in a mount namespace that ends with the process, and becomes the command behind it.
MOUNTED = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root and private mounts",
)


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path, 4) as cluster:
        yield cluster


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path, 2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hosts, dict[str, Checked]]]:
    """Two hosts with one key, and what their checks came to: for tests that only look."""
    with Hosts(tmp_path_factory.mktemp("sound"), 2) as cluster:
        yield cluster, cluster.run(env={host: {"TRAINBOX_PEER_KEY": KEYS_OF_HOSTS[0]} for host in cluster.hosts})


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """With -S, which leaves all installed packages out: variables that bring back what the checks need, and no more."""
    site = tmp_path / "site"
    site.mkdir()
    for module in (msgspec, trainbox):
        package = Path(str(module.__file__)).parent
        (site / package.name).symlink_to(package)
    return {"PYTHONPATH": str(site)}


def mounted(options: str, directory: Path) -> list[str]:
    return ["unshare", "-m", "sh", "-c", MOUNTED, "sh", options, str(directory)]


@pytest.mark.representative
def test_two_sound_hosts_pass_everything(sound: tuple[Hosts, dict[str, Checked]]) -> None:
    two, checked = sound
    pass_everything(two.hosts, checked)


@pytest.mark.long
def test_four_sound_hosts_pass_everything(four: Hosts) -> None:
    pass_everything(four.hosts, four.run())


def pass_everything(hosts: list[str], checked: Mapping[str, Checked]) -> None:
    first = checked[hosts[0]]
    assert {host: (one.code, one.bad(), one.failure) for host, one in checked.items()} == {
        host: (0, [], None) for host in hosts
    }
    assert all(list(finding) == KEYS for one in checked.values() for finding in one.findings)
    assert {finding["check"] for finding in first.findings} <= set(CHECKS)
    assert {finding["host"] for finding in first.findings} == set(hosts)
    assert [finding["host"] for finding in first.of("host.arrival")] == hosts
    for host in hosts[1:]:
        assert {finding["host"] for finding in checked[host].findings} == {host}
        expected = [finding for finding in first.findings if finding["host"] == host]
        assert list(checked[host].findings) == expected


@pytest.mark.representative
def test_every_host_leaves_a_report_and_the_first_one_has_the_findings_of_all(
    sound: tuple[Hosts, dict[str, Checked]],
) -> None:
    two, checked = sound
    for host in two.hosts:
        directory = two.trees[host].root / "output/data/health"
        report = json.loads((directory / f"{host}.json").read_text())
        assert {finding["status"] for finding in report["findings"]} == {"pass"}
        assert {finding["host"] for finding in report["findings"]} == ({*two.hosts} if host == two.hosts[0] else {host})
        assert checked[host].printed == ()
        assert f"{len(report['findings'])} checks passed: {directory}" in checked[host].log
        assert report["diagnosis"] is None
        assert report["line"] in checked[host].log
    assert not [path for tree in two.trees.values() for path in tree.root.rglob(".trainbox*")]


@pytest.mark.representative
def test_one_host_needs_no_other(tmp_path: Path) -> None:
    with Hosts(tmp_path, 1) as cluster:
        (checked,) = cluster.run().values()
    assert (checked.code, checked.bad(), checked.of("host.arrival")) == (0, [], [])


def test_a_host_that_never_arrives_is_named_and_all_end_together(four: Hosts) -> None:
    missing = four.hosts[2]
    for host in four.hosts:
        if host != missing:
            four.start(host, env={"TRAINBOX_PEER_TIMEOUT_SECONDS": "3"})
    checked = four.finish()
    for one in checked.values():
        assert one.code == 78
        assert one.failure is not None
        assert one.failure.startswith(f"HARDWARE {missing} - host.arrival: never arrived")
    assert checked[four.hosts[0]].bad() == [("host.arrival", missing, "", "fail", "hardware")]


def test_without_the_first_host_the_others_name_it(two: Hosts) -> None:
    first, second = two.hosts
    two.start(second, env={"TRAINBOX_PEER_TIMEOUT_SECONDS": "1"})
    checked = two.finish()[second]
    assert (checked.code, checked.bad()) == (78, [("host.arrival", first, "", "fail", "hardware")])
    assert str(checked.of("host.arrival")[0]["value"]).startswith("never arrived (port ")


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (signal.SIGSTOP, "stopped answering"),  # it neither speaks nor hangs up
        (signal.SIGKILL, "the connection was closed"),
    ],
)
def test_a_host_that_is_frozen_or_killed_is_named(tmp_path: Path, number: signal.Signals, value: str) -> None:
    """It has come, and its own checks still run: they are made to, or how long they take would decide the test."""
    at_work = """
import argparse, time
from trainbox.contract.job import read_environment
from trainbox.health import command
from trainbox.comm import Members
from trainbox.comm.tolerant import join_tolerant
parser = argparse.ArgumentParser()
command.add_arguments(parser)
subject = command.read_subject(parser.parse_args(["--preflight"]), read_environment())
members = Members(subject.hosts, subject.host, subject.hosts[0], subject.job.name)
joined = join_tolerant(members, timeout=20, port=subject.exchange_port)
print("let in", flush=True)
time.sleep(60)
"""
    with Hosts(tmp_path, 3) as three:
        first, hit, last = three.hosts
        three.start(first, "--deadline", "1")
        process = three.start(hit, "-c", at_work)
        assert process.stdout is not None
        assert process.stdout.readline() == b"let in\n"
        process.send_signal(number)
        # The round cannot end before this one has come.
        three.start(last, "--deadline", "1")
        checked = {host: three.finish_one(host) for host in (first, last)}
    assert {one.code for one in checked.values()} == {78}
    assert checked[first].bad() == [("host.arrival", hit, "", "fail", "hardware")]
    assert value in checked[first].of("host.arrival")[0]["value"]
    assert checked[last].failure == checked[first].failure


def _sockets(pid: int, state: str) -> list[str]:
    """The TCP sockets of a process that are in a state, from /proc: 01 is established, 0A listening (tcp_states.h)."""
    owned = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            owned.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [line[9] for line in lines if line[3] == state and f"socket:[{line[9]}]" in owned]


@needs_mounts
def test_a_fault_of_a_host_that_comes_late_ends_all_hosts(four: Hosts) -> None:
    full = four.hosts[3]
    for host in four.hosts[:3]:
        four.start(host)
    time.sleep(1)
    four.start(full, prefix=mounted("size=100k", four.trees[full].root / "checkpoints"))
    checked = four.finish()
    assert {one.code for one in checked.values()} == {64}
    assert {(one.failure or "").splitlines()[0][: len(f"CONFIGURATION {full}")] for one in checked.values()} == {
        f"CONFIGURATION {full}"
    }


@needs_mounts
def test_a_full_disk_is_named_by_host_and_directory(two: Hosts) -> None:
    first, second = two.hosts
    two.start(first)
    two.start(second, prefix=mounted("size=100k", two.trees[second].root / "checkpoints"))
    checked = two.finish()
    assert checked[first].bad() == [
        ("host.disk", second, "checkpoints", "fail", "configuration"),
        ("host.write", second, "checkpoints", "fail", "configuration"),
    ]
    assert {one.code for one in checked.values()} == {64}
    words = f"CONFIGURATION {second} checkpoints host.disk: 0 MiB (limit: 256 MiB)"
    assert (checked[second].failure or "").startswith(words)


@needs_mounts
def test_a_mount_without_inodes_left_is_named(tmp_path: Path) -> None:
    with Hosts(tmp_path, 1) as cluster:
        (host,) = cluster.hosts
        cluster.start(host, prefix=mounted("size=3g,nr_inodes=1", cluster.trees[host].root / "model"))
        (checked,) = cluster.finish().values()
    assert checked.bad() == [
        ("host.inodes", host, "model", "fail", "configuration"),
        ("host.write", host, "model", "fail", "configuration"),
    ]


@needs_mounts
def test_a_read_only_mount_is_named(tmp_path: Path) -> None:
    with Hosts(tmp_path, 1) as cluster:
        (host,) = cluster.hosts
        cluster.start(host, prefix=mounted("ro,size=3g", cluster.trees[host].root / "model"))
        (checked,) = cluster.finish().values()
    assert checked.bad() == [("host.write", host, "model", "fail", "configuration")]
    assert checked.of("host.write")[0]["value"].startswith("Read-only file system: ")
    assert checked.code == 64


def test_a_name_that_does_not_resolve_is_named_by_every_host(two: Hosts) -> None:
    first, second = two.hosts
    two.name_hosts([first, second, "algo-9.invalid"])
    checked = two.run(env={host: {"TRAINBOX_PEER_TIMEOUT_SECONDS": "2"} for host in two.hosts})
    assert checked[first].bad() == [
        ("host.dns", first, "algo-9.invalid", "fail", "configuration"),
        ("host.dns", second, "algo-9.invalid", "fail", "configuration"),
        ("host.arrival", "algo-9.invalid", "", "fail", "hardware"),
    ]
    # That host cannot come: what is wrong is its name.
    assert {one.code for one in checked.values()} == {64}
    assert (checked[second].failure or "").startswith(f"CONFIGURATION {first} algo-9.invalid host.dns: no address")


def test_a_channel_that_is_empty_or_missing_is_named(tmp_path: Path) -> None:
    with Hosts(tmp_path, 1) as cluster:
        (host,) = cluster.hosts
        tree = cluster.trees[host].channel("validation", {}).channel("test", {})
        shutil.rmtree(tree.root / "input/data/test")
        (checked,) = cluster.run().values()
    assert checked.bad() == [
        ("host.channel", host, "test", "fail", "configuration"),
        ("host.channel", host, "validation", "fail", "configuration"),
    ]
    assert {finding["device"]: finding["value"] for finding in checked.of("host.channel")} == {
        "train": "has files",
        "validation": "empty",
        "test": "missing",
    }


def test_a_host_whose_part_of_the_data_is_empty_is_only_warned_of(tmp_path: Path) -> None:
    with Hosts(tmp_path, 1) as cluster:
        (host,) = cluster.hosts
        tree = cluster.trees[host].channel("train", {})
        (tree.root / "input/data/train/data.csv").unlink()
        config = {"train": {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key"}}
        tree.write("input/config/inputdataconfig.json", json.dumps(config))
        (checked,) = cluster.run().values()
        assert (checked.code, checked.bad()) == (0, [("host.channel", host, "train", "warn", "configuration")])
        assert "1 warning(s)" in checked.log
        (strict,) = cluster.run("--strict").values()
    assert strict.code == 64


@pytest.mark.representative
@pytest.mark.parametrize(("port", "whose"), [(29400, "the ranks'"), (29401, "the exchange's")])
def test_a_port_that_is_taken_is_named(two: Hosts, port: int, whose: str) -> None:
    del whose
    first = two.hosts[0]
    with socket.create_server((first, port)):
        two.start(first, env={"TRAINBOX_PEER_TIMEOUT_SECONDS": "0"})
        checked = two.finish()[first]
    assert ("host.port", first, f"port {port}", "fail", "configuration") in checked.bad()
    assert checked.code == 64


@pytest.mark.representative
def test_a_stranger_on_the_line_disturbs_nobody(two: Hosts, bare: dict[str, str]) -> None:
    """Without torch: what it brings is checked when strangers have had their say."""
    first, second = two.hosts
    checks = ("-S", "-m", "trainbox.health", "--preflight")
    process = two.start(first, *checks, env=bare)
    eventually(lambda: bool(_sockets(process.pid, "0A")), "the first host to listen")
    impostor = b'{"job":"another","host":"' + second.encode() + b'"}\n'
    with contextlib.ExitStack() as strangers:
        for said in (b"GET / HTTP/1.0\r\n\r\n", b"", impostor, b"{}\n[1]\n", b"\xff" * 1000):
            strangers.enter_context(socket.create_connection((first, 29401))).sendall(said)
        two.start(second, *checks, env=bare)
        checked = two.finish()
    assert {host: (one.code, one.bad()) for host, one in checked.items()} == {first: (0, []), second: (0, [])}


def test_hosts_with_one_key_are_sound_and_do_not_show_it(sound: tuple[Hosts, dict[str, Checked]]) -> None:
    key = KEYS_OF_HOSTS[0]
    two, checked = sound
    assert {host: (one.code, one.bad()) for host, one in checked.items()} == {host: (0, []) for host in two.hosts}
    files = [path for tree in two.trees.values() for path in tree.root.rglob("*") if path.is_file()]
    assert key not in "".join([one.log + str(one.findings) for one in checked.values()])
    assert not [path for path in files if key in path.read_text(errors="replace")]


@pytest.mark.parametrize("other", [{}, {"TRAINBOX_PEER_KEY": KEYS_OF_HOSTS[1]}])
def test_another_key_on_one_host_is_named_by_both_as_a_fault_of_the_configuration(
    two: Hosts, other: dict[str, str]
) -> None:
    first, second = two.hosts
    two.start(second, env=other)  # before: the first one waits for so long alone
    two.start(first, env={"TRAINBOX_PEER_KEY": KEYS_OF_HOSTS[0], "TRAINBOX_PEER_TIMEOUT_SECONDS": "5"})
    checked = two.finish()
    assert {one.code for one in checked.values()} == {64}
    for host, named in ((first, second), (second, first)):
        failure = checked[host].failure or ""
        assert failure.startswith(f"CONFIGURATION {named} - host.arrival: cannot prove that it belongs to this job")
        assert "hint: TRAINBOX_PEER_KEY must be the same on all hosts" in failure
        assert not [key for key in KEYS_OF_HOSTS if key in failure + checked[host].log]
    assert f"rejected a connection that claims to be {second}, from 127.0.0.1: no valid proof" in checked[first].log


@pytest.mark.long
def test_a_flood_of_strangers_takes_neither_the_memory_nor_the_files_of_the_first_host(two: Hosts) -> None:
    """24 of 15 MiB each and 80 that say nothing, where the process may have 64 files."""
    first, second = two.hosts
    process = two.start(first, prefix=["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"])
    eventually(lambda: bool(_sockets(process.pid, "0A")), "the first host to listen")
    peaks = [_peak_kilobytes(process.pid)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(24) as threads:
        for _ in range(80):
            stack.enter_context(socket.create_connection((first, 29401), timeout=300))
        floods = [stack.enter_context(socket.create_connection((first, 29401), timeout=300)) for _ in range(24)]
        sent = [threads.submit(_flood, one) for one in floods]
        two.start(second)

        def is_over() -> bool:
            peaks.append(_peak_kilobytes(process.pid))
            return all(one.done() for one in sent)

        eventually(is_over, "the end of the flood")
        checked = two.finish()
    assert peaks[0] > 0
    assert max(peaks) - peaks[0] < 64 * 1024
    codes = {host: (one.code, [bad for bad in one.bad() if bad[0] != "host.files"]) for host, one in checked.items()}
    assert codes == {first: (0, []), second: (0, [])}


def _flood(stranger: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(15):
            stranger.sendall(b"x" * 1024 * 1024)


def _peak_kilobytes(pid: int) -> int:
    """The most memory that a process has had (proc(5), VmHWM); 0 where it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


@pytest.mark.parametrize(
    ("package", "version", "component"),
    [("torch", "2.12.0", "torch"), ("nvidia-nccl-cu12", "2.99.1", "nccl"), ("trainbox", "9.9", "trainbox")],
)
def test_another_version_on_one_host_names_both(tmp_path: Path, package: str, version: str, component: str) -> None:
    """Planted as pip would leave it: metadata in front of what is installed."""
    metadata = tmp_path / "site" / f"{package.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    with Hosts(tmp_path, 3) as three:
        first, second, _ = three.hosts
        checked = three.run(env={second: {"PYTHONPATH": str(tmp_path / "site")}})
    (finding,) = [finding for finding in checked[first].findings if finding["status"] != "pass"]
    assert finding["check"] == f"versions.{component}"
    assert (finding["host"], finding["value"]) == (second, version)
    assert finding["limit"].endswith(f" on {first}")
    assert {one.code for one in checked.values()} == {64}


def test_a_clock_that_is_wrong_is_named_with_its_skew(two: Hosts) -> None:
    """Planted in the program that asks the clock; strict makes the warning a failure."""
    planted = """
import argparse, sys, time
from trainbox.contract.job import read_environment
from trainbox.health import command, report, run
parser = argparse.ArgumentParser()
command.add_arguments(parser)
env = read_environment()
subject = command.read_subject(parser.parse_args(["--preflight"]), env)
found = run.examine(subject, env, strict=True, clock=lambda: time.time() + 90)
report.print_lines(found.findings)
sys.exit(found.exit_code)
"""
    first, second = two.hosts
    two.start(first, "--strict")
    two.start(second, "-c", planted)
    checked = two.finish()
    assert checked[first].bad() == [("host.clock", second, "", "warn", "hardware")]
    skew = checked[first].of("host.clock")[1]["value"]
    assert skew == pytest.approx(90, abs=0.5)
    assert {one.code for one in checked.values()} == {78}


def test_sigterm_ends_the_checks_and_all_they_started(two: Hosts) -> None:
    """While it waits for the other host."""
    first = two.hosts[0]
    process = two.start(first)
    eventually(lambda: bool(_sockets(process.pid, "0A")), "the first host to listen")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    assert not is_alive(process.pid)


def test_without_a_job_the_machine_alone_is_checked(tmp_path: Path) -> None:
    """`trainbox health` as a person calls it: into a pipe JSON lines, and no contract needed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRAINBOX_")}
    answer = subprocess.run(
        [sys.executable, "-m", "trainbox", "health", "--fast"],
        env={**environment, "TRAINBOX_ROOT": str(tmp_path / "none")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "checking only this machine" in answer.stderr
    assert {json.loads(line)["status"] for line in answer.stdout.splitlines()} == {"pass"}
    assert list(tmp_path.iterdir()) == []


def test_the_checks_need_nothing_but_msgspec(two: Hosts, bare: dict[str, str]) -> None:
    """As in an image without any extra."""
    for host in two.hosts:
        two.start(host, "-S", "-m", "trainbox.health", "--preflight", env=bare)
    checked = two.finish()
    assert {host: (one.code, one.bad()) for host, one in checked.items()} == {host: (0, []) for host in two.hosts}
    assert checked[two.hosts[1]].of("versions.torch")[0]["value"] == "absent"


def test_the_table_on_a_terminal_needs_no_rich(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "rich").mkdir(parents=True)
    (site / "rich/__init__.py").write_text("raise ModuleNotFoundError('rich')")
    command = f"{sys.executable} -m trainbox health"
    tables = []
    for path in ("", str(site)):
        environment = {**os.environ, "TRAINBOX_ROOT": str(tmp_path / "none"), "PYTHONPATH": path, "COLUMNS": "200"}
        answer = subprocess.run(
            ["script", "-qec", command, "/dev/null"], env=environment, cwd=tmp_path, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stdout
        tables.append([line.split()[:2] for line in answer.stdout.splitlines()])
    assert ["pass", "host.write"] in tables[0]
    assert tables[0] == tables[1]
