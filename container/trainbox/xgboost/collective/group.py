"""XGBoost's collective among the members of a job; no other module calls it.

Members connect and load their data before, because one limit applies to connecting here and to every sum of gradients.
XGBoost notices that a member has died, but not which one; the communicator knows.
"""

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import xgboost as xgb
from xgboost import collective as xgb_collective

from trainbox.comm import Communicator
from trainbox.comm.heartbeat import REPORT_LEAVE_SECONDS
from trainbox.errors import TrainingError
from trainbox.xgboost.collective.tracker_process import Tracker, TrackerWatch

#: How long a member may keep the others waiting in a collective; XGBoost's own default is half an hour.
DEFAULT_SECONDS = 300.0
#: How often a connection is tried. One is enough, as the tracker listens already; more would delay the end of a job by
#: seconds if the leader is lost, and its tracker with it.
DEFAULT_TRIES = 1
#: Time until a leader that was killed is gone with its tracker; and how long a leader that fails waits for the others,
#: which leave within `REPORT_LEAVE_SECONDS`.
_DEAD_LEADER_SECONDS = 0.2
_OTHERS_SECONDS = REPORT_LEAVE_SECONDS + 1.0
_MOST_TRIES = 3
#: After a collective breaks, the time to wait for the report of a lost member.
_REPORT_SECONDS = 3.0

S = TypeVar("S", bound=np.generic)


class CollectiveGroup(Protocol):
    """The processes in a collective; all make the same calls in the same order, on their main threads."""

    #: The place of this one, the same as in its communicator, and how many there are.
    rank: int
    size: int

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum arrays over all members, element by element; the same bits on all."""

    def concatenate(self, values: npt.NDArray[S]) -> npt.NDArray[S]:
        """Concatenate the arrays of all members, (n,) each and of one dtype, in the order of ranks."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any member."""


class SingleProcess:
    """A group of one process: nothing is sent."""

    rank = 0
    size = 1

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return its own value."""
        return np.array(values, np.float64)

    def concatenate(self, values: npt.NDArray[S]) -> npt.NDArray[S]:
        """Return its own value."""
        return values.copy()

    def any(self, flag: bool) -> bool:
        """Return its own value."""
        return flag


class ConnectedProcesses:
    """The processes of a communicator, connected by XGBoost's collective."""

    def __init__(self, communicator: Communicator) -> None:
        self.rank = communicator.rank
        self.size = communicator.size
        self._communicator = communicator

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum arrays over all members, element by element; the same bits on all."""
        return self._reduce(np.asarray(values, np.float64), xgb_collective.Op.SUM)

    def concatenate(self, values: npt.NDArray[S]) -> npt.NDArray[S]:
        """Concatenate the arrays of all members in the order of ranks; each contributes zeros for the others.

        As bytes, so that every bit stays: a negative zero plus zero would be a positive one.
        """
        mine = np.ascontiguousarray(values)
        sizes = np.zeros(self.size, np.int64)
        sizes[self.rank] = mine.nbytes
        ends = np.cumsum(self._reduce(sizes, xgb_collective.Op.SUM))
        together = np.zeros(int(ends[-1]), np.uint8)
        together[ends[self.rank] - mine.nbytes : ends[self.rank]] = mine.view(np.uint8)
        if together.size:
            together = self._reduce(together, xgb_collective.Op.SUM)
        return together.view(mine.dtype)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any member."""
        return bool(self._reduce(np.array([flag], np.int32), xgb_collective.Op.MAX)[0])

    def _reduce(self, values: npt.NDArray[S], operation: xgb_collective.Op) -> npt.NDArray[S]:
        with naming_lost_members(self._communicator):
            reduced: npt.NDArray[S] = xgb_collective.allreduce(values, operation)
        return reduced.reshape(values.shape)  # XGBoost 3.2 gives one dimension


@contextmanager
def collective(
    communicator: Communicator, *, seconds: float = DEFAULT_SECONDS, tries: int = DEFAULT_TRIES
) -> Iterator[CollectiveGroup]:
    """Enter XGBoost's collective: what is trained in this block is trained by all members together.

    Enter it when all members have loaded their data.

    Args:
        communicator: The members.
        seconds: How long a member may keep the others waiting in a collective.
        tries: How often a connection is tried.

    Yields:
        The group of the members, for sums and concatenations.

    Raises:
        PeerError: A member is lost, and named.
        TrainingError: XGBoost's tracker does not start, or dies or hangs later.
    """
    if communicator.size == 1:
        yield SingleProcess()
        return
    with ExitStack() as stack:
        arguments, watch = _start_tracker(communicator, stack, seconds)
        with _finalizing(communicator, watch), naming_lost_members(communicator):
            context = xgb_collective.CommunicatorContext(
                **arguments,
                # XGBoost orders the members by their names, as text.
                dmlc_task_id=f"{communicator.rank:08d}",
                dmlc_timeout=math.ceil(seconds),
                dmlc_retry=tries,
            )
            xgb_collective.init(**context.args)  # with where it has found NCCL
            ranks = (xgb_collective.get_rank(), xgb_collective.get_world_size())
            if ranks != (communicator.rank, communicator.size):
                raise TrainingError(
                    f"XGBoost gives rank {ranks} to {(communicator.rank, communicator.size)}: a defect of trainbox"
                )
            yield ConnectedProcesses(communicator)
        # All have finalized, so the leader may end the tracker.
        communicator.gather(True, bool)


def _start_tracker(
    communicator: Communicator, stack: ExitStack, seconds: float
) -> tuple[Mapping[str, str | int], TrackerWatch | None]:
    """Start and watch the tracker on the leader, and send its address to all members."""
    watch = None
    if communicator.rank == 0:
        tracker = stack.enter_context(Tracker(communicator.members.address, communicator.size, seconds))
        watch = stack.enter_context(TrackerWatch(tracker, communicator))
        content = communicator.share(json.dumps(tracker.arguments).encode())
    else:
        content = communicator.share(None)
    arguments: Mapping[str, str | int] = json.loads(content)
    return arguments, watch


@contextmanager
def _finalizing(communicator: Communicator, watch: TrackerWatch | None) -> Iterator[None]:
    """Finalize XGBoost's collective in any case: otherwise the process ends with SIGSEGV (3.2, 3.4)."""
    try:
        yield
        with naming_lost_members(communicator):
            xgb_collective.finalize()
    except BaseException as error:
        if watch is not None:
            watch.await_end()
        communicator.fail(_without_stack(error))  # before the others find the collective broken
        _abandon(communicator)
        raise


def _without_stack(error: BaseException) -> BaseException:
    """Return an error of XGBoost without the stack trace of its library."""
    return type(error)(str(error).partition("\nStack trace:\n")[0]) if type(error) is xgb.core.XGBoostError else error


def _abandon(communicator: Communicator) -> None:
    """Leave a collective that is broken, or that others wait in.

    Each member tells the tracker. If the tracker dies meanwhile, XGBoost throws an exception that cannot be caught
    (SIGABRT), so a leader waits until the others have left, and the others wait until a lost leader is gone.
    """
    if communicator.rank != 0:
        time.sleep(_DEAD_LEADER_SECONDS)
    for _ in range(_MOST_TRIES):
        if xgb_collective.is_distributed():
            with suppress(xgb.core.XGBoostError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is broken, in several ways
                xgb_collective.finalize()
    if communicator.rank == 0:
        communicator.outlast(seconds=_OTHERS_SECONDS)


@contextmanager
def naming_lost_members(communicator: Communicator) -> Iterator[None]:
    """Name the lost member if a collective breaks in this block.

    XGBoost raises the same class for a wrong parameter; the communicator knows whether a member is lost.

    Raises:
        PeerError: A member is lost.
    """
    try:
        yield
    except xgb.core.XGBoostError:
        communicator.lost(seconds=_REPORT_SECONDS)
        communicator.check()
        raise
