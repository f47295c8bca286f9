"""Measure the health checks among hosts that are network namespaces on this machine (`make bench-health`; needs root).

    python -m tools.bench_health [--starts 5] [--faults 5] [--healthy 50] [--sizes 2,4,8,16]

How long four healthy hosts take; whether every kind of fault is named exactly, each planted several times; how often a
healthy cluster whose processors are busy is accused; and how the time grows with the hosts, all of which share this
machine's processors: beside the whole, the processor's seconds for each host and the time of the collectives alone are
printed, and beside four hosts how long four processes take that only import torch. The exit code says whether all
faults were named and nobody was accused, not how fast.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.support import faults
from tests.support.cluster import Cluster, Ended, busy, can_make_hosts
from tools.bench import emit, verdict

TARGET_HOSTS = 4
TARGET_SECONDS = 5.0
_BUSY_PROCESSES = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the health checks among network namespaces.")
    parser.add_argument("--starts", type=int, default=5, help="runs for the time of healthy hosts (5)")
    parser.add_argument("--faults", type=int, default=5, help="times that each kind of fault is planted (5)")
    parser.add_argument("--healthy", type=int, default=50, help="runs of healthy hosts beside busy processes (50)")
    parser.add_argument("--sizes", default="2,4,8,16", help="numbers of hosts (2,4,8,16)")
    options = parser.parse_args(argv)
    missing = can_make_hosts()
    if missing:
        emit(f"no hosts can be made here: {missing}")
        return 1
    emit(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    measure_growth([int(size) for size in options.sizes.split(",") if size], options.starts)
    accused = measure_accusations(options.healthy)
    missed = measure_faults(options.faults)
    return int(bool(accused or missed))


def measure_growth(sizes: Sequence[int], starts: int) -> None:
    """Healthy hosts, the more the fewer times."""
    for size in sizes:
        runs = [_run_healthy(size) for _ in range(starts if size <= TARGET_HOSTS else 1)]
        whole, collectives, processor = (median(run[place] for run in runs) for place in range(3))
        emit(
            f"{size:3} healthy hosts: {whole:.1f} s, of which the collectives {collectives:.1f} s;"
            f" {processor / size:.1f} s of processor for each host"
        )
        if size == TARGET_HOSTS:
            imports = median(_import_torch(size) for _ in range(starts))
            emit(f"  so many processes that only import torch, as each host has to: {imports:.1f} s")
            emit(f"  target: at most {TARGET_SECONDS:g} s: {verdict(reached=whole <= TARGET_SECONDS)}")


def _import_torch(processes: int) -> float:
    """Seconds until all of so many have done it."""
    began = time.monotonic()
    command = (sys.executable, "-c", "import torch, torch.distributed")
    for one in [subprocess.Popen(command) for _ in range(processes)]:
        one.wait()
    return time.monotonic() - began


def _run_healthy(size: int) -> tuple[float, float, float]:
    """Seconds until the last host has ended, of its collectives, and of processors."""
    before = _processor_seconds()
    began: list[float] = []
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), size, patience=60) as cluster:
        ended = cluster.run_until("collectives: ", lambda: began.append(time.monotonic()))
        collectives = time.monotonic() - began[0]
    _require_sound(ended)
    return max(one.seconds for one in ended), collectives, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _require_sound(ended: Sequence[Ended]) -> None:
    broken = [one.log for one in ended if one.code]
    if broken:
        raise SystemExit(f"a healthy host was accused:\n{broken[0]}")


def measure_accusations(runs: int) -> int:
    """How many of these runs say anything against healthy hosts."""
    accused = 0
    for _ in range(runs):
        with (
            tempfile.TemporaryDirectory() as directory,
            busy(_BUSY_PROCESSES),
            Cluster(Path(directory), 4, patience=60) as cluster,
        ):
            ended = cluster.run()
        said = sorted(str(one) for one in ended[0].named())
        if said or any(one.code for one in ended):
            accused += 1
            emit(f"  accused: {said} {[one.code for one in ended]}")
    emit(f"{accused} of {runs} runs of 4 healthy hosts beside {_BUSY_PROCESSES} busy processes accuse anybody")
    return accused


def measure_faults(times: int) -> int:
    """How many of the faults planted were not named exactly."""
    missed = 0
    for name in faults.FAULTS:
        taken, wrong = [], []
        for _ in range(times):
            with tempfile.TemporaryDirectory() as directory:
                bad, ended = faults.run(name, Path(directory))
            taken.append(max(one.seconds for one in ended))
            wrong += [bad] if bad else []
        missed += len(wrong)
        if taken:
            named = f"{name}: named {times - len(wrong)} of {times} times, {median(taken):.1f} s"
            emit(" ".join((named, *wrong)))
    return missed


if __name__ == "__main__":
    sys.exit(main())
