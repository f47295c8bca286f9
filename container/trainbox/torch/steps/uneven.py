"""Detect uneven loaders: a rank has no batch left while another one waits for its gradients.

The rank that goes on cannot report it: it is inside a collective that the first will never reach. So each rank
has a thread that looks, twice a second, whether some rank has written into the store of the job that its batches are
over. Steps themselves cost nothing: ranks count in the store how many of them are at the end of a loop.
"""

import threading
import time
from collections.abc import Iterable

from torch import nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import FSDPModule

from trainbox.errors import HyperparameterError, TrainingError

#: From one look of the thread to the next.
_PERIOD_SECONDS = 0.5
#: How long a rank waits for the others to reach their ends before it writes that it has no batch left.
_PATIENCE_SECONDS = 0.2
#: From one look of a rank that waits so to the next.
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.0005, 0.1


class UnevenMonitor:
    """Detects that a rank has run out of batches while another has gone on to the next step.

    Args:
        rank: This rank.
        ranks: How many there are.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._store = PrefixStore("trainbox/ends", distributed_c10d._get_default_store())  # noqa: SLF001 - no public name
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop = 0  # number of the loop, counted alike on all ranks
        self._begun = 0  # steps of this loop
        self._ended: tuple[int, int, int] | None = None  # loop, rank, steps

    def enter(self) -> None:
        """Begin a loop. All ranks call this, equally often."""
        self._loop, self._begun = self._loop + 1, 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="uneven-batches", daemon=True)
            self._thread.start()

    def begin(self) -> None:
        """Begin a step: this rank has all its batches.

        Raises:
            TrainingError: Another has not.
        """
        self._begun += 1
        found = self._ended
        if found is not None and found[0] == self._loop and self._begun > found[2]:
            self._store.set(f"continues/{self._loop}", str(self._rank))
            raise _short(found[1], self._rank)

    def end(self) -> None:
        """End a loop: return once no rank has a batch left.

        Raises:
            TrainingError: One of them goes on.
        """
        began, pause = time.monotonic(), _FIRST_LOOK_SECONDS
        there = self._store.add(f"there/{self._loop}", 1)
        while there < self._ranks:
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK_SECONDS)
            if time.monotonic() - began > _PATIENCE_SECONDS:
                self._ask()
            there = self._store.add(f"there/{self._loop}", 0)

    def _ask(self) -> None:
        """Write that a rank has no batch left, for the threads of the others, and read what they have answered."""
        ended = self._store.compare_set(f"ended/{self._loop}", "", f"{self._rank} {self._begun}").decode()
        if self._store.check([f"continues/{self._loop}"]):
            raise _short(int(ended.partition(" ")[0]), int(self._store.get(f"continues/{self._loop}")))

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(_PERIOD_SECONDS):
            loop = self._loop
            try:
                if not self._store.check([f"ended/{loop}"]):
                    continue
                rank, steps = map(int, self._store.get(f"ended/{loop}").split())
                self._ended = (loop, rank, steps)
                if loop == self._loop and self._begun > steps:
                    self._store.set(f"continues/{loop}", str(self._rank))
            except RuntimeError:  # the store has ended, and with it the job
                return


def _short(ended: int, continues: int) -> TrainingError:
    return TrainingError(
        f"rank {ended} has no batch left while rank {continues} continues",
        hint="give all ranks the same number of batches, or let run.steps(loader, uneven='drop') end with the first"
        " rank, or uneven='join' with the last",
    )


def require_joinable(models: Iterable[nn.Module]) -> None:
    """Require that ranks without a batch can repeat their last one.

    Raises:
        HyperparameterError: A model is spread over the ranks.
    """
    if any(isinstance(model, FSDPModule) for model in models):
        raise HyperparameterError(
            "uneven='join' is not supported with sharded=True: FSDP2 averages over all ranks",
            hint="use uneven='drop', or give all ranks the same number of batches",
        )
