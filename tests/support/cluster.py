"""A cluster of hosts that are network namespaces: each has its own interface, names, firewall and /opt/ml tree.

Faults are real: `tc` slows a link down, `iptables` loses packets or cuts hosts off, signals freeze and kill. The bridge
between the hosts is in a namespace too, where the machine's own firewall does not reach it. Needs root and iproute2.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from tests.support.waiting import eventually

_NAMES = itertools.count()
_SECONDS = 120.0
_FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "AWS_", "TRAINING_JOB_", "MASTER_")
_ETC_NETNS = Path("/etc/netns")


def tool(*command: str, check: bool = True) -> str:
    """Run one of the system's tools to its end; its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def can_make_hosts() -> str:
    """Why no cluster can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("ip", "tc", "iptables", "unshare") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (tools/ci/packages)"
    name = f"tb{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        tool("ip", "netns", "del", name)
    return done.stderr.strip()


class Ended(msgspec.Struct, frozen=True):
    """What `trainbox health` did on one host."""

    host: str
    code: int
    findings: tuple[Mapping[str, object], ...]
    log: str
    seconds: float

    def named(self) -> set[tuple[object, ...]]:
        """What does not pass: check, host and device."""
        return {(one["check"], one["host"], one["device"]) for one in self.findings if one["status"] != "pass"}


class Host:
    """One namespace; each method does one thing to it."""

    def __init__(self, cluster: "Cluster", name: str, number: int) -> None:
        self.cluster = cluster
        self.name = name
        self.address = f"10.77.{number // 250}.{number % 250 + 1}"
        self.space = f"{cluster.prefix}-{number}"
        self.root = cluster.directory / name
        self.env: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        tool("ip", "netns", "add", self.space)
        tool(
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            self.space,
            "type",
            "veth",
            "peer",
            "name",
            f"h{number}",
            "netns",
            cluster.switch,
        )
        self.ip("link", "set", "lo", "up")
        self.ip("addr", "add", f"{self.address}/16", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        tool("ip", "-n", cluster.switch, "link", "set", f"h{number}", "master", "br0", "up")

    def ip(self, *arguments: str) -> None:
        tool("ip", "-n", self.space, *arguments)

    def inside(self, *command: str) -> str:
        return tool("ip", "netns", "exec", self.space, *command)

    def knows(self, hosts: Sequence["Host"]) -> None:
        """The names that resolve on this host; there is no other source of names."""
        directory = _ETC_NETNS / self.space
        directory.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in hosts)]
        (directory / "hosts").write_text("\n".join(lines) + "\n")
        (directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def slow(self, rate: str = "8mbit") -> None:
        """What it sends goes through a token bucket."""
        self.inside(
            "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kbit", "latency", "400ms"
        )

    def shape(self, rate: str = "8mbit") -> None:
        """The same by a hierarchical token bucket."""
        self.inside("tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1")
        self.inside("tc", "class", "add", "dev", "eth0", "parent", "1:", "classid", "1:1", "htb", "rate", rate)

    def lose(self, share: float) -> None:
        """A share of the packets that come in is dropped."""
        lost = ("-m", "statistic", "--mode", "random", "--probability", f"{share:g}")
        self.inside("iptables", "-w", "-A", "INPUT", "-i", "eth0", *lost, "-j", "DROP")

    def cut_off(self, other: "Host") -> None:
        """Nothing comes in from the other host."""
        self.inside("iptables", "-w", "-A", "INPUT", "-s", other.address, "-j", "DROP")

    def unplug(self) -> None:
        self.ip("link", "set", "eth0", "down")

    def signal(self, number: signal.Signals) -> None:
        """To every process of the host."""
        for pid in tool("ip", "netns", "pids", self.space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), number)

    def fill_disk(self) -> None:
        """The directory of checkpoints is a file system of its own, with 1 MiB."""
        (self.root / "checkpoints").mkdir(parents=True, exist_ok=True)
        tool("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(self.root / "checkpoints"))

    def drill(self, what: str) -> None:
        self.env["TRAINBOX_HEALTH_DRILL"] = what

    def pretend(self, package: str, version: str) -> None:
        """Another version of a package is found first."""
        skewed = self.cluster.directory / f"skewed-{self.name}"
        info = skewed / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(skewed), os.environ.get("PYTHONPATH"))))

    def start(self, *arguments: str) -> None:
        """Start `trainbox health` as the supervisor does."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        health = (sys.executable, "-P", "-m", "trainbox.health", "--preflight", *arguments)
        # The first name of this process: as in a container, the host name is the host's.
        named = ("unshare", "--uts", "sh", "-c", 'echo "$0" > /proc/sys/kernel/hostname; exec "$@"', self.name)
        self.started = time.monotonic()
        with (self.root / "stdout").open("wb") as out, (self.root / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *named, *health],
                env={**kept, "TRAINBOX_ROOT": str(self.root), **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.root,
            )

    def log(self) -> str:
        return (self.root / "stderr").read_text(errors="replace")

    def finish(self) -> Ended:
        assert self.process is not None
        code = self.process.wait(_SECONDS)
        seconds = time.monotonic() - self.started
        report = self.root / f"output/data/health/{self.name}.json"
        lines = (self.root / "stdout").read_text().splitlines()
        findings = json.loads(report.read_text())["findings"] if report.exists() else map(json.loads, lines)
        return Ended(self.name, code, tuple(findings), self.log(), seconds)

    def remove(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(_SECONDS)
        tool("umount", str(self.root / "checkpoints"), check=False)
        tool("ip", "netns", "del", self.space)
        shutil.rmtree(_ETC_NETNS / self.space, ignore_errors=True)


class Cluster:
    """Hosts `algo-1` and on, on one bridge."""

    def __init__(self, directory: Path, count: int, *, processes: int = 1, patience: float = 15.0) -> None:
        self.directory = directory
        self.prefix = f"tb{os.getpid()}-{next(_NAMES)}"
        self.switch = f"{self.prefix}-s"
        self.hosts: list[Host] = []
        tool("ip", "netns", "add", self.switch)
        try:
            tool("ip", "-n", self.switch, "link", "add", "name", "br0", "type", "bridge")
            tool("ip", "-n", self.switch, "link", "set", "br0", "up")
            names = [f"algo-{number + 1}" for number in range(count)]
            for number, name in enumerate(names):
                self.hosts.append(Host(self, name, number))
            for host in self.hosts:
                host.knows(self.hosts)
                _write_tree(host, names, processes, patience)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __getitem__(self, place: int) -> Host:
        return self.hosts[place]

    def run(self, *arguments: str, without: Sequence[int] = ()) -> list[Ended]:
        """`trainbox health` on all hosts at once, to its end; but for some that never start."""
        chosen = [host for place, host in enumerate(self.hosts) if place not in without]
        for host in chosen:
            host.start(*arguments)
        return [host.finish() for host in chosen]

    def run_until(
        self, said: str, then: Callable[[], None], *arguments: str, without: Sequence[int] = ()
    ) -> list[Ended]:
        """The same; something happens once the first host has said something. Nobody waits for hosts in `without`."""
        for host in self.hosts:
            host.start(*arguments)
        eventually(lambda: said in self.hosts[0].log(), repr(said), logs=self.hosts[0].log)
        then()
        return [host.finish() for place, host in enumerate(self.hosts) if place not in without]

    def remove(self) -> None:
        for host in self.hosts:
            host.remove()
        tool("ip", "netns", "del", self.switch)


def _write_tree(host: Host, names: Sequence[str], processes: int, patience: float) -> None:
    config = host.root / "input/config"
    config.mkdir(parents=True)
    for directory in ("model", "output", "checkpoints"):
        (host.root / directory).mkdir()
    resources = {"current_host": host.name, "hosts": names, "network_interface_name": "eth0"}
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    settings = {"trainbox_peer_timeout_seconds": f"{patience:g}", "processes_per_host": str(processes)}
    (config / "hyperparameters.json").write_text(json.dumps(settings))


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep processors busy with something else."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
