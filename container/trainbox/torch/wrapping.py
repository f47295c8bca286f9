"""A model on several ranks: a copy on each (DDP), or spread over them (FSDP2)."""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from trainbox.torch.precision import Precision
from trainbox.torch.stopwatch import Stopwatch
from trainbox.torch.warmup import pack_buckets_first

#: From so many ranks on the order of a sum matters; two numbers have one sum, in either order.
_ORDER_MATTERS = 3


class _Copy(DistributedDataParallel):
    """DDP whose wait for the buffers of rank 0 can be measured."""

    stopwatch: Stopwatch

    def _sync_buffers(self) -> None:  # the name is torch's own; if it changes, the wait counts as computing
        self.stopwatch.wait(super()._sync_buffers)


def copy(model: nn.Module, device: torch.device, ranks: int, stopwatch: Stopwatch) -> nn.Module:
    """The model, its gradients averaged over the ranks."""
    devices = [device.index] if device.type == "cuda" else None
    wrapped = _Copy(model, device_ids=devices, gradient_as_bucket_view=True)
    wrapped.stopwatch = stopwatch
    if ranks >= _ORDER_MATTERS:
        pack_buckets_first(wrapped)
    return wrapped


def shard(model: nn.Module, device: torch.device, ranks: int, precision: Precision) -> nn.Module:
    """The model, its parameters, gradients and optimizer state spread over the ranks, layer by layer."""
    policy = precision.shard()
    mesh = init_device_mesh(device.type, (ranks,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def exchange_gradients(models: Iterable[nn.Module], *, now: bool) -> None:
    """Whether the next backward pass exchanges gradients or only adds to them; it holds for the forward pass too."""
    for model in models:
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = now  # what `no_sync` does
        elif isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(now)


def copy_buffers(models: Iterable[nn.Module]) -> None:
    """The buffers of rank 0 on all ranks, as DDP itself has it before each forward pass; FSDP2 leaves them alone."""
    for model in models:
        for buffer in model.buffers() if isinstance(model, DistributedDataParallel | FSDPModule) else ():
            dist.broadcast(buffer, 0)


def replicated(models: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """The parameters that all ranks hold alike."""
    for model in models:
        if isinstance(model, DistributedDataParallel):
            yield from model.parameters()


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The parts to shard one by one: the layers, also those in a list, that have parameters."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child
