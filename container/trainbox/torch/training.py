"""The session of a training script: what each rank needs around its loop, in a few plain calls.

    with session(seed=1, precision="bf16") as run:
        model = run.wrap(Net())
        optimizer = torch.optim.AdamW(model.parameters())
        batches = run.batches(len(dataset), batch_size=256)
        run.resume(model=model, optimizer=optimizer, batches=batches)
        loader = batches.loader(dataset, workers=2)
        while batches.epoch < epochs and not run.stopped:
            for inputs, targets in run.steps(loader):
                with run.autocast():
                    loss = criterion(model(inputs), targets)
                run.backward(loss)
                run.update(optimizer)
            if not run.stopped:
                batches.next_epoch()

The same script runs alone, under torchrun and under trainbox's launcher.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grad_norm_

from trainbox import stopping, toolkit
from trainbox.contract.job import read_environment
from trainbox.contract.ranks import Ranks
from trainbox.elastic.progress import Progress, Section, open_progress
from trainbox.errors import TrainingError
from trainbox.say import say
from trainbox.torch.agree import Agreement, Flags, Place, compare_parameters, finite, gather, require_same
from trainbox.torch.batches import Batches, Loader, Tail
from trainbox.torch.checkpoints.choice import choose_saver
from trainbox.torch.checkpoints.course import Course
from trainbox.torch.exact import algorithms, seed_all
from trainbox.torch.losses import FP16_PATIENCE, LossWatch
from trainbox.torch.nested import change, samples
from trainbox.torch.permutation import derive
from trainbox.torch.precision import Precision, PrecisionName
from trainbox.torch.stopwatch import Stopwatch
from trainbox.torch.world import Backend, choose_backend, joined, read_torchrun_ranks, tighten
from trainbox.torch.wrapping import copy, copy_buffers, exchange_gradients, replicated, shard

if TYPE_CHECKING:
    from trainbox.torch.checkpoints.saver import Saver
    from trainbox.torch.checkpoints.sharded import ShardedSaver

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

#: From one checkpoint to the next, unless the script says otherwise.
EVERY_SECONDS = 300.0
#: Steps from one comparison of the ranks' parameters to the next.
CHECK_EVERY = 500


class Session:
    """One rank's part in the training. Made by `session`.

    Attributes:
        rank: This process among `world_size`.
        world_size: Processes of the whole job.
        device: Where this rank computes.
        step: Optimizer steps done since the start of the whole job; a resumed job goes on counting.
        stopped: Whether the ranks have agreed to stop; everything is saved then, and the script should end.
    """

    def __init__(
        self,
        ranks: Ranks,
        backend: Backend,
        control: dist.ProcessGroup | None,
        progress: Progress | None,
        *,
        precision: Precision,
        seed: int,
        on_nan: Literal["stop", "continue"],
        check_every: int,
    ) -> None:
        self.rank, self.world_size, self.device = ranks.rank, ranks.world_size, backend.device
        self.step = 0
        self.stopped = False
        self._control = control
        self._settings = toolkit.current_job().settings
        self._stop = stopping.install(self._settings.grace_seconds)
        self._precision = precision
        self._seed = seed
        self._on_nan = on_nan
        self._check_every = check_every
        self._agreement = Agreement(control)
        self._wrapped: list[nn.Module] = []
        self._saver: Saver | ShardedSaver | None = None
        self._save_asked = False
        self._save_owed = False  # agreed upon in an evaluation, in which the model may be another than that in training
        self._updated = False
        self._share = 1.0  # of the micro-batch in its batch
        patience = FP16_PATIENCE if precision.scaler.is_enabled() else 1
        self._losses = LossWatch(self.device, self.rank, patience=patience)
        self._bad_said = 0
        self._steps_here = 0
        self._progress = progress
        self._stopwatch = Stopwatch(self.device, runs=progress is not None and ranks.world_size > 1)
        self._mark(Section.START)

    # ---- before the loop ----

    def wrap(self, model: M, *, sharded: bool = False) -> M:
        """The model on its device, its gradients averaged over the ranks; alone it comes back as it is.

        Args:
            model: The same on all ranks, which it is if it was made after `session` began.
            sharded: Spread parameters, gradients and optimizer state over the ranks (FSDP2), for a model that one
                device cannot hold.

        Returns:
            Call this one in training; in evaluation call either.
        """
        model = model.to(self.device)
        count = sum(parameter.numel() for parameter in model.parameters())
        wrapped, how = cast("nn.Module", model), "one rank"
        if self.world_size > 1 and sharded:
            wrapped = shard(model, self.device, self.world_size, self._precision)
            self._stopwatch.runs = False  # FSDP2 waits at every layer: what a rank itself computes cannot be told
            how = f"spread over {self.world_size} ranks"
        elif self.world_size > 1:
            wrapped = copy(model, self.device, self.world_size, self._stopwatch)
            how = f"a copy on each of {self.world_size} ranks"
        self._wrapped.append(wrapped)
        # The models are alike now; from here on each rank draws its own numbers, for dropout and the like.
        seed_all(derive(self._seed, "rank", self.rank))
        self.say(f"model {type(model).__name__}: {count:,} parameters, {how}")
        return cast("M", wrapped)  # called the same way, whatever it is inside

    def batches(
        self, length: int, *, batch_size: int, seed: int | None = None, tail: Tail = "drop", shuffle: bool = True
    ) -> Batches:
        """The batches of a data set, shared by the ranks of this session; see `Batches`.

        Raises:
            HyperparameterError: The ranks cannot share the batches evenly, or there is not one whole batch.
        """
        return Batches(
            length,
            batch_size=batch_size,
            seed=self._seed if seed is None else seed,
            rank=self.rank,
            world_size=self.world_size,
            tail=tail,
            shuffle=shuffle,
        )

    def resume(
        self, *, every_seconds: float | None = None, identity: Mapping[str, str] | None = None, **parts: object
    ) -> int:
        """Load the newest valid checkpoint into the parts, if there is one, and keep saving them from now on.

        Args:
            every_seconds: From one checkpoint to the next; by default as often as costs little.
            identity: What shapes the result: a checkpoint of something else is refused.
            parts: By name: what has `state_dict` and `load_state_dict`, or a dict of tensors and JSON values.

        Returns:
            The step to go on from; 0 at the first start.

        Raises:
            CheckpointError: The newest checkpoint is one of another model or another job.
        """
        if self._precision.scaler.is_enabled():
            parts["scaler"] = self._precision.scaler
        host, seconds = toolkit.current_job().current_host, EVERY_SECONDS if every_seconds is None else every_seconds
        hang = self._settings.hang_seconds
        course = Course(self.rank, self.world_size, self._control, host, self._seed, identity or {}, seconds, hang)
        self._saver = choose_saver(toolkit.checkpoints(), parts, course)
        self._mark(Section.CHECKPOINT)
        self.step = self._saver.resume()
        self._mark(Section.START)
        return self.step

    def require_same(self, what: str, digest: int) -> None:
        """All ranks call this: those that have read different data must not train together.

        Args:
            what: In the plural, for the message.
            digest: 63 bits.

        Raises:
            DataError: Ranks have different digests; says which.
        """
        require_same(what, digest, self._control)

    # ---- the loop ----

    def steps(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader on this rank's device, one optimizer step each; all ranks stop at the same one.

        At the end of each step, that is when the loop asks for the next batch or breaks off after `update`, the
        position of the loader's batches moves on, and the ranks agree whether to save and whether to stop.

        Raises:
            TrainingError: A loss was not finite, or ranks hold different parameters.
        """
        batches = loader.batches if isinstance(loader, Loader) else None
        self._agreement.hurry()
        began = self._begin(Section.DATA)
        for batch in () if self.stopped else loader:
            moved = self._to_device(batch)
            self._updated, self._share = False, 1.0
            computing = self._begin(Section.COMPUTE)
            self._stopwatch.begin()
            try:
                yield moved
            except GeneratorExit:  # the loop was broken off: behind the step or within it
                if self._updated:
                    self._count(batches)
                raise
            self._count(batches)
            self._end_step(began, computing)
            if self.stopped:
                return
            began = self._begin(Section.DATA)
        # What the script does between two rounds of the loop may take as long as an evaluation.
        self._mark(Section.EVALUATION)

    def micro_batches(self, batch: T, parts: int) -> Iterator[T]:
        """A batch in pieces whose gradients add up to those of the whole; the ranks exchange them with the last.

        `backward` weighs each piece by its share, so give it the mean loss of the piece.
        """
        whole = samples(batch)
        size = -(-whole // parts)
        for start in range(0, whole, size):
            exchange_gradients(self._wrapped, now=start + size >= whole)
            piece = change(batch, itemgetter(slice(start, start + size)))
            self._share = samples(piece) / whole
            yield piece

    def autocast(self) -> AbstractContextManager[object]:
        """The context of forward pass and loss, for the session's precision."""
        return self._precision.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """The gradients of a mean loss, scaled where fp16 needs it; whether it is finite is looked at a step later."""
        self._losses.see(loss)
        self._stopwatch.backward(self._precision.scaler.scale(loss if self._share == 1.0 else loss * self._share))

    def update(self, optimizer: torch.optim.Optimizer, *, clip: float | None = None) -> None:
        """One step of the optimizer, after which the gradients are gone.

        Args:
            optimizer: Of parameters whose gradients `backward` has made.
            clip: The largest norm of all gradients together.
        """
        scaler = self._precision.scaler
        scaler.unscale_(optimizer)
        sound = True
        if clip is not None or self._on_nan == "continue":
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = clip_grad_norm_(parameters, float("inf") if clip is None else clip)
            sound = self._on_nan == "stop" or bool(torch.isfinite(norm))
        if sound:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self._updated = True

    def save(self) -> None:
        """All ranks call this at the same step: save now, and wait until it is on the disk."""
        self._save(wait=True)

    # ---- beside the loop ----

    def evaluation(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader on this rank's device; ends early, with `stopped`, once all agree to stop.

        Ranks may have different numbers of batches: call the bare model here, for one that is wrapped may wait for
        the others. Buffers (the running means of batch norm) are those of rank 0 on all ranks.
        """
        copy_buffers(self._wrapped)
        # Of these batches every rank has one.
        common = loader.batches.length // loader.batches.batch_size if isinstance(loader, Loader) else 0
        self._agreement.hurry()
        self._mark(Section.EVALUATION)
        for number, batch in enumerate(() if self.stopped else loader, start=1):
            yield self._to_device(batch)
            self._mark(Section.EVALUATION)
            if number <= common:
                self._exchange(saves=False)
                if self.stopped:
                    return

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sums over all ranks, the same bits on each: float64, on the processor. All ranks call this."""
        summed = values.detach().to("cpu", torch.float64, copy=True)
        if self._control is not None:
            self._stopwatch.wait(lambda: dist.all_reduce(summed, group=self._control))
        return summed

    def say(self, text: str) -> None:
        """One line in the log, from rank 0."""
        if self.rank == 0:
            say(text)

    # ---- inside ----

    def _begin(self, section: Section) -> float:
        self._mark(section)
        return time.monotonic()

    def _mark(self, section: Section) -> None:
        if self._progress is not None:
            # The first step connects and compiles: it counts as start to its end.
            start = self._steps_here == 0 and section in {Section.DATA, Section.COMPUTE}
            self._progress.mark(self.step, Section.START if start else section)

    def _count(self, batches: Batches | None) -> None:
        self.step += 1
        if batches is not None:
            batches.advance()

    def _end_step(self, began: float, computing: float) -> None:
        now = time.monotonic()
        if self._steps_here == 0:
            tighten(self._control, now - began, self._settings.hang_seconds)
        elif self._progress is not None:
            self._progress.record(now - began, data=computing - began, computed=self._stopwatch.end())
        self._steps_here += 1
        if self._check_every and self.step % self._check_every == 0:
            compare_parameters(replicated(self._wrapped), self.step, self._control)
        self._exchange()

    def _exchange(self, *, saves: bool = True) -> None:
        """Say how this rank stands, and do what all have agreed to; a save may have to wait for the next step."""
        due = saves and self.rank == 0 and self._saver is not None and not self._save_asked and self._saver.due()
        self._save_asked = self._save_asked or due
        agreed = self._agreement.exchange(Flags(self._stop.requested, due, self._losses.find(self.step)))
        if agreed.bad is not None:
            self._report_bad(agreed.bad)
        if agreed.stop:
            self.stopped = True
            self._save(wait=True)
            saved = "it is saved" if self._saver is not None else "nothing is saved: the script has not called resume"
            self.say(f"asked to stop: all ranks leave after step {self.step}; {saved}")
        elif (agreed.save or self._save_owed) and saves:
            self._save(wait=False)
        else:
            self._save_owed = self._save_owed or agreed.save

    def _save(self, *, wait: bool) -> None:
        self._save_asked = self._save_owed = False
        if self._saver is not None:
            self._mark(Section.CHECKPOINT)
            self._require_finite()
            copy_buffers(self._wrapped)  # of those that are no one's more than another's, DCP would take any rank's
            self._saver.save(self.step, wait=wait)

    def _require_finite(self) -> None:
        """What a loss has spoilt that nobody has heard of yet must not become the newest checkpoint."""
        sound = finite(parameter for model in self._wrapped for parameter in model.parameters())
        if not all(gather(int(sound), self._control)):
            raise TrainingError(
                f"after step {self.step} parameters are not finite: they are not saved",
                hint="a lower learning rate, clipped gradients, or cleaner data",
            )

    def _report_bad(self, place: Place) -> None:
        what = f"the loss of rank {place.rank} at step {place.step} is not a finite number"
        if self._on_nan == "stop":
            raise TrainingError(what, hint="a lower learning rate, clipped gradients, or cleaner data")
        self._bad_said += 1
        if self._bad_said & (self._bad_said - 1) == 0:
            self.say(f"{what}: a step with such gradients changes nothing ({self._bad_said} so far)")

    def _to_device(self, batch: T) -> T:
        if self.device.type == "cpu":
            return batch
        return change(batch, lambda tensor: tensor.to(self.device, non_blocking=True))

    def _close(self) -> None:
        """All ranks are through: what nobody has heard yet is heard, and what is being written is finished."""
        self._mark(Section.CHECKPOINT)
        bad = self._agreement.finish().bad
        if bad is not None:
            self._report_bad(bad)
        if self._saver is not None:
            self._saver.close()
        self._mark(Section.DONE)


@contextmanager
def session(
    *,
    seed: int = 0,
    precision: PrecisionName = "fp32",
    backend: str | None = None,
    deterministic: bool = True,
    on_nan: Literal["stop", "continue"] = "stop",
    check_every: int = CHECK_EVERY,
) -> Iterator[Session]:
    """Join the other ranks, on the right device, with everything seeded; leave together with them.

    Args:
        seed: Of every random choice. All ranks draw the same until `wrap`, so that their models are the same.
        precision: fp32, or a mixed precision: bf16 or fp16.
        backend: Of torch.distributed; by default that of the request, else nccl with GPUs and gloo without.
        deterministic: Only algorithms that give the same bits each time, where there are such.
        on_nan: What a loss that is not finite does: stop the job, or leave its step out.
        check_every: Steps from one comparison of the ranks' parameters to the next; 0 never compares.

    Raises:
        ContractError: The variables of the rank are not those of torchrun.
        HyperparameterError: A GPU, a library or a precision that is asked for is not there.
    """
    settings, env = toolkit.current_job().settings, read_environment()
    ranks = read_torchrun_ranks(env)
    progress = open_progress(env, ranks)
    if progress is not None:
        progress.mark(0, Section.JOIN)  # first: who hears a stop and has yet to join is not waited for
    toolkit.stop_requested()  # from here on SIGTERM is a request
    gpus = torch.cuda.device_count()
    chosen = choose_backend(backend or settings.backend, ranks, gpus=gpus, nccl=dist.is_nccl_available())
    with algorithms(deterministic=deterministic), joined(ranks, chosen, pauses=settings.start_seconds) as control:
        seed_all(derive(seed, "all"))
        run = Session(
            ranks,
            chosen,
            control,
            progress,
            precision=Precision(precision, chosen.device),
            seed=seed,
            on_nan=on_nan,
            check_every=check_every,
        )
        gather(ranks.rank, control)  # every rank can be reached, before anything is computed
        several = f"{ranks.world_size} ranks, {ranks.local_world_size} on this host, {chosen.name}"
        who = several if ranks.world_size > 1 else "one rank"
        run.say(
            f"{who} on {chosen.device.type} ({chosen.reason}), {precision}, {torch.get_num_threads()} threads a rank,"
            f" seed {seed}, torch {torch.__version__}"
        )
        yield run
        run._close()  # noqa: SLF001 - of the same module
