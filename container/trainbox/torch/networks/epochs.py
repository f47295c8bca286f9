"""The epochs of a training: scores, evaluation, the best epoch, early stopping."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainbox.errors import CheckpointError, TrainingError
from trainbox.torch.networks.hyperparameters import NetworkParams
from trainbox.torch.networks.samples import Samples
from trainbox.torch.training import Session

#: Logged, but no part of the learning curves.
SPEED = "train:samples_per_second"

P = TypeVar("P", bound=NetworkParams)


class EpochScores:
    """The training loss and the speed of an epoch over all ranks; of a resumed epoch, from where it resumed.

    Args:
        run: The session.
    """

    def __init__(self, run: Session) -> None:
        self._run = run
        self._began, self._seen, self._losses = time.monotonic(), 0, torch.zeros((), device=run.device)

    def add(self, loss: Tensor, count: int) -> None:
        """Add the mean loss of `count` samples of this rank."""
        self._losses += loss.detach() * count
        self._seen += count

    def total(self) -> dict[str, float]:
        """Return `train:loss` and the speed; empty if the epoch had no step left. All ranks call this."""
        # The mean time of the ranks: scores that differ between them would be kept for each in checkpoints.
        seconds = (time.monotonic() - self._began) / self._run.world_size
        values = torch.tensor([self._losses.item(), self._seen, seconds], dtype=torch.float64)
        losses, count, mean = self._run.total(values).tolist()
        if not count:
            return {}
        return {"train:loss": losses / count, SPEED: count / mean}


class BestEpoch:
    """The epoch with the lowest validation loss, or the last one without validation: its scores and weights.

    Attributes:
        state: A dict for `Session.resume`: number (-1 before the first epoch), scores, weights, and the history of all
            epochs.

    Args:
        net: The network; its weights are copied.
        has_validation: Whether there is a validation loss to compare.
        patience: The number of epochs without improvement after which training ends; None to never end early.
    """

    def __init__(self, net: nn.Module, *, has_validation: bool, patience: int | None) -> None:
        self._net, self._has_validation, self._patience = net, has_validation, patience
        self.state: dict[str, Any] = {"epoch": -1, "scores": {}, "weights": _copy_weights(net)}

    @property
    def epoch(self) -> int:
        """The number of the best epoch; -1 before the first."""
        return int(self.state["epoch"])

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the best epoch."""
        scores: dict[str, float] = self.state["scores"]
        return scores

    @property
    def history(self) -> list[Any]:
        """The number and the scores of every epoch, for learning curves."""
        history: list[Any] = self.state.get("history", [])
        return history

    def ends_before(self, epoch: int) -> bool:
        """Return whether early stopping ends the training before this epoch."""
        return self._patience is not None and epoch - 1 - self.epoch >= self._patience

    def update(self, epoch: int, scores: Mapping[str, float]) -> None:
        """Record a finished epoch, and copy the weights if it is the best.

        Args:
            epoch: Its number.
            scores: Its scores; empty if a resumed job had no step of it left.
        """
        if scores:
            self.state["history"] = [*self.history, [epoch, _curve_points(scores)]]
        if _is_better(scores, self.scores):
            self.state |= {
                "epoch": epoch,
                "scores": dict(scores) or self.scores,
                "weights": _copy_weights(self._net),
            }

    def finish(self, run: Session, epochs: int) -> None:
        """Save the last checkpoint and load the weights of the best epoch into the network. Call it after the loop.

        Args:
            run: The session.
            epochs: The number of finished epochs.

        Raises:
            TrainingError: No epoch has a finite validation loss.
        """
        if self._has_validation and self.epoch < 0 and not run.stopped:
            raise TrainingError(
                f"there is no best epoch: validation:loss was not a finite number in any of {epochs} epochs",
                hint="check the rows of channel validation, or lower the learning rate",
            )
        if not run.stopped:
            _save_last(run)
        self._net.load_state_dict(self.state["weights"])


def evaluate(
    run: Session, net: nn.Module, samples: Samples, criterion: Callable[[Tensor, Tensor, P], Tensor], params: P
) -> dict[str, float]:
    """Score the validation samples, each once on one of the ranks. All ranks call this.

    Args:
        run: The session.
        net: The network, not wrapped.
        samples: The validation samples.
        criterion: From outputs, targets and hyperparameters to a mean loss.
        params: The hyperparameters.

    Returns:
        `validation:loss`, and `validation:accuracy` or `validation:rmse`; empty if the job is stopped meanwhile.
    """
    size = 4 * run.world_size * math.ceil(params.batch_size / run.world_size)
    batches = run.batches(len(samples), batch_size=size, tail="keep", shuffle=False)
    # Of losses, of correct samples or squared errors, of samples.
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    net.eval()
    with torch.no_grad():
        for inputs, targets in run.evaluation(batches.loader(samples, collate=tuple)):
            with run.autocast():
                outputs = net(inputs)
            good = (
                (outputs.argmax(1) == targets)
                if params.task == "classification"
                else (outputs.squeeze(1) - targets) ** 2
            )
            loss = criterion(outputs, targets, params) * len(inputs)
            sums += torch.stack([loss, good.sum(), torch.full_like(loss, len(inputs))])
    net.train()
    if run.stopped:
        return {}
    losses, good_sum, count = run.total(sums).tolist()
    if params.task == "classification":
        return {"validation:loss": losses / count, "validation:accuracy": good_sum / count}
    return {"validation:loss": losses / count, "validation:rmse": math.sqrt(good_sum / count)}


def _save_last(run: Session) -> None:
    """Save a last checkpoint, so that a repeated job ends at once; a full disk must not cost the model."""
    try:
        run.save()
    except CheckpointError as error:
        run.print(f"{error}\nthe model is saved all the same")


def _is_better(scores: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Return whether the validation loss is the lowest so far; without validation the latest epoch is the best."""
    return scores.get("validation:loss", 0.0) < best.get("validation:loss", math.inf) or "validation:loss" not in scores


def _curve_points(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of an epoch that belong into the learning curves."""
    return {name: value for name, value in scores.items() if name != SPEED and math.isfinite(value)}


def _copy_weights(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights that training does not change."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
