"""The hosts of a job while they run, whatever they run in: relayed, and stopped as SageMaker would.

A backend is a function `(plan, …, listener, stop_request) -> Ended`: it starts a `Host` for each host of the plan, and
leaves the rest to `watch`.
"""

import os
import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

import msgspec

from trainbox.contract.settings import read_settings
from trainbox.errors import ContractError, RunError
from trainbox.local.plan import HostPlan, RunPlan
from trainbox.local.stop_request import StopRequest

StopReason = Literal["failure", "stop-after", "max-run", "interrupt", "log"]

#: How often deadlines and a person's Ctrl-C are looked at; output and the end of a host are seen at once.
TICK_SECONDS = 0.1
_CHUNK_BYTES = 256 * 1024
#: For what is left in the pipes when all hosts have ended.
_DRAIN_SECONDS = 5.0
#: An ignored Ctrl-C is said again, killed hosts are gone in a moment.
_INTERRUPTS_THAT_KILL = 2


class HostEnd(msgspec.Struct, frozen=True):
    """How a host ended: its exit code, 128+n for a signal."""

    name: str
    exit_code: int
    #: Why, as far as it was not the supervisor's to say: a container that was killed from outside.
    reason: str = ""


class Ended(msgspec.Struct, frozen=True):
    """How all hosts ended, and why they were stopped if they were."""

    hosts: tuple[HostEnd, ...]
    stop: StopReason | None = None
    #: The host that ended with an error before any was stopped.
    failed: str | None = None
    #: Whether any had to be killed because SIGTERM was not enough.
    killed: bool = False


class HostListener(Protocol):
    """Receives the output of running hosts and notes; `JobEvents` turns them into events."""

    def started(self, host: str) -> None:
        """A host was started."""

    def stopping(self, reason: StopReason) -> None:
        """The hosts are asked to leave."""

    def output(self, host: str, data: bytes) -> None:
        """A host wrote something, not necessarily whole lines."""

    def note(self, text: str) -> None:
        """`trainbox run` has something to tell."""

    def tick(self) -> None:
        """Some time has passed."""


class Host(ABC):
    """One host while it runs.

    Args:
        name: As the plan calls it.
        log: The file that gets the exact bytes of its output.
    """

    #: What the host writes is read here, without blocking for longer than it takes to come.
    pipe: IO[bytes]

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.exit_code: int | None = None
        self.reason = ""
        self.log_error: OSError | None = None
        self._log = log.open("ab", buffering=0)  # that of the first host begins with what was installed

    @abstractmethod
    def has_ended(self) -> bool:
        """Whether it has; `exit_code` is then known."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Come back when it has ended, or when the time is over."""

    @abstractmethod
    def stop(self, seconds: float) -> None:
        """Ask it to end within so many seconds; does not wait for that."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once; it may be ending already."""

    def keep(self, data: bytes) -> None:
        """Append to the log; once that fails, the rest is only relayed, and the job is stopped."""
        rest = memoryview(data)
        try:
            while rest and self.log_error is None:
                rest = rest[self._log.write(rest) or 0 :]
        except OSError as error:
            self.log_error = error

    def close_log(self) -> None:
        """Nothing more will be written."""
        self._log.close()


def hang_seconds_of(plan: RunPlan, host: HostPlan) -> float:
    """For how long the first process of a host may be stopped: the job's own limit, or 0 where the host refuses it."""
    try:
        return read_settings(plan.request.hyperparameters, host.environment, Path()).hang_seconds
    except ContractError:
        return 0.0


def watch(
    plan: RunPlan,
    hosts: Sequence[Host],
    selector: selectors.BaseSelector,
    listener: HostListener,
    stop_request: StopRequest,
) -> Ended:
    """Relay, stop and kill until all hosts have ended; `selector` has each host by its pipe."""
    started = time.monotonic()
    stop: StopReason | None = None
    failed: str | None = None
    kill_at = float("inf")
    killed = False
    for host in hosts:
        listener.started(host.name)
    while True:
        _relay(selector, listener, TICK_SECONDS)
        running = [host for host in hosts if not host.has_ended()]
        if stop is None:
            failed = next((host.name for host in hosts if host.exit_code), None)
        if not running:
            ends = tuple(HostEnd(host.name, host.exit_code or 0, host.reason) for host in hosts)
            return Ended(ends, stop=stop, failed=failed, killed=killed)
        now = time.monotonic()
        reason = _why_stop(plan, now - started, hosts, failed, stop_request)
        if stop is None and reason is not None:
            stop, kill_at = reason, now + plan.seconds_to_leave
            listener.stopping(reason)
            listener.note(_stop_sentence(plan, reason, [host.name for host in running], failed))
            for host in running:
                host.stop(plan.seconds_to_leave)
        if stop is not None and not killed and (now >= kill_at or stop_request.count >= _INTERRUPTS_THAT_KILL):
            killed = True
            names = ", ".join(host.name for host in running)
            why = "Ctrl-C again" if now < kill_at else f"still there {plan.seconds_to_leave:g} s after SIGTERM"
            listener.note(f"{why}: SIGKILL to {names}")
            for host in running:
                host.kill()
        listener.tick()


def _why_stop(
    plan: RunPlan, elapsed: float, hosts: Sequence[Host], failed: str | None, stop_request: StopRequest
) -> StopReason | None:
    request = plan.request
    if stop_request.count:
        return "interrupt"
    if failed is not None:
        return "failure"
    if any(host.log_error for host in hosts):
        return "log"
    if request.max_run is not None and elapsed >= request.max_run:
        return "max-run"
    if request.stop_after is not None and elapsed >= request.stop_after:
        return "stop-after"
    return None


def _stop_sentence(plan: RunPlan, reason: StopReason, running: Sequence[str], failed: str | None) -> str:
    why = {
        "failure": f"{failed} has failed",
        "log": "disk full, log output stopped",
        "interrupt": "interrupted (once more to kill)",
        "max-run": f"--max-run {plan.request.max_run:g} is over" if plan.request.max_run else "",
        "stop-after": f"--stop-after {plan.request.stop_after:g} is over" if plan.request.stop_after else "",
    }[reason]
    return f"{why}: SIGTERM to {', '.join(running)}, SIGKILL in {plan.seconds_to_leave:g} s"


def _relay(selector: selectors.BaseSelector, listener: HostListener, timeout: float) -> None:
    if not selector.get_map():
        time.sleep(timeout)
        return
    for key, _ in selector.select(timeout):
        host: Host = key.data
        data = os.read(key.fd, _CHUNK_BYTES)
        if not data:
            selector.unregister(key.fileobj)
            # The pipe of a host that ends closes a moment before the host itself has ended.
            host.wait(TICK_SECONDS)
            continue
        host.keep(data)
        listener.output(host.name, data)


def drain(selector: selectors.BaseSelector, listener: HostListener) -> None:
    """Relay what is left in the pipes of hosts that have ended."""
    deadline = time.monotonic() + _DRAIN_SECONDS
    while selector.get_map() and time.monotonic() < deadline:
        _relay(selector, listener, TICK_SECONDS)


def check_logs(hosts: Sequence[Host]) -> None:
    """All logs are whole.

    Raises:
        RunError: One could not be written to its end.
    """
    for host in hosts:
        if host.log_error is not None:
            raise RunError(
                f"logs/{host.name}.log cannot be written: {host.log_error.strerror}", hint="free some space"
            ) from host.log_error
