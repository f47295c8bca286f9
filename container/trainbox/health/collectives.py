"""Runs the collectives of each host, of pairs of hosts and of all hosts, as `collective_bisection` plans them.

The first host plans each stage and sends every host its part over the communicator of the hosts. The collectives run in
separate processes (`collective_ranks`), so that a collective that hangs does not block this process.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import msgspec

from trainbox.clock import wait_from
from trainbox.comm.tolerant import TolerantCommunicator
from trainbox.contract.credentials.peer_key import without_peer_key
from trainbox.diagnostics.finding import Finding, Kind
from trainbox.health.checks import CHECKS, Stage, found
from trainbox.health.collective_bisection import (
    STAGES,
    BisectionStage,
    Group,
    HostReply,
    StageResult,
    attribute,
    find_slow_groups,
    find_slow_hosts,
    group_results,
    max_latency,
    max_led_groups,
    min_bandwidth,
    plan_next,
)
from trainbox.health.host import ABSENT, Subject, read_cuda
from trainbox.health.probe_protocol import GroupTask, ProbeReply, ProbeRequest
from trainbox.log_lines import emit
from trainbox.supervisor.variables import LOOPBACK, network_variables

MIB = 1024 * 1024
#: Time to import torch from a cold disk.
_READY_SECONDS = 120.0
#: From the timeout of a rank to the reply of its host.
_OVERHEAD_SECONDS = 10.0
#: For each host: connections between all hosts take longer the more there are.
_SECONDS_FOR_EACH = 0.5
_CHUNK_BYTES = 64 * 1024
_LOOK_SECONDS = 1.0
_LARGEST_BYTES: Mapping[tuple[str, Stage], int] = {
    ("gloo", "fast"): 4 * MIB,
    ("gloo", "full"): 64 * MIB,
    ("nccl", "fast"): 64 * MIB,
    ("nccl", "full"): 512 * MIB,
}
#: NCCL first opens the devices and detects the topology.
_SECONDS = {"gloo": 10.0, "nccl": 60.0}
_HERE = "127.0.0.1"
#: The longest timeout of hosts with busy CPUs, as a multiple of the usual one.
_MOST_PATIENCE = 3.0


class StageRequests(msgspec.Struct, frozen=True):
    """The requests of one stage, from the first host to the others."""

    #: By host; empty after the last stage.
    requests: Mapping[str, ProbeRequest] = {}
    #: Timeout of the replies.
    seconds: float = 0.0

    def for_host(self, host: str) -> "StageRequests":
        """Return the part that one host needs."""
        mine = {host: self.requests[host]} if host in self.requests else {}
        return StageRequests(mine, self.seconds)


def can_run_collectives(subject: Subject) -> bool:
    """Return whether there are several ranks, and torch to run them."""
    return "torch" in subject.machine.modules and (len(subject.hosts) > 1 or subject.processes > 1)


def choose_backend(subject: Subject, asked: str | None) -> str:
    """Return the backend that the job will use if it is known, else the one that suits the host."""
    backend = asked or (subject.job.settings.backend if subject.job else None)
    if backend in _SECONDS:
        return backend
    has_cuda = read_cuda() != ABSENT  # torch may be built for the CPU only
    return "nccl" if has_cuda and subject.machine.gpus >= subject.processes else "gloo"


class RankProgram:
    """The program of the ranks; it imports torch while the other checks of the host run."""

    def __init__(self, subject: Subject, env: Mapping[str, str]) -> None:
        alone = {} if "GLOO_SOCKET_IFNAME" in env else {"GLOO_SOCKET_IFNAME": LOOPBACK}
        network = network_variables(subject.job, subject.machine, env) if subject.job else alone
        address = _HERE if len(subject.hosts) == 1 else subject.host
        self._line, theirs = socket.socketpair()
        self._received = b""
        with theirs:
            self._process = subprocess.Popen(
                # -P: a user's `queue.py` in the working directory must not hide that of the standard library.
                [sys.executable, "-P", "-m", "trainbox.health.collective_ranks", str(max_led_groups()), address],
                env={**without_peer_key(env), **network, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"},
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                process_group=0,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the program and all its ranks."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._line.close()

    def send(self, request: ProbeRequest) -> None:
        """Send a request; if the program has ended, `receive` reports it."""
        with contextlib.suppress(OSError):
            self._line.sendall(msgspec.json.encode(request) + b"\n")

    def receive(self, host: HostReply, *, seconds: float) -> HostReply:
        """Return the state of the host with the reply, or with the reason why there is none."""
        waiting = wait_from(time.monotonic(), seconds)
        while b"\n" not in self._received:
            waiting = waiting.look(time.monotonic(), pause=_LOOK_SECONDS)  # a host that is paused pauses its ranks, too
            if waiting.is_over:
                why = f"the program of its ranks did not answer within {seconds:g} s"
                return msgspec.structs.replace(host, broken=why)
            self._line.settimeout(max(0.001, waiting.pause))
            try:
                chunk = self._line.recv(_CHUNK_BYTES)
            except TimeoutError:
                continue
            if not chunk:
                why = f"the program of its ranks ended (exit code {self._process.wait()})"
                return msgspec.structs.replace(host, broken=why)
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return msgspec.structs.replace(host, reply=msgspec.json.decode(line, type=ProbeReply))


def check_collectives(
    subject: Subject, hosts: TolerantCommunicator, ranks: RankProgram, *, backend: str
) -> tuple[Finding, ...]:
    """Run all stages; every host of the job makes the same call.

    Returns:
        On the first host the findings of all hosts; on the others none.

    Raises:
        MemberLost: The first host does not answer.
    """
    rounds: list[StageResult] = []
    planned: list[tuple[BisectionStage, tuple[Group, ...]]] = [("ready", ())]
    decide = partial(_decide, rounds, planned, stage=subject.stage, backend=backend)
    seconds = _READY_SECONDS
    host = HostReply(subject.processes, os.getloadavg()[0] / subject.machine.cpus)
    reply = ranks.receive(host, seconds=seconds)
    while True:
        following = hosts.decide(
            reply, HostReply, decide, StageRequests, timeout=seconds + _OVERHEAD_SECONDS, share=StageRequests.for_host
        )
        if not following.requests and not following.seconds:
            return tuple(report_collectives(rounds, backend=backend)) if rounds else ()
        seconds = following.seconds
        ranks.send(following.requests.get(subject.host, ProbeRequest()))
        reply = ranks.receive(host, seconds=seconds + _OVERHEAD_SECONDS / 2)


def _decide(
    rounds: list[StageResult],
    planned: list[tuple[BisectionStage, tuple[Group, ...]]],
    replies: Mapping[str, HostReply],
    silent: Mapping[str, str],
    *,
    stage: Stage,
    backend: str,
) -> StageRequests:
    """On the first host: record the replies and plan the next stage."""
    rounds.append(StageResult(*planned[-1], replies, silent))
    following = plan_next(rounds, backend=backend)
    if following is None:
        return StageRequests()
    planned.append(following)
    part, groups = following
    emit(f"health: collectives: {part}: {len(groups)} group(s) of hosts over {backend}")
    if part == "reach":
        listeners = {host: one.reply.ports[-1] for host, one in replies.items()}
        requests = {
            host: ProbeRequest(targets=tuple((other, port) for other, port in listeners.items() if other != host))
            for host in replies
        }
        return StageRequests(requests, CHECKS["collective.world"].seconds)
    seconds = _SECONDS[backend] + (_SECONDS_FOR_EACH * len(replies) if part == "world" else 0.0)
    seconds = round(seconds * min(_MOST_PATIENCE, max(1.0, *(one.load for one in replies.values()))))
    return StageRequests(
        plan_tasks(groups, replies, backend=backend, seconds=seconds, largest=_LARGEST_BYTES[backend, stage]), seconds
    )


def plan_tasks(
    groups: Sequence[Group], replies: Mapping[str, HostReply], *, backend: str, seconds: float, largest: int
) -> dict[str, ProbeRequest]:
    """Pure: return the tasks of each host for these groups.

    Args:
        groups: The hosts of each; the first one listens.
        replies: The last reply of each host: free ports, and the number of its ranks.
        backend: Of `torch.distributed`.
        seconds: The deadline of each rank.
        largest: Bytes of the largest message.
    """
    tasks: dict[str, list[GroupTask]] = {host: [] for host in replies}
    free = {host: list(one.reply.ports[:-1]) for host, one in replies.items()}
    for number, members in enumerate(groups):
        port = free[members[0]].pop()
        world = sum(replies[host].ranks for host in members)
        first = 0
        # A single host needs neither a network nor a name.
        address = _HERE if len(members) == 1 else members[0]
        for host in members:
            count = replies[host].ranks
            tasks[host].append(GroupTask(number, world, first, count, address, port, backend, seconds, largest))
            first += count
    return {host: ProbeRequest(tasks=tuple(mine)) for host, mine in tasks.items() if mine}


def report_collectives(rounds: Sequence[StageResult], *, backend: str) -> Iterator[Finding]:
    """Yield the findings of all stages.

    Args:
        rounds: All stages.
        backend: As in `plan_next`.
    """
    for one in rounds:
        for host, reason in one.silent.items():
            yield found("host.arrival", host, False, f"{reason} during collectives ({one.stage})")
        for host, reply in one.replies.items():
            if reply.broken:
                # A slow start is no fault of a device: the disk is slow or the CPU is busy.
                early: Kind | None = "transient" if one.stage == "ready" else None
                yield found("collective.local", host, False, reply.broken, kind=early)
    bad = attribute(rounds, backend)
    for part in bad:
        yield found(
            part.check,
            part.host,
            False,
            part.reason,
            device=_named(part.device, backend),
            kind="configuration" if part.everywhere else None,
        )
    lost = any(one.silent for one in rounds)
    yield from _passed(rounds, find_slow_hosts(rounds, backend), bad=bool(bad) or lost)
    yield from _compare(rounds, backend)


def _named(device: str, backend: str) -> str:
    return device.replace("rank", "gpu", 1) if backend == "nccl" and device.startswith("rank") else device


def _passed(rounds: Sequence[StageResult], late: Sequence[str], *, bad: bool) -> Iterator[Finding]:
    """Yield groups that work, and groups that failed once without a faulty part, under the slow host if any."""
    checks: Mapping[BisectionStage, str] = {"local": "collective.local", "world": "collective.world"}
    for stage in STAGES[1:-1]:
        for one in group_results(rounds, stage):
            first = next((host for host in late if one.faults and host in one.members), one.members[0])
            others = [host for host in one.members if host != first]
            device = "" if stage in checks else " ".join(others)
            check = checks.get(stage, "collective.pair")
            if not one.faults:
                yield found(check, first, True, "exact", device=device)
            elif not bad:
                yield found(
                    check,
                    first,
                    False,
                    one.reason(first),
                    device=device,
                    kind="transient",
                    soft=True,
                    hint="failed once; each of these hosts then succeeded with another host, and with all",
                )


def _compare(rounds: Sequence[StageResult], backend: str) -> Iterator[Finding]:
    """Yield bandwidth and latency of all pairs; a slow pair is reported under the host that was slow twice."""
    groups = [one for one in group_results(rounds, "pairs", "again") if not one.faults]
    if not groups:
        return
    least, most = min_bandwidth(groups, backend), max_latency(groups)
    late, lag = find_slow_groups(groups, backend), find_slow_hosts(rounds, backend)
    for one in groups:
        suspect = next((host for host in one.members if one in late and host in lag), one.members[0])
        device = " ".join(host for host in one.members if host != suspect)
        twice = one in late and suspect in lag
        yield found(
            "collective.bandwidth",
            suspect,
            not twice or one.bandwidth >= least,
            one.bandwidth,
            device=device,
            limit=round(least, 4),
        )
        yield found(
            "collective.latency",
            suspect,
            not twice or one.latency <= most,
            one.latency,
            device=device,
            limit=round(most, 1),
        )
    for one in group_results(rounds, "world"):
        if not one.faults:
            yield found("collective.bandwidth", one.members[0], True, one.bandwidth, device="all hosts")
