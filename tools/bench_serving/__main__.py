"""Measure `serve` beside what answers for models elsewhere, all in one run on this machine (`make bench-serving`).

    python -m tools.bench_serving [--only rows,tables] [--runs 3] [--seconds 3] [--requests 200000]

The model is one of XGBoost: binary, 100 trees of depth 6, 28 features. What counts is the processor time of all
processes of a server for each request: it is steady where seconds are not. The servers take turns, of each figure the
least of the runs counts. The exit code says whether all went well with ours, not how fast.

    start    from the start to the first 200 of `/ping`
    rows     one row of CSV a request, over 64, 8 and 1 connections
    tables   1,000 and 100,000 rows of CSV a request
    memory   of a worker, and what a further one adds
    growth   how much a worker grows after its first 20,000 requests
"""

import argparse
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from tests.support.trees import Tree
from tools.bench import REPOSITORY, BrokenError, emit, verdict
from tools.bench_serving.load import Loaded
from tools.bench_serving.servers import INCUMBENT, Paths, Server, started

FEATURES = 28
ROUNDS, DEPTH = 100, 6
#: As ratios of the built-in's processor time to ours.
TARGETS = {64: 25.0, 8: 15.0, 1_000: 5.0, 100_000: 7.0}
TARGET_START = 8.0
TARGET_THROUGHPUT = 15.0
TARGET_RSS, TARGET_FURTHER = 4.0, 20.0
TARGET_GROWTH_MB = 1.0
TARGET_BODY_MEMORY = 3.0
WARM = 20_000
OURS, THEIRS = "trainbox", "built-in XGBoost"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure `serve` beside what answers for models elsewhere.")
    parser.add_argument("--only", default=",".join(PARTS), help="what to measure: " + ",".join(PARTS))
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of requests in each run (3)")
    parser.add_argument("--requests", type=int, default=200_000, help="requests of the part growth (200,000)")
    options = parser.parse_args(argv)
    emit(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
    with tempfile.TemporaryDirectory(prefix="trainbox-bench-") as name:
        try:
            _require_incumbent()
            paths = train(Path(name))
            for part in options.only.split(","):
                PARTS[part](paths, options)
        except BrokenError as fault:
            print(f"bench-serving: {fault}", file=sys.stderr)
            return 1
    emit(f"load average after: {os.getloadavg()[0]:.1f}")
    return 0


def _require_incumbent() -> None:
    if not (INCUMBENT / "gunicorn").exists():
        raise BrokenError(f"{INCUMBENT} is not there: run `make venv-serving`")
    if shutil.which("nginx") is None:
        raise BrokenError("nginx is not there: apt-get install nginx-light")


# -- the model and its requests ---------------------------------------------------------------------------------------


def train(scratch: Path) -> Paths:
    """Train the model as a job of trainbox.

    Raises:
        BrokenError: The job has failed.
    """
    rows = make_rows(5_000)
    labels = (rows[:, 0] + rows[:, 1] * rows[:, 2] + 0.3 * rows[:, 3] > 0).astype(np.float32)
    lines = io.BytesIO()
    np.savetxt(lines, np.column_stack([labels, rows]), delimiter=",", fmt="%.7g")
    tree = Tree(scratch / "ml").hosts("localhost").channel("train", {"rows.csv": lines.getvalue()})
    tree.hyperparameters(trainbox_script="xgboost", objective="binary:logistic", num_round=ROUNDS, max_depth=DEPTH)
    ended = tree.run()
    if ended.code:
        raise BrokenError(f"the model could not be trained:\n{ended.log[-2000:]}")
    return Paths(scratch / "ml", scratch)


def make_rows(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows of random numbers, seven digits each."""
    return np.random.default_rng(7).normal(size=(count, FEATURES)).astype(np.float32)


def request_of(body: bytes, content_type: str = "text/csv", path: str = "/invocations") -> bytes:
    """The bytes of a request."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nAccept: */*\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def csv_of(count: int) -> bytes:
    """So many rows as CSV."""
    lines = (",".join(f"{value:.7g}" for value in row) for row in make_rows(count).tolist())
    return ("\n".join(lines) + "\n").encode()


def for_server(name: str, count: int) -> bytes:
    """The request of so many rows, as this server wants it."""
    if name != "LitServe":
        return request_of(csv_of(count))
    body = json.dumps({"row": make_rows(1)[0].tolist()}).encode()
    return request_of(body, "application/json", "/predict")


def ask(server: Server, request: bytes) -> bytes:
    """The body of one answer."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", lines[0].split()[1], body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise BrokenError(f"{server.name}: {answer.status} {content[:300]!r}")
    return content


def load(server: Server, request: bytes, connections: int, seconds: float, scratch: Path) -> tuple[Loaded, float]:
    """Send a request for some time; what came of it, and the processor seconds of each answer."""
    expected = ask(server, request)
    files = scratch / "request", scratch / "expected"
    files[0].write_bytes(request)
    files[1].write_bytes(expected)
    before = server.used().cpu_seconds
    command = (sys.executable, "-m", "tools.bench_serving.load", str(server.port), *map(str, files))
    ended = subprocess.run(
        (*command, str(connections), str(seconds)), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise BrokenError(f"{server.name}: {ended.stderr[-1000:]}")
    loaded = msgspec.json.decode(ended.stdout, type=Loaded)
    return loaded, (server.used().cpu_seconds - before) / loaded.answers


# -- the parts --------------------------------------------------------------------------------------------------------


def bench_start(paths: Paths, options: argparse.Namespace) -> None:
    """Processor time until the first 200, and seconds."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.runs):
        for name in EVERYONE:
            with started(name, paths) as server:
                seen.setdefault(name, []).append((server.used().cpu_seconds, server.ready_after))
    emit(f"From the start to the first 200 of /ping (least of {options.runs})")
    for name, figures in seen.items():
        emit(f"  {name:18}{min(cpu for cpu, _ in figures):6.2f} s of processors {min(s for _, s in figures):6.2f} s")
    ratio = min(seen[THEIRS])[0] / min(seen[OURS])[0]
    emit(f"  {ratio:.1f} times less; target {TARGET_START:g}: {verdict(reached=ratio >= TARGET_START)}\n")


def bench_rows(paths: Paths, options: argparse.Namespace) -> None:
    """One row a request."""
    seen: dict[tuple[str, int], list[tuple[Loaded, float]]] = {}
    with ExitStack() as running:
        servers = {name: running.enter_context(started(name, paths)) for name in EVERYONE}
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
    for connections in (64, 8):
        ratio = min(cpu for _, cpu in seen[THEIRS, connections]) / min(cpu for _, cpu in seen[OURS, connections])
        reached = verdict(reached=ratio >= TARGETS[connections])
        emit(f"  {connections} connections: {ratio:.1f} times less; target {TARGETS[connections]:g}: {reached}")
    rates = {name: max(one.answers / one.seconds for one, _ in seen[name, 64]) for name in (OURS, THEIRS)}
    ratio = rates[OURS] / rates[THEIRS]
    reached = verdict(reached=ratio >= TARGET_THROUGHPUT)
    emit(f"  {ratio:.1f} times as many a second; target {TARGET_THROUGHPUT:g}: {reached}\n")


def bench_tables(paths: Paths, options: argparse.Namespace) -> None:
    """Many rows a request."""
    emit(f"Many rows of CSV a request, one connection (least of {options.runs})")
    for count in (1_000, 100_000):
        request = request_of(csv_of(count))
        least: dict[str, float] = {}
        for _ in range(options.runs):
            for name in (OURS, THEIRS, "uvicorn by hand"):
                with started(name, paths) as server:
                    ask(server, request)
                    idle = max(server.used().rss_mb)
                    _, cpu = load(server, request, 1, options.seconds, paths.scratch)
                    least[name] = min(least.get(name, cpu), cpu)
                    if name == OURS:
                        memory = max(server.used().rss_mb) - idle
        for name, cpu in least.items():
            emit(f"  {name:18}{count:8,} rows {1000 * cpu:9.2f} ms {len(request) / cpu / 1e6:8.1f} MB/s")
        ratio = least[THEIRS] / least[OURS]
        emit(f"  {ratio:.1f} times less; target {TARGETS[count]:g}: {verdict(reached=ratio >= TARGETS[count])}")
        emit(f"  kept beyond the first answer: {memory:.1f} MB, of a body of {len(request) / 1e6:.1f} MB")
    emit("")


def bench_memory(paths: Paths, options: argparse.Namespace) -> None:
    """Of one worker, and of a further one."""
    del options
    emit("Memory (RSS of the largest process; Pss that a further worker adds)")
    seen = {}
    for name in (OURS, THEIRS):
        with started(name, paths) as one:
            ask(one, for_server(name, 1))
            alone = one.used()
        with started(name, paths, workers=2) as two:
            for _ in range(8):
                ask(two, for_server(name, 1))
            both = two.used()
        seen[name] = alone.rss_mb[0], sum(both.pss_mb) - sum(alone.pss_mb)
        emit(f"  {name:18}{seen[name][0]:7.1f} MB {seen[name][1]:7.1f} MB more; all {sum(alone.pss_mb):.1f} MB")
    rss, further = (seen[THEIRS][place] / seen[OURS][place] for place in (0, 1))
    emit(f"  {rss:.1f} times less; target {TARGET_RSS:g}: {verdict(reached=rss >= TARGET_RSS)}")
    reached = verdict(reached=further >= TARGET_FURTHER)
    emit(f"  a further one {further:.1f} times less; target {TARGET_FURTHER:g}: {reached}\n")


def bench_growth(paths: Paths, options: argparse.Namespace) -> None:
    """How a worker grows."""
    with started(OURS, paths) as server:
        answered, at_first = 0, None
        while answered < options.requests:
            loaded, _ = load(server, for_server(OURS, 1), 16, options.seconds, paths.scratch)
            answered += loaded.answers
            if at_first is None and answered >= WARM:
                at_first = max(server.used().rss_mb)
        grown = max(server.used().rss_mb) - (at_first or 0.0)
    emit(f"After the first {WARM:,} of {answered:,} requests a worker has grown by {grown:.2f} MB;")
    emit(f"  target: less than {TARGET_GROWTH_MB:g} MB: {verdict(reached=grown < TARGET_GROWTH_MB)}\n")


EVERYONE = (OURS, THEIRS, "uvicorn by hand", "LitServe")
PARTS: Mapping[str, Callable[[Paths, argparse.Namespace], None]] = {
    "start": bench_start,
    "rows": bench_rows,
    "tables": bench_tables,
    "memory": bench_memory,
    "growth": bench_growth,
}


if __name__ == "__main__":
    sys.exit(main())
