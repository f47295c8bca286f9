"""How long a rank itself computes in a step."""

from typing import Any

import pytest
import torch

from trainbox.torch.parallel.stopwatch import Stopwatch, _Processor


class Clock(_Processor):
    """Stands still unless a test has it go on."""

    def __init__(self) -> None:
        self.moment = 0.0

    def now(self) -> float:
        return self.moment

    def go_on(self, seconds: float) -> None:
        self.moment += seconds


def _watch(clock: Clock, *, runs: bool) -> Stopwatch:
    watch = Stopwatch(torch.device("cpu"), runs=runs)
    its: Any = watch
    its._clock = clock
    return watch


def _step(watch: Stopwatch, clock: Clock, *, computes: float, waits: float) -> list[float]:
    watch.begin()
    clock.go_on(computes)
    watch.wait(lambda: clock.go_on(waits))
    watch.backward(torch.ones(3, requires_grad=True).sum())
    return watch.end()


def test_one_step_in_four_is_measured_without_its_waits_and_stands_for_the_others() -> None:
    watch = _watch(clock := Clock(), runs=True)
    told = [_step(watch, clock, computes=0.05 + number, waits=0.5) for number in range(8)]
    assert told == [pytest.approx([0.05] * 4), [], [], [], pytest.approx([4.05] * 4), [], [], []]


def test_where_nobody_wants_to_know_nothing_is_measured() -> None:
    watch = _watch(clock := Clock(), runs=False)
    assert [_step(watch, clock, computes=1.0, waits=1.0) for _ in range(5)] == [[]] * 5
