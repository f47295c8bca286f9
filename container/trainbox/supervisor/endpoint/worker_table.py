"""The workers of a server as their supervisor sees them: who is ready, whose turn it is, who stands still."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from trainbox.clock import AwakeClock, Clock, Silence
from trainbox.log_lines import emit
from trainbox.supervisor.endpoint.plan import FIRST_RESTARTS, WORKER_RESTARTS
from trainbox.supervisor.outcome import Exit
from trainbox.supervisor.restart_policy import plan_restart
from trainbox.system.loader_protocol import CONNECTION, RETIRE, RETIRING, ForkWorker, GiveUp, LoaderLink
from trainbox.system.memory import read_memory
from trainbox.system.procfs import read_stat
from trainbox.system.worker_page import MOST_WORKERS, PageField, Slot, WorkerField, WorkerPage

#: From one look at the heartbeats to the next, and how old one may be before others are given the connections.
LOOK_SECONDS = 0.25
FRESH_SECONDS = 1.0


class Worker:
    """One worker; another process takes its number when it ends.

    Args:
        number: Counted from 0.
        slot: Of the page.
    """

    def __init__(self, number: int, slot: Slot) -> None:
        self.number = number
        self.slot = slot
        self.pid = 0
        self.is_fresh = True
        self.why_killed = ""
        self.moments: tuple[float, ...] = ()
        self.start_at = float("-inf")
        #: Whether it has been asked to retire, and has begun to: every connection that waited has come back.
        self.is_retiring = False
        self.has_begun_to_retire = False
        #: What connections go into, and where the worker takes them out. This end stays open here, too: what a worker
        #: has not taken when it ends can be taken back.
        self.channel, self.taken_from = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.channel, self.taken_from):
            end.setblocking(False)

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return f"worker {self.number + 1}"

    @property
    def is_ready(self) -> bool:
        """Whether it lives and has answered the rows of the card."""
        return bool(self.pid and self.slot.words[WorkerField.READY])

    def give(self, connection: socket.socket) -> bool:
        """Hand a connection to it; whether it had room for one."""
        try:
            socket.send_fds(self.channel, [CONNECTION], [connection.fileno()])
        except OSError:  # full, or too many descriptors are on their way
            return False
        return True

    def retire(self) -> None:
        """Ask it to give back what waits, and to end once the rest is answered; again where it could not be asked."""
        if not self.is_retiring:
            with contextlib.suppress(BlockingIOError):  # full: it takes what is there first
                self.is_retiring = self.channel.send(RETIRE) > 0

    def take_back(self) -> Iterator[socket.socket]:
        """Yield the connections that it has not taken."""
        yield from self._read(self.taken_from)

    def take_returned(self) -> Iterator[socket.socket]:
        """Yield the connections that it has given back."""
        yield from self._read(self.channel)

    def _read(self, end: socket.socket) -> Iterator[socket.socket]:
        while True:
            try:
                content, descriptors, _, _ = socket.recv_fds(end, 1, 1)
            except BlockingIOError:
                return
            if not content:
                return
            self.has_begun_to_retire = self.has_begun_to_retire or content == RETIRING
            for descriptor in descriptors:
                yield socket.socket(fileno=descriptor)

    def close(self) -> None:
        """Close both ends of the channel."""
        self.channel.close()
        self.taken_from.close()


class WorkerTable:
    """All workers.

    Args:
        page: What they write.
        link: To the loader, which forks them.
        timeout: Of a request, in seconds.
        startup: Of the sample rows of the model, and of the model itself where a worker loads it.
        clock: The time.
    """

    def __init__(self, page: WorkerPage, link: LoaderLink, timeout: float, startup: float, clock: Clock) -> None:
        self._page = page
        self._link = link
        self._timeout = timeout
        self._startup = startup
        self._clock = clock
        self._awake = AwakeClock(clock)
        self._beats: Silence[int] = Silence(self._awake)
        self._predictions: Silence[int] = Silence(self._awake)
        self._turn = 0
        self._memory_kills = 0
        self.workers: list[Worker] = []
        #: Those that take over once all of them are ready, and those that have been asked to retire.
        self.successors: list[Worker] = []
        self.retiring: list[Worker] = []
        self._needs_successors = False
        self._awaits_replacement = False

    def begin(self, count: int) -> None:
        """The loader is ready: have it fork them all."""
        self._page.header[PageField.WORKERS] = self._page.header[PageField.SLOTS] = count
        self._memory_kills = read_memory().kills or 0
        self.workers = [Worker(number, self._page.slot(number)) for number in range(count)]
        for worker in self.workers:
            self._fork(worker)

    def end(self) -> Iterator[socket.socket]:
        """The loader has ended, and the workers with it: yield what they had not taken."""
        for worker in self._all():
            yield from worker.take_back()
            yield from worker.take_returned()
            worker.slot.begin()
            worker.close()
        self.workers, self.successors, self.retiring = [], [], []
        self._needs_successors = self._awaits_replacement = False

    def _all(self) -> list[Worker]:
        return [*self.workers, *self.successors, *self.retiring]

    def find(self, number: int) -> Worker | None:
        """Return the worker with this number, whatever its state."""
        return next((worker for worker in self._all() if worker.number == number), None)

    # -- workers that take over ------------------------------------------------------------------------------------

    def replace_all(self) -> None:
        """Have others take the place of all workers; `look` forks them."""
        self._needs_successors = self._awaits_replacement = True

    def _fork_successors(self) -> None:
        used = {worker.number for worker in self._all()}
        free = [number for number in range(MOST_WORKERS) if number not in used][: len(self.workers)]
        if len(free) < len(self.workers) or self.successors:
            return  # those that retire have to end first
        self._needs_successors = False
        slots = max(self._page.header[PageField.SLOTS], free[-1] + 1)
        self._page.header[PageField.SLOTS] = slots
        self.successors = [Worker(number, self._page.slot(number)) for number in free]
        for worker in self.successors:
            self._fork(worker)

    def promote(self) -> list[Worker]:
        """Have the successors take over if all of them are ready: the others are asked to retire, and returned."""
        if not self.successors or not all(worker.is_ready for worker in self.successors):
            return []
        # One that waits for its next start is not there; one whose fork has been asked for hears it when it is.
        left = [worker for worker in self.workers if worker.pid or worker.start_at == float("inf")]
        for worker in self.workers:
            if worker not in left:
                worker.slot.begin()
                worker.close()
        self.workers, self.successors = self.successors, []
        self.retiring += left
        return left

    def is_replaced(self) -> bool:
        """Whether what `replace_all` asked for has been done just now: no other worker is given a request."""
        done = not self._needs_successors and not self.successors
        if not self._awaits_replacement or not done or not all(one.has_begun_to_retire for one in self.retiring):
            return False
        self._awaits_replacement = False
        return True

    def note_retired(self, worker: Worker, status: int) -> None:
        """One that was asked to retire has ended."""
        worker.pid = 0
        if status:
            emit(f"{self._explain(self._exit(worker, status))}; another has taken its place before")
        worker.slot.begin()
        worker.close()
        self.retiring.remove(worker)

    def _fork(self, worker: Worker) -> None:
        worker.slot.begin()
        worker.why_killed, worker.is_fresh, worker.start_at = "", True, float("inf")
        with contextlib.suppress(OSError):  # the loader has gone: it starts again, and all workers with it
            self._link.send(ForkWorker(worker.number), [worker.taken_from.fileno()])

    def in_turn(self) -> Iterator[Worker]:
        """Yield who is ready, the one whose turn it is first; those whose loop answers before those that are busy."""
        ready = [worker for worker in self.workers if worker.is_ready]
        fresh = [worker for worker in ready if worker.is_fresh] or ready
        self._turn += 1
        for step in range(len(fresh)):
            yield fresh[(self._turn + step) % len(fresh)]

    @property
    def are_ready(self) -> bool:
        """Whether all are."""
        return bool(self.workers) and all(worker.is_ready for worker in self.workers)

    def note_end(self, worker: Worker, status: int) -> None:
        """A worker has ended: say why, and plan its next start; where it ends too often the loader gives up."""
        now = self._clock()
        worker.pid = 0
        exit_ = self._exit(worker, status)
        why = self._explain(exit_)
        worker.slot.words[WorkerField.READY] = 0
        policy = WORKER_RESTARTS if self._page.header[PageField.OPEN] else FIRST_RESTARTS
        restart = plan_restart(policy, worker.moments, now)
        if restart is None:
            emit(f"{why}; it has ended {policy.limit + 1} times within {policy.window_seconds:g} s")
            with contextlib.suppress(OSError):
                self._link.send(GiveUp(exit_.code or 1))
            return
        emit(f"{why}; another takes its place in {restart.at - now:.2f} s")
        worker.moments, worker.start_at = restart.moments, restart.at
        self._page.header[PageField.RESTARTS] += 1

    def _exit(self, worker: Worker, status: int) -> Exit:
        code = os.waitstatus_to_exitcode(status)
        return Exit(
            worker.name,
            code if code >= 0 else 128 - code,
            max(0, -code),
            stderr=worker.slot.last_words,
            stdout="",
            hung=worker.why_killed,
        )

    def _explain(self, exit_: Exit) -> str:
        from trainbox.supervisor import failure_reason as reason  # noqa: PLC0415 - it knows tracebacks by many expressions

        memory = read_memory()
        kills, self._memory_kills = (memory.kills or 0) - self._memory_kills, memory.kills or 0
        kills = kills if exit_.signal == signal.SIGKILL else 0
        found = reason.explain_exit(exit_, Path("/"), memory_kills=kills, memory_limit=memory.limit_bytes)
        return f"{found.where}: {found.cause}"

    def take_back(self) -> Iterator[socket.socket]:
        """Yield what workers that stand still have not taken, where another does not."""
        if any(worker.is_ready and worker.is_fresh for worker in self.workers):
            for worker in (*self.workers, *self.retiring):
                if worker.pid and not worker.is_fresh:
                    yield from worker.take_back()
                    worker.is_retiring = worker.has_begun_to_retire  # the request may have come back, too

    def look(self, loader: int) -> float:
        """Start who is due, and kill who stands still; when to look again, by the clock.

        Args:
            loader: Its process id: the parent of all of them.
        """
        now = self._clock()
        if self._needs_successors:
            self._fork_successors()
        for worker in (*self.workers, *self.successors):
            if now >= worker.start_at:
                self._fork(worker)
        for worker in self.retiring:
            worker.retire()
        running = [worker for worker in self._all() if worker.pid]
        beats = self._beats.seconds({worker.pid: worker.slot.words[WorkerField.HEARTBEAT] for worker in running})
        working = self._predictions.seconds(
            {worker.pid: worker.slot.words[WorkerField.PREDICTION] for worker in running}
        )
        for worker in running:
            silent = beats[worker.pid]
            busy = working[worker.pid] if worker.slot.words[WorkerField.PREDICTION] else 0.0
            worker.is_fresh = silent < FRESH_SECONDS
            limit = self._timeout if worker.is_ready else self._startup
            if max(silent, busy) > limit and read_stat(worker.pid).parent == loader:
                worker.why_killed = _describe_silence(worker, silent, busy)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        return min(now + LOOK_SECONDS, min((worker.start_at for worker in self._all()), default=float("inf")))


def _describe_silence(worker: Worker, silent: float, busy: float) -> str:
    if not worker.is_ready:
        what, setting = "has not answered the sample rows of the model", "SAGEMAKER_STARTUP_TIMEOUT"
    else:
        what = "has not answered a request" if busy >= silent else "has stood still"
        setting = "SAGEMAKER_MODEL_SERVER_TIMEOUT"
    return f"{what} for {max(silent, busy):.1f} s ({setting}) and was killed"
