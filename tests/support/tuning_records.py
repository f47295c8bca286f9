"""A search that was run, by its record and the records of its trials: the same numbers each time."""

import math
import random
from pathlib import Path

from trainbox.local.results.record import Curve, JobRecord, write_record
from trainbox.tuning.records import TrialRecord, TuningRecord, find_best
from trainbox.tuning.search_space import CategoricalRange, ContinuousRange, IntegerRange, Objective

OBJECTIVE = "validation:auc"
#: Ends scripts and attributes, and is markup for HTML, for Plotly and for its templates.
HOSTILE = """ </script><script>document.title="owned"</script><img src=x onerror="document.title='owned'">\
<a href="javascript:document.title='owned'">&lt;b&gt;<b>%{x}\"'"""


def write_search(directory: Path, count: int, *, steps: int = 30, suffix: str = "") -> TuningRecord:
    """Write the records of the trials; return that of the search, whose best trials have an eta of 0.08.

    Args:
        directory: Of the tuning job.
        count: How many trials: every fourth of nine has failed, some were stopped early.
        steps: Of each curve.
        suffix: Ends each name, value and reason.
    """
    chance = random.Random(3)
    trials = tuple(_write_trial(directory, number, steps, suffix, chance) for number in range(1, count + 1))
    return TuningRecord(
        version=1,
        name=f"flights{suffix}",
        program=f"xgboost{suffix}",
        strategy="Bayesian",
        objective=Objective(OBJECTIVE, "Maximize", "x"),
        ranges=(
            ContinuousRange(f"eta{suffix}", 0.01, 0.3, scaling="Logarithmic"),
            IntegerRange("max_depth", 2, 10),
            ContinuousRange("subsample", 0.5, 0.99, scaling="ReverseLogarithmic"),
            CategoricalRange("booster", ("gbtree", f"dart{suffix}")),
        ),
        static={"num_round": "60", f"objective{suffix}": f"binary:logistic{suffix}"},
        channels={},
        max_trials=count,
        max_parallel=2,
        seed=0,
        early_stopping=True,
        trials=trials,
        best=find_best(trials, "Maximize"),
    )


def _write_trial(directory: Path, number: int, steps: int, suffix: str, chance: random.Random) -> TrialRecord:
    eta, depth = 10 ** chance.uniform(-2, math.log10(0.3)), chance.randint(2, 10)
    values = {
        f"eta{suffix}": repr(eta),
        "max_depth": str(depth),
        "subsample": repr(chance.uniform(0.5, 0.99)),
        "booster": chance.choice(["gbtree", f"dart{suffix}"]),
    }
    is_failed, is_early = number % 9 == 4, number % 9 == 6
    objective = 0.9 - 0.1 * abs(math.log10(eta / 0.08)) - 0.004 * (depth - 6) ** 2 - 0.02 * is_early
    logged = range(steps // 3 if is_early else steps)
    curve = Curve(tuple(logged), tuple(objective * (1 - math.exp(-(step + 3) * 5 / steps)) for step in logged))
    loss = Curve(curve.steps, tuple(1 - value for value in curve.values))
    out = f"trial-{number:03d}"
    (directory / out).mkdir(parents=True, exist_ok=True)
    job = JobRecord(
        job_name=f"flights-{number:03d}",
        attempt=1,
        started="",
        script="xgboost",
        metrics={} if is_failed else {OBJECTIVE: curve, f"train:logloss{suffix}": loss},
    )
    write_record(job, directory / out)
    return TrialRecord(
        number=number,
        job_name=job.job_name,
        out=out,
        values=values,
        status="Failed" if is_failed else "Stopped" if is_early else "Completed",
        objective=None if is_failed else objective,
        is_stopped_early=is_early,
        failure_reason=f"AlgorithmError: ValueError: eta is too large{suffix}\nat train.py:12" if is_failed else "",
        started="2026-11-30T05:00:00Z",
        seconds=chance.uniform(3, 9),
    )
