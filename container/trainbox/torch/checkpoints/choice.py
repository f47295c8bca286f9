"""Which of the savers a training needs: that of a state which every rank holds whole, or of one that is spread."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from trainbox.checkpointing import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.parts import Trainable, is_partly_frozen, plain
from trainbox.torch.checkpoints.run_info import Course
from trainbox.torch.checkpoints.saver import Saver
from trainbox.torch.checkpoints.trainable import FROZEN

if TYPE_CHECKING:
    from trainbox.torch.checkpoints.sharded import ShardedSaver


def choose_saver(store: Checkpoints, parts: Mapping[str, object], course: Course) -> "Saver | ShardedSaver":
    """The saver of some parts.

    Raises:
        CheckpointError: A state is spread over the ranks, and it is not that of one model and its optimizer.
    """
    only = FROZEN in course.identity
    spread = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module) and _is_spread(part)}
    if not spread:
        return Saver(store, {name: _trainable(part) if only else part for name, part in parts.items()}, course)
    optimizers = {name: part for name, part in parts.items() if isinstance(part, torch.optim.Optimizer)}
    if len(spread) != 1 or len(optimizers) != 1:
        raise CheckpointError(
            f"of what is spread over the ranks there are {len(spread)} models and {len(optimizers)} optimizers to save",
            hint="with sharded=True give resume() one model and its one optimizer; other parts are whole on every rank",
        )
    from trainbox.torch.checkpoints.sharded import ShardedSaver  # noqa: PLC0415 - DCP takes half a second to import

    (model,), (optimizer,) = spread.values(), optimizers.values()
    whole = {name: part for name, part in parts.items() if name not in spread and name not in optimizers}
    whole = {name: _trainable(part) if only else part for name, part in whole.items()}
    return ShardedSaver(store, model, optimizer, whole, course)


def _trainable(part: object) -> object:
    """A part without its frozen parameters; a model none of which is trained is a state of its own, as an average."""
    inner = plain(part)
    return Trainable(inner) if isinstance(inner, torch.nn.Module) and is_partly_frozen(inner) else part


def _is_spread(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
