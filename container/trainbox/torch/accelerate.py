"""The loop of a script that uses Hugging Face Accelerate.

accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
loop = AccelerateLoop(accelerator)
for epoch in loop.epochs(3):
    for inputs, targets in loop.steps(loader):
        loss = criterion(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    loop.log({"loss": loss.item()})
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from accelerate import Accelerator, skip_first_batches
from accelerate.utils import load

from trainbox.contract.cluster.progress import StepPhase
from trainbox.torch.checkpoints.pickles import check_objects
from trainbox.torch.integration import EVERY_SECONDS, Integration

T = TypeVar("T")


class AccelerateLoop:
    """Loop over epochs and steps from the newest checkpoint on, until the ranks have agreed to stop.

    Made after `prepare`, and after whatever else `register_for_checkpointing` is called for. Checkpoints are those of
    `save_state`; the place in the epoch is saved with them.

    Args:
        accelerator: That of the script.
        every_seconds: From one checkpoint to the next.
        every_steps: Steps from one checkpoint to the next, in addition.
        keep: How many checkpoints stay.

    Attributes:
        epoch: The epoch that the loop is in.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        every_seconds: float = EVERY_SECONDS,
        every_steps: int | None = None,
        keep: int = 3,
    ) -> None:
        self._accelerator: Any = accelerator
        self._every_steps = every_steps
        self._run = Integration(every_seconds=every_seconds, keep=keep)
        self.epoch = 0
        self._step = 0
        self._batch = 0  # in the epoch
        self._accelerator.register_for_checkpointing(self)
        found = self._run.newest()
        if found is not None:
            if not self._run.has_key:
                # Accelerate allows these to call anything. The place of this loop is one of them.
                check_objects(found, "custom_checkpoint_*.pkl", partial(load, map_location="cpu", weights_only=True))
            self._accelerator.load_state(str(found))
        self._run.begin(self._step, self._accelerator.local_process_index)

    @property
    def step(self) -> int:
        """Optimizer steps since the start of the whole job."""
        return self._step

    @property
    def stopped(self) -> bool:
        """Whether the ranks have agreed to stop; everything is saved then, and the script should end."""
        return self._run.stopped

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the remaining epochs, up to `count` in all."""
        while self.epoch < count and not self.stopped:
            yield self.epoch
        self._run.end()

    def steps(self, loader: Iterable[T]) -> Iterator[T]:
        """Yield the remaining batches of a prepared loader in this epoch.

        At the end of each optimizer step the ranks agree whether to save and whether to stop.
        """
        run = self._run
        run.wait_for_data()
        for batch in self._left(loader):
            run.begin_step()
            yield batch
            self._batch += 1
            if not self._accelerator.sync_gradients:  # gradients are gathered over several batches
                continue
            self._step += 1
            agreed = run.end_step(self._step)
            if agreed.save or (self._every_steps and self._step % self._every_steps == 0):
                self.save()
            if self.stopped:
                return
        self.epoch += 1
        self._batch = 0
        run.mark(StepPhase.EVALUATION)  # what the script does between two epochs may take as long

    def save(self) -> None:
        """Save now; all ranks call this after the same step."""
        self._run.save(lambda directory: self._accelerator.save_state(str(directory)))

    def log(self, values: Mapping[str, object]) -> None:
        """Print a metric line, from the main process."""
        if self._accelerator.is_main_process:
            self._run.log(values, self._step)

    def state_dict(self) -> dict[str, int]:
        """Return the position of the loop; `save_state` calls this."""
        return {"epoch": self.epoch, "step": self._step, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a saved position; `load_state` calls this."""
        self.epoch, self._step, self._batch = state["epoch"], state["step"], state["batch"]

    def _left(self, loader: Any) -> Iterable[Any]:  # noqa: ANN401 - of accelerate
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.epoch)
        # A loader with a state has come to its place with the checkpoint.
        if not self._batch or getattr(loader, "use_stateful_dataloader", False):
            return loader  # type: ignore[no-any-return]  # of accelerate
        return skip_first_batches(loader, self._batch)  # type: ignore[no-any-return]  # of accelerate
