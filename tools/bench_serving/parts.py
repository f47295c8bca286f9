"""The parts of the benchmark: each prints its figures, and their ratios beside the targets."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tools.bench import REPOSITORY, BrokenError, emit, verdict
from tools.bench_serving.inside import Steps
from tools.bench_serving.load import Loaded
from tools.bench_serving.requests import ask, csv_of, for_server, load, request_of, train
from tools.bench_serving.servers import Paths, started

#: As ratios of the built-in's processor time to ours.
TARGETS = {64: 25.0, 8: 15.0, 1_000: 5.0, 100_000: 7.0}
TARGET_START = 8.0
TARGET_THROUGHPUT = 15.0
TARGET_RSS, TARGET_FURTHER = 4.0, 20.0
TARGET_GROWTH_MB = 1.0
TARGET_BODY_MEMORY = 3.0
TARGET_LIMIT = 1.5
TARGET_FOREST = 10.0
WARM = 20_000
#: Lines a second that `serve` logs of requests that went well.
LOGGED = 100
#: Rows of a table; the larger one has a body for which Arrow is loaded.
COUNTS = (1_000, 100_000)
#: The request before has so many times fewer: Arrow is loaded with it where it is needed at all.
_LESS = 40
TREES, TREE_DEPTH = 100, 10
OURS, THEIRS, BY_HAND, LIT, MMS, ECHO = "trainbox", "built-in XGBoost", "uvicorn by hand", "LitServe", "MMS", "echo"


def everyone() -> tuple[str, ...]:
    """The servers that can be measured here."""
    return (OURS, THEIRS, BY_HAND, LIT, *((MMS,) if shutil.which("java") else ()))


def _compare(what: str, ratio: float, target: float) -> None:
    emit(f"  {what}: {ratio:.1f} times less; target {target:g}: {verdict(reached=ratio >= target)}")


def bench_start(paths: Paths, options: argparse.Namespace) -> None:
    """Processor time until the first 200, and seconds."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.runs):
        for name in everyone():
            with started(name, paths) as server:
                seen.setdefault(name, []).append((server.used().cpu_seconds, server.ready_after))
    emit(f"From the start to the first 200 of /ping (least of {options.runs}; that of MMS comes before its model)")
    for name, figures in seen.items():
        emit(f"  {name:18}{min(cpu for cpu, _ in figures):6.2f} s of processors {min(s for _, s in figures):6.2f} s")
    _compare("processor time", min(seen[THEIRS])[0] / min(seen[OURS])[0], TARGET_START)


def bench_rows(paths: Paths, options: argparse.Namespace) -> None:
    """One row a request."""
    seen: dict[tuple[str, int], list[tuple[Loaded, float]]] = {}
    with ExitStack() as running:
        servers = {name: running.enter_context(started(name, paths)) for name in everyone()}
        for _ in range(options.runs):
            for connections in (64, 8, 1):
                for name, server in servers.items():
                    one = load(server, for_server(name, 1), connections, options.seconds, paths.scratch)
                    seen.setdefault((name, connections), []).append(one)
    emit(f"One row of CSV a request, one worker (least of {options.runs}; LitServe: JSON)")
    for (name, connections), runs in seen.items():
        cpu, most = min(cpu for _, cpu in runs), max(one.answers / one.seconds for one, _ in runs)
        quickest = min(one.quickest for one, _ in runs)
        emit(f"  {name:18}{connections:3} connections {1e6 * cpu:7.0f} us {most:8.0f} /s {1000 * quickest:7.2f} ms")
    least = {key: min(cpu for _, cpu in runs) for key, runs in seen.items()}
    for connections in (64, 8):
        ratio = least[THEIRS, connections] / least[OURS, connections]
        _compare(f"{connections} connections", ratio, TARGETS[connections])
    rates = {name: max(one.answers / one.seconds for one, _ in seen[name, 64]) for name in (OURS, THEIRS)}
    ratio = rates[OURS] / rates[THEIRS]
    reached = verdict(reached=ratio >= TARGET_THROUGHPUT)
    emit(f"  64 connections: {ratio:.1f} times as many a second; target {TARGET_THROUGHPUT:g}: {reached}")


def bench_limit(paths: Paths, options: argparse.Namespace) -> None:
    """A request beside the sum of what it cannot do without."""
    steps = _steps(paths.root)
    least: dict[tuple[str, int], float] = {}
    with ExitStack() as running:
        servers = {name: running.enter_context(started(name, paths)) for name in (OURS, ECHO)}
        for _ in range(options.runs):
            for connections in (64, 8):
                for name, server in servers.items():
                    _, cpu = load(server, for_server(name, 1), connections, options.seconds, paths.scratch)
                    least[name, connections] = min(least.get((name, connections), cpu), cpu)
    emit(f"One row of CSV beside the sum of its steps, each by itself ({steps.versions})")
    for connections in (64, 8):
        ours, echo = (1e6 * least[name, connections] for name in (OURS, ECHO))
        logged = steps.log * min(1.0, LOGGED * ours / 1e6)
        total = echo + steps.parse + steps.predict + logged
        parts = f"echo {echo:.0f} + parse {steps.parse:.1f} + predict {steps.predict:.1f} + log {logged:.1f}"
        reached = verdict(reached=ours <= TARGET_LIMIT * total)
        emit(f"  {connections:2} connections: {ours:.0f} us, {parts} = {total:.0f} us: {ours / total:.2f} times;")
        emit(f"    target at most {TARGET_LIMIT:g}: {reached}")


def bench_tables(paths: Paths, options: argparse.Namespace) -> None:
    """Many rows a request."""
    emit(f"Many rows of CSV a request, one connection (least of {options.runs})")
    for count in COUNTS:
        request, before = request_of(csv_of(count)), request_of(csv_of(count // _LESS))
        least: dict[str, float] = {}
        peaks = []
        for _ in range(options.runs):
            for name in (OURS, THEIRS, BY_HAND):
                with started(name, paths) as server:
                    ask(server, before)
                    idle = server.used().worker_rss_mb
                    server.forget_peak()
                    _, cpu = load(server, request, 1, options.seconds, paths.scratch)
                    least[name] = min(least.get(name, cpu), cpu)
                    if name == OURS:
                        peaks.append(server.worker_peak_mb() - idle)
        for name, cpu in least.items():
            emit(f"  {name:18}{count:8,} rows {1000 * cpu:9.2f} ms {len(request) / cpu / 1e6:8.1f} MB/s")
        _compare(f"{count:,} rows", least[THEIRS] / least[OURS], TARGETS[count])
        size = len(request) / 2**20
        times, reached = min(peaks) / size, verdict(reached=min(peaks) < TARGET_BODY_MEMORY * size)
        told = f"a body of {size:.1f} MB takes {min(peaks):.1f} MB at most"
        if count < max(COUNTS):
            emit(f"  {told}")
        else:
            emit(f"  {told}: {times:.1f} times; target less than {TARGET_BODY_MEMORY:g}: {reached}")


def bench_memory(paths: Paths, options: argparse.Namespace) -> None:
    """Of one worker, and of a further one."""
    del options
    emit("Memory (RSS of a worker and of the largest process; Pss that a further worker adds, and of all)")
    seen = {}
    for name in (OURS, THEIRS):
        with started(name, paths) as one:
            ask(one, for_server(name, 1))
            alone = one.used()
        with started(name, paths, workers=2) as two:
            for _ in range(8):
                ask(two, for_server(name, 1))
            both = two.used()
        seen[name] = alone.worker_rss_mb, sum(both.pss_mb) - sum(alone.pss_mb)
        rss = f"{seen[name][0]:7.1f} MB, {alone.rss_mb[0]:.1f} MB;"
        emit(f"  {name:18}{rss} {seen[name][1]:7.1f} MB more; all {sum(alone.pss_mb):.1f} MB")
    _compare("a worker", seen[THEIRS][0] / seen[OURS][0], TARGET_RSS)
    _compare("a further one", seen[THEIRS][1] / seen[OURS][1], TARGET_FURTHER)


def bench_growth(paths: Paths, options: argparse.Namespace) -> None:
    """How a worker grows."""
    with started(OURS, paths) as server:
        answered, at_first = 0, None
        while answered < options.requests or at_first is None:
            loaded, _ = load(server, for_server(OURS, 1), 16, options.seconds, paths.scratch)
            answered += loaded.answers
            if at_first is None and answered >= WARM:
                at_first = server.used().worker_rss_mb
        grown = server.used().worker_rss_mb - at_first
    emit(f"After the first {WARM:,} of {answered:,} requests a worker has grown by {grown:.2f} MB;")
    emit(f"  target: less than {TARGET_GROWTH_MB:g} MB: {verdict(reached=grown < TARGET_GROWTH_MB)}")


def bench_forest(paths: Paths, options: argparse.Namespace) -> None:
    """One row of a forest."""
    del options
    forest = train(paths.scratch / "forest", "random_forest", n_estimators=TREES, max_depth=TREE_DEPTH)
    steps = _steps(forest.root)
    emit(f"One row of a forest of {TREES} trees, processor time of the prediction alone ({steps.versions})")
    emit(f"  trainbox {steps.predict:.0f} us, predict_proba of scikit-learn {steps.library or 0.0:.0f} us")
    _compare("a row", (steps.library or 0.0) / steps.predict, TARGET_FOREST)
    emit(f"  the same bits: {verdict(reached=steps.is_same)}")


def _steps(root: Path) -> Steps:
    """What the steps of one row cost inside a process."""
    row = csv_of(1).decode().strip()
    command = (sys.executable, "-m", "tools.bench_serving.inside", str(root), row)
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BrokenError(f"the steps of a row could not be measured:\n{ended.stderr[-1000:]}")
    return msgspec.json.decode(ended.stdout, type=Steps)


PARTS: Mapping[str, Callable[[Paths, argparse.Namespace], None]] = {
    "start": bench_start,
    "rows": bench_rows,
    "limit": bench_limit,
    "tables": bench_tables,
    "memory": bench_memory,
    "growth": bench_growth,
    "forest": bench_forest,
}
