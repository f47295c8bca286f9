"""What a search costs and finds: `make bench-tune`; `python -m tools.bench_tune [overhead] [points] [flights]`.

overhead   wall-clock of `trainbox tune` beyond the time of its scripts, for each trial, one at a time: <= 0.15 s
points     the four-parameter function of the tests, 20 trials, 2 at a time, seeds 0 to 11: median best >= -0.20
flights    20 trials of XGBoost on the flights of `make demo`: a better validation:auc than the demo's own settings
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.searches import four_parameters, settings, simulate

ROOT = Path(__file__).parents[1]
TRAINBOX = (sys.executable, "-m", "trainbox")
#: Says its own time, from the start of the interpreter.
SCRIPT = """
import sys, time
print(f"score={sys.argv[-1]}")
with open("/proc/self/stat") as stat:
    ticks = int(stat.read().rpartition(")")[2].split()[19])
print(f"passed={time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100:.3f}")
print(f"used={time.process_time():.3f}")
"""
_TRIALS = 20
_SEEDS = range(12)
#: What `make demo` has, but for what is tuned.
_FLIGHTS = ("objective=binary:logistic", "num_round=150", "eval_metric=logloss,auc", "early_stopping_rounds=30")
_BY_HAND = ("eta=0.1", "max_depth=8", "min_child_weight=20", "subsample=0.8", "colsample_bytree=0.6")
_RANGES = (
    *("eta=0.03:0.3:log", "max_depth=4:12", "min_child_weight=1.0:100.0:log"),
    *("subsample=0.5:1.0", "colsample_bytree=0.3:1.0"),
)


def main() -> None:
    """Run the parts that are named, or all."""
    parts: Mapping[str, Callable[[Path], bool]] = {"overhead": overhead, "points": points, "flights": flights}
    wanted = sys.argv[1:] or [*parts]
    with tempfile.TemporaryDirectory() as scratch:
        results = [parts[name](Path(scratch)) for name in wanted]
    sys.exit(0 if all(results) else 1)


def overhead(scratch: Path) -> bool:
    """What a search takes beyond its scripts, for each trial: of the processor, and on the clock."""
    (scratch / "src").mkdir()
    (scratch / "src" / "train.py").write_text(SCRIPT)
    used, passed = {}, {}
    for trials in (1, 1 + _TRIALS):
        out = scratch / f"overhead-{trials}"
        began, before = time.monotonic(), processor_seconds()
        tune(scratch, "src/train.py", out, "--range", "depth=1:1000", "--metric", "score=score=(.+)", trials=trials)
        logs = [log.read_text() for log in out.glob("trial-*/logs/algo-1.log")]
        used[trials] = processor_seconds() - before - sum(own_seconds(log, "used") for log in logs)
        passed[trials] = time.monotonic() - began - sum(own_seconds(log, "passed") for log in logs)
    # The start of `trainbox tune` itself, with Optuna, is in both.
    each, clock = ((seconds[1 + _TRIALS] - seconds[1]) / _TRIALS for seconds in (used, passed))
    text = f"{each:.3f} s (clock {clock:.3f} s)"
    return told("overhead of a trial", text, "at most 0.15 s", is_met=each <= 0.15)  # noqa: PLR2004


def processor_seconds() -> float:
    """The processor time of all programs that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def own_seconds(log: str, kind: str) -> float:
    """The time that the script of a trial took, by its own account."""
    return next(float(line.partition("=")[2]) for line in log.splitlines() if line.startswith(f"{kind}="))


def points(_scratch: Path) -> bool:
    """Median of the best of 20 trials in simulated order."""
    best = {
        strategy: statistics.median(
            max(value for _, value in simulate(settings(strategy=strategy, seed=seed), four_parameters, parallel=2))
            for seed in _SEEDS
        )
        for strategy in ("Random", "Bayesian")
    }
    text = f"{best['Bayesian']:.3f} (random {best['Random']:.3f})"
    return told("median best of 20 points", text, "at least -0.20", is_met=best["Bayesian"] >= -0.2)  # noqa: PLR2004


def flights(scratch: Path) -> bool:
    """The best of 20 trials on the flights, against the demo's own settings."""
    data = scratch / "flights"
    subprocess.run([sys.executable, ROOT / "tools" / "flights.py", "--out", data], check=True)
    channels = [f"--channel={name}={data / name}" for name in ("train", "validation")]
    fixed = [f"--hp={each}" for each in _FLIGHTS]
    by_hand = [f"--hp={each}" for each in _BY_HAND]
    job = [*TRAINBOX, "run", "xgboost", *channels, *fixed, *by_hand, "--out", str(scratch / "by-hand")]
    subprocess.run(job, check=True, stdout=subprocess.DEVNULL)
    theirs = json.loads((scratch / "by-hand" / "job.json").read_text())["final"]["validation:auc"]
    ranges = [f"--range={each}" for each in _RANGES]
    out = scratch / "tuned"
    ours = tune(scratch, "xgboost", out, *channels, *fixed, *ranges, "--parallel=2", trials=_TRIALS)
    return told("flights, validation:auc", f"{ours:.4f} (by hand {theirs:.4f})", "more", is_met=ours > theirs)


def tune(cwd: Path, script: str, out: Path, *arguments: str, trials: int) -> float:
    """Run a search; return the objective of its best trial."""
    command = [*TRAINBOX, "tune", script, "--out", str(out), "--trials", str(trials), *arguments]
    subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = json.loads((out / "tuning.json").read_text())
    return float(record["trials"][record["best"] - 1]["objective"])


def told(name: str, value: str, wanted: str, *, is_met: bool) -> bool:
    """Print a figure; return whether it is met."""
    print(f"{name:28} {value:28} {wanted:16} {'met' if is_met else 'NOT MET'}", flush=True)
    return is_met


if __name__ == "__main__":
    main()
