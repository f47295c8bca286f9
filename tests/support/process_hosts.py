"""Hosts of a job as processes: each has a tree and an address of its own in 127/8, and runs the real preflight."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from tests.support.addresses import addresses
from tests.support.trees import Tree
from tests.support.waiting import LIMIT
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import compose

_FAILURE = "diagnosis.json"

#: Check, host, device, status and class.
Bad = tuple[str, str, str, str, str]


class Checked(msgspec.Struct, frozen=True):
    """What one host's checks came to."""

    code: int
    #: In the log, and in the report: what passes is in the log only where no report could be written.
    printed: tuple[dict[str, Any], ...]
    findings: tuple[dict[str, Any], ...]
    log: str
    failure: str | None

    def bad(self) -> list[Bad]:
        """All that does not pass."""
        return [
            (one["check"], one["host"], one["device"], one["status"], one["class"])
            for one in self.findings
            if one["status"] != "pass"
        ]

    def of(self, check: str) -> list[dict[str, Any]]:
        """Everything that one check found."""
        return [finding for finding in self.findings if finding["check"] == check]


class Hosts:
    """Some hosts, sound unless something is done to them before they start."""

    def __init__(self, directory: Path, count: int, *, instance_type: str = "local") -> None:
        self.hosts = addresses(count)
        self.directory = directory
        self.instance_type = instance_type
        self.trees: dict[str, Tree] = {}
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for host in self.hosts:
            self.trees[host] = Tree(self.directory / host).channel("train", {"data.csv": "1,2\n"})
            for name in ("model", "output/data", "checkpoints"):
                (self.trees[host].root / name).mkdir(parents=True)
        self.name_hosts(self.hosts)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started.values():
            process.kill()
            process.communicate()

    def name_hosts(self, names: Sequence[str]) -> None:
        """What each host is told about all; a name may be one that does not resolve."""
        for host in self.hosts:
            content = {
                "current_host": host,
                "hosts": list(names),
                "network_interface_name": "lo",
                "current_instance_type": self.instance_type,
            }
            self.trees[host].write("input/config/resourceconfig.json", json.dumps(content))

    def start(
        self, host: str, *arguments: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> "subprocess.Popen[bytes]":
        """Start the checks of one host as the supervisor will; or where the arguments begin with -c or -S, those."""
        tree = self.trees[host]
        preflight = ("-m", "trainbox.health", "--preflight", "--failure", str(tree.root / _FAILURE))
        self._started[host] = subprocess.Popen(
            [*prefix, sys.executable, *(() if arguments[:1] in {("-c",), ("-S",)} else preflight), *arguments],
            env=tree.environment({"TRAINBOX_PEER_TIMEOUT_SECONDS": "20", **(env or {})}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tree.root,
        )
        return self._started[host]

    def run(self, *arguments: str, env: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Checked]:
        """Start all hosts, some with variables of their own, and wait."""
        for host in self.hosts:
            self.start(host, *arguments, env=(env or {}).get(host))
        return self.finish()

    def finish(self) -> dict[str, Checked]:
        """Wait for all that was started."""
        return {host: self.finish_one(host) for host in self._started}

    def has_ended(self, host: str) -> bool:
        """Whether its checks have."""
        return self._started[host].poll() is not None

    def finish_one(self, host: str) -> Checked:
        """Wait for one host."""
        stdout, stderr = self._started[host].communicate(timeout=LIMIT)
        failure = self.trees[host].root / _FAILURE
        printed = tuple(json.loads(line) for line in stdout.splitlines())
        report = self.trees[host].root / f"output/data/health/{host}.json"
        return Checked(
            code=self._started[host].returncode,
            printed=printed,
            findings=tuple(json.loads(report.read_text())["findings"]) if report.exists() else printed,
            log=stderr.decode(),
            failure=compose(msgspec.json.decode(failure.read_bytes(), type=Diagnosis)) if failure.exists() else None,
        )
