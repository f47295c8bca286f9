"""The parts of a checkpoint: models, optimizers, schedulers, samplers with a `state_dict`, and plain dicts."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trainbox.errors import CheckpointError
from trainbox.torch.steps.agreement import checksum

#: The key of the digest of frozen parameters in the identity of a training. A checkpoint of trainable parameters alone
#: holds them and the buffers; a job that resumes must have the same frozen parameters.
FROZEN = "frozen parameters"
#: The prefix that `torch.compile` adds to names.
_COMPILED = "_orig_mod."


@runtime_checkable
class Stateful(Protocol):
    """The protocol of a part: torch's own classes have it."""

    def state_dict(self) -> Any:  # noqa: ANN401 - torch's classes promise no more
        """Return everything that has to be the same after a restart."""

    def load_state_dict(self, state_dict: Any, /) -> Any:  # noqa: ANN401
        """Load the state from before the restart."""


@runtime_checkable
class Reshardable(Protocol):
    """The protocol of a part whose state differs by rank, to be resumed on another number of ranks.

    For example, a stream of samples of which each rank reads a share.
    """

    def reshard_state(self, states: Sequence[Any], rank: int, world_size: int) -> Any:  # noqa: ANN401 - any state
        """Return the state for `load_state_dict` on `rank` of `world_size`.

        Args:
            states: The states of all ranks of the checkpoint, by rank; not to be changed.
            rank: This rank.
            world_size: The number of ranks now.
        """


class Trainable:
    """A part: a model without its frozen parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """Return the trainable parameters and the buffers."""
        return without_frozen(self.model, self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Load what `state_dict` returned; frozen parameters are not changed."""
        self.model.load_state_dict(state, strict=False)


def is_partly_frozen(model: torch.nn.Module) -> bool:
    """Whether some parameters of a model are trained and others are not."""
    return len({parameter.requires_grad for parameter in model.parameters()}) > 1


def frozen_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are not trained, by each of their names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name.replace(_COMPILED, ""): parameter for name, parameter in named if not parameter.requires_grad}


def without_frozen(model: torch.nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of a model without its frozen parameters."""
    frozen = frozen_parameters(model)
    return {name: value for name, value in state.items() if name.replace(_COMPILED, "") not in frozen}


def plain(part: object) -> Stateful | dict[str, Any]:
    """Unwrap a part: from `DistributedDataParallel` and `torch.compile`.

    Raises:
        CheckpointError: The part has no state that can be saved.
    """
    while isinstance(part, torch.nn.Module):
        inner = part.module if isinstance(part, DistributedDataParallel) else getattr(part, "_orig_mod", None)
        if not isinstance(inner, torch.nn.Module):
            break
        part = inner  # `torch.compile` keeps what it was given in `_orig_mod`
    if isinstance(part, dict | Stateful):
        return part
    raise CheckpointError(
        f"a {type(part).__qualname__} cannot be saved", hint="give it `state_dict` and `load_state_dict`, or use a dict"
    )


def kind_of(part: object) -> str:
    """Return the name of the class of a part, to tell Adam from SGD; without the module, which torch changes."""
    return type(part.model if isinstance(part, Trainable) else part).__qualname__


def state_of(part: Stateful | dict[str, Any]) -> object:
    """Return the state of a part, with the live tensors."""
    return part if isinstance(part, dict) else part.state_dict()


def load(name: str, part: Stateful | dict[str, Any], state: Any) -> None:  # noqa: ANN401 - any state
    """Load the state of a part; a dict is changed in place.

    Raises:
        CheckpointError: The part rejects it.
    """
    if isinstance(part, dict):
        part.clear()
        part.update(state)
        return
    try:
        part.load_state_dict(state)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the {kind_of(part)} {name!r} rejects the state of the checkpoint: {error}",
            hint="resume with the script and hyperparameters that wrote it, or start fresh in another directory",
        ) from error


# ---- frozen parameters ----


def digest_frozen(models: Iterable[torch.nn.Module], group: dist.ProcessGroup | None) -> str:
    """Compute a digest of the frozen parameters, the same on any number of ranks; all ranks call this.

    It is a sum over bits: each rank adds up its part of parameters that are sharded over the ranks.
    """
    whole, spread = 0, 0
    for name, parameter in (found for model in models for found in frozen_parameters(model).items()):
        if isinstance(parameter, DTensor):
            spread += zlib.crc32(name.encode()) * checksum([parameter.to_local()])
        else:
            whole += zlib.crc32(name.encode()) * checksum([parameter])
    held = torch.tensor([_signed(spread)])
    if group is not None:
        dist.all_reduce(held, group=group)  # overflow beyond 64 bits is dropped, on all ranks alike
    return f"{(whole + int(held)) % 2**64:016x}"


def check_frozen(identity: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds the parameters that this training resumes, and that the frozen ones are the same.

    Args:
        identity: The identity in the checkpoint.
        now: The identity of this training.

    Raises:
        CheckpointError: It does not, or they are not.
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
    """Return the lowest 64 bits of an integer as a signed integer, as torch holds it."""
    return (value + 2**63) % 2**64 - 2**63
