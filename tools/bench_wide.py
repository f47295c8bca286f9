"""Measure a wide and sparse XGBoost job beside XGBoost alone, whole processes in turns (`make bench-wide`).

    python -m tools.bench_wide [--rows 1500] [--columns 1000000] [--runs 5]

A few rows of libsvm in a million columns, as text becomes, and three rounds: what is done for every column shows, what
is done for the rows does not. From the CPU time of either side that of the same job with the first ten columns is
taken, so that neither the start of Python nor our pictures are part of it. Of each figure the median counts.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from tools.bench import REPOSITORY, BrokenError, emit, verdict
from tools.bench_xgboost import SCRIPT, Run, run

ROUNDS = 3
#: In every row; the others are drawn.
COMMON = 10
DRAWN = 200
HYPERPARAMETERS = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.3, "eval_metric": "logloss"}
TARGET = 1.5
#: What is written may grow with the model, and with the job's own settings.
MOST_WRITTEN = 200_000

PLAIN = """\
import json, sys
import xgboost as xgb

train, rounds, params, model = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
rows = xgb.DMatrix(f"{train}?format=libsvm")
booster = xgb.train(params, rows, rounds, evals=[(rows, "train")])
booster.save_model(model)
"""


def write_rows(directory: Path, rows: int, columns: int) -> Path:
    """So many rows in so many columns, the last of which the first row has; the label depends on the common ones."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(3)
    lines = []
    for row in range(rows):
        common = random.normal(size=COMMON).round(4)
        label = int(common[0] + common[1] * common[2] + random.logistic() / 2 > 0)
        pairs = [f"{place}:{value}" for place, value in enumerate(common.tolist())]
        if columns > COMMON:
            drawn = {*random.integers(COMMON, columns, DRAWN).tolist()} | ({columns - 1} if row == 0 else set())
            pairs += [f"{place}:{random.integers(1, 5)}" for place in sorted(drawn)]
        lines.append(f"{label} {' '.join(pairs)}\n")
    (directory / "part.libsvm").write_text("".join(lines))
    return directory


def plain(directory: Path, train: Path) -> Run:
    """XGBoost alone."""
    words: list[str | Path] = [train, str(ROUNDS), json.dumps(HYPERPARAMETERS), directory / "plain-model"]
    return run([sys.executable, "-c", PLAIN, *words])


def ours(root: Path, train: Path) -> Run:
    """Our script in a tree of its own."""
    config = root / "input" / "config"
    config.mkdir(parents=True)
    given = {name: str(value) for name, value in {**HYPERPARAMETERS, "num_round": ROUNDS}.items()}
    (config / "hyperparameters.json").write_text(json.dumps(given))
    return run([sys.executable, SCRIPT, f"--channel=train={train}"], {"TRAINBOX_ROOT": os.fspath(root)})


def written(root: Path) -> int:
    """The bytes of all files that a job has left in a tree, but for the pictures."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix not in {".png", ".svg"})
    return sum(path.stat().st_size for path in files)


def measure(directory: Path, rows: int, columns: int, runs: int) -> None:
    """Both sides in turns, with all columns and with ten.

    Raises:
        BrokenError: A job has failed, or writes what grows with the table.
    """
    tables = {"wide": write_rows(directory / "wide", rows, columns), "ten": write_rows(directory / "ten", rows, COMMON)}
    cpu: dict[tuple[str, str], list[float]] = {}
    for number in range(runs):
        for name, train in tables.items():
            root = directory / f"job-{name}-{number}"
            cpu.setdefault(("plain", name), []).append(plain(directory, train).cpu)
            cpu.setdefault(("ours", name), []).append(ours(root, train).cpu)
    found = {key: median(seconds) for key, seconds in cpu.items()}
    emit(f"\n{rows:,} rows in {columns:,} columns, {ROUNDS} rounds (medians of {runs}): CPU time, and with ten columns")
    for side in ("plain", "ours"):
        emit(f"  {side:28} {found[side, 'wide']:6.2f} s, {found[side, 'ten']:6.2f} s")
    ratio = (found["ours", "wide"] - found["ours", "ten"]) / (found["plain", "wide"] - found["plain", "ten"])
    emit(f"  {'beyond ten columns':28} {ratio:6.3f}  (asked: at most {TARGET:g}): {verdict(reached=ratio <= TARGET)}")
    sizes = {name: written(directory / f"job-{name}-0") for name in tables}
    emit(f"  written: {sizes['wide']:,} bytes, and with ten columns {sizes['ten']:,}")
    if sizes["wide"] > MOST_WRITTEN:
        raise BrokenError(f"a job of {ROUNDS} rounds has written {sizes['wide']:,} bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure a wide and sparse job beside XGBoost alone.")
    parser.add_argument("--rows", type=int, default=1500, help="rows (1500)")
    parser.add_argument("--columns", type=int, default=1_000_000, help="columns (1000000)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (5)")
    options = parser.parse_args(argv)
    cache = REPOSITORY / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache) as name:
        try:
            measure(Path(name), options.rows, options.columns, options.runs)
        except BrokenError as fault:
            print(f"bench-wide: {fault}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
