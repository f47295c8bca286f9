"""Metric lines, as they arrive, become one curve per metric."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping

from trainbox.local.results.record import Curve
from trainbox.metrics import PREFIX, Sample, parse_line

MARK = PREFIX.encode()


class Curves:
    """The values logged so far; 16 bytes for each, however long the job.

    Args:
        begins: By the name of a metric whose lines say no step, at which number its steps begin; 0 by default.
    """

    def __init__(self, begins: Mapping[str, int] | None = None) -> None:
        self._begins = begins or {}
        self.last_step: int | None = None
        self.last: dict[str, float] = {}
        self.final: dict[str, float] = {}
        self._host: dict[str, str] = {}
        self._steps: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}

    def feed(self, host: str, line: bytes) -> bool:
        """Take one line of a host's log; return whether it is a metric line."""
        return self.read(host, line.decode(errors="replace")) is not None

    def read(self, host: str, line: str) -> Sample | None:
        """Take one line of a host's log; return what it says, if it is a metric line."""
        sample = parse_line(line)
        if sample is None:
            return None
        for name, value in sample.values.items():
            if not self._counts(host, name, value):
                continue
            if sample.step is None:
                self.final[name] = value
                continue
            self._append(name, sample.step, value)
            self.last_step = sample.step
        return sample

    def add(self, host: str, name: str, value: float) -> int | None:
        """Take a value whose line says no step; return the step that it gets, or None where it does not count."""
        if not self._counts(host, name, value):
            return None
        steps = self._steps.get(name)
        step = steps[-1] + 1 if steps else self._begins.get(name, 0)
        self._append(name, step, value)
        return step

    def _counts(self, host: str, name: str, value: float) -> bool:
        """A metric is that of the first host to log it: one curve, not several woven into one."""
        return self._host.setdefault(name, host) == host and math.isfinite(value)

    def _append(self, name: str, step: int, value: float) -> None:
        steps, values = self._steps.setdefault(name, array("q")), self._values.setdefault(name, array("d"))
        if steps and step <= steps[-1]:
            # Ranks that were started again repeat the steps since their checkpoint: the last time counts.
            kept = bisect_left(steps, step)
            del steps[kept:], values[kept:]
        steps.append(step)
        values.append(value)
        self.last[name] = value

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
