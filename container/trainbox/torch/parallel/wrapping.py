"""A model on several ranks: a copy on each (DDP), or spread over them (FSDP2)."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from trainbox.errors import HyperparameterError, TrainingError
from trainbox.torch.parallel.bucket_order import pack_buckets_first
from trainbox.torch.parallel.stopwatch import Stopwatch

#: From so many ranks on the order of a sum matters; two numbers have one sum, in either order.
_ORDER_MATTERS = 3


#: What the session itself decides.
_OURS = frozenset({"self", "module", "device_ids", "output_device", "dim", "process_group", "device_mesh"})
_UNUSED = "parameters that were not used in producing loss"
_UNUSED_INDICES = re.compile(r"did not receive grad for rank \d+:((?: \d+)+)")


class _Copy(DistributedDataParallel):
    """DDP whose wait for the buffers of rank 0 is measured, and whose errors name the options of `wrap`."""

    stopwatch: Stopwatch

    def _sync_buffers(self) -> None:  # the name is torch's own; if it changes, the wait counts as computing
        self.stopwatch.wait(super()._sync_buffers)

    def _pre_forward(self, *inputs: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's own; without it no hint
        try:
            return super()._pre_forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if _UNUSED not in str(error):
                raise
            raise _unused(str(error), self.module) from error


def _unused(text: str, model: nn.Module) -> TrainingError:
    """Torch's complaint about parameters that the loss does not use; torch has no class for it."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = _UNUSED_INDICES.search(text)
    names = [trained[index] for index in map(int, found[1].split()) if index < len(trained)] if found else []
    which = ", ".join(names) or "all parameters"
    return TrainingError(
        text.partition(" You can enable")[0],
        hint=f"run.wrap(model, find_unused_parameters=True), or let the loss of every rank use {which}",
    )


def check_options(options: Mapping[str, object], *, sharded: bool) -> None:
    """Check that DistributedDataParallel takes these options, and that the session leaves them to the script.

    Raises:
        HyperparameterError: It does not, or the model is no copy.
    """
    known = [name for name in inspect.signature(DistributedDataParallel).parameters if name not in _OURS]
    for name in options:
        if name in _OURS:
            raise HyperparameterError(f"wrap: {name!r} is set by the session", hint="leave it out")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise HyperparameterError(
                f"wrap: DistributedDataParallel has no option {name!r}"
                + (f" - did you mean {close[0]!r}?" if close else ""),
                hint=f"it has {', '.join(known)}",
            )
    if options and sharded:
        raise HyperparameterError(
            f"wrap: {next(iter(options))!r} is an option of DistributedDataParallel, and sharded=True uses FSDP2",
            hint="leave it out, or leave out sharded=True",
        )


def copy(
    model: nn.Module, device: torch.device, ranks: int, stopwatch: Stopwatch, options: Mapping[str, Any]
) -> nn.Module:
    """Return the model in DDP, which averages its gradients over the ranks."""
    devices = [device.index] if device.type == "cuda" else None
    wrapped = _Copy(model, device_ids=devices, **{"gradient_as_bucket_view": True, **options})
    wrapped.stopwatch = stopwatch
    # Where DDP looks for unused parameters, it does not order its buckets anew.
    if ranks >= _ORDER_MATTERS and not options.get("static_graph") and not options.get("find_unused_parameters"):
        pack_buckets_first(wrapped)
    return wrapped


def rounds_anew(options: Mapping[str, object], ranks: int) -> bool:
    """Whether the first step after a restart adds in another order than the same step of a job that went through.

    A static graph is that of the first pass, so no pass can come before it to order the buckets.
    """
    return ranks >= _ORDER_MATTERS and bool(options.get("static_graph"))


def exchange_gradients(models: Iterable[nn.Module], *, now: bool) -> None:
    """Set whether the next forward and backward pass exchanges gradients or only adds to them."""
    for model in models:
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = now  # what `no_sync` does
        elif isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(now)


def copy_buffers(models: Iterable[nn.Module]) -> None:
    """Copy the buffers of rank 0 to all ranks, as DDP does before each forward pass and FSDP2 does not."""
    for model in models:
        for buffer in model.buffers() if isinstance(model, DistributedDataParallel | FSDPModule) else ():
            dist.broadcast(buffer, 0)


def replicated(models: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the parameters that are the same on all ranks."""
    for model in models:
        if isinstance(model, DistributedDataParallel):
            yield from model.parameters()
