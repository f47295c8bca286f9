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

    def backward(self, loss: torch.Tensor) -> None:
        """The gradients of a mean loss, weighed by the share of its piece in the batch."""
        self.losses.see(loss)
        self._stopwatch.backward(self._scaler.scale(loss if self._share == 1.0 else loss * self._share))

    def update(self, optimizer: torch.optim.Optimizer, *, clip: float | None) -> None:
        """One step of the optimizer, after which the gradients are gone."""
        self._scaler.unscale_(optimizer)
        sound = True
        if clip is not None or self.on_nan == "continue":
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = clip_grad_norm_(parameters, float("inf") if clip is None else clip)
            sound = self.on_nan == "stop" or bool(torch.isfinite(norm))
        if sound:
            self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.updated = True
