"""Wait for a mark, then do what the faults of an event say."""

import os
import re
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tools.fuzz_faults import checkpoints, disk, jobs
from tools.fuzz_faults.plan import Blow, Event, Fault, Mark
from tools.fuzz_faults.procs import Known, Scanner, find

_SIGNALS: Mapping[Blow, signal.Signals] = {
    "kill": signal.SIGKILL,
    "freeze": signal.SIGSTOP,
    "stop": signal.SIGTERM,
}
_METRICS = re.compile(rb"^\[metrics\] step=", re.MULTILINE)
_KIB = 1024


class Hit(msgspec.Struct, frozen=True):
    """A fault that has come about."""

    fault: Fault
    pid: int
    #: The newest whole checkpoint of each directory at that moment.
    checkpoints: Mapping[str, int]
    #: Whether the first host had a model after it: what it had then it has not trained later.
    has_model: bool = False


class Striker:
    """What is left to be done in one attempt.

    Args:
        event: The plan.
        out: The result's directory.
        small: The disk it lies on, where it is a small one.
        scanner: Of the processes of this event.
    """

    def __init__(self, event: Event, out: Path, small: Path | None, scanner: Scanner) -> None:
        self.event = event
        self.hits: list[Hit] = []
        self._left = list(event.faults)
        self._out = out
        self._small = small
        self._scanner = scanner
        self._seen: set[Path] = set()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return not self._left

    def before(self) -> None:
        """Do what comes before the attempt starts."""
        if self.event.mark.sign == "start" and self._small is not None:
            for fault in self._left:
                if fault.blow == "full disk":
                    disk.fill(self._small, fault.left)
                else:
                    disk.forbid_writing(self._small)
            self._note(0, *self._left)

    def look(self, run: int) -> None:
        """Strike if the mark is there: all at once, or those that could not be struck before."""
        is_second = len(self._left) < len(self.event.faults)
        if self.is_done or not (is_second or self._is_there(self.event.mark)):
            return
        known = self._scanner.known(run)
        mark = self.event.mark
        if not is_second and mark.sign == "process" and all(one.kind != mark.process for one in known):
            return
        # The others of an event only come with the first.
        for fault in tuple(self._left):
            pid = self._strike(fault, known)
            if pid:
                self._note(pid, fault)
            elif not self.hits:
                return

    def _note(self, pid: int, *faults: Fault) -> None:
        steps = checkpoints.newest(self._out, checkpoints.with_manifest(self._out))
        has_model = bool(jobs.digest(self.event.job, self._out / ".trainbox" / "algo-1" / "model"))
        self.hits += [Hit(fault, pid, steps, has_model) for fault in faults]
        self._left = [fault for fault in self._left if fault not in faults]

    def _is_there(self, mark: Mark) -> bool:
        if mark.sign == "process":
            return True
        if mark.sign == "step":
            return self._lines() >= mark.count
        if mark.sign == "checkpoint":
            self._seen |= checkpoints.with_manifest(self._out)
            return len(self._seen) >= mark.count
        present = checkpoints.being_written(self._out)
        self._seen |= present
        return bool(present) and len(self._seen) >= mark.count

    def _lines(self) -> int:
        try:
            return len(_METRICS.findall((self._out / "logs" / "algo-1.log").read_bytes()))
        except OSError:
            return 0

    def _strike(self, fault: Fault, known: list[Known]) -> int:
        """Do it; the process that was hit, or 0 where it is not there."""
        if fault.kind == "disk":
            return self._spoil(fault, known)
        target = find(known, fault, self.event.job.ranks)
        if target is None:
            return 0
        try:
            if fault.blow in _SIGNALS:
                os.kill(target.pid, _SIGNALS[fault.blow])
            else:
                _limit(target.pid, fault)
        except (ProcessLookupError, FileNotFoundError):  # it has ended since
            return 0
        return target.pid

    def _spoil(self, fault: Fault, known: list[Known]) -> int:
        if self._small is None:
            return 0
        if fault.blow == "full disk":
            disk.fill(self._small, fault.left)
            return -1
        supervisors = [one.pid for one in known if one.kind == "supervisor" and one.host == fault.host]
        return -1 if supervisors and disk.forbid_writing_on_host(supervisors[0]) else 0


def _limit(pid: int, fault: Fault) -> None:
    if fault.blow == "file size":
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (fault.left * _KIB, fault.left * _KIB))
        return
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + fault.left * _KIB
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
