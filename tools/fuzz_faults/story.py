"""Play one event: the attempts of its job, the faults in one of them, and what can be seen afterwards."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from tools.fuzz_faults import checkpoints, disk, jobs, procs
from tools.fuzz_faults.plan import Event
from tools.fuzz_faults.strike import Hit, Striker
from trainbox.system.shm_dir import PREFIX

_LOOK_SECONDS = 0.004
_REST_SECONDS = 0.03
#: How long a person waits who sees that nothing moves, before killing `trainbox run`.
_PATIENCE = 8.0
_ORPHANS = 6.0
_LONGEST_SAID = 20_000
_MOST_ATTEMPTS = 6
_RESUMED = re.compile(r"resuming from step (\d+)")
_RESTARTED = re.compile(r"restart \d+ of \d+: rank (\d+)")
_SCRUBBED = ("SM_", "SAGEMAKER_", "TRAINBOX_", "TRAINING_JOB_", "FUZZ_", "OMP_")


class HostFailure(msgspec.Struct, frozen=True):
    """What the log of a host ends with, and whether its script had said something before."""

    text: str
    had_started: bool = True


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What can be seen of one `trainbox run`."""

    #: As a shell gives it.
    exit_code: int
    #: Of `job.json`; empty where there is none that can be read.
    status: str
    reason: str
    #: The end of what it wrote.
    said: str
    seconds: float
    allowed: float
    hits: tuple[Hit, ...] = ()
    #: What still ran when the time was over.
    hung: tuple[str, ...] = ()
    #: What still ran after `trainbox run` had ended.
    orphans: tuple[str, ...] = ()
    #: Of each host the steps it says it resumes from, and the ranks it says it starts again for.
    resumed: Mapping[str, tuple[int, ...]]
    restarted: tuple[int, ...]
    #: Why each host says that it failed.
    failures: Mapping[str, HostFailure] = {}
    #: The newest valid checkpoint of each directory at the end.
    checkpoints: Mapping[str, int]
    #: Of the model; empty where there is none that is complete.
    digest: str = ""
    #: Whether `model.tar.gz` is there.
    has_archive: bool = False
    #: Whether the hosts have trained to the end without collecting it: `trainbox run` was not there any more.
    went_on: bool = False


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What can be seen of an event."""

    event: Event
    attempts: tuple[Attempt, ...]
    #: What supervisors have left in `/dev/shm`.
    left_in_memory: tuple[str, ...] = ()
    seconds: float = 0.0


class Interrupted(Exception):  # noqa: N818 - what has happened
    """A person has had enough."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Where events are played."""

    data: Path
    directory: Path
    load: int
    stop: threading.Event


def logs_of(event: Event, stage: Stage) -> Path:
    """The directory of an event."""
    return stage.directory / f"seed-{event.seed}-event-{event.number}-{event.job.name}"


def play(event: Event, stage: Stage, *, undisturbed: float = 60.0) -> Story:
    """Run the job of an event, hit it, and resume it until it has completed; nothing of it runs on.

    Args:
        event: What to do; without faults the job is run once.
        stage: Where; the event gets a directory of its own, which stays.
        undisturbed: How long the job takes if nothing happens.

    Raises:
        Interrupted: The stage was asked to stop.
    """
    began = time.monotonic()
    directory = logs_of(event, stage)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with _place(event, directory) as place:
        player = _Player(event, stage, place, undisturbed)
        try:
            attempts = player.play()
        finally:
            player.end_all()
        left = player.left_in_memory()
    return Story(event=event, attempts=attempts, left_in_memory=left, seconds=time.monotonic() - began)


class _Place(msgspec.Struct, frozen=True):
    """The directory of an event, that of the result, and the small disk which that lies on, where it is to be hit."""

    directory: Path
    out: Path
    small: Path | None = None


@contextlib.contextmanager
def _place(event: Event, directory: Path) -> Iterator[_Place]:
    """Make the disk if there is one; what it holds is kept at the end."""
    if all(fault.kind != "disk" for fault in event.faults):
        yield _Place(directory, directory / "out")
        return
    small = directory / "disk"
    disk.make_disk(small)
    try:
        yield _Place(directory, small / "out", small)
        disk.free(small)
        if (small / "out").is_dir():
            shutil.copytree(small / "out", directory / "out", symlinks=True)
    finally:
        disk.remove_disk(small)


class _Player:
    def __init__(self, event: Event, stage: Stage, place: _Place, undisturbed: float) -> None:
        self.event = event
        self.stage = stage
        self.directory, self.out, self.small = place.directory, place.out, place.small
        self.mark = f"{os.getpid()}-{event.seed}-{event.number}-{event.job.name}"
        self.scanner = procs.Scanner(self.mark)
        self.busy = max(stage.load, os.getloadavg()[0]) / (os.cpu_count() or 1)
        self.allowed = jobs.seconds_allowed(event, undisturbed, busy=self.busy)

    def play(self) -> tuple[Attempt, ...]:
        attempts: list[Attempt] = []
        left = self._strikes()
        while len(attempts) < _MOST_ATTEMPTS:
            attempts.append(self.attempt(len(attempts) + 1, left.pop(0) if left else self._spared))
            if self.small is not None:
                disk.free(self.small)
            if not left and attempts[-1].exit_code == 0 and attempts[-1].status == "Completed" and attempts[-1].digest:
                break
        return tuple(attempts)

    @property
    def _spared(self) -> Event:
        return msgspec.structs.replace(self.event, faults=())

    def _strikes(self) -> list[Event]:
        """What hits the first attempts."""
        strikes = [self._spared, self.event] if self.event.again else [self.event]
        return [*strikes, self.event.second()] if self.event.twice else strikes

    def attempt(self, number: int, event: Event) -> Attempt:
        striker = Striker(event, self.out, self.small, self.scanner)
        striker.before()
        console = self.directory / f"attempt-{number}.txt"
        began = time.monotonic()
        with console.open("wb") as output:
            process = subprocess.Popen(
                jobs.command(event.job, self.stage.data, self.out, resume=number > 1),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                # By a pipe: a limit for the size of files shall not keep it from saying so.
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.directory,
            )
            listener = threading.Thread(target=_copy, args=(process.stdout, output))
            listener.start()
            try:
                hung = self._watch(process, striker)
                orphans = () if hung else self._await_orphans(was_killed=process.returncode == -signal.SIGKILL)
            finally:
                self.end_all()
                process.wait()
                listener.join()
        seconds = time.monotonic() - began
        return self._see(process.returncode, console, striker, hung=hung, orphans=orphans, seconds=seconds)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_SCRUBBED)}
        return {**kept, procs.VARIABLE: self.mark}

    def _watch(self, process: "subprocess.Popen[bytes]", striker: Striker) -> tuple[str, ...]:
        """Strike, and wait for the end; what still runs when the time is over."""
        since = time.monotonic()
        while process.poll() is None:
            if self.stage.stop.is_set():
                raise Interrupted
            had = len(striker.hits)
            striker.look(process.pid)
            since = time.monotonic() if len(striker.hits) > had else since
            waited = time.monotonic() - since
            if self._is_frozen(striker) and waited > _PATIENCE and self._is_alone(process.pid, waited):
                process.kill()
            elif waited > self.allowed:
                return self._give_up()
            time.sleep(_REST_SECONDS if striker.is_done else _LOOK_SECONDS)
        return ()

    @staticmethod
    def _is_frozen(striker: Striker) -> bool:
        return any(hit.fault.kind == "run" and hit.fault.blow == "freeze" for hit in striker.hits)

    def _is_alone(self, run: int, waited: float) -> bool:
        """Whether nothing but a frozen `trainbox run` is left, or a person would wait no longer."""
        return waited > 3 * _PATIENCE or set(self.scanner.look()) <= {run}

    def _give_up(self) -> tuple[str, ...]:
        processes = self.scanner.look()
        (self.directory / "hung.txt").write_text(procs.describe(processes) + "\n")
        return tuple(" ".join(process.argv)[:120] for process in processes.values() if process.argv)

    def _await_orphans(self, *, was_killed: bool) -> tuple[str, ...]:
        """What still runs a few seconds after `trainbox run`; where that was killed, its hosts may save first."""
        seconds = (_ORPHANS + (jobs.GRACE if was_killed else 0)) * jobs.slowness(self.busy)
        until = time.monotonic() + seconds
        while left := self.scanner.look():
            if time.monotonic() > until:
                (self.directory / "orphans.txt").write_text(procs.describe(left) + "\n")
                return tuple(f"{process.state} {' '.join(process.argv)[:120]}" for process in left.values())
            time.sleep(_REST_SECONDS)
        return ()

    def end_all(self) -> None:
        """Kill whatever runs of this event."""
        until = time.monotonic() + _ORPHANS
        while (left := self.scanner.look()) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)

    def left_in_memory(self) -> tuple[str, ...]:
        """What supervisors of this event have left in memory, which nobody else will remove."""
        found = [
            path
            for path in Path("/dev/shm").glob(f"{PREFIX}*")  # noqa: S108 - it is looked at
            if int(path.name.removeprefix(PREFIX).partition("-")[0]) in self.scanner.hosts
        ]
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return tuple(str(path) for path in found)

    def _see(
        self,
        code: int,
        console: Path,
        striker: Striker,
        *,
        hung: Sequence[str],
        orphans: Sequence[str],
        seconds: float,
    ) -> Attempt:
        record = _read_record(self.out)
        logs = {
            path.stem: path.read_text(errors="replace")
            for path in sorted((self.out / "logs").glob("*.log"))
            if ".attempt-" not in path.name
        }
        return Attempt(
            exit_code=code if code >= 0 else 128 - code,
            status=str(record.get("status", "")),
            reason=str(record.get("failure_reason") or ""),
            said=console.read_text(errors="replace")[-_LONGEST_SAID:],
            seconds=seconds,
            allowed=self.allowed,
            hits=tuple(striker.hits),
            hung=tuple(hung),
            orphans=tuple(orphans),
            resumed={host: tuple(map(int, _RESUMED.findall(text))) for host, text in logs.items()},
            restarted=tuple(int(rank) for text in logs.values() for rank in _RESTARTED.findall(text)),
            failures={host: found for host, text in logs.items() if (found := read_failure(text)) is not None},
            checkpoints=checkpoints.newest(self.out, checkpoints.valid(self.out)),
            digest=jobs.digest(self.event.job, self.out / "model"),
            has_archive=(self.out / "model.tar.gz").is_file(),
            went_on=bool(jobs.digest(self.event.job, self.out / ".trainbox" / "algo-1" / "model")),
        )


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    with source:
        shutil.copyfileobj(source, target)


def _read_record(out: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, object] = json.loads((out / "job.json").read_bytes())
        return found
    return {}


def read_failure(log: str) -> HostFailure | None:
    """What a host says of its failure at the end of its log."""
    before, found, text = log.rpartition("trainbox: FAILED: ")
    if not found:
        return None
    of_script = before.partition("; running ")[2].splitlines()[1:]
    return HostFailure(text.replace("trainbox: ", "").strip(), had_started=bool(of_script))
