"""What trainbox does around the loop of a library: progress, drills, an agreed stop, checkpoints, metric lines.

The library trains and saves; an integration tells this class when a step begins and ends. Used by `transformers`,
`lightning` and `accelerate` beside this module, each of which imports its library.
"""

import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from numbers import Real
from pathlib import Path

import torch
import torch.distributed as dist

from trainbox import metrics, stopping, toolkit
from trainbox.contract.cluster.progress import StepPhase, open_progress
from trainbox.contract.cluster.ranks import RANK_VARIABLES, Ranks, read_ranks
from trainbox.contract.cluster.world import in_world
from trainbox.contract.job import read_environment
from trainbox.errors import CheckpointError, ContractError, end_as_declared
from trainbox.log_lines import emit
from trainbox.system import gloo_threads
from trainbox.torch.checkpoints.collectives import RankGroup
from trainbox.torch.checkpoints.library_checkpoints import (
    CommonCheckpoints,
    HostLeaders,
    StagingDirectory,
    find_hosts,
    publish,
)
from trainbox.torch.checkpoints.pickles import check_indexes
from trainbox.torch.steps.agreement import Agreement, StepFlags, gather
from trainbox.torch.world import JOIN_TIMEOUT

#: From one checkpoint to the next, unless the script says otherwise.
EVERY_SECONDS = 300.0


class Integration:
    """One rank's part, for as long as its process lives.

    Args:
        every_seconds: From one checkpoint to the next.
        keep: How many checkpoints stay.

    Attributes:
        step: Optimizer steps since the start of the whole job.
        stopped: Whether the ranks have agreed to stop.
    """

    def __init__(self, *, every_seconds: float, keep: int) -> None:
        self.step = 0
        self.stopped = False
        self.begun = False
        self._job = toolkit.current_job()
        self._hook = end_as_declared if _is_of_torch(sys.excepthook) else sys.excepthook
        env, given = read_place()
        ranks = given or Ranks()
        self._least = given.world_size if given else len(in_world(self._job).hosts)  # processes that train together
        self._progress = open_progress(env, ranks, emit)
        self.mark(StepPhase.JOIN)  # first: who hears a stop and has yet to join is not waited for
        self._stop = stopping.install(self._job.settings.grace_seconds)
        self._store = toolkit.checkpoints(keep=keep)
        self._search = CommonCheckpoints(self._store, ranks, seconds=self._job.settings.start_seconds)
        self._every_seconds = every_seconds
        self._agreement = Agreement(None)
        self._peers = RankGroup(0, 1)
        self._hosts = HostLeaders((0,), (0,))
        self._steps_here = 0
        self._began = self._computing = 0.0
        self._save_at = float("inf")

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, once the loop has begun."""
        return self._peers.rank == 0

    @property
    def has_key(self) -> bool:
        """Whether a key tells that a checkpoint is genuine: then its library may read what it likes of it."""
        return bool(self._store.keys)

    def newest(self) -> Path | None:
        """Return the directory of the newest valid checkpoint, the same on every rank; None if there is none.

        Raises:
            NotGenuineError: No key of the job has sealed it; or, without a key, DCP's pickles in it ask for code.
        """
        found = self._search.newest()
        if found is not None and not self.has_key:
            check_indexes(found)
        return found

    # ---- the loop ----

    def begin(self, step: int, local_rank: int) -> None:
        """The library has its process group and its state, and the loop begins; all ranks call this.

        Args:
            step: How many steps are done.
            local_rank: The place of this rank on its host.

        Raises:
            CheckpointError: The ranks have resumed from different steps.
            ContractError: The library trains without other processes of the job.
        """
        self.take_signal()
        if _is_of_torch(sys.excepthook):  # it loses the traceback of an error that has an exit code of its own
            sys.excepthook = self._hook
        group, size = None, dist.get_world_size() if dist.is_initialized() else 1
        if size < self._least:
            raise ContractError(
                f"the loop has {size} process(es), but the job at least {self._least}: each would train alone, and all"
                " would write the same checkpoints",
                hint="Lightning: Trainer(**processes()), with processes from trainbox.torch.lightning; Transformers and"
                " Accelerate: let trainbox start the processes, which sets RANK",
            )
        if size > 1:
            gloo_threads.wait_at_exit()
            patience = max(JOIN_TIMEOUT, timedelta(seconds=self._job.settings.start_seconds))
            group = dist.new_group(backend="gloo", timeout=patience)
            self._peers = RankGroup(dist.get_rank(), size, group)
        steps = gather(step, group)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the ranks have resumed from different steps: {', '.join(map(str, steps))}",
                hint="give each host the same checkpoints",
            )
        self._hosts = find_hosts(self._store, self._peers, local_rank)
        self._agreement = Agreement(group)
        self.step, self.stopped, self.begun, self._steps_here = step, False, True, 0
        self._began = self._computing = time.monotonic()
        self._save_at = self._began + self._every_seconds
        self.mark(StepPhase.START)

    def take_signal(self) -> None:
        """Let SIGTERM ask for a stop again, after the library has set a handler of its own."""
        signal.signal(signal.SIGTERM, self._stop)

    def begin_step(self) -> None:
        """This rank has the batch of a step."""
        self._computing = time.monotonic()
        self.mark(StepPhase.COMPUTE)

    def end_step(self, step: int) -> StepFlags:
        """So many steps are done: give what all ranks have agreed to do now, to save or to stop.

        All ranks call this after the same step. Who is to stop is to save as well.
        """
        now = time.monotonic()
        self.step = step
        if self._steps_here and self._progress is not None:
            # Not what this rank computed by itself, which a library does not tell: all ranks say the same.
            self._progress.record(now - self._began, data=self._computing - self._began, computed=[now - self._began])
        self._steps_here += 1
        self.wait_for_data()
        due = self._peers.rank == 0 and now >= self._save_at
        if due:
            self._save_at = float("inf")  # it is asked for
        agreed = self._agreement.exchange(StepFlags(self._stop.requested, due))
        self.stopped = self.stopped or agreed.stop
        return StepFlags(agreed.stop, agreed.save or agreed.stop)

    def wait_for_data(self) -> None:
        """The next step begins, with the wait for its batch."""
        self._began = time.monotonic()
        self.mark(StepPhase.DATA)

    def mark(self, phase: StepPhase) -> None:
        """Tell the launcher that this rank is alive, and what it is at."""
        if self._progress is not None:
            # The first step connects and compiles: it counts as start to its end.
            start = self.begun and self._steps_here == 0 and phase in {StepPhase.DATA, StepPhase.COMPUTE}
            self._progress.mark(self.step, StepPhase.START if start else phase)

    def end(self) -> None:
        """The loop has ended on all ranks."""
        self._agreement.finish()
        self.mark(StepPhase.DONE)

    # ---- checkpoints ----

    def save(self, write: Callable[[Path], object]) -> None:
        """Have the library write a checkpoint into a directory, and publish it; all ranks call this.

        Args:
            write: Writes into an empty directory, which has the same name on all ranks of a host.
        """
        self.mark(StepPhase.CHECKPOINT)
        scratch = StagingDirectory(self._store, self.step)
        if self._peers.rank in self._hosts.writers:  # the others see theirs
            scratch.make()
        self._peers.all_gather(b"")
        write(scratch.path)
        self.publish(scratch.path, keep=False)

    def publish(self, made: Path, *, keep: bool = True) -> None:
        """Make what the library has written the newest checkpoint, once all ranks have; all ranks call this.

        Args:
            made: The directory that it has written.
            keep: Whether the directory stays.
        """
        self.mark(StepPhase.CHECKPOINT)
        self._peers.all_gather(b"")
        began = time.monotonic()
        publish(self._store, self.step, made, self._peers, self._hosts, keep=keep)
        self._save_at = time.monotonic() + self._every_seconds
        if self._peers.rank == 0:
            emit(f"checkpoint of step {self.step}: published in {time.monotonic() - began:.2f} s")
            if self.stopped:
                emit(f"asked to stop: all ranks leave after step {self.step}; it is saved")
        self.wait_for_data()

    def forget(self, made: Path) -> None:
        """Remove a directory whose files are published, before the library overwrites them; all ranks call this."""
        self._peers.all_gather(b"")
        if self._peers.rank in self._hosts.leaders:
            shutil.rmtree(made, ignore_errors=True)
        self._peers.all_gather(b"")

    # ---- metrics ----

    def log(self, values: Mapping[str, object], step: int | None = None) -> None:
        """Print one metric line with those of the values that are numbers; rank 0 calls this."""
        named = metric_values(values)
        if named:
            metrics.emit(metrics.line(self.step if step is None else step, named))


def read_place() -> tuple[Mapping[str, str], Ranks | None]:
    """Return the environment, and the place of this process if it was started as one of a process for each device.

    The place is None where variables are missing: the process starts others itself, or was started by such a one.
    """
    env = read_environment()
    return env, read_ranks(env) if all(env.get(name) for name in RANK_VARIABLES) else None


def _is_of_torch(hook: Callable[..., object]) -> bool:
    return hook.__module__ == dist.distributed_c10d.__name__


def metric_values(values: Mapping[str, object]) -> dict[metrics.Metric, float]:
    """Pure: those of a library's values that are numbers, under names that a metric line can have."""
    numbers = {name: _number(value) for name, value in values.items()}
    # Which way is better is of no concern for a line.
    return {metrics.Metric(_legal(name), "minimize"): value for name, value in numbers.items() if value is not None}


def _number(value: object) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value.item()) if value.numel() == 1 else None
    return None if isinstance(value, bool) or not isinstance(value, Real) else float(value)


def _legal(name: str) -> str:
    return re.sub(r"^[^A-Za-z0-9_]|[^A-Za-z0-9_:.@/+-]", "_", name)[: metrics.MAX_NAME_LENGTH] or "_"
