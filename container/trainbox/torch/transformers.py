"""A callback for the Trainer of Hugging Face Transformers.

    callback = TransformersCallback()
    trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.newest())

Every checkpoint that the Trainer saves below `output_dir` is published among the job's checkpoints.
"""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trainbox.contract.cluster.progress import StepPhase
from trainbox.torch.integration import EVERY_SECONDS, Integration


class TransformersCallback(TrainerCallback):  # type: ignore[misc]  # its library is not read by mypy
    """Report the Trainer's steps to trainbox, save and stop when the ranks have agreed to, log metric lines.

    Args:
        every_seconds: From one checkpoint to the next, besides those of the Trainer's own `save_strategy`.
        keep: How many published checkpoints stay.
    """

    def __init__(self, *, every_seconds: float = EVERY_SECONDS, keep: int = 3) -> None:
        self._run = Integration(every_seconds=every_seconds, keep=keep)
        self._published: Path | None = None

    @property
    def stopped(self) -> bool:
        """Whether the ranks have agreed to stop; everything is saved then, and the script should end."""
        return self._run.stopped

    def newest(self) -> str | None:
        """Return the newest valid checkpoint for `train(resume_from_checkpoint=…)`; all ranks call this."""
        found = self._run.newest()
        return None if found is None else str(found)

    # ---- what the Trainer calls: arguments, state, control, and names that are of no use here ----

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """The Trainer has its state."""
        self._run.begin(state.global_step, args.local_process_index)

    def on_epoch_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """The first batch of an epoch is waited for."""
        self._run.wait_for_data()

    def on_step_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """The batches of a step are there."""
        self._run.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """A step is done: save or stop where the ranks have agreed to."""
        agreed = self._run.end_step(state.global_step)
        control.should_save = control.should_save or agreed.save
        control.should_training_stop = control.should_training_stop or agreed.stop
        self._prepare(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """The Trainer may evaluate or save now."""
        self._prepare(args, state, control)

    def on_prediction_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """A batch is evaluated."""
        if self._run.begun:
            self._run.mark(StepPhase.EVALUATION)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """An evaluation has ended; the Trainer may save now."""
        if self._run.begun:
            self._run.wait_for_data()
            self._prepare(args, state, control)

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """The Trainer has saved."""
        made = _directory(args, state)
        if made.is_dir():  # that of a trial lies elsewhere
            self._run.publish(made)
            self._published = made

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:  # noqa: ANN401
        """The Trainer logs."""
        if state.is_world_process_zero:
            self._run.log(logs, state.global_step)

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """The loop has ended."""
        self._run.end()

    def _prepare(self, args: Any, state: Any, control: Any) -> None:  # noqa: ANN401
        """Get ready for what the Trainer does next."""
        if control.should_save:
            self._run.mark(StepPhase.CHECKPOINT)
            if self._published == _directory(args, state):  # once more after the same step: its files are published
                self._run.forget(self._published)
        elif control.should_evaluate:
            self._run.mark(StepPhase.EVALUATION)


def _directory(args: Any, state: Any) -> Path:  # noqa: ANN401
    """Where the Trainer saves after this step."""
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
