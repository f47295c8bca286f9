"""Pure: whether a trial falls so far behind that it is stopped, as SageMaker describes it for `Auto`.

https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-early-stopping.html: "Compute the running average
of the objective metric for all previous training jobs up to the same epoch, and then compute the median of all of the
running averages. If the value of the objective metric for the current training job is worse …, stop the current
training job."
"""

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from trainbox.local.results.record import Curve
from trainbox.tuning.search_space import Goal, is_better


def running_averages(curve: Curve) -> Curve:
    """Return, for each step, the average of all values up to it."""
    sums = accumulate(curve.values)
    return Curve(curve.steps, tuple(total / count for count, total in enumerate(sums, start=1)))


def is_behind(step: int, value: float, earlier: Sequence[Curve], goal: Goal) -> bool:
    """Return whether a value is worse than the median of the running averages of earlier trials at the same step.

    Args:
        step: The epoch or round.
        value: The objective of the trial there.
        earlier: The running averages of trials that have ended; those that did not come so far do not count.
        goal: Of the objective.
    """
    averages = [
        curve.values[bisect_right(curve.steps, step) - 1]
        for curve in earlier
        if curve.steps and curve.steps[0] <= step <= curve.steps[-1]
    ]
    return bool(averages) and is_better(statistics.median(averages), value, goal)
