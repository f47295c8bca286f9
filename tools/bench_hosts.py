"""Measure how soon a job on several hosts notices that one is lost (`make bench-xgboost`).

    python -m tools.bench_hosts [--hosts 3] [--runs 5] [--rounds 1000]

First the communicator alone: members are killed or frozen, another in each run, and the clock runs until the logs of
all others name it; then healthy members that are late and busy do so many rounds, and none may be named. Then an
XGBoost job: the hosts are processes of this machine, each under its own `train`, and the clock runs until every other
has ended with a reason that names the lost one.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.support import forks
from tests.support.boosting_hosts import FROZEN_LIMIT_S, Process, make_trees, start
from tests.support.cluster import busy
from tests.support.parties import Party
from tests.support.waiting import eventually
from tools.bench import BrokenError, emit, verdict

TARGET_DEAD_S = 3.0
TARGET_FROZEN_S = 2.0
#: Until the logs of all others name a lost member, beyond the limit of silence where it is frozen.
TARGET_NAMED_S = 1.0
_NAMED_LIMIT_S = 2.0
_PATIENCE_S = 60.0
_WAITING = """
ready()
while True:
    communicator.gather(communicator.rank, int)
    time.sleep(0.01)
"""
_ROUNDS = """
import random
chance = random.Random(communicator.rank)
for number in range(COUNT):
    time.sleep(chance.choice([0, 0, 0, 0.001, 0.02]))
    communicator.gather(number, int)
"""


def time_naming(lost: int, blow: signal.Signals) -> float:
    """Seconds from the blow until the logs of all other members name the lost one."""
    with Party(3, _WAITING, limit=_NAMED_LIMIT_S) as party:
        party.start().until_ready()
        victim = party.names[lost]
        others = [one for one in party.names if one != victim]
        began = time.monotonic()
        party.signal(blow, victim)
        eventually(lambda: all(f"{victim} is lost" in party.stderr(one) for one in others), f"the loss of {victim}")
        return time.monotonic() - began


def count_false_alarms(rounds: int) -> int:
    """Return how many of three healthy members did not come to the end of so many rounds."""
    with Party(3, _ROUNDS.replace("COUNT", str(rounds)), limit=_NAMED_LIMIT_S) as party, busy(2):
        return sum(one.code != 0 for one in party.start().finish().values())


def measure_communicator(runs: int, rounds: int) -> None:
    """Print how soon a lost member is named, and whether a healthy one is."""
    emit(f"the communicator of 3 members, one is lost; until the others name it (of {runs} runs):")
    for what, blow, limit in (("killed", signal.SIGKILL, 0.0), ("frozen", signal.SIGSTOP, _NAMED_LIMIT_S)):
        found = [time_naming(number % 3, blow) - limit for number in range(runs)]
        beyond = f" beyond the limit of {limit:g} s" if limit else ""
        emit(
            f"  {what}: {median(found):.2f} s, {max(found):.2f} at most{beyond}"
            f" (asked: at most {TARGET_NAMED_S:g}): {verdict(reached=max(found) <= TARGET_NAMED_S)}"
        )
    alarms = count_false_alarms(rounds)
    emit(f"  {rounds} rounds of healthy, busy members: {alarms} false alarms: {verdict(reached=not alarms)}")


def lose(directory: Path, hosts: Sequence[str], lost: int, blow: signal.Signals) -> float:
    """Seconds from the blow until every other host has ended.

    Raises:
        BrokenError: One did not end, or with another reason.
    """
    make_trees(directory, hosts=hosts, shares=[200] * len(hosts), held_out=[50] * len(hosts), num_round="1000000")
    processes = start(directory, hosts)
    try:
        _wait_until_training(directory / hosts[0], processes)
        script = subprocess.run(
            ["pgrep", "-P", str(processes[lost].pid)], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        began = time.monotonic()
        # The supervisor first: it is the host that is lost, and nobody there can say a word.
        for pid in (processes[lost].pid, int(script)):
            os.kill(pid, blow)
        for number, process in enumerate(processes):
            if number != lost:
                process.wait(timeout=_PATIENCE_S)
        seconds = time.monotonic() - began
    except (subprocess.SubprocessError, OSError) as error:
        raise BrokenError(f"{blow.name} of host {lost + 1}: {error}") from error
    finally:
        _kill(processes)
    for number, host in enumerate(hosts):
        if number != lost:
            _check(directory / host, hosts[lost], processes[number])
    return seconds


def _wait_until_training(root: Path, processes: Sequence[Process]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not list(root.glob("checkpoints/step-*/MANIFEST.json")):
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise BrokenError("the hosts did not begin to train")
        time.sleep(0.01)


def _kill(processes: Sequence[Process]) -> None:
    for process in processes:
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=False)
        process.kill()
        process.communicate()


def _check(root: Path, lost: str, process: Process) -> None:
    reason = (root / "output" / "failure").read_text().splitlines()[0]
    if process.returncode == 0 or lost not in reason:
        raise BrokenError(f"{lost} was lost, and {root.name} ended with {process.returncode}: {reason}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how soon a job notices that a host is lost.")
    parser.add_argument("--hosts", type=int, default=3, help="hosts of the job (3)")
    parser.add_argument("--runs", type=int, default=5, help="of each kind of loss (5)")
    parser.add_argument("--rounds", type=int, default=1000, help="of healthy members (1000)")
    options = parser.parse_args(argv)
    with forks.served():
        measure_communicator(options.runs, options.rounds)
    hosts = [f"127.0.0.{number + 1}" for number in range(options.hosts)]
    emit(f"{len(hosts)} hosts train, one is lost; until all others have ended (of {options.runs} runs):")
    try:
        for what, blow, limit, target in (
            ("killed", signal.SIGKILL, 0, TARGET_DEAD_S),
            ("frozen", signal.SIGSTOP, FROZEN_LIMIT_S, TARGET_FROZEN_S),
        ):
            found = []
            for number in range(options.runs):
                with tempfile.TemporaryDirectory(prefix="bench-hosts-") as name:
                    found.append(lose(Path(name), hosts, number % len(hosts), blow) - limit)
            beyond = f" beyond the limit of {limit} s" if limit else ""
            emit(
                f"  {what}: {median(found):.2f} s, {max(found):.2f} at most{beyond}"
                f" (asked: at most {target:g}): {verdict(reached=max(found) <= target)}"
            )
    except BrokenError as fault:
        print(f"bench-hosts: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
