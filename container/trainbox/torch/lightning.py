"""A callback for the Trainer of PyTorch Lightning.

callback = LightningCallback()
trainer = Trainer(**processes(), callbacks=[callback], max_epochs=3)
trainer.fit(model, loader, ckpt_path=callback.newest())
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from trainbox import toolkit
from trainbox.contract.cluster.progress import StepPhase
from trainbox.contract.cluster.world import in_world
from trainbox.torch.integration import EVERY_SECONDS, Integration, read_place

#: Both packages hold the same; a script should not have to import the other one as well.
_LIBRARY = "lightning.pytorch" if "lightning.pytorch" in sys.modules else "pytorch_lightning"
if find_spec(_LIBRARY.partition(".")[0]) is None:
    _LIBRARY = "lightning.pytorch"
_Callback: Any = import_module(_LIBRARY).Callback
_Logger: Any = import_module(f"{_LIBRARY}.loggers").Logger

#: The name of Lightning's file in a published checkpoint.
FILE = "lightning.ckpt"


def processes() -> dict[str, Any]:
    """Return the arguments of `Trainer` for the processes of this job.

    Where trainbox has started one for each device, Lightning joins them. Else it starts one for each device itself.
    """
    _, ranks = read_place()
    if ranks is None:
        return {"num_nodes": len(in_world(toolkit.current_job()).hosts)}
    return {"devices": ranks.local_world_size, "num_nodes": ranks.world_size // ranks.local_world_size}


class LightningCallback(_Callback):  # type: ignore[misc]  # its library is not read by mypy
    """Report the Trainer's steps to trainbox, save and stop when the ranks have agreed to, log metric lines.

    Args:
        every_seconds: From one checkpoint to the next.
        every_steps: Steps from one checkpoint to the next, in addition.
        keep: How many checkpoints stay.
    """

    def __init__(self, *, every_seconds: float = EVERY_SECONDS, every_steps: int | None = None, keep: int = 3) -> None:
        self._run = Integration(every_seconds=every_seconds, keep=keep)
        self._every_steps = every_steps

    @property
    def stopped(self) -> bool:
        """Whether the ranks have agreed to stop; everything is saved then, and the script should end."""
        return self._run.stopped

    def newest(self) -> str | None:
        """Return the newest valid checkpoint for `fit(ckpt_path=…)`; all ranks call this."""
        found = self._run.newest()
        return None if found is None else str(found / FILE)

    # ---- what the Trainer calls ----

    def setup(self, trainer: Any, _module: Any, stage: str) -> None:  # noqa: ANN401
        """Let what the script logs be printed, too."""
        if stage == "fit" and not any(isinstance(logger, _MetricLines) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, _MetricLines(self._run)]

    def on_sanity_check_start(self, _trainer: Any, _module: Any) -> None:  # noqa: ANN401
        """The Trainer has just set its own handler of SIGTERM, which leaves without saving."""
        self._run.take_signal()

    def on_train_start(self, trainer: Any, _module: Any) -> None:  # noqa: ANN401
        """The Trainer has its state."""
        self._run.begin(trainer.global_step, trainer.local_rank)

    def on_train_epoch_start(self, _trainer: Any, _module: Any) -> None:  # noqa: ANN401
        """The first batch of an epoch is waited for."""
        self._run.wait_for_data()

    def on_train_batch_start(self, _trainer: Any, _module: Any, _batch: Any, _index: int) -> None:  # noqa: ANN401
        """A batch is there."""
        self._run.begin_step()

    def on_train_batch_end(self, trainer: Any, _module: Any, _outputs: Any, _batch: Any, _index: int) -> None:  # noqa: ANN401
        """Where a step is done, save or stop as the ranks have agreed to."""
        if trainer.global_step == self._run.step:  # gradients are gathered over several batches
            return
        before = self._run.step  # a batch may bring several steps, of several optimizers
        agreed = self._run.end_step(trainer.global_step)
        every = self._every_steps
        if agreed.save or (every and trainer.global_step // every > before // every):
            self._run.save(lambda directory: trainer.save_checkpoint(directory / FILE, weights_only=False))
        if agreed.stop:
            # A stop does not ask how many epochs there should be at least.
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
            trainer.should_stop = True

    def on_validation_batch_end(self, _trainer: Any, _module: Any, *_: Any) -> None:  # noqa: ANN401
        """A batch is evaluated."""
        if self._run.begun:
            self._run.mark(StepPhase.EVALUATION)

    def on_validation_start(self, _trainer: Any, _module: Any) -> None:  # noqa: ANN401
        """An evaluation begins."""
        if self._run.begun:
            self._run.mark(StepPhase.EVALUATION)

    def on_validation_end(self, _trainer: Any, _module: Any) -> None:  # noqa: ANN401
        """An evaluation has ended."""
        if self._run.begun:
            self._run.wait_for_data()

    def on_train_end(self, _trainer: Any, _module: Any) -> None:  # noqa: ANN401
        """The loop has ended."""
        self._run.end()


class _MetricLines(_Logger):  # type: ignore[misc]  # likewise
    """Prints what a script logs as metric lines."""

    #: Parts of the path where Lightning keeps its own checkpoints if there is no other logger: as if there were none.
    name = ""
    version = ""

    def __init__(self, run: Integration) -> None:
        super().__init__()
        self._run = run

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Lightning calls this on rank 0 with the values of a step."""
        if self._run.is_first:
            self._run.log(metrics, step)

    def log_hyperparams(self, *_arguments: Any, **_named: Any) -> None:  # noqa: ANN401
        """They are in the request."""
