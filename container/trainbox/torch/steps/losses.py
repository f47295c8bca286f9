"""Detect losses that are not finite, without a synchronization of the GPU."""

import math

import torch

from trainbox.torch.steps.agreement import Place

#: fp16 overflows now and then until its scale has settled; halved so often it would be at 1.
FP16_PATIENCE = 20


class LossWatch:
    """Checks the loss of each step: on a CPU at once, on a GPU when the next step was launched.

    Args:
        device: Where losses are.
        rank: This rank.
        patience: So many in a row that are not finite count as bad.
    """

    def __init__(self, device: torch.device, rank: int, *, patience: int = 1) -> None:
        self._rank = rank
        self._patience = patience
        self._loss: torch.Tensor | None = None
        self._in_a_row = 0
        self._late = _Late() if device.type == "cuda" else None

    def see(self, loss: torch.Tensor) -> None:
        """Add a loss of this step."""
        mine = loss.detach()
        self._loss = mine if self._loss is None else self._loss + mine

    def find(self, step: int) -> Place | None:
        """Return where a loss was not finite, if any; called once at the end of each step."""
        finite = True
        if self._late is not None:
            finite, seen = self._late.read()
            if self._loss is not None:
                self._late.send(torch.isfinite(self._loss).all(), step)
            step = seen
        elif self._loss is not None:
            finite = math.isfinite(self._loss.item())  # one call of torch instead of three
        self._loss = None
        self._in_a_row = 0 if finite else self._in_a_row + 1
        return Place(step, self._rank) if self._in_a_row >= self._patience else None


class _Late:
    """One truth on its way from the GPU; only pinned memory can be copied to while the processor goes on."""

    def __init__(self) -> None:
        self._value = torch.ones((), dtype=torch.bool).pin_memory()
        self._step = 0
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, value: torch.Tensor, step: int) -> None:
        self._value.copy_(value, non_blocking=True)
        self._sent.record()
        self._step = step

    def read(self) -> tuple[bool, int]:
        self._sent.synchronize()
        return bool(self._value), self._step
