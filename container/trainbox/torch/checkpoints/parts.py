"""What has a state: models, optimizers, schedulers, samplers by their `state_dict`, and plain dicts by themselves."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trainbox.errors import CheckpointError
from trainbox.torch.agree import checksum

#: The key of the digest in the identity of a training.
FROZEN = "frozen parameters"
#: What `torch.compile` puts into names.
_COMPILED = "_orig_mod."


@runtime_checkable
class Stateful(Protocol):
    """What torch's own classes have, and what a class needs to be saved."""

    def state_dict(self) -> Any:  # noqa: ANN401 - torch's classes promise no more
        """Everything that has to be the same after a restart."""

    def load_state_dict(self, state_dict: Any, /) -> Any:  # noqa: ANN401
        """Take the state from before the restart."""


@runtime_checkable
class Reshardable(Protocol):
    """What a part has, beside its state, to be resumed on another number of ranks though its state is each rank's own.

    A stream of samples, for example, of which each rank reads a share.
    """

    def reshard_state(self, states: Sequence[Any], rank: int, world_size: int) -> Any:  # noqa: ANN401 - any state
        """What `load_state_dict` is to get on `rank` of `world_size`.

        Args:
            states: Those of all ranks of the checkpoint, in the order of the ranks; not to be changed.
            rank: This rank.
            world_size: How many there are now.
        """


class Trainable:
    """The state of a model without its frozen parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """The trainable parameters and the buffers."""
        return without_frozen(self.model, self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take what `state_dict` gave; frozen parameters stay as they are."""
        self.model.load_state_dict(state, strict=False)


def is_partly_frozen(model: torch.nn.Module) -> bool:
    """Whether some parameters of a model are trained and others are not."""
    return len({parameter.requires_grad for parameter in model.parameters()}) > 1


def frozen_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are not trained, by each of their names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name.replace(_COMPILED, ""): parameter for name, parameter in named if not parameter.requires_grad}


def without_frozen(model: torch.nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of a model without its frozen parameters."""
    frozen = frozen_parameters(model)
    return {name: value for name, value in state.items() if name.replace(_COMPILED, "") not in frozen}


def plain(part: object) -> Stateful | dict[str, Any]:
    """A part without what is wrapped around it.

    Raises:
        CheckpointError: It has no state that can be saved.
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
    """What a part is, to tell an Adam from an SGD; the module is left out, in which torch moves its classes about."""
    return type(part.model if isinstance(part, Trainable) else part).__qualname__


def state_of(part: Stateful | dict[str, Any]) -> object:
    """The state of a part, of the live tensors."""
    return part if isinstance(part, dict) else part.state_dict()


def load(name: str, part: Stateful | dict[str, Any], state: Any) -> None:  # noqa: ANN401 - any state
    """Give a part its state; a dict is changed in place.

    Raises:
        CheckpointError: The part refuses it.
    """
    if isinstance(part, dict):
        part.clear()
        part.update(state)
        return
    try:
        part.load_state_dict(state)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the {kind_of(part)} {name!r} does not take the state of the checkpoint: {error}",
            hint="resume with the script and hyperparameters that wrote it, or start fresh in another directory",
        ) from error


# ---- frozen parameters ----


def digest_frozen(models: Iterable[torch.nn.Module], group: dist.ProcessGroup | None) -> str:
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
