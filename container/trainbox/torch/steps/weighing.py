"""Gradients of a mean over tokens, of which ranks and pieces of a batch have different numbers.

DDP and FSDP2 average gradients over the ranks as if each had as many tokens. So each loss is multiplied by its own
weight, and once the weights of all ranks are known, before the optimizer's step, the gradients are divided by their
mean: that is exact, for gradients are linear in the loss.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from trainbox.errors import TrainingError


class LossWeights:
    """The weights of the losses whose gradients no optimizer has used yet.

    Args:
        device: Where this rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._total: torch.Tensor | None = None
        self._factor: torch.Tensor | None = None
        self._unweighed = False
        self._used = False

    def weigh(self, loss: torch.Tensor, weight: float | torch.Tensor | None) -> torch.Tensor:
        """Return a loss times its weight; one of no tokens, which is 0 / 0, counts as 0.

        Its gradients are those of the loss: `cross_entropy` of ignored targets alone has none, while a division of the
        caller's own by no tokens has NaN; divide by `clamp(min=1)`.

        Raises:
            TrainingError: Of the losses of one step some have a weight.
        """
        if self._used:
            self.drop()
        if weight is None:
            self._unweighed = True
        else:
            given = torch.as_tensor(weight, dtype=torch.float64, device=self._device)
            self._total = given if self._total is None else self._total + given
            loss = torch.where(given > 0, loss, torch.zeros_like(loss)) * given.to(loss.dtype)
        if self._unweighed and self._total is not None:
            raise TrainingError(
                "backward() was called with and without weight= in one step", hint="give each loss of a step its weight"
            )
        return loss

    def drop(self) -> None:
        """Forget the weights, together with the gradients."""
        self._total, self._factor, self._unweighed, self._used = None, None, False, False

    def apply(self, parameters: Iterable[torch.Tensor]) -> None:
        """Divide the gradients by the mean weight of the ranks; all ranks call this."""
        self._used = True
        if self._total is None:
            return
        if self._factor is None:
            ranks = dist.get_world_size() if dist.is_initialized() else 1
            total = self._total.clone()
            if ranks > 1:
                dist.all_reduce(total)
            self._factor = torch.where(total > 0, ranks / total, torch.zeros_like(total))
        for parameter in parameters:
            if parameter.grad is not None:
                held = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
                held.mul_(self._factor)
