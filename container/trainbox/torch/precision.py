"""The precision of a session: fp32, bf16 or fp16, which needs its gradients scaled."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from trainbox.errors import HyperparameterError

PrecisionName = Literal["fp32", "bf16", "fp16"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How a session computes; the weights themselves stay fp32.

    Raises:
        HyperparameterError: The device cannot compute so.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise HyperparameterError("precision bf16: this GPU does not support it", hint="use fp16 or fp32")
        self.name = name
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        #: Sharded parameters are cast by FSDP, not by autocast.
        self.sharded = False

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass and its loss."""
        if self.name == "fp32" or self.sharded:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.name])

    def shard(self) -> MixedPrecisionPolicy:
        """Return the policy for FSDP, and turn autocast off.

        Raises:
            HyperparameterError: fp16, whose scaler does not know shards.
        """
        if self.name == "fp16":
            raise HyperparameterError("precision fp16 does not go with sharded parameters", hint="use bf16")
        self.sharded = True
        dtype = _TYPES.get(self.name)
        return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
