"""Measure `serve` beside what answers for models elsewhere, all in one run on this machine (`make bench-serving`).

    python -m tools.bench_serving [--only rows,tables] [--runs 3] [--seconds 3] [--requests 200000]

The model is one of XGBoost: binary, 100 trees of depth 6, 28 features. What counts is the processor time of all
processes of a server for each request: it is steady where seconds are not. The servers take turns, of each figure the
least of the runs counts. The exit code says whether all went well with ours, not how fast.

    start    from the start to the first 200 of `/ping`
    rows     one row of CSV a request, over 64, 8 and 1 connections
    limit    the same beside the sum of its steps: HTTP alone, parse, predict, log
    tables   1,000 and 100,000 rows of CSV a request, and the most memory that these take
    memory   of a worker, and what a further one adds
    growth   how much a worker grows after its first 20,000 requests
    forest   one row of a random forest: as `serve` predicts it, and as scikit-learn does

`sagemaker-inference` on Multi Model Server (MMS) takes part in `rows` and `start` where there is a Java.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tools.bench import BrokenError, emit
from tools.bench_serving.parts import PARTS
from tools.bench_serving.requests import train
from tools.bench_serving.servers import INCUMBENT


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure `serve` beside what answers for models elsewhere.")
    parser.add_argument("--only", default=",".join(PARTS), help="what to measure: " + ",".join(PARTS))
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of requests in each run (3)")
    parser.add_argument("--requests", type=int, default=200_000, help="requests of the part growth (200,000)")
    options = parser.parse_args(argv)
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}")
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    emit(f"load average before: {load}; Python {platform.python_version()}, XGBoost {version('xgboost-cpu')}")
    with tempfile.TemporaryDirectory(prefix="trainbox-bench-") as name:
        try:
            _require_incumbent()
            paths = train(Path(name))
            for part in chosen:
                emit("")
                PARTS[part](paths, options)
        except BrokenError as fault:
            print(f"bench-serving: {fault}", file=sys.stderr)
            return 1
    emit(f"\nload average after: {os.getloadavg()[0]:.1f}")
    return 0


def _require_incumbent() -> None:
    if not (INCUMBENT / "gunicorn").exists():
        raise BrokenError(f"{INCUMBENT} is not there: run `make .venv-serving/.ready`")
    if shutil.which("nginx") is None:
        raise BrokenError("nginx is not there: apt-get install nginx-light")
    if shutil.which("java") is None:
        emit("sagemaker-inference on MMS is left out: there is no java (apt-get install default-jre-headless)")


if __name__ == "__main__":
    sys.exit(main())
