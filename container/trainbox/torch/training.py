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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from trainbox import toolkit
from trainbox.contract.cluster.progress import RankProgress, StepPhase
from trainbox.contract.cluster.ranks import Ranks
from trainbox.log_lines import emit
from trainbox.torch.batches import Batches, Tail
from trainbox.torch.checkpoints.parts import FROZEN, digest_frozen, is_partly_frozen, plain
from trainbox.torch.checkpoints.run_info import RunInfo
from trainbox.torch.checkpoints.saver import choose_saver
from trainbox.torch.determinism import seed_all
from trainbox.torch.parallel.filling import Weights, is_needed
from trainbox.torch.parallel.sharding import Asked, check_units, describe, place, plan_units
from trainbox.torch.parallel.stopwatch import Stopwatch
from trainbox.torch.parallel.wrapping import check_options, copy, rounds_anew
from trainbox.torch.permutation import derive
from trainbox.torch.precision import Precision
from trainbox.torch.steps.agreement import require_same
from trainbox.torch.steps.gradients import Gradients
from trainbox.torch.steps.loop import Loop, Uneven
from trainbox.torch.world import Backend

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
    """

    def __init__(
        self,
        ranks: Ranks,
        backend: Backend,
        control: dist.ProcessGroup | None,
        progress: RankProgress | None,
        *,
        precision: Precision,
        seed: int,
        on_nan: Literal["stop", "continue"],
        check_every: int,
    ) -> None:
        self.rank, self.world_size, self.device = ranks.rank, ranks.world_size, backend.device
        self._control = control
        self._settings = toolkit.current_job().settings
        self._precision = precision
        self._seed = seed
        self._stopwatch = Stopwatch(self.device, runs=progress is not None and ranks.world_size > 1)
        self._gradients = Gradients(
            self.device, self.rank, precision=precision, stopwatch=self._stopwatch, on_nan=on_nan
        )
        self._loop = Loop(
            ranks,
            self.device,
            control,
            progress,
            gradients=self._gradients,
            stopwatch=self._stopwatch,
            settings=self._settings,
            seed=seed,
            check_every=check_every,
        )
        self._loop.mark(StepPhase.START)

    @property
    def step(self) -> int:
        """Optimizer steps since the start of the job; a resumed job continues to count."""
        return self._loop.step

    @property
    def stopped(self) -> bool:
        """Whether the ranks have agreed to stop; everything is saved then, and the script should end."""
        return self._loop.stopped

    @property
    def idle(self) -> bool:
        """Whether this rank has no batch left and repeats its last one with weight 0 (`uneven="join"`)."""
        return self._loop.idle

    # ---- before the loop ----

    def wrap(
        self,
        model: M,
        *,
        sharded: bool = False,
        units: Sequence[Asked] = (),
        weights: Weights | None = None,
        **ddp_options: Any,  # noqa: ANN401 - those of DDP
    ) -> M:
        """Move a model to the device and average its gradients over the ranks; with one rank it is only moved.

        Args:
            model: The same on all ranks, which it is if it was made after `session` began.
            sharded: Spread parameters, gradients and optimizer state over the ranks (FSDP2), for a model that one
                device cannot hold. It reaches the device a unit at a time.
            units: With `sharded`, what is gathered together: patterns of module names as `model.layers.*`, or classes.
                By default the layers in lists, and the modules outside of these.
            weights: What fills a model made on the device `meta`: tensors by name, a safetensors file or a directory of
                such, or a function that initializes the module it is called with; by default that of the modules.
            ddp_options: Of DistributedDataParallel, as `find_unused_parameters=True`; alone they change nothing.

        Returns:
            Call this one in training; in evaluation call either.

        Raises:
            HyperparameterError: DistributedDataParallel has no such option, the model no such units, or something on
                `meta` cannot be filled.
            DataError: The weights are those of another model.
        """
        check_options(ddp_options, sharded=sharded)
        check_units(units, sharded=sharded)
        name, count = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
        policy = self._precision.shard() if sharded and self.world_size > 1 else None
        plan = plan_units(model, units, policy.param_dtype if policy else None) if sharded or is_needed(model) else ()
        wrapped: nn.Module = place(model, plan, self.device, weights, policy, ranks=self.world_size)
        how = "one rank"
        if policy is not None:
            self._stopwatch.runs = False  # FSDP2 waits at every layer: what a rank itself computes cannot be told
            how = f"spread over {self.world_size} ranks {describe(plan)}"
        elif self.world_size > 1:
            wrapped = copy(wrapped, self.device, self.world_size, self._stopwatch, ddp_options)
            how = f"a copy on each of {self.world_size} ranks"
        self._gradients.models.append(wrapped)
        # The models are alike now; from here on each rank draws its own numbers, for dropout and the like.
        seed_all(derive(self._seed, "rank", self.rank))
        self.print(f"model {name}: {count:,} parameters, {how}")
        if rounds_anew(ddp_options, self.world_size):
            self.print("static_graph=True: the first step after a restart may round differently")
        return cast("M", wrapped)  # called the same way, whatever it is inside

    def batches(
        self, length: int, *, batch_size: int, seed: int | None = None, tail: Tail = "drop", shuffle: bool = True
    ) -> Batches:
        """Return the batches of a data set, divided among the ranks of this session; see `Batches`.

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
        self,
        *,
        every_seconds: float | None = None,
        identity: Mapping[str, str] | None = None,
        trainable_only: bool = False,
        **parts: object,
    ) -> int:
        """Load the newest valid checkpoint into the parts, if there is one, and keep saving them from now on.

        Args:
            every_seconds: From one checkpoint to the next; by default as often as costs little.
            identity: What shapes the result: a checkpoint of something else is refused.
            trainable_only: Leave out the frozen parameters of models that are trained in part (LoRA): the script loads
                the same ones at each start, which is checked.
            parts: By name: what has `state_dict` and `load_state_dict`, or a dict of tensors and JSON values.

        Returns:
            The step to go on from; 0 at the first start.

        Raises:
            CheckpointError: The newest checkpoint is one of another model or another job.
        """
        if self._precision.scaler.is_enabled():
            parts["scaler"] = self._precision.scaler
        identity = identity or {}
        if trainable_only:
            inner = [plain(part) for part in parts.values() if isinstance(part, nn.Module)]
            models = [model for model in inner if isinstance(model, nn.Module) and is_partly_frozen(model)]
            identity = {**identity, FROZEN: digest_frozen(models, self._control)}
        host, seconds = toolkit.current_job().current_host, EVERY_SECONDS if every_seconds is None else every_seconds
        hang = self._settings.hang_seconds
        run = RunInfo(self.rank, self.world_size, self._control, host, self._seed, identity, seconds, hang)
        saver = choose_saver(toolkit.checkpoints(), parts, run)
        self._loop.mark(StepPhase.CHECKPOINT)
        self._loop.saver, self._loop.step = saver, saver.resume()
        self._loop.mark(StepPhase.START)
        return self.step

    def require_same(self, what: str, digest: int) -> None:
        """End the job if ranks have read different data; all ranks call this.

        Args:
            what: In the plural, for the message.
            digest: 63 bits.

        Raises:
            DataError: Ranks have different digests; says which.
        """
        require_same(what, digest, self._control)

    # ---- the loop ----

    def steps(self, loader: Iterable[T], *, accumulate: int = 1, uneven: Uneven = "error") -> Iterator[T]:
        """Yield the batches of a loader on the device, one optimizer step each; all ranks stop after the same step.

        At the end of each step, that is when the loop asks for the next batch or breaks off after `update`, the
        position of the loader's batches moves on, and the ranks agree whether to save and whether to stop.

        Args:
            loader: Of `batches`, or whatever gives batches; one with `state_dict` keeps its place, too.
            accumulate: Batches of a step. `backward` weighs each by its share, `update` acts with the last, and a step
                that is not whole at the end of the loader is left out.
            uneven: What ranks with different numbers of batches do: `error` ends the job, `drop` ends the loop with the
                first rank, `join` with the last, while those that have none repeat their last batch with weight 0.

        Raises:
            HyperparameterError: `join`, and a model is spread over the ranks.
            TrainingError: A loss was not finite, ranks hold different parameters, or one has no batch left.
        """
        return self._loop.steps(loader, accumulate=accumulate, uneven=uneven)

    def micro_batches(self, batch: T, parts: int) -> Iterator[T]:
        """Yield a batch in pieces whose gradients add up to those of the batch; ranks exchange them with the last one.

        `backward` weighs each piece by its share, so give it the mean loss of the piece.
        """
        return self._gradients.micro_batches(batch, parts)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for forward pass and loss, in the session's precision."""
        return self._precision.autocast()

    def backward(self, loss: torch.Tensor, *, weight: float | torch.Tensor | None = None) -> None:
        """Compute the gradients of a mean loss, scaled for fp16; whether it is finite is checked one step later.

        Args:
            loss: A mean, of as many rows on each rank.
            weight: What it is the mean of, as a number of tokens, where ranks or pieces of a batch differ in that: then
                the gradients are those of the mean over the tokens of all ranks and pieces. For each loss of a step.

        Raises:
            TrainingError: Of the losses of one step some have a weight.
        """
        self._gradients.backward(loss, weight)

    def update(self, optimizer: torch.optim.Optimizer, *, clip: float | None = None) -> bool:
        """Take one step of the optimizer, and reset the gradients.

        Args:
            optimizer: Of parameters whose gradients `backward` has made.
            clip: The largest norm of all gradients together.

        Returns:
            False, and nothing has happened, where `accumulate` has more batches of this step to come.
        """
        return self._gradients.update(optimizer, clip=clip)

    def save(self) -> None:
        """Save now, and wait until the checkpoint is on the disk; all ranks call this after the same step."""
        self._loop.save(wait=True)

    # ---- beside the loop ----

    def evaluation(self, loader: Iterable[T]) -> Iterator[T]:
        """Yield the batches of a loader on this rank's device; end early, with `stopped`, if all ranks agree to stop.

        Ranks may have different numbers of batches: call the bare model here, for one that is wrapped may wait for
        the others. Buffers (the running means of batch norm) are those of rank 0 on all ranks.
        """
        return self._loop.evaluation(loader)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sums over all ranks, the same bits on each: float64, on the CPU; all ranks call this."""
        summed = values.detach().to("cpu", torch.float64, copy=True)
        if self._control is not None:
            self._stopwatch.wait(lambda: dist.all_reduce(summed, group=self._control))
        return summed

    def print(self, text: str) -> None:
        """Log one line, from rank 0 only."""
        if self.rank == 0:
            emit(text)
