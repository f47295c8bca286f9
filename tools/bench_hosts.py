"""Measure how soon an XGBoost job on several hosts notices that one is lost (`make bench-xgboost`).

    python -m tools.bench_hosts [--hosts 3] [--runs 5]

The hosts are processes of this machine, each under its own `train`. One of them, another in each run, is killed or
frozen while it trains, and the clock runs until every other has ended with a reason that names it.
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

from tests.support.boosting_hosts import FROZEN_LIMIT_S, Process, make_trees, start
from tools.bench import BrokenError, say, verdict

TARGET_DEAD_S = 3.0
TARGET_FROZEN_S = 2.0
_PATIENCE_S = 60.0


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
    parser = argparse.ArgumentParser(description="Measure how soon an XGBoost job notices that a host is lost.")
    parser.add_argument("--hosts", type=int, default=3, help="hosts of the job (3)")
    parser.add_argument("--runs", type=int, default=5, help="of each kind of loss (5)")
    options = parser.parse_args(argv)
    hosts = [f"127.0.0.{number + 1}" for number in range(options.hosts)]
    say(f"{len(hosts)} hosts train, one is lost; until all others have ended (of {options.runs} runs):")
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
            say(
                f"  {what}: {median(found):.2f} s, {max(found):.2f} at most{beyond}"
                f" (asked: at most {target:g}): {verdict(reached=max(found) <= target)}"
            )
    except BrokenError as fault:
        print(f"bench-hosts: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
