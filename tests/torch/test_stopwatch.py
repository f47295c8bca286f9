"""How long a rank itself computes in a step."""

import time

import torch

from trainbox.torch.stopwatch import Stopwatch


def _step(watch: Stopwatch, *, computes: float, waits: float) -> list[float]:
    watch.begin()
    time.sleep(computes)
    watch.wait(lambda: time.sleep(waits))
    watch.backward(torch.ones(3, requires_grad=True).sum())
    return watch.end()


def test_one_step_in_four_is_measured_without_its_waits_and_stands_for_the_others() -> None:
    watch = Stopwatch(torch.device("cpu"), runs=True)
    told = [_step(watch, computes=0.05, waits=0.5 if number % 4 == 0 else 0.0) for number in range(8)]
    assert [len(seconds) for seconds in told] == [4, 0, 0, 0, 4, 0, 0, 0]
    assert all(0.05 <= seconds < 0.5 for seconds in [*told[0], *told[4]])


def test_where_nobody_wants_to_know_nothing_is_measured() -> None:
    watch = Stopwatch(torch.device("cpu"), runs=False)
    assert [_step(watch, computes=0.0, waits=0.0) for _ in range(5)] == [[]] * 5
