"""Which of the savers a training needs: that of a state which every rank holds whole, or of one that is spread."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from trainbox.checkpointing import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.course import Course
from trainbox.torch.checkpoints.saver import Saver

if TYPE_CHECKING:
    from trainbox.torch.checkpoints.sharded import ShardedSaver


def choose_saver(store: Checkpoints, parts: Mapping[str, object], course: Course) -> "Saver | ShardedSaver":
    """The saver of some parts.

    Raises:
        CheckpointError: A state is spread over the ranks, and it is not that of one model and its optimizer.
    """
    spread = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module) and _is_spread(part)}
    if not spread:
        return Saver(store, parts, course)
    optimizers = {name: part for name, part in parts.items() if isinstance(part, torch.optim.Optimizer)}
    if len(spread) != 1 or len(optimizers) != 1:
        raise CheckpointError(
            f"of what is spread over the ranks there are {len(spread)} models and {len(optimizers)} optimizers to save",
            hint="with sharded=True give resume() one model and its one optimizer; other parts are whole on every rank",
        )
    from trainbox.torch.checkpoints.sharded import ShardedSaver  # noqa: PLC0415 - DCP takes half a second to import

    (model,), (optimizer,) = spread.values(), optimizers.values()
    whole = {name: part for name, part in parts.items() if name not in spread and name not in optimizers}
    return ShardedSaver(store, model, optimizer, whole, course)


def _is_spread(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
