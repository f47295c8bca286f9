"""The gradients of a step: computed by `backward`, exchanged with the last micro-batch, used by `update`."""

from collections.abc import Iterator
from operator import itemgetter
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from trainbox.torch.batches import list_tensors, map_tensors
from trainbox.torch.parallel.stopwatch import Stopwatch
from trainbox.torch.parallel.wrapping import exchange_gradients
from trainbox.torch.precision import Precision
from trainbox.torch.steps.losses import FP16_PATIENCE, LossWatch
from trainbox.torch.steps.weighing import LossWeights

T = TypeVar("T")


class Gradients:
    """Makes and uses the gradients of all models of a session.

    Args:
        device: Where this rank computes.
        rank: This rank.
        precision: Of the computation; its scaler scales losses.
        stopwatch: Measures the backward pass.
        on_nan: `continue` leaves out a step whose gradients are not finite.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int,
        *,
        precision: Precision,
        stopwatch: Stopwatch,
        on_nan: Literal["stop", "continue"],
    ) -> None:
        self.models: list[nn.Module] = []
        self.on_nan = on_nan
        #: Whether the optimizer has used the gradients of this step.
        self.updated = False
        self.losses = LossWatch(device, rank, patience=FP16_PATIENCE if precision.scaler.is_enabled() else 1)
        self._scaler = precision.scaler
        self._stopwatch = stopwatch
        #: Whether gradients of one step were added to those of another: a checkpoint in between would lose them.
        self.outlive_steps = False
        self._batches = 1  # of a step
        self._completes = True  # this batch is the last of its step
        self._weight = 1.0  # of this batch among those of all ranks
        self._share = 1.0  # of the micro-batch in the step
        self._made = False  # in this step
        self._probe: nn.Parameter | None = None
        self._weights = LossWeights(device)

    def begin(self, number: int = 0, batches: int = 1, weight: float = 1.0) -> None:
        """Begin a batch.

        Args:
            number: Of the batch in its step, from 0.
            batches: Of a step.
            weight: Of this batch; 1.0 where every rank has one, 0.0 where this rank has none and repeats its last.
        """
        self._batches, self._completes, self._weight = batches, number + 1 == batches, weight
        self._share = weight / batches
        if number == 0:
            self.updated = self._made = False
        if batches > 1:
            exchange_gradients(self.models, now=self._completes)

    def drop(self) -> None:
        """Drop the gradients of a step that has too few batches."""
        exchange_gradients(self.models, now=True)
        self._weights.drop()
        for model in self.models:
            model.zero_grad(set_to_none=True)

    def micro_batches(self, batch: T, parts: int) -> Iterator[T]:
        """Yield a batch in pieces; gradients are exchanged with the last one."""
        whole = _count_samples(batch)
        size = -(-whole // parts)
        for start in range(0, whole, size):
            exchange_gradients(self.models, now=self._completes and start + size >= whole)
            piece = map_tensors(batch, itemgetter(slice(start, start + size)))
            self._share = _count_samples(piece) / whole * self._weight / self._batches
            yield piece

    def backward(self, loss: torch.Tensor, weight: float | torch.Tensor | None = None) -> None:
        """Compute the gradients of a mean loss, weighted as given, else by the share of its piece in the step."""
        if weight is not None:
            weight = weight if self._weight else 0.0  # of a batch that is repeated nothing counts
        share = self._share if weight is None else 1.0
        loss = self._weights.weigh(loss, weight)
        self.losses.see(loss)
        if not self._made and self._probe is not None and self._probe.grad is not None:
            self.outlive_steps = True
        self._made = True
        self._stopwatch.backward(self._scaler.scale(loss if share == 1.0 else loss * share))
        if self._probe is None:
            trained = (parameter for model in self.models for parameter in model.parameters())
            self._probe = next((parameter for parameter in trained if parameter.grad is not None), None)

    def update(self, optimizer: torch.optim.Optimizer, *, clip: float | None) -> bool:
        """Take one step of the optimizer and reset the gradients; only with the last batch of a step."""
        if not self._completes:
            return False
        self._scaler.unscale_(optimizer)
        sound = True
        self._weights.apply(_parameters(optimizer))
        if clip is not None or self.on_nan == "continue":
            norm = clip_grad_norm_(list(_parameters(optimizer)), float("inf") if clip is None else clip)
            sound = self.on_nan == "stop" or bool(torch.isfinite(norm))
        if sound:
            self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.updated = True
        return True


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _count_samples(batch: object) -> int:
    """Return the length of the first tensor in a batch."""
    tensors = list_tensors(batch)
    if not tensors:
        raise TypeError(f"a batch without any tensor: {type(batch).__name__}")
    return len(tensors[0])
