"""The time that a rank itself computes in a step, without waits for others: it identifies a slow rank.

All ranks take the same time for a step: DDP lets the fast ones wait for the slow, before the forward pass for the
buffers of rank 0, and at the end of the backward pass for the gradients of all.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import torch
from torch.autograd import Variable

T = TypeVar("T")
#: One step in so many is measured: a hook into autograd takes some 50 microseconds, and a mean needs no more.
_EVERY = 4
#: A moment: seconds on the processor, an event in the stream on a GPU.
Moment = Any


class _Step(msgspec.Struct, frozen=True):
    """The moments of one step, the waits within it in pairs."""

    began: Moment
    ended: Moment
    waits: list[tuple[Moment, Moment]]


class Stopwatch:
    """The stopwatch of one rank, on the device where it computes.

    Args:
        device: Where it computes.
        runs: Whether steps are measured. Cleared where waits cannot be separated from work.
    """

    def __init__(self, device: torch.device, *, runs: bool) -> None:
        self.runs = runs
        self._begun = 0
        self._measures = False  # this step
        self._clock = _Gpu() if device.type == "cuda" else _Processor()
        self._began: Moment = self._clock.now()
        self._ready: Moment = None
        self._waits: list[tuple[Moment, Moment]] = []
        self._steps: deque[_Step] = deque()

    def begin(self) -> None:
        """Begin a step: the rank has its batch."""
        self._measures = self.runs and self._begun % _EVERY == 0
        self._begun += 1
        if self._measures:
            self._waits = []
            self._began = self._clock.now()

    def wait(self, act: Callable[[], T]) -> T:
        """Call a function that waits for others."""
        if not self._measures:
            return act()
        before = self._clock.now()
        done = act()
        self._waits.append((before, self._clock.now()))
        return done

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass, in which DDP waits once this rank has all its gradients."""
        if self._measures and loss.requires_grad:
            loss.register_hook(self._begin_backward)  # type: ignore[no-untyped-call]
        loss.backward()  # type: ignore[no-untyped-call]
        if self._ready is not None:
            self._waits.append((self._ready, self._clock.now()))
            self._ready = None

    def _begin_backward(self, _gradient: torch.Tensor) -> None:
        # What is queued now runs when the last gradient is there. DDP queues its wait when its last bucket is full,
        # which is later: it comes behind. FSDP2 uses the same queue; there is no public name for it as of torch 2.13.
        Variable._execution_engine.queue_callback(self._have_gradients)  # noqa: SLF001

    def _have_gradients(self) -> None:
        self._ready = self._clock.now()

    def end(self) -> list[float]:
        """End a step; return the seconds that this rank computed in it and in earlier ones not returned yet.

        One that was measured stands for the others as well. A GPU is some steps behind: what it has not finished is
        returned later.
        """
        if self._measures:
            self._steps.append(_Step(self._began, self._clock.now(), self._waits))
            self._measures = False  # what the script does between two steps is none of it
        finished: list[float] = []
        while self._steps and self._clock.is_past(self._steps[0].ended):
            step = self._steps.popleft()
            waited = sum(self._clock.seconds(before, after) for before, after in step.waits)
            finished += [self._clock.seconds(step.began, step.ended) - waited] * _EVERY
        return finished


class _Processor:
    """What is done is done when the call returns."""

    now = staticmethod(time.monotonic)

    def is_past(self, _moment: Moment) -> bool:
        return True

    def seconds(self, before: Moment, after: Moment) -> float:
        return float(after - before)


class _Gpu:
    """Kernels run long after the call that sends them off; events stand in line with them."""

    def now(self) -> Moment:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def is_past(self, moment: Moment) -> bool:
        return bool(moment.query())

    def seconds(self, before: Moment, after: Moment) -> float:
        return float(before.elapsed_time(after)) / 1000
