"""Measure the XGBoost job beside the built-in's method, whole processes in turns (`make bench-xgboost`).

    python -m tools.bench_xgboost [--rows 1000000] [--large 3000000] [--runs 5] [--only import,job,…]

The incumbent is what SageMaker's built-in does with CSV (aws/sagemaker-xgboost-container, `data_utils.py` and
`train.py`): XGBoost's own text loader, and both sets scored in every round. Both sides have the same files and the same
hyperparameters, and their scores of the first, tenth and last round are held against each other. Rows are synthetic,
from a fixed seed. Of each figure the median counts; time is that of all processors together, which other work on the
machine changes least; memory is the most that the kernel has recorded for the process,
less what a process has that has only imported XGBoost.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tools.bench import REPOSITORY, BrokenError, emit, verdict

SCRIPT = REPOSITORY / "train_scripts" / "xgboost_train.py"
FEATURES = 28
FILES = 8
ROUNDS = 100
#: Those of the documents this project was asked from.
HYPERPARAMETERS = {
    "objective": "binary:logistic",
    "max_depth": 5,
    "eta": 0.2,
    "gamma": 4,
    "min_child_weight": 6,
    "subsample": 0.8,
    "eval_metric": "auc",
}
#: CPU time, of ours with XGBoost's own bins and with exact quantiles.
TARGET_JOB = 0.68
#: CPU time of the import of a room with its library in part, of that with all of the library.
TARGET_IMPORT = {"xgboost": 0.4, "sklearn": 0.85, "xgboost.tracker": 0.4}
TARGET_QUANTILES = 0.57
TARGET_LIKE_FOR_LIKE = 0.95
TARGET_SEGMENTS = 0.03
TARGET_MEMORY = 0.6
TOLERANCE = 0.003

INCUMBENT = """\
import json, sys
import xgboost as xgb

train, validation, rounds, params = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
rows = xgb.DMatrix(f"{train}?format=csv&label_column=0&delimiter=,")
held_out = xgb.DMatrix(f"{validation}?format=csv&label_column=0&delimiter=,")
booster = xgb.train(params, rows, rounds, evals=[(rows, "train"), (held_out, "validation")], verbose_eval=True)
booster.save_model(sys.argv[5])
"""
MEASURE = """\
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
print(os.wait4(process.pid, 0)[2].ru_maxrss)
"""
NOTHING = "import xgboost, numpy, scipy.sparse"
#: The import of a library in part, as a job does it, and all of it.
IMPORTS = {
    "xgboost": ("from trainbox.xgboost.entry import load; load(); ", "import trainbox.xgboost.boosting"),
    "sklearn": ("from trainbox.sklearn.entry import load; load(); ", "import trainbox.sklearn.training"),
    "xgboost.tracker": ("import sys; sys.modules.update(sklearn=None, pandas=None); ", "import xgboost.tracker"),
}
_LINE = re.compile(r"^\[(\d+)\]((?:\t\S+)+)$", re.MULTILINE)


class Run(NamedTuple):
    """A process that has ended."""

    seconds: float
    #: Of all processors, with the processes that it has started.
    cpu: float
    peak_mb: float
    #: By round: `{"train-auc": 0.8}`.
    scores: dict[int, dict[str, float]]


def write_rows(directory: Path, rows: int, seed: int) -> Path:
    """So many rows of numbers with six decimals, in eight files, label first; chance is part of the label."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(seed)
    weights = np.random.default_rng(7).normal(size=FEATURES)
    for number in range(FILES):
        count = rows // FILES
        features = random.normal(size=(count, FEATURES)).round(6)
        margin = 0.3 * features @ weights + np.sin(features[:, 0] * features[:, 1]) + random.logistic(size=count)
        columns = [pa.array((margin > 0).astype(np.int8)), *(pa.array(features[:, i]) for i in range(FEATURES))]
        table = pa.table(columns, names=[str(i) for i in range(len(columns))])
        pyarrow.csv.write_csv(table, directory / f"part-{number}.csv", pyarrow.csv.WriteOptions(include_header=False))
    return directory


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None, *, kill_at: str = "") -> Run:
    """Run a process to its end, or kill it when it has printed `kill_at`.

    Raises:
        BrokenError: It has failed.
    """
    with tempfile.TemporaryFile("w+") as out:
        began = time.monotonic()
        process = subprocess.Popen(
            [os.fspath(word) for word in command],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        while kill_at and kill_at not in _text(out):
            if process.poll() is not None:
                raise BrokenError(f"{command} ended before it said {kill_at!r}: {_text(out)[-2000:]}")
            time.sleep(0.01)
        if kill_at:
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        text = _text(out)
    if process.returncode and not kill_at:
        raise BrokenError(f"{command} failed: {text[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, _scores(text))


def _text(file: object) -> str:
    return Path(f"/proc/self/fd/{file.fileno()}").read_text()  # type: ignore[attr-defined]


def _scores(text: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for step, fields in _LINE.findall(text):
        pairs = (field.rpartition(":") for field in fields.strip().split("\t"))
        found.setdefault(int(step), {}).update({name: float(value) for name, _, value in pairs})
    return found


class Bench:
    """The rows, and where each run leaves what it makes."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.directory = directory
        self.train = write_rows(directory / "train", rows, seed=1)
        self.validation = write_rows(directory / "validation", rows // 5, seed=2)
        self.count = 0

    def incumbent(self) -> Run:
        """The built-in's method."""
        model = self.directory / "incumbent-model"
        words: list[str | Path] = [self.train, self.validation, str(ROUNDS), json.dumps(HYPERPARAMETERS), model]
        return run([sys.executable, "-c", INCUMBENT, *words])

    def root(self, **more: object) -> Path:
        """A tree for a job of ours."""
        self.count += 1
        root = self.directory / f"job-{self.count}"
        config = root / "input" / "config"
        config.mkdir(parents=True)
        given = {**HYPERPARAMETERS, "num_round": ROUNDS, **more}
        (config / "hyperparameters.json").write_text(json.dumps({name: str(value) for name, value in given.items()}))
        (config / "checkpointconfig.json").write_text(json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
        return root

    def ours(self, root: Path, *, kill_at: str = "") -> Run:
        """Our script in a tree."""
        channels = [f"--channel=train={self.train}", f"--channel=validation={self.validation}"]
        return run([sys.executable, SCRIPT, *channels], {"TRAINBOX_ROOT": os.fspath(root)}, kill_at=kill_at)


def base_mb() -> float:
    """What a process takes that has only imported XGBoost.

    A small process starts it: Linux counts what its parent has had as its own.
    """
    command = [sys.executable, "-c", MEASURE, sys.executable, "-c", NOTHING]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def compare_scores(theirs: Run, ours: Run) -> None:
    """Say the scores of the first, tenth and last round side by side.

    Raises:
        BrokenError: They are not those of equally good models.
    """
    for step in (0, 9, ROUNDS - 1):
        for name in ("train-auc", "validation-auc"):
            one, other = theirs.scores[step][name], ours.scores[step][name]
            emit(f"  round {step + 1:3} {name:16} {one:.5f} | {other:.5f}")
            if abs(one - other) > TOLERANCE:
                raise BrokenError(f"round {step} {name}: {one} and {other} are not the same")


def held(name: str, value: float, target: float) -> None:
    """A ratio beside what was asked for."""
    emit(f"  {name:28} {value:6.3f}  (asked: at most {target:g}): {verdict(reached=value <= target)}")


def bench_import(runs: int) -> None:
    """What it saves a job that it imports its library in part: see `trainbox.tabular.script.without`."""
    for room, (in_part, code) in IMPORTS.items():
        part_of_it: list[Run] = []
        whole: list[Run] = []
        for _ in range(runs):
            part_of_it.append(run([sys.executable, "-c", in_part + code]))
            whole.append(run([sys.executable, "-c", code]))
        emit(f"\nThe import of {room} (medians of {runs}), in part | all of it")
        cpu = [median(one.cpu for one in side) for side in (part_of_it, whole)]
        peak = [median(one.peak_mb for one in side) for side in (part_of_it, whole)]
        emit(f"  {cpu[0]:.2f} | {cpu[1]:.2f} s of CPU, {peak[0]:.0f} | {peak[1]:.0f} MB")
        held("CPU time", cpu[0] / cpu[1], TARGET_IMPORT[room])


def bench_job(bench: Bench, runs: int) -> None:
    """The whole job: with XGBoost's bins and exact ones, and with the training rows scored in every round."""
    base = base_mb()
    jobs: dict[str, dict[str, object]] = {
        "trainbox": {},
        "trainbox, bins=quantiles": {"bins": "quantiles"},
        "trainbox, every round": {"eval_train_every": 1},
    }
    sides: dict[str, list[Run]] = {name: [] for name in ("incumbent", *jobs)}
    for _ in range(runs):
        sides["incumbent"].append(bench.incumbent())
        for name, more in jobs.items():
            sides[name].append(bench.ours(bench.root(**more)))
    emit(f"\nA whole job, {ROUNDS} rounds (medians of {runs}); scores: incumbent | trainbox")
    compare_scores(sides["incumbent"][0], sides["trainbox"][0])
    compare_scores(sides["incumbent"][0], sides["trainbox, bins=quantiles"][0])
    cpu = {name: median(one.cpu for one in done) for name, done in sides.items()}
    peaks = {name: median(one.peak_mb for one in done) - base for name, done in sides.items()}
    for name, done in sides.items():
        spread = f"{min(one.cpu for one in done):.1f} to {max(one.cpu for one in done):.1f}"
        seconds = median(one.seconds for one in done)
        emit(
            f"  {name:28} {cpu[name]:6.1f} s of CPU ({spread}), {seconds:5.1f} s, {peaks[name]:5.0f} MB over {base:.0f}"
        )
    held("CPU time", cpu["trainbox"] / cpu["incumbent"], TARGET_JOB)
    held("CPU time, bins=quantiles", cpu["trainbox, bins=quantiles"] / cpu["incumbent"], TARGET_QUANTILES)
    held("CPU time, like for like", cpu["trainbox, every round"] / cpu["incumbent"], TARGET_LIKE_FOR_LIKE)
    held("peak memory", peaks["trainbox"] / peaks["incumbent"], 1.0)


def bench_segments(bench: Bench, runs: int) -> None:
    """What it costs that training can be resumed exactly: the job with its segments, and in one."""
    whole: list[float] = []
    cut: list[float] = []
    for _ in range(runs):
        cut.append(bench.ours(bench.root()).seconds)
        whole.append(bench.ours(bench.root(checkpoint_every=ROUNDS)).seconds)
    emit(f"\nSegments of the default length (medians of {runs}): {median(cut):.1f} s, in one {median(whole):.1f} s")
    held("what they add", median(cut) / median(whole) - 1, TARGET_SEGMENTS)


def bench_memory(directory: Path, rows: int, runs: int) -> None:
    """The most memory over that of a process that has only imported XGBoost."""
    bench, base = Bench(directory, rows), base_mb()
    theirs: list[float] = []
    ours: list[float] = []
    for _ in range(runs):
        theirs.append(bench.incumbent().peak_mb - base)
        ours.append(bench.ours(bench.root()).peak_mb - base)
    emit(f"\nPeak memory with {rows:,} rows (medians of {runs}): {median(theirs):.0f} MB, ours {median(ours):.0f} MB")
    held("peak memory", median(ours) / median(theirs), TARGET_MEMORY)


def bench_resume(bench: Bench) -> None:
    """Killed in the 71st round, a job goes on from its newest checkpoint and ends with the same model."""
    whole = bench.root()
    bench.ours(whole)
    root = bench.root()
    bench.ours(root, kill_at="\n[70]\t")
    again = bench.ours(root)
    same = (whole / "model" / "xgboost-model").read_bytes() == (root / "model" / "xgboost-model").read_bytes()
    emit(f"\nKilled after round 71: goes on with round {min(again.scores) + 1}, the model is the same: {same}")
    if not same:
        raise BrokenError("the resumed model is another one")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the XGBoost job beside the built-in's method.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the job (1000000)")
    parser.add_argument("--large", type=int, default=3_000_000, help="rows for the memory (3000000)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (5)")
    parser.add_argument(
        "--only", default="import,job,segments,memory,resume", help="which of them, separated by commas"
    )
    options = parser.parse_args(argv)
    wanted = options.only.split(",")
    cache = REPOSITORY / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache) as name:
        try:
            if "import" in wanted:
                bench_import(options.runs)
            if {"job", "segments", "resume"} & {*wanted}:
                bench = Bench(Path(name) / "job", options.rows)
                if "job" in wanted:
                    bench_job(bench, options.runs)
                if "segments" in wanted:
                    bench_segments(bench, options.runs)
                if "resume" in wanted:
                    bench_resume(bench)
            if "memory" in wanted:
                bench_memory(Path(name) / "large", options.large, options.runs)
        except BrokenError as fault:
            print(f"bench-xgboost: {fault}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
