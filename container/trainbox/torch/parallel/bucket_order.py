"""Fix the order of DDP's buckets from the first step on, so that a resumed job computes the same bits.

DDP packs gradients into buckets, and packs them anew after its first step, in the order in which they came. From three
ranks on, where a number lies in a bucket decides in which order the ranks' values are added. So the first step after a
restart would round differently from the same step of a job that went through. One forward and backward pass before the
first, of which nothing remains, has the buckets packed before anything counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from trainbox.torch.batches import list_tensors
from trainbox.torch.checkpoints import rng_state


def pack_buckets_first(model: DistributedDataParallel) -> None:
    """Let the first forward pass that learns be preceded by one that leaves nothing behind."""

    def before(_model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            handle.remove()
            _pass_once(model, args, kwargs)

    handle = model.register_forward_pre_hook(before, with_kwargs=True)


def _pass_once(model: DistributedDataParallel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with _unchanged(model):
        outputs = [output for output in list_tensors(model(*args, **kwargs)) if output.requires_grad]
        if outputs:
            torch.stack([output.float().sum() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]


@contextmanager
def _unchanged(model: DistributedDataParallel) -> Iterator[None]:
    """Put buffers, gradients, random generators and the switch of `no_sync` back to what they were."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    drawn, synced = rng_state.capture(), model.require_backward_grad_sync
    model.require_backward_grad_sync = True
    for parameter, _ in gradients:
        parameter.grad = None
    yield
    model.require_backward_grad_sync = synced
    rng_state.restore(drawn)
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for buffer, value in buffers:
            buffer.copy_(value)
