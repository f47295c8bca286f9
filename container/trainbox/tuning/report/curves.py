"""The curves of all trials, from their `job.json`, thinned to what a figure can show."""

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trainbox.errors import RunError
from trainbox.local.results.record import Curve, JobRecord, read_record
from trainbox.tuning.records import TuningRecord

#: SageMaker takes as many metric definitions.
_MOST_METRICS = 40
#: Of all curves together: ten bytes or so for each in the file.
_MOST_POINTS = 300_000
_FEWEST_POINTS = 20


class TrialCurves(msgspec.Struct, frozen=True):
    """What the trials logged: by metric, the objective first, and within it by the number of the trial."""

    metrics: Mapping[str, Mapping[int, Curve]] = {}
    #: By trial, why its `job.json` cannot be used.
    problems: Mapping[int, str] = {}


def read_curves(directory: Path, record: TuningRecord) -> TrialCurves:
    """Read the curves of all trials; one whose record is missing or damaged has none.

    Args:
        directory: Of the tuning job.
        record: Its record.
    """
    most = max(_FEWEST_POINTS, _MOST_POINTS // max(1, len(record.trials) * _MOST_METRICS))
    metrics: dict[str, dict[int, Curve]] = {record.objective.name: {}}
    problems: dict[int, str] = {}
    for trial in record.trials:
        try:
            job = read_record(directory / trial.out)
        except (RunError, OSError) as error:
            problems[trial.number] = str(error)
            continue
        for name, curve in (job or _NO_JOB).metrics.items():
            if name in metrics or len(metrics) < _MOST_METRICS:
                metrics.setdefault(name, {})[trial.number] = thin(curve, most)
    return TrialCurves({name: found for name, found in metrics.items() if found}, problems)


def thin(curve: Curve, most: int) -> Curve:
    """Pure: keep so many points at most, evenly spaced, with the first and the last; and none that is not finite.

    >>> thin(Curve((1, 2, 3, 4, 5), (0.1, float("nan"), 0.3, 0.4, 0.5)), 3).steps
    (1, 4, 5)
    """
    points = [(step, value) for step, value in zip(curve.steps, curve.values, strict=False) if math.isfinite(value)]
    if len(points) > most:
        last = len(points) - 1
        points = [points[math.ceil(place * last / (most - 1))] for place in range(most)]
    return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))


_NO_JOB = JobRecord(job_name="", attempt=1, started="", script="")
