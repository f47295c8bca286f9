"""Program that runs the ranks of one host in the collectives of the health check.

    python -P -m trainbox.health.collective_ranks 3 algo-2     requests on stdin, replies on stdout: JSON lines

It imports torch once (seconds) and forks a new process for every rank of every group, each with a timeout: state that a
failed collective leaves in a process (a hung thread, a changed counter of c10d) would make healthy hosts fail in the
next one. For the same reason this process itself never creates a process group, a thread or a CUDA context.

The numbers are integers with sums below 2^24: exact in fp32 in any order of summation. The bus bandwidth is that of
nccl-tests (doc/PERFORMANCE.md): 2 (n - 1) / n · bytes / seconds, for an all-reduce of n ranks.

`TRAINBOX_HEALTH_DRILL=wrong 1` injects a fault into local rank 1, for tests and rehearsals: `wrong` (one number that it
sends is off by one), `hang` or `die`. The backend nccl has run on one GPU, not on several.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from trainbox.clock import Clock, Sleep
from trainbox.comm.sockets import listen, serve_store
from trainbox.contract.job import read_environment
from trainbox.health import probe
from trainbox.health.probe_protocol import GroupTask, HostGroupResult, ProbeReply, ProbeRequest, RankResult
from trainbox.log_lines import emit

FAULT_VARIABLE = "TRAINBOX_HEALTH_DRILL"
_PERIOD = 1024
_WEIGHTS = 16
_EXACT = 2**24
_LATENCY_TRIES = 20
_SMALLEST_BYTES = 256 * 1024
_GROWTH = 4
#: A collective that takes this long is long enough to measure; repeats together take at most the second time.
_LONG_SECONDS = 0.05
_REPEATED_SECONDS = 0.2
_REPEATS = 10
_BACKLOG = 1024
_CONNECT_SECONDS = 3.0
_CONNECT_TRY_SECONDS = 0.3
_STORE_CONNECT_SECONDS = 1.0
_STORE_RETRY_SECONDS = 0.005
_PATIENT = 0.7


def main(argv: Sequence[str]) -> int:
    """Serve requests until stdin ends; `argv`: number of free ports to offer, and address of this host."""
    env = read_environment()
    reserved: list[socket.socket] = []
    answers = os.dup(1)
    # Output of libraries (NCCL_DEBUG) goes to the log.
    os.dup2(2, 1)
    with os.fdopen(answers, "wb") as out, _open_listener(argv[1]) as listener:
        for line in chain([b"{}"], sys.stdin.buffer):
            request = msgspec.json.decode(line, type=ProbeRequest)
            groups, unreached = run_groups(request.tasks, env), find_unreachable(request.targets)
            for one in reserved:
                one.close()
            reserved = [_reserve() for _ in range(int(argv[0]))]
            ports = tuple(one.getsockname()[1] for one in (*reserved, listener))
            out.write(msgspec.json.encode(ProbeReply(groups, unreached, ports)) + b"\n")
            out.flush()
    return 0


def _open_listener(host: str) -> socket.socket:
    """Listen for connections that other hosts try."""
    try:
        return listen(host, 0, backlog=_BACKLOG)
    except OSError as error:
        emit(f"health: {host} is not an address of this host ({error.strerror}): listening on all of its addresses")
        return socket.create_server(("", 0), backlog=_BACKLOG)


def _reserve() -> socket.socket:
    """Reserve a port; a server that sets SO_REUSEADDR, as a store does, can listen on it."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("", 0))
    return one


def run_groups(tasks: Sequence[GroupTask], env: Mapping[str, str]) -> tuple[HostGroupResult, ...]:
    """Run all groups at once, each rank in its own process; a variable may inject a fault into one."""
    probes = {
        (task.group, local): probe.Probe(
            "collective", task.seconds, partial(_measure, task, local, read_fault(env, local))
        )
        for task in tasks
        for local in range(task.ranks)
    }
    answers = dict(zip(probes, probe.run(list(probes.values())), strict=True))
    return tuple(
        HostGroupResult(task.group, tuple(_rank(local, answers[task.group, local]) for local in range(task.ranks)))
        for task in tasks
    )


def _rank(local: int, answer: probe.ProbeResult) -> RankResult:
    if answer.broken or not answer.lines:
        return RankResult(local, broken=answer.broken or "no output")
    return msgspec.json.decode(answer.lines[-1], type=RankResult)


def find_unreachable(places: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Return the hosts to which no connection can be made; all are tried at once."""

    def try_one(host: str, port: int) -> Iterator[bool]:
        # Retry often (the kernel alone would try twice in this time): a link that loses packets is not closed.
        until = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                socket.create_connection((host, port), timeout=_CONNECT_TRY_SECONDS).close()
            except TimeoutError:
                if time.monotonic() >= until:
                    raise
            else:
                yield True
                return

    probes = [probe.Probe("reach", _CONNECT_SECONDS + 1, partial(try_one, host, port)) for host, port in places]
    return tuple(host for (host, _), answer in zip(places, probe.run(probes), strict=True) if answer.broken)


def _measure(task: GroupTask, local: int, fault: str) -> Iterator[RankResult]:
    """Run one rank in its own process; torch.distributed raises RuntimeError if other ranks are missing."""
    try:
        yield _run_rank(task, local, fault)
    except RuntimeError as error:
        yield RankResult(local, waited=str(error).partition("\n")[0])


def _run_rank(task: GroupTask, local: int, fault: str) -> RankResult:
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(task.seconds)
    rank = task.first + local
    device = torch.device("cuda", local) if task.backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    # A rank that only waits for others times out before it is killed, which tells it from one that hangs.
    limit = timedelta(seconds=_PATIENT * task.seconds)
    left = await_store(task.address, task.port, limit) if rank else limit
    store = _open_store(task, left) if rank else _serve_group(task, left)
    dist.init_process_group(task.backend, store=store, rank=rank, world_size=task.world, timeout=limit)
    meter = _Meter(rank, task.world, device, off=int(fault == "wrong"))
    latency = meter.latency()
    bandwidth = meter.bandwidth(task.largest_bytes)
    wrong = meter.total_wrong()
    suspects = meter.wrong_senders() if wrong else ()
    # The first rank holds the store: it must not exit before the others have finished.
    dist.barrier()
    return RankResult(local, meter.wrong, suspects, round(bandwidth, 4), round(latency, 1))


def _open_store(task: GroupTask, limit: timedelta, *, is_server: bool = False) -> TCPStore:
    return TCPStore(task.address, task.port, is_master=is_server, wait_for_workers=False, timeout=limit)


def _serve_group(task: GroupTask, limit: timedelta) -> TCPStore:
    with contextlib.suppress(OSError):
        return serve_store(task.address, task.port, timeout=limit)
    return _open_store(task, limit, is_server=True)  # listens on all addresses, or raises the reason


def connect_once(host: str, port: int) -> None:
    """Connect once and close the connection.

    Raises:
        OSError: No process listens, or the host cannot be reached.
    """
    socket.create_connection((host, port), timeout=_STORE_CONNECT_SECONDS).close()


def await_store(
    host: str,
    port: int,
    limit: timedelta,
    *,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
    connect: Callable[[str, int], None] = connect_once,
) -> timedelta:
    """Wait until the first rank listens; a client of its store that connects too early sleeps half a second.

    If the host cannot be reached at all, the store itself reports it.

    Returns:
        The time left of the limit.
    """
    until = clock() + limit.total_seconds()
    while clock() < until:
        try:
            connect(host, port)
        except ConnectionRefusedError:
            sleep(_STORE_RETRY_SECONDS)
        except OSError:
            break
        else:
            break
    return timedelta(seconds=max(_STORE_CONNECT_SECONDS, until - clock()))


class _Meter:
    """Measures the collectives of one group and compares their results with the expected numbers."""

    def __init__(self, rank: int, world: int, device: torch.device, *, off: int) -> None:
        self._rank, self._world, self._device, self._off = rank, world, device, off
        self._total = sum(_weight(each) for each in range(world))
        self._period = min(_PERIOD, _EXACT // self._total)
        self._ramps: dict[int, torch.Tensor] = {}
        self.wrong = 0

    def latency(self) -> float:
        """Return the microseconds of an all-reduce of one number, the fastest of several tries."""
        one = torch.ones(1, device=self._device)
        taken = []
        for _ in range(_LATENCY_TRIES):
            dist.barrier()
            taken.append(self._time(one))
        return min(taken) * 1e6

    def bandwidth(self, largest: int) -> float:
        """Return the bus bandwidth in GB/s, the median of several messages of a size that takes long enough."""
        size = _SMALLEST_BYTES
        while True:
            taken = self._reduce(size)
            if size >= largest or taken >= _LONG_SECONDS:
                break
            size = min(size * _GROWTH, largest)
        tries = [taken]
        while len(tries) < _REPEATS and sum(tries) < _REPEATED_SECONDS:
            tries.append(self._reduce(size))
        seconds = sorted(tries)[len(tries) // 2]
        return 2 * (self._world - 1) / self._world * size / seconds / 1e9

    def total_wrong(self) -> int:
        """Return the count of wrong numbers on all ranks, so that all ranks take the same next step."""
        count = torch.tensor([float(self.wrong)], device=self._device)
        dist.all_reduce(count)
        return int(count)

    def wrong_senders(self) -> tuple[int, ...]:
        """Broadcast from each rank in turn; return the ranks whose numbers arrive wrong."""
        count = _SMALLEST_BYTES // 4
        wrong = []
        for sender in range(self._world):
            sent = self._numbers(count)
            dist.broadcast(sent, sender)
            if sender != self._rank and bool((sent != self._ramp(count) * _weight(sender)).any()):
                wrong.append(sender)
        return tuple(wrong)

    def _reduce(self, size: int) -> float:
        """Sum and compare; return the seconds of the slowest rank, the same on all ranks."""
        count = size // 4
        numbers = self._numbers(count)
        dist.barrier()
        taken = self._time(numbers)
        self.wrong += int((numbers != self._ramp(count) * self._total).sum())
        slowest = torch.tensor([taken], device=self._device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    def _time(self, numbers: torch.Tensor) -> float:
        started = time.perf_counter()
        dist.all_reduce(numbers)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _ramp(self, count: int) -> torch.Tensor:
        if count not in self._ramps:  # cached: it takes longer than a repeated sum
            self._ramps = {count: (torch.arange(count, device=self._device) % self._period).to(torch.float32)}
        return self._ramps[count]

    def _numbers(self, count: int) -> torch.Tensor:
        numbers = self._ramp(count) * _weight(self._rank)
        numbers[count // 2] += self._off
        return numbers


def _weight(rank: int) -> int:
    return rank % _WEIGHTS + 1


def read_fault(env: Mapping[str, str], local: int) -> str:
    """Return the fault to inject into this local rank; empty for none."""
    kind, _, rank = env.get(FAULT_VARIABLE, "").partition(" ")
    return kind if rank == str(local) else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
