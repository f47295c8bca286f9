"""The loop of steps of one rank: counts and measures them, exchanges flags with the other ranks, and saves."""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import torch.distributed as dist

from trainbox import stopping
from trainbox.contract.cluster.progress import RankProgress, StepPhase
from trainbox.contract.cluster.ranks import Ranks
from trainbox.contract.settings import Settings
from trainbox.errors import TrainingError
from trainbox.log_lines import emit
from trainbox.torch.batches import Batches, Loader, map_tensors
from trainbox.torch.parallel.stopwatch import Stopwatch
from trainbox.torch.parallel.wrapping import copy_buffers, replicated
from trainbox.torch.steps.agreement import NO_FLAGS, Agreement, Place, StepFlags, compare_parameters, finite, gather
from trainbox.torch.steps.gradients import Gradients
from trainbox.torch.steps.loader_positions import LoaderPositions
from trainbox.torch.steps.uneven import UnevenMonitor, require_joinable
from trainbox.torch.world import tighten

if TYPE_CHECKING:
    from trainbox.torch.checkpoints.saver import Saver
    from trainbox.torch.checkpoints.sharded.saver import ShardedSaver

T = TypeVar("T")

#: What ranks with different numbers of batches do: fail, end with the first, or end with the last.
Uneven = Literal["error", "drop", "join"]
_GATHERED = (
    "gradients are gathered over several steps, and a checkpoint between them does not have them; use"
    " run.steps(loader, accumulate=n), or run.micro_batches"
)


class Loop:
    """Goes through the batches of loaders step by step, together with the other ranks.

    Args:
        ranks: The place of this rank.
        device: Where it computes.
        control: The group in which the ranks agree; None where this one is alone.
        progress: Where this rank reports its progress, under trainbox's launcher.
        gradients: Of the models that are trained.
        stopwatch: Measures what this rank itself computes.
        settings: Of the job.
        seed: Of the session.
        check_every: Steps from one comparison of the ranks' parameters to the next; 0 never compares.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        control: dist.ProcessGroup | None,
        progress: RankProgress | None,
        *,
        gradients: Gradients,
        stopwatch: Stopwatch,
        settings: Settings,
        seed: int,
        check_every: int,
    ) -> None:
        #: Optimizer steps done since the start of the whole job.
        self.step = 0
        #: Whether the ranks have agreed to stop.
        self.stopped = False
        self.saver: Saver | ShardedSaver | None = None
        self._rank, self._ranks = ranks.rank, ranks.world_size
        self._device, self._control, self._progress = device, control, progress
        self._gradients, self._stopwatch = gradients, stopwatch
        self._settings, self._check_every = settings, check_every
        self._stop = stopping.install(settings.grace_seconds)
        self._agreement = Agreement(control)
        self._save_asked = False
        self._save_owed = False  # agreed upon in an evaluation, in which the model may be another than that in training
        self._bad_count = 0
        self._warned_gathered = False
        self._weight = 1.0
        self._positions = LoaderPositions(seed, ranks.rank, self._log)
        self._uneven = UnevenMonitor(ranks.rank, ranks.world_size) if control is not None else None
        self._steps_here = 0

    def mark(self, phase: StepPhase) -> None:
        """Mark the phase of this rank."""
        if self._progress is not None:
            # The first step connects and compiles: it counts as start to its end.
            start = self._steps_here == 0 and phase in {StepPhase.DATA, StepPhase.COMPUTE}
            self._progress.mark(self.step, StepPhase.START if start else phase)

    def steps(self, loader: Iterable[T], *, accumulate: int, uneven: Uneven) -> Iterator[T]:
        """Yield the batches of a loader, `accumulate` of them a step; all ranks stop at the same one.

        Raises:
            TrainingError: A loss was not finite, ranks hold different parameters, or one has no batch left.
        """
        batches = loader.batches if isinstance(loader, Loader) else None
        self._agreement.hurry()
        began = computing = self._begin(StepPhase.DATA)
        number = 0  # of the batch in its step
        for batch in () if self.stopped else self._batches(loader, accumulate, uneven):
            moved = self._to_device(batch)
            self._gradients.begin(number, accumulate, self._weight)
            if number == 0:
                computing = self._begin(StepPhase.COMPUTE)
                self._stopwatch.begin()
            number += 1
            if number == accumulate and self._uneven is not None and uneven == "error":
                self._uneven.begin()
            try:
                yield moved
            except GeneratorExit:  # the loop was broken off: behind the step or within it
                if self._gradients.updated:
                    self._count(batches, accumulate)
                raise
            if number < accumulate:
                self.mark(StepPhase.COMPUTE)
                continue
            number = 0
            self._count(batches, accumulate)
            self._end_step(began, computing)
            if self.stopped:
                return
            began = self._begin(StepPhase.DATA)
        # What the script does between two rounds of the loop may take as long as an evaluation.
        self.mark(StepPhase.EVALUATION)
        if not self.stopped:
            self._end_loop(number, accumulate, uneven)

    def _batches(self, loader: Iterable[T], accumulate: int, uneven: Uneven) -> Iterator[T]:
        """Yield this rank's batches; with `join` also its last one again while other ranks have one."""
        own = self._positions.enter(loader, self.saver, self.step * accumulate)
        if self._uneven is None or uneven == "error":
            if self._uneven is not None:
                self._uneven.enter()
            yield from own
            return
        if uneven == "join":
            require_joinable(self._gradients.models)
        last: list[T] = []
        try:
            while True:
                mine = list(itertools.islice(own, 1))
                having = self._agreement.having(batch=bool(mine))
                if not having or (uneven == "drop" and having < self._ranks):
                    return
                self._weight = self._ranks / having if mine else 0.0
                last = mine or last
                if not last:
                    raise TrainingError(
                        f"rank {self._rank} has no batch at all, so there is none to repeat for uneven='join'",
                        hint="give every rank at least one batch, or use uneven='drop'",
                    )
                yield last[0]
        finally:
            self._weight = 1.0

    @property
    def idle(self) -> bool:
        """Whether this rank has no batch left and repeats its last, which counts nothing."""
        return self._weight == 0.0

    def _end_loop(self, number: int, accumulate: int, uneven: Uneven) -> None:
        """End the loop on this rank: wait for the loaders of the others to end, too."""
        if self._uneven is not None and uneven == "error":
            self._uneven.end()
        if number:
            self._gradients.drop()
            self._log(f"the loader's last {number} batches fill no step of {accumulate}: they are left out")

    def evaluation(self, loader: Iterable[T]) -> Iterator[T]:
        """Yield the batches of a loader until all ranks agree to stop. Buffers are those of rank 0 on all ranks."""
        copy_buffers(self._gradients.models)
        # Of these batches every rank has one.
        common = loader.batches.length // loader.batches.batch_size if isinstance(loader, Loader) else 0
        self._agreement.hurry()
        self.mark(StepPhase.EVALUATION)
        for number, batch in enumerate(() if self.stopped else loader, start=1):
            yield self._to_device(batch)
            self.mark(StepPhase.EVALUATION)
            if number <= common:
                self._exchange(saves=False)
                if self.stopped:
                    return

    def save(self, *, wait: bool) -> None:
        """Save now; all ranks call this at the same step."""
        self._save_asked = self._save_owed = False
        if self.saver is not None:
            self.mark(StepPhase.CHECKPOINT)
            self._require_finite()
            copy_buffers(self._gradients.models)  # of those no rank's count more: DCP would take any rank's
            self.saver.save(self.step, wait=wait)

    def close(self) -> None:
        """Finish on all ranks: exchange the remaining flags, and wait for the checkpoint that is being written."""
        self.mark(StepPhase.CHECKPOINT)
        bad = self._agreement.finish().bad
        if bad is not None:
            self._report_bad(bad)
        if self.saver is not None:
            self.saver.close()
        self.mark(StepPhase.DONE)

    def leave(self) -> None:
        """Stop the thread of this loop, however the script ended."""
        if self._uneven is not None:
            self._uneven.close()

    def _begin(self, phase: StepPhase) -> float:
        self.mark(phase)
        return time.monotonic()

    def _count(self, batches: Batches | None, each: int) -> None:
        self.step += 1
        if batches is not None:
            for _ in range(each):
                batches.advance()

    def _end_step(self, began: float, computing: float) -> None:
        now = time.monotonic()
        if self._steps_here == 0:
            tighten(self._control, now - began, self._settings.hang_seconds)
        elif self._progress is not None:
            self._progress.record(now - began, data=computing - began, computed=self._stopwatch.end())
        self._steps_here += 1
        if self._gradients.outlive_steps and self.saver is not None and not self._warned_gathered:
            self._warned_gathered = True
            self._log(f"WARNING: a resumed job will not be exact: {_GATHERED}")
        if self._check_every and self.step % self._check_every == 0:
            compare_parameters(replicated(self._gradients.models), self.step, self._control)
        self._exchange()

    def _exchange(self, *, saves: bool = True) -> None:
        """Exchange flags, and do what all ranks have agreed to; a save may have to wait for the next step."""
        due = saves and self._rank == 0 and self.saver is not None and not self._save_asked and self.saver.due()
        self._save_asked = self._save_asked or due
        stop, bad = self._stop.requested, self._gradients.losses.find(self.step)
        flags = StepFlags(stop, due, bad) if stop or due or bad is not None else NO_FLAGS
        agreed = self._agreement.exchange(flags)
        if agreed is NO_FLAGS and not self._save_owed:
            return
        if agreed.bad is not None:
            self._report_bad(agreed.bad)
        if agreed.stop:
            self.stopped = True
            self.save(wait=True)
            saved = "it is saved" if self.saver is not None else "nothing is saved: the script has not called resume"
            self._log(f"asked to stop: all ranks leave after step {self.step}; {saved}")
        elif (agreed.save or self._save_owed) and saves:
            self.save(wait=False)
        else:
            self._save_owed = self._save_owed or agreed.save

    def _require_finite(self) -> None:
        """Require finite parameters: what a bad loss has spoilt must not become the newest checkpoint."""
        sound = finite(parameter for model in self._gradients.models for parameter in model.parameters())
        if not all(gather(int(sound), self._control)):
            raise TrainingError(
                f"after step {self.step} parameters are not finite: they are not saved",
                hint="a lower learning rate, clipped gradients, or cleaner data",
            )

    def _report_bad(self, place: Place) -> None:
        what = f"the loss of rank {place.rank} at step {place.step} is not a finite number"
        if self._gradients.on_nan == "stop":
            raise TrainingError(what, hint="a lower learning rate, clipped gradients, or cleaner data")
        self._bad_count += 1
        if self._bad_count & (self._bad_count - 1) == 0:
            self._log(f"{what}: a step with such gradients changes nothing ({self._bad_count} so far)")

    def _to_device(self, batch: T) -> T:
        if self._device.type == "cpu":
            return batch
        return map_tensors(batch, lambda tensor: tensor.to(self._device, non_blocking=True))

    def _log(self, text: str) -> None:
        if self._rank == 0:
            emit(text)
