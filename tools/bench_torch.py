"""Measure what launches and runs PyTorch beside torchrun, both in one run on this machine (`make bench-torch`).

    python -m tools.bench_torch [--only kills,start] [--runs 5] [--kills 20] [--full]

Two ranks under gloo. What the two launchers do is measured in turns, and of each figure the median counts. The exit
code says whether all went well with ours, not how fast.

    kills    kill -9 of a rank: until all ranks run again, until they step again, how many restarts succeed
    frozen   SIGSTOP of a rank: how long after its limit it is killed, and whether it is the right one
    start    from the command to the end of the first step of all ranks
    steps    what a session adds to a step of a bare loop over DistributedDataParallel
    hosts    a job of two hosts loses one: until the other has ended

torchrun is not made to wait for what takes it a minute or more: a frozen rank (one run, with `--full`), a lost host.
"""

import argparse
import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from tests.support.trees import Tree
from tools.bench import BrokenError, emit, verdict

RANKS = 2
TARGET_RESPAWN_S = 0.5
TARGET_STEPPING_S = 0.7
TARGET_BEYOND_LIMIT_S = 0.5
TARGET_OVERHEAD = 0.01
TARGET_LOST_HOST_S = 60.0
HANG_LIMIT_S = 3.0
PG_TIMEOUT_S = 5.0
RESTARTS = 1000
PATIENCE_S = 60.0
HOSTS = ("127.0.0.1", "127.0.0.2")
GIVEN_UP_S = 90.0
LEAST_RUNS = 5

#: Each rank writes down when it began, has made its first step, and is well under way.
NOTES = """\
import os, time
EVENTS = os.open(os.environ["BENCH_EVENTS"], os.O_WRONLY | os.O_APPEND)
def note(what):
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    line = f"{what} {os.environ['RANK']} {attempt} {os.getpid()} {time.monotonic()}\\n"
    os.write(EVENTS, line.encode())
note("began")
"""
#: As it is written for torchrun, and for nothing of ours.
BARE = (
    NOTES
    + """\
import itertools
from datetime import timedelta
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo", timeout=timedelta(seconds=float(os.environ.get("BENCH_TIMEOUT", "1800"))))
model = DistributedDataParallel(torch.nn.Linear(64, 64))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in itertools.count():
    optimizer.zero_grad()
    model(torch.ones(8, 64)).sum().backward()
    optimizer.step()
    if step in (0, 10):
        note("steady" if step else "stepped")
    time.sleep(0.02)
"""
)
#: The same with a session, which says how far it is.
WITH_SESSION = (
    NOTES
    + """\
import itertools
import torch
from trainbox.torch import session

with session() as run:
    model = run.wrap(torch.nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in run.steps(itertools.repeat(torch.ones(8, 64))):
        run.backward(model(batch).mean())
        run.update(optimizer)
        if run.step in (0, 10):
            note("steady" if run.step else "stepped")
        time.sleep(0.02)
"""
)
#: Blocks of steps in turns, of the same model on the same batch: what else the machine does hits both.
TWO_LOOPS = """\
import itertools, os, time
import torch
from torch.nn.functional import mse_loss
from trainbox.torch import session
from trainbox.torch.steps import agreement

BLOCK = 10
# The ranks exchange a message a second. Here every other second belongs to the bare loop: of the session's own time it
# would be one in half a second.
agreement.PAUSE_SECONDS *= 2
torch.set_num_threads(1)
with session() as run:
    model = run.wrap(torch.nn.Sequential(*(torch.nn.Linear(768, 768) for _ in range(4))))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, targets = torch.randn(64, 768), torch.randn(64, 768)

    def bare(count):
        for _ in range(count):
            mse_loss(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    steps = run.steps(itertools.repeat((inputs, targets)))
    def ours(count):
        for x, y in itertools.islice(steps, count):
            run.backward(mse_loss(model(x), y))
            run.update(optimizer)

    ours(3)
    for block in range(int(os.environ["BENCH_BLOCKS"])):
        for name, loop in (("bare", bare), ("ours", ours))[:: 1 if block % 2 else -1]:
            torch.distributed.barrier()
            began = time.perf_counter()
            loop(BLOCK)
            if run.rank == 0:
                print("BLOCK", name, (time.perf_counter() - began) / BLOCK, flush=True)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the launcher and the session of PyTorch beside torchrun.")
    parser.add_argument("--only", default=",".join(PARTS), help="what to measure: " + ",".join(PARTS))
    parser.add_argument("--runs", type=int, default=5, help="runs of what is not said otherwise (5)")
    parser.add_argument("--kills", type=int, default=20, help="ranks to kill under each launcher (20)")
    parser.add_argument("--blocks", type=int, default=200, help="pairs of blocks of 10 steps, in each run (200)")
    parser.add_argument("--full", action="store_true", help="20 frozen ranks, and one of torchrun's")
    options = parser.parse_args(argv)
    emit(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
    with tempfile.TemporaryDirectory(prefix="trainbox-bench-") as name:
        try:
            for part in options.only.split(","):
                PARTS[part](Path(name), options)
        except BrokenError as fault:
            print(f"bench-torch: {fault}", file=sys.stderr)
            return 1
    emit(f"load average after: {os.getloadavg()[0]:.1f}")
    return 0


# -- jobs -------------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """What a rank has written down."""

    what: str
    rank: int
    attempt: int
    pid: int
    at: float


class Job:
    """Ranks that run a script under some launcher, and what they write down."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.processes: list[subprocess.Popen[bytes]] = []
        self.events_file = root / "events"
        self.log_file = root / "log"
        self.events_file.touch()
        self.log_file.touch()
        self.began = time.monotonic()

    def events(self) -> list[Event]:
        """All so far."""
        fields = (line.split() for line in self.events_file.read_text(encoding="ascii").splitlines())
        return [Event(what, int(rank), int(attempt), int(pid), float(at)) for what, rank, attempt, pid, at in fields]

    def log(self) -> str:
        """What the launcher and the ranks have said."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait(self, what: str, attempt: int = 0) -> list[Event]:
        """This event of all ranks of an attempt, by rank.

        Raises:
            BrokenError: It does not come to it.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            events = self.events()
            found = sorted(one for one in events if (one.what, one.attempt) == (what, attempt))
            if len(found) == RANKS:
                return found
            ended = all(process.poll() is not None for process in self.processes)
            if any(one.attempt > attempt for one in events) or ended or time.monotonic() > until:
                raise BrokenError(f"{self.name}: not all ranks have {what} in attempt {attempt}\n{self.log()[-2000:]}")
            time.sleep(0.002)

    def end(self) -> None:
        """Kill all of it."""
        for process in self.processes:
            signal_tree(process.pid, signal.SIGKILL)
            process.wait()


def signal_tree(pid: int, number: int) -> None:
    """Signal a process and all below it, as far as they have not lost their parents."""
    below: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            below += map(int, path.read_text().split())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    for child in below:
        signal_tree(child, number)


@contextmanager
def started(launcher: str, script: str, scratch: Path, **env: str) -> Iterator[Job]:
    """A job on one host, under one of `LAUNCHERS`; it is killed in the end."""
    job = Job(launcher, Path(tempfile.mkdtemp(dir=scratch)))
    tree = Tree(job.root / "ml").hosts("localhost").program(script)
    tree.hyperparameters(processes_per_host=RANKS, trainbox_launcher="torchrun", trainbox_hang_seconds=HANG_LIMIT_S)
    ours = {"TRAINBOX_MAX_RESTARTS": str(RESTARTS)}
    given = {"BENCH_EVENTS": str(job.events_file), "OMP_NUM_THREADS": "1", **ours, **env}
    try:
        with job.log_file.open("ab") as log:
            job.began = time.monotonic()
            LAUNCHERS[launcher](job, tree, given, log.fileno())
        yield job
    finally:
        job.end()


def start_ours(job: Job, tree: Tree, env: Mapping[str, str], log: int) -> None:
    """By the supervisor."""
    job.processes.append(tree.start(env, stdout=log, stderr=log))


def start_torchrun(job: Job, tree: Tree, env: Mapping[str, str], log: int) -> None:
    """By torch's own launcher."""
    options = ("--standalone", f"--nproc-per-node={RANKS}", f"--max-restarts={RESTARTS}")
    command = (sys.executable, "-m", "torch.distributed.run", *options, tree.code / "train.py")
    job.processes.append(subprocess.Popen(command, env=tree.environment(env), stdout=log, stderr=log))


def start_plain(job: Job, tree: Tree, env: Mapping[str, str], log: int) -> None:
    """By nobody: one Python for each rank."""
    address = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for rank in range(RANKS):
        whole = tree.environment({**env, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        command = (sys.executable, tree.code / "train.py")
        job.processes.append(subprocess.Popen(command, env=whole, stdout=log, stderr=log))


LAUNCHERS: Mapping[str, Callable[[Job, Tree, Mapping[str, str], int], None]] = {
    "trainbox": start_ours,
    "torchrun": start_torchrun,
    "plain processes": start_plain,
}


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def spread(seconds: Sequence[float]) -> str:
    """The median, and the least and the most."""
    return f"{median(seconds):7.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})" if seconds else "      -"


# -- a rank is killed -------------------------------------------------------------------------------------------------


def bench_kills(scratch: Path, options: argparse.Namespace) -> None:
    """Two jobs run side by side, and lose ranks in turns; one that does not come up again is started afresh."""
    respawned: dict[str, list[float]] = {"trainbox": [], "torchrun": []}
    stepping: dict[str, list[float]] = {"trainbox": [], "torchrun": []}
    with ExitStack() as running:
        jobs: dict[str, tuple[Job, int]] = {}
        for number in range(options.kills):
            for launcher, began in respawned.items():
                if launcher not in jobs:
                    jobs[launcher] = running.enter_context(started(launcher, BARE, scratch)), 0
                job, attempt = jobs.pop(launcher)
                victim = job.wait("steady", attempt)[number % RANKS]
                killed = time.monotonic()
                os.kill(victim.pid, signal.SIGKILL)
                try:
                    began.append(max(one.at for one in job.wait("began", attempt + 1)) - killed)
                    stepping[launcher].append(max(one.at for one in job.wait("stepped", attempt + 1)) - killed)
                    jobs[launcher] = job, attempt + 1
                except BrokenError as fault:
                    job.end()
                    emit(f"  {fault}" if launcher == "trainbox" else f"  {number + 1}: torchrun has not come up again")
    emit(f"kill -9 of one of {RANKS} ranks, {options.kills} times under each launcher (median)")
    for launcher, seconds in stepping.items():
        emit(f"  {launcher:18}all ranks run again after {spread(respawned[launcher])}")
        emit(f"  {'':18}all step again after    {spread(seconds)}")
        emit(f"  {'':18}restarts that succeed: {len(seconds)} of {options.kills}")
    ours, steps = respawned["trainbox"], stepping["trainbox"]
    if len(steps) < options.kills:
        raise BrokenError(f"trainbox: {options.kills - len(steps)} of {options.kills} restarts did not succeed")
    emit(f"  target: run again within {TARGET_RESPAWN_S} s: {verdict(reached=median(ours) <= TARGET_RESPAWN_S)}")
    emit(f"  target: step again within {TARGET_STEPPING_S} s: {verdict(reached=median(steps) <= TARGET_STEPPING_S)}\n")


# -- a rank freezes ---------------------------------------------------------------------------------------------------


def bench_frozen(scratch: Path, options: argparse.Namespace) -> None:
    """A rank is stopped; it counts as the right one if it is the one that was killed, and named."""
    times = 20 if options.full else options.runs
    beyond, right = [], 0
    with started("trainbox", WITH_SESSION, scratch) as job:
        for attempt in range(times):
            victim = job.wait("steady", attempt)[attempt % RANKS]
            beyond.append(freeze(victim.pid) - HANG_LIMIT_S)
            job.wait("stepped", attempt + 1)
            named = re.findall(r"restart \d+ of \d+: rank (\d+) made no progress", job.log())
            right += named[attempt:] == [str(victim.rank)]
    emit(f"SIGSTOP of one of {RANKS} ranks, {times} times; the limit is {HANG_LIMIT_S:g} s (median)")
    emit(f"  trainbox          killed beyond the limit after {spread(beyond)}; the right rank {right} of {times}")
    theirs = "the process-group timeout (30 min with gloo) and 31 s; one run with --full"
    if options.full:
        with started("torchrun", BARE, scratch, BENCH_TIMEOUT=str(PG_TIMEOUT_S)) as job:
            seconds = freeze(job.wait("steady")[1].pid)
        theirs = f"killed {seconds:.1f} s after it, with a process-group timeout of {PG_TIMEOUT_S:g} s (one run)"
    emit(f"  torchrun          {theirs}")
    emit(
        f"  target: within {TARGET_BEYOND_LIMIT_S} s beyond the limit, the right rank each time:"
        f" {verdict(reached=median(beyond) <= TARGET_BEYOND_LIMIT_S and right == times)}\n"
    )
    if right != times:
        raise BrokenError(f"a wrong rank was named in {times - right} of {times} times")


def freeze(pid: int) -> float:
    """Stop a process; the seconds until somebody has killed it."""
    watched = os.pidfd_open(pid)
    try:
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        if not select.select([watched], [], [], 2 * PATIENCE_S)[0]:
            raise BrokenError(f"a stopped rank was still there after {2 * PATIENCE_S:g} s")
        return time.monotonic() - began
    finally:
        os.close(watched)


# -- the first step ---------------------------------------------------------------------------------------------------


def bench_start(scratch: Path, options: argparse.Namespace) -> None:
    """From the command to the end of the first step of the last rank."""
    seen: dict[str, list[float]] = {launcher: [] for launcher in LAUNCHERS}
    for number in range(options.runs + 1):
        for launcher, seconds in seen.items():
            with started(launcher, BARE, scratch) as job:
                first = max(one.at for one in job.wait("stepped")) - job.began
            if number:  # the first of all fills the caches
                seconds.append(first)
    emit(f"From the command to the first step of {RANKS} ranks (median of {options.runs})")
    ours, plain = median(seen["trainbox"]), median(seen["plain processes"])
    for launcher, seconds in seen.items():
        ratio = "" if launcher == "trainbox" else f"   {median(seconds) / ours:.2f} times as long"
        emit(f"  {launcher:18}{spread(seconds)}{ratio}")
    emit(f"  target: at most that of plain processes: {verdict(reached=ours <= plain)}\n")


# -- steps ------------------------------------------------------------------------------------------------------------


def bench_steps(scratch: Path, options: argparse.Namespace) -> None:
    """A bare loop and a session's, in short blocks in turns, in the same processes: each pair sees the same machine."""
    runs = [measure_steps(scratch, options.blocks) for _ in range(max(options.runs, LEAST_RUNS))]
    bare, ours, added = zip(*runs, strict=True)
    emit(f"A step of {RANKS} ranks over DistributedDataParallel (median of {len(runs)} runs, of each the mean of its")
    emit(f"{options.blocks} pairs of blocks of 10 steps, without the tenth at either end)")
    emit(f"  bare loop         {1000 * median(bare):7.2f} ms")
    emit(f"  session           {1000 * median(ours):7.2f} ms")
    emit(f"  of a pair         {median(added):+.2%}  ({min(added):+.2%} to {max(added):+.2%})")
    emit(f"  target: at most {TARGET_OVERHEAD:.0%} more: {verdict(reached=median(added) <= TARGET_OVERHEAD)}\n")


def measure_steps(scratch: Path, blocks: int) -> tuple[float, float, float]:
    """Seconds of a step of each loop (medians of one run), and how much longer the session's is.

    That is a mean, for in some blocks alone the ranks send each other a message; without the tenth at either end, where
    the machine did something else meanwhile.
    """
    with started("trainbox", TWO_LOOPS, scratch, BENCH_BLOCKS=str(blocks)) as job:
        if job.processes[0].wait(10 * PATIENCE_S):
            raise BrokenError(f"the two loops: {job.log()[-2000:]}")
        seen = re.findall(r"BLOCK (\w+) (\S+)", job.log())
    bare, ours = ([float(seconds) for who, seconds in seen if who == name] for name in ("bare", "ours"))
    if not len(bare) == len(ours) == blocks:
        raise BrokenError(f"the two loops: {len(bare)} and {len(ours)} of {blocks} blocks\n{job.log()[-2000:]}")
    longer = sorted(mine / plain - 1 for mine, plain in zip(ours, bare, strict=True))
    tenth = blocks // 10
    return median(bare), median(ours), mean(longer[tenth : blocks - tenth])


# -- a host is lost ---------------------------------------------------------------------------------------------------


def bench_hosts(scratch: Path, options: argparse.Namespace) -> None:
    """All processes of a host are killed, so that the kernel closes their connections, or only stopped: a dead wire."""
    emit(f"A job of two hosts loses one: until the other ends, which names it (median of {options.runs})")
    for how, number in (("killed", signal.SIGKILL), ("silent", signal.SIGSTOP)):
        for lost, which in enumerate(("first", "second")):
            seconds = [lose_host(scratch, number, lost) for _ in range(options.runs)]
            shown = verdict(reached=max(seconds) <= TARGET_LOST_HOST_S)
            emit(f"  trainbox, {which} host {how:12}{spread(seconds)}; target {TARGET_LOST_HOST_S:g} s: {shown}")
    emit("  torchrun                      still waits after 60 s (not measured here)\n")


def lose_host(scratch: Path, number: int, lost: int) -> float:
    """The seconds until a host that has lost the other ends, naming it; `GIVEN_UP_S` if it has not by then."""
    job, port = Job("two hosts", Path(tempfile.mkdtemp(dir=scratch))), free_port()
    given = {"BENCH_EVENTS": str(job.events_file), "MASTER_PORT": port}
    trees = [Tree(job.root / host).hosts(*HOSTS, current=host).program(BARE) for host in HOSTS]
    try:
        with job.log_file.open("ab") as log:
            for tree in trees:
                tree.hyperparameters(processes_per_host=1, trainbox_launcher="torchrun")
                start_ours(job, tree, given, log.fileno())
        job.wait("steady")
        began = time.monotonic()
        signal_tree(job.processes[lost].pid, number)
        code = job.processes[1 - lost].wait(GIVEN_UP_S)
        seconds = time.monotonic() - began
    except subprocess.TimeoutExpired:
        return GIVEN_UP_S
    finally:
        job.end()
    said = str(trees[1 - lost].failure())
    if f"lost host {HOSTS[lost]}" not in said:
        raise BrokenError(f"a host that lost the other ended with {code}: {said}\n{job.log()[-2000:]}")
    return seconds


PARTS: Mapping[str, Callable[[Path, argparse.Namespace], None]] = {
    "kills": bench_kills,
    "frozen": bench_frozen,
    "start": bench_start,
    "steps": bench_steps,
    "hosts": bench_hosts,
}


if __name__ == "__main__":
    sys.exit(main())
