"""Metric lines, as they arrive, become one curve per metric."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping

from trainbox.metrics import PREFIX, parse_line
from trainbox.workbench.record import Curve

MARK = PREFIX.encode()


class Curves:
    """The values logged so far; 16 bytes for each, however long the job."""

    def __init__(self) -> None:
        self.last_step: int | None = None
        self.last: dict[str, float] = {}
        self.final: dict[str, float] = {}
        self._host: dict[str, str] = {}
        self._steps: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}

    def feed(self, host: str, line: bytes) -> bool:
        """Take one line of a host's log; return whether it is a metric line."""
        sample = parse_line(line.decode(errors="replace"))
        if sample is None:
            return False
        for name, value in sample.values.items():
            # A metric is that of the first host to log it: one curve, not several woven into one.
            if self._host.setdefault(name, host) != host or not math.isfinite(value):
                continue
            if sample.step is None:
                self.final[name] = value
                continue
            steps, values = self._steps.setdefault(name, array("q")), self._values.setdefault(name, array("d"))
            if steps and sample.step <= steps[-1]:
                # Ranks that were started again repeat the steps since their checkpoint: the last time counts.
                kept = bisect_left(steps, sample.step)
                del steps[kept:], values[kept:]
            steps.append(sample.step)
            values.append(value)
            self.last[name] = value
            self.last_step = sample.step
        return True

    def all(self) -> dict[str, Curve]:
        """Every curve, in the order in which the metrics were first logged."""
        return {name: Curve(tuple(steps), tuple(self._values[name])) for name, steps in self._steps.items()}


def joined(earlier: Mapping[str, Curve], later: Mapping[str, Curve]) -> dict[str, Curve]:
    """The curves over two attempts: the later one counts from its first step on."""
    curves = dict(earlier)
    for name, curve in later.items():
        before = earlier.get(name)
        if before is not None and curve.steps:
            kept = [pair for pair in zip(before.steps, before.values, strict=True) if pair[0] < curve.steps[0]]
            steps, values = (tuple(step for step, _ in kept), tuple(value for _, value in kept))
            curves[name] = Curve((*steps, *curve.steps), (*values, *curve.values))
        else:
            curves[name] = curve
    return curves
