"""Measure the forest beside the seed's own script, whole processes in turns on this machine (`make bench-xgboost`).

    python -m tools.bench_forest [--rows 200000] [--runs 5] [--trees 100]

The seed's script (tests/fixtures/seed_train.py) reads with pandas, grows all trees in one fit and writes a pickle; ours
reads with Arrow, grows in groups with metrics and a checkpoint after each, and writes the model in two formats, its
description, importance and learning curves. Both have the same files and hyperparameters; the trees are others, for the
seed's script reads the files in the order of the file system. Then two hosts, as processes, grow the trees of
one. Rows are synthetic, from a fixed seed. Of each figure the median counts; memory is the most that the kernel has
recorded for the process.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.csv

from tests.support.addresses import addresses
from tools.bench import REPOSITORY, BrokenError, emit, verdict

SCRIPT = REPOSITORY / "train_scripts" / "random_forest_train.py"
SEED_SCRIPT = REPOSITORY / "tests" / "fixtures" / "seed_train.py"
FEATURES = 28
FILES = 4
DEPTH = 10
TARGET_TIME = 1.0
TARGET_SIZE = 0.4
_AUC = re.compile(r"(?:Test AUC: |final .*validation:auc=)([0-9.]+)")
#: What a tree decides by.
_FIELDS = ("children_left", "children_right", "feature", "threshold", "value", "impurity", "n_node_samples")


class Run(NamedTuple):
    """A process that has ended."""

    seconds: float
    peak_mb: float
    auc: float


def write_rows(directory: Path, rows: int, seed: int) -> Path:
    """So many rows of numbers with six decimals, in four files with a header, label first; chance is part of it."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(seed)
    weights = np.random.default_rng(7).normal(size=FEATURES)
    for number in range(FILES):
        features = random.normal(size=(rows // FILES, FEATURES)).round(6)
        margin = 0.3 * features @ weights + np.sin(features[:, 0] * features[:, 1])
        label = pa.array((margin + random.logistic(size=len(margin)) > 0).astype(np.int8))
        columns = {"label": label, **{f"f{i}": pa.array(features[:, i]) for i in range(FEATURES)}}
        pyarrow.csv.write_csv(pa.table(columns), directory / f"part-{number}.csv")
    return directory


def start(
    command: Sequence[str | Path], environment: Mapping[str, str]
) -> tuple["subprocess.Popen[bytes]", Any, float]:
    """Start a process whose output goes to a file."""
    out = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish
    began = time.monotonic()
    words = [os.fspath(word) for word in command]
    return subprocess.Popen(words, env={**os.environ, **environment}, stdout=out, stderr=out), out, began


def finish(started: tuple["subprocess.Popen[bytes]", Any, float]) -> Run:
    """Wait for its end.

    Raises:
        BrokenError: It has failed.
    """
    process, out, began = started
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    with out:
        text = os.pread(out.fileno(), 10**7, 0).decode()
    if process.returncode:
        raise BrokenError(f"{process.args!r} failed: {text[-2000:]}")
    found = _AUC.findall(text)
    return Run(seconds, usage.ru_maxrss / 1024, float(found[-1]) if found else float("nan"))


class Bench:
    """The rows, and where each run leaves what it makes."""

    def __init__(self, directory: Path, rows: int, trees: int) -> None:
        self.directory = directory
        self.train = write_rows(directory / "train", rows, seed=1)
        self.test = write_rows(directory / "test", rows // 5, seed=2)
        self.given = {"n-estimators": str(trees), "max-depth": str(DEPTH), "n-jobs": "-1"}
        self.count = 0

    def seeds(self) -> tuple[Run, Path]:
        """The seed's script."""
        model = self._new("seed")
        environment = {
            "SM_MODEL_DIR": str(model),
            "SM_CHANNEL_TRAIN": str(self.train),
            "SM_CHANNEL_TEST": str(self.test),
        }
        given = [f"--{name}={value}" for name, value in self.given.items() if name != "n-jobs"]
        return finish(start([sys.executable, SEED_SCRIPT, *given], environment)), model / "model.joblib"

    def ours(self) -> tuple[Run, Path]:
        """Our script, on one host."""
        root = self._root(["algo-1"], "algo-1")
        return finish(self._start(root)), root / "model" / "model.joblib"

    def two_hosts(self) -> tuple[Run, Path]:
        """Our script, on two hosts that share this machine's processors; the first one's figures."""
        names = addresses(2)
        roots = [self._root(names, name) for name in names]
        first, second = [self._start(root) for root in roots]
        ended = finish(first)
        finish(second)
        return ended, roots[0] / "model" / "model.joblib"

    def _start(self, root: Path) -> tuple["subprocess.Popen[bytes]", Any, float]:
        channels = [f"--channel=train={self.train}", f"--channel=test={self.test}"]
        return start([sys.executable, SCRIPT, *channels], {"TRAINBOX_ROOT": str(root)})

    def _new(self, name: str) -> Path:
        self.count += 1
        path = self.directory / f"{name}-{self.count}"
        path.mkdir()
        return path

    def _root(self, names: Sequence[str], name: str) -> Path:
        root = self._new("job")
        config = root / "input" / "config"
        config.mkdir(parents=True)
        (config / "hyperparameters.json").write_text(json.dumps(self.given))
        (config / "resourceconfig.json").write_text(json.dumps({"current_host": name, "hosts": names}))
        (config / "checkpointconfig.json").write_text(json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
        return root


def trees_of(path: Path) -> list[tuple[bytes, ...]]:
    """All that the trees of a model decide by."""
    return [tuple(getattr(tree.tree_, field).tobytes() for field in _FIELDS) for tree in joblib.load(path).estimators_]


def measure(bench: Bench, runs: int) -> None:
    """Both sides in turns, then two hosts.

    Raises:
        BrokenError: The trees differ.
    """
    sides: dict[str, list[tuple[Run, Path]]] = {"the seed's script": [], "trainbox": [], "trainbox, two hosts": []}
    for _ in range(runs):
        sides["the seed's script"].append(bench.seeds())
        sides["trainbox"].append(bench.ours())
    sides["trainbox, two hosts"].append(bench.two_hosts())
    emit(f"\n{bench.given['n-estimators']} trees of depth {DEPTH} (medians of {runs}; two hosts share the processors)")
    seconds = {name: median(run.seconds for run, _ in done) for name, done in sides.items()}
    sizes = {name: done[0][1].stat().st_size for name, done in sides.items()}
    for name, done in sides.items():
        spread = f"{min(run.seconds for run, _ in done):.1f} to {max(run.seconds for run, _ in done):.1f}"
        peak, auc = median(run.peak_mb for run, _ in done), done[0][0].auc
        about = f"{peak:4.0f} MB, model {sizes[name] / 1e6:5.2f} MB, test AUC {auc:.4f}"
        emit(f"  {name:20} {seconds[name]:6.1f} s ({spread}), {about}")
    one, two = sides["trainbox"][0][1], sides["trainbox, two hosts"][0][1]
    held("time", seconds["trainbox"] / seconds["the seed's script"], TARGET_TIME)
    held("size of model.joblib", sizes["trainbox"] / sizes["the seed's script"], TARGET_SIZE)
    held("size of model.skops", one.with_name("model.skops").stat().st_size / sizes["the seed's script"], TARGET_SIZE)
    if trees_of(one) != trees_of(two):
        raise BrokenError("two hosts have grown other trees than one")
    emit("  the trees of two hosts are those of one, bit by bit")


def held(name: str, value: float, target: float) -> None:
    """A ratio beside what was asked for."""
    emit(f"  {name:28} {value:6.3f}  (asked: at most {target:g}): {verdict(reached=value <= target)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the forest beside the seed's own script.")
    parser.add_argument("--rows", type=int, default=200_000, help="rows to train on (200000)")
    parser.add_argument("--trees", type=int, default=100, help="trees (100)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (5)")
    options = parser.parse_args(argv)
    cache = REPOSITORY / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache) as name:
        try:
            measure(Bench(Path(name), options.rows, options.trees), options.runs)
        except BrokenError as fault:
            print(f"bench-forest: {fault}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
