"""Checkpoints of what is trained alone: the frozen parameters come from where they came from at the first start.

Such a checkpoint holds the parameters with `requires_grad`, the buffers, and a digest of the frozen parameters, which
must be the same in a job that resumes.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from trainbox.errors import CheckpointError
from trainbox.torch.agree import checksum
from trainbox.torch.checkpoints.parts import frozen_parameters

#: The key of the digest in the identity of a training.
FROZEN = "frozen parameters"


def digest_frozen(models: Iterable[nn.Module], group: dist.ProcessGroup | None) -> str:
    """A digest of the frozen parameters, the same on any number of ranks; all ranks call this.

    It is a sum over bits, so that each rank adds up what it holds of those that are spread over the ranks.
    """
    whole, spread = 0, 0
    for name, parameter in (found for model in models for found in frozen_parameters(model).items()):
        if isinstance(parameter, DTensor):
            spread += zlib.crc32(name.encode()) * checksum([parameter.to_local()])
        else:
            whole += zlib.crc32(name.encode()) * checksum([parameter])
    held = torch.tensor([_signed(spread)])
    if group is not None:
        dist.all_reduce(held, group=group)  # what exceeds 64 bits is left out, on all ranks alike
    return f"{(whole + int(held)) % 2**64:016x}"


def check_frozen(identity: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Whether a checkpoint holds as much of the models as this training resumes.

    Args:
        identity: That of the checkpoint.
        now: The identity of this training.

    Raises:
        CheckpointError: It does not, or the frozen parameters are not those that it was made with.
    """
    then, asked = identity.get(FROZEN), now.get(FROZEN)
    if (then is None) != (asked is None):
        raise CheckpointError(
            "the checkpoint holds all parameters, and this training resumes with trainable_only=True"
            if then is None
            else "the checkpoint holds only the trainable parameters, and this training resumes all of them",
            hint="resume(…) without trainable_only=True, or start fresh in another directory"
            if then is None
            else "resume(…, trainable_only=True), with the frozen parameters loaded as at the first start",
        )
    if then != asked:
        raise CheckpointError(
            "the frozen parameters are not those that the checkpoint was trained with",
            hint="load the same base model before resume(), and freeze the same parameters",
        )


def _signed(value: int) -> int:
    """The lowest 64 bits of an integer, as torch holds them."""
    return (value + 2**63) % 2**64 - 2**63
