"""The processes of one event, found by a mark in their environment, and what each of them is."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tools.fuzz_faults.plan import Fault, Kind

#: A variable that every process of an event inherits.
VARIABLE = "FUZZ_FAULTS_EVENT"
_CONFIG = "opt/ml/input/config/resourceconfig.json"

#: What only one kind of process has among its arguments.
_OWN: Mapping[str, Kind] = {
    "trainbox.torch.checkpoints.writer": "writer",
    "/xgboost/collective/tracker.py": "tracker",
}
#: The same program thrice: the agent forks the fork server, and that the ranks.
_BELOW: Mapping[Kind | None, Kind] = {"supervisor": "agent", "agent": "fork server", "fork server": "rank"}


class Process(msgspec.Struct, frozen=True):
    """What /proc says of a process."""

    pid: int
    parent: int
    #: In clock ticks since the machine was started.
    began: int
    state: str
    argv: tuple[str, ...]


class Known(msgspec.Struct, frozen=True):
    """A process whose part in the job is known: the host from 1 on, 0 where that cannot be told; the local rank."""

    pid: int
    kind: Kind
    host: int = 0
    rank: int = 0


def kinds(processes: Mapping[int, Process], run: int, hosts: Mapping[int, int]) -> dict[int, Kind]:
    """The part of each process, by its arguments and its parent; those of no such part are left out.

    Args:
        processes: Of one event, by process id.
        run: The process id of `trainbox run`.
        hosts: The supervisors whose host is known already: a host may have lost its parent since.
    """
    found: dict[int, Kind] = {}
    # A parent before its children: process ids may wrap, starting times do not.
    for process in sorted(processes.values(), key=lambda one: (one.began, one.pid)):
        kind = _kind(process, found.get(process.parent), is_run=process.pid == run, is_host=process.pid in hosts)
        if kind is not None:
            found[process.pid] = kind
    return found


def _kind(process: Process, parent: Kind | None, *, is_run: bool, is_host: bool) -> Kind | None:
    if is_run:
        return "run"
    for words, kind in _OWN.items():
        if words in " ".join(process.argv):
            return kind
    if "trainbox.launcher" in process.argv:
        return _BELOW.get(parent)
    if "trainbox.supervisor" in process.argv:
        return "supervisor" if parent == "run" or is_host else None
    return "script" if parent == "supervisor" and any("_train.py" in part for part in process.argv) else None


def place(processes: Mapping[int, Process], found: Mapping[int, Kind], hosts: Mapping[int, int]) -> list[Known]:
    """Each process with its host, by the supervisor above it, and each rank with its number below its fork server.

    Args:
        processes: Of one event, by process id.
        found: What `kinds` gave.
        hosts: Of supervisors, also of those that have ended, the number of their host.
    """
    order = sorted(found, key=lambda pid: (processes[pid].began, pid))
    ranks: dict[int, list[int]] = {}
    for pid in order:
        if found[pid] == "rank":
            ranks.setdefault(processes[pid].parent, []).append(pid)
    return [
        Known(
            pid,
            found[pid],
            _host(pid, processes, hosts),
            ranks[processes[pid].parent].index(pid) if found[pid] == "rank" else 0,
        )
        for pid in order
    ]


def _host(pid: int, processes: Mapping[int, Process], hosts: Mapping[int, int]) -> int:
    while pid in processes:
        if pid in hosts:
            return hosts[pid]
        pid = processes[pid].parent
    return 0


def find(known: list[Known], fault: Fault, ranks: int) -> Known | None:
    """The process that a fault means; a rank only once all ranks of its host are there: their order numbers them."""
    of_kind = [one for one in known if one.kind == fault.kind]
    if fault.kind == "run":
        return next(iter(of_kind), None)
    here = [one for one in of_kind if one.host == fault.host]
    if fault.kind == "rank":
        return next((one for one in here if one.rank == fault.rank), None) if len(here) == ranks else None
    return next(iter(here), None)


# ---- what is read ----


class Scanner:
    """Looks again and again; what is known to be of somebody else is looked at once.

    Args:
        mark: The value of `VARIABLE`.
    """

    def __init__(self, mark: str) -> None:
        self._wanted = f"{VARIABLE}={mark}".encode()
        self._foreign: set[int] = set()
        #: Of each supervisor ever seen its host.
        self.hosts: dict[int, int] = {}

    def look(self) -> dict[int, Process]:
        """The processes that run now; a zombie does not."""
        pids = {int(path) for path in _numbers()}
        self._foreign &= pids
        return {process.pid: process for pid in pids - self._foreign if (process := self._read(pid)) is not None}

    def _read(self, pid: int) -> Process | None:
        directory = Path("/proc", str(pid))
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended since
            environment = (directory / "environ").read_bytes()
            if self._wanted not in environment.split(b"\0"):
                if environment:  # none while it is being replaced by another program
                    self._foreign.add(pid)
                return None
            # pid (command) state ppid …, and the command may hold anything: proc(5)
            fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] in {b"Z", b"X"}:
                return None
            argv = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            return Process(pid, int(fields[1]), int(fields[19]), fields[0].decode(), tuple(argv))
        return None

    def known(self, run: int) -> list[Known]:
        """What runs now, with its part in the job."""
        processes = self.look()
        found = kinds(processes, run, self.hosts)
        for pid, kind in found.items():
            if kind == "supervisor" and pid not in self.hosts:
                number = _number_of_host(processes[pid])
                if number:
                    self.hosts[pid] = number
        return place(processes, found, self.hosts)


def _numbers() -> list[str]:
    return [path.name for path in Path("/proc").glob("[0-9]*")]


def _number_of_host(process: Process) -> int:
    """By what is mounted for it, or is about to be."""
    for part in process.argv[:5]:
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
            return int(Path(json.loads(part)["mounts"][-1][0]).name.rpartition("-")[2])
    with contextlib.suppress(OSError, ValueError, KeyError):
        config = json.loads(Path("/proc", str(process.pid), "root", _CONFIG).read_bytes())
        return int(str(config["current_host"]).rpartition("-")[2])
    return 0


def describe(processes: Mapping[int, Process]) -> str:
    """One line for each process: what it is doing, for a person who looks for the reason of a hang."""
    lines = []
    for process in processes.values():
        wchan = ""
        with contextlib.suppress(OSError):
            wchan = Path("/proc", str(process.pid), "wchan").read_text()
        lines.append(f"{process.pid} of {process.parent} {process.state} {wchan} {' '.join(process.argv)[:160]}")
    return "\n".join(lines)
