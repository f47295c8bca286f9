"""Hit jobs with faults drawn at random, resume them, and say what was not as it must be (`make fuzz-faults`).

    python -m tools.fuzz_faults [--seconds 600] [--seed 1] [--only K] [--load 2] [--jobs 1] [--out fuzz-out]

Each event runs a small job through the real `trainbox run`, strikes its processes or its disk at a mark in its course,
resumes the job until it has completed, and compares the model with that of an undisturbed run. It finds wrong and lost
results, hangs, orphans, and reasons that name what was not touched. Mounts, processes and the loopback interface are
its own (root, or user namespaces). The exit status is 1 if anything was found.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tools.fuzz_faults import disk, jobs, report
from tools.fuzz_faults.judge import judge
from tools.fuzz_faults.plan import Event, Job, Mark, draw
from tools.fuzz_faults.story import Attempt, Interrupted, Stage, logs_of, play

_BUSY = "while True: pass"


def main(argv: Sequence[str]) -> int:
    """Play events until the time is over."""
    args = _read(argv)
    if disk.INSIDE not in os.environ:
        why = disk.refused()
        if why:
            sys.stderr.write(f"mounts and processes of its own are needed, and refused: {why}\n")
            return 2
        disk.enter(argv)
    disk.settle()
    stage = Stage(data=args.out / "data", directory=args.out, load=args.load, stop=threading.Event())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stage.stop.set())
    if not stage.data.exists():
        jobs.make_data(stage.data)
    numbers = [args.only] if args.only is not None else None
    with _load(args.load):
        results = list(_results(args, stage, numbers))
    print(f"\n{report.table(results)}")
    print(report.findings(results, args.load))
    return int(any(result.findings for result in results))


def _read(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fuzz_faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="begin no event after so many (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn (default 1)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first event (default 0)")
    parser.add_argument("--only", type=int, help="the number of one event to repeat")
    parser.add_argument("--load", type=int, default=2, help="busy loops beside the jobs (default 2)")
    parser.add_argument("--jobs", type=int, default=1, help="events at a time (default 1)")
    parser.add_argument("--out", type=lambda text: Path(text).absolute(), default=Path("fuzz-out").absolute())
    return parser.parse_args(argv)


@contextmanager
def _load(loops: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


class _References:
    """The undisturbed run of each job, made when it is needed."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._made: dict[Job, Attempt] = {}

    def of(self, job: Job) -> Attempt:
        """The one attempt of it.

        Raises:
            Interrupted: The stage was asked to stop.
            RuntimeError: It does not complete.
        """
        with self._lock:
            if job not in self._made:
                story = play(Event(0, 0, job, Mark("start"), ()), self._stage)
                attempt = story.attempts[0]
                if attempt.status != "Completed" or not attempt.digest:
                    raise RuntimeError(f"{job.name} does not complete by itself: {attempt.reason}\n{attempt.said}")
                self._made[job] = attempt
                shutil.rmtree(logs_of(story.event, self._stage))
            return self._made[job]


def _results(args: argparse.Namespace, stage: Stage, numbers: Sequence[int] | None) -> Iterator[report.Result]:
    """Play and judge, as many at a time as asked for; each is printed as it ends."""
    references = _References(stage)
    until = time.monotonic() + args.seconds
    waiting: set[Future[report.Result | None]] = set()
    left = iter(numbers) if numbers is not None else iter(range(args.first, sys.maxsize))
    with ThreadPoolExecutor(args.jobs) as pool:
        while True:
            while len(waiting) < args.jobs and time.monotonic() < until and not stage.stop.is_set():
                number = next(left, None)
                if number is None:
                    break
                waiting.add(pool.submit(_result, draw(args.seed, number), stage, references))
            if not waiting:
                return
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                result = future.result()
                if result is not None:
                    print(report.line(result), flush=True)
                    yield result


def _result(event: Event, stage: Stage, references: _References) -> report.Result | None:
    """An event, judged; None where a person has interrupted it."""
    try:
        reference = references.of(event.job)
        story = play(event, stage, undisturbed=reference.seconds)
    except Interrupted:
        print(f"{event.number:4d} seed={event.seed} {event.job.name:13s} {event}: interrupted", flush=True)
        return None
    logs = logs_of(event, stage)
    found = judge(story, reference.digest)
    if found:
        (logs / "event.json").write_bytes(msgspec.json.format(msgspec.json.encode((story, found))))
    else:
        shutil.rmtree(logs)
    return report.Result(story, found, logs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
