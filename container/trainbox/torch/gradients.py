"""The gradients of a rank's step: made by `backward`, exchanged with the last piece of a batch, used by `update`."""

from collections.abc import Iterator
from operator import itemgetter
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from trainbox.torch.losses import FP16_PATIENCE, LossWatch
from trainbox.torch.nested import change, samples
from trainbox.torch.precision import Precision
from trainbox.torch.stopwatch import Stopwatch
from trainbox.torch.weighing import Weights
from trainbox.torch.wrapping import exchange_gradients

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
        self._share = 1.0  # of the micro-batch in its batch
        self._weights = Weights(device)

    def begin(self) -> None:
        """This rank has the batch of its next step."""
        self.updated, self._share = False, 1.0

    def micro_batches(self, batch: T, parts: int) -> Iterator[T]:
        """A batch in pieces, the gradients of which are exchanged with the last."""
        whole = samples(batch)
        size = -(-whole // parts)
        for start in range(0, whole, size):
            exchange_gradients(self.models, now=start + size >= whole)
            piece = change(batch, itemgetter(slice(start, start + size)))
            self._share = samples(piece) / whole
            yield piece

    def backward(self, loss: torch.Tensor, weight: float | torch.Tensor | None = None) -> None:
        """The gradients of a mean loss, weighed as asked, else by the share of its piece in the batch."""
        weighed = self._weights.weigh(loss, weight)
        self.losses.see(loss if weight is None else weighed)
        share = self._share if weight is None else 1.0
        self._stopwatch.backward(self._scaler.scale(weighed if share == 1.0 else weighed * share))

    def update(self, optimizer: torch.optim.Optimizer, *, clip: float | None) -> None:
        """One step of the optimizer, after which the gradients are gone."""
        self._scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._weights.apply(parameters)
        sound = True
        if clip is not None or self.on_nan == "continue":
            norm = clip_grad_norm_(parameters, float("inf") if clip is None else clip)
            sound = self.on_nan == "stop" or bool(torch.isfinite(norm))
        if sound:
            self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.updated = True
