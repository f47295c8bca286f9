"""The process backend: starts the hosts of a plan, relays what they write, stops them as SageMaker would.

A backend is a function `(plan, listener, interrupts) -> Ended`; one that starts containers has the same shape.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from trainbox.errors import RunError
from trainbox.workbench.descendants import children, end_orphans, orphans_come_here
from trainbox.workbench.interrupts import Interrupts
from trainbox.workbench.plan import HostPlan, RunPlan

StopReason = Literal["failure", "stop-after", "max-run", "interrupt", "log"]

#: How often deadlines and a person's Ctrl-C are looked at; output and the end of a host are seen at once.
_TICK_SECONDS = 0.1
_CHUNK_BYTES = 256 * 1024
#: For what is left in the pipes when all hosts have ended.
_DRAIN_SECONDS = 5.0
#: An ignored Ctrl-C is said again, killed hosts are gone in a moment.
_INTERRUPTS_THAT_KILL = 2


class HostEnd(msgspec.Struct, frozen=True):
    """How a host ended: its exit code, 128+n for a signal."""

    name: str
    exit_code: int


class Ended(msgspec.Struct, frozen=True):
    """How all hosts ended, and why they were stopped if they were."""

    hosts: tuple[HostEnd, ...]
    stop: StopReason | None = None
    #: The host that ended with an error before any was stopped.
    failed: str | None = None
    #: Whether any had to be killed because SIGTERM was not enough.
    killed: bool = False


class Listener(Protocol):
    """Hears what happens while the hosts run."""

    def output(self, host: str, data: bytes) -> None:
        """A host wrote something, not necessarily whole lines."""

    def say(self, text: str) -> None:
        """`trainbox run` has something to tell."""

    def tick(self) -> None:
        """Some time has passed."""


class _Host:
    """One host while it runs."""

    def __init__(self, plan: HostPlan, log: Path) -> None:
        self.name = plan.name
        self.exit_code: int | None = None
        self.log_error: OSError | None = None
        self._log = log.open("wb", buffering=0)
        try:
            self.process = subprocess.Popen(
                plan.argv,
                env=plan.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                # One pipe for both keeps their order.
                stderr=subprocess.STDOUT,
                cwd="/",
                # Ctrl-C on the terminal reaches trainbox run alone, which then says SIGTERM as SageMaker does.
                start_new_session=True,
                bufsize=0,
            )
        except OSError:
            self._log.close()
            raise
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        self.pipe = self.process.stdout

    def has_ended(self) -> bool:
        if self.exit_code is None:
            code = self.process.poll()
            if code is not None:
                self.exit_code = code if code >= 0 else 128 - code
        return self.exit_code is not None

    def keep(self, data: bytes) -> None:
        """Append to the log; once that fails, the rest is only relayed, and the job is stopped."""
        rest = memoryview(data)
        try:
            while rest and self.log_error is None:
                rest = rest[self._log.write(rest) or 0 :]
        except OSError as error:
            self.log_error = error

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def close(self) -> None:
        """Whatever happened before: nothing of this host runs on."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.has_ended()
        self.pipe.close()
        self._log.close()


def run_hosts(plan: RunPlan, listener: Listener, interrupts: Interrupts) -> Ended:
    """Start all hosts and come back when all have ended; no process of theirs is left.

    Raises:
        RunError: A host cannot be started, or its log cannot be written.
    """
    others = children()
    hosts: list[_Host] = []
    with orphans_come_here(), selectors.DefaultSelector() as selector:
        try:
            for host_plan in plan.hosts:
                hosts.append(_start(host_plan, plan.request.out / "logs" / f"{host_plan.name}.log"))
                selector.register(hosts[-1].pipe, selectors.EVENT_READ, hosts[-1])
            ended = _watch(plan, hosts, selector, listener, interrupts)
            _end_orphans(others, listener)
            _drain(selector, listener)
        finally:
            for host in hosts:
                host.close()
            _end_orphans(others, listener)
    for host in hosts:
        if host.log_error is not None:
            raise RunError(f"logs/{host.name}.log cannot be written: {host.log_error.strerror}", hint="free some space")
    return ended


def _start(plan: HostPlan, log: Path) -> _Host:
    try:
        return _Host(plan, log)
    except OSError as error:
        raise RunError(f"host {plan.name} cannot be started: {error.strerror}: {error.filename}") from error


def _watch(
    plan: RunPlan,
    hosts: Sequence[_Host],
    selector: selectors.BaseSelector,
    listener: Listener,
    interrupts: Interrupts,
) -> Ended:
    started = time.monotonic()
    stop: StopReason | None = None
    failed: str | None = None
    kill_at = float("inf")
    killed = False
    while True:
        _relay(selector, listener, _TICK_SECONDS)
        running = [host for host in hosts if not host.has_ended()]
        if stop is None:
            failed = next((host.name for host in hosts if host.exit_code), None)
        if not running:
            ends = tuple(HostEnd(host.name, host.exit_code or 0) for host in hosts)
            return Ended(ends, stop=stop, failed=failed, killed=killed)
        now = time.monotonic()
        reason = _why_stop(plan, now - started, hosts, failed, interrupts)
        if stop is None and reason is not None:
            stop, kill_at = reason, now + plan.seconds_to_leave
            listener.say(_stop_sentence(plan, reason, [host.name for host in running], failed))
            for host in running:
                host.send(signal.SIGTERM)
        if stop is not None and not killed and (now >= kill_at or interrupts.count >= _INTERRUPTS_THAT_KILL):
            killed = True
            names = ", ".join(host.name for host in running)
            why = "Ctrl-C again" if now < kill_at else f"still there {plan.seconds_to_leave:g} s after SIGTERM"
            listener.say(f"{why}: SIGKILL to {names}")
            for host in running:
                host.send(signal.SIGKILL)
        listener.tick()


def _why_stop(
    plan: RunPlan, elapsed: float, hosts: Sequence[_Host], failed: str | None, interrupts: Interrupts
) -> StopReason | None:
    request = plan.request
    if interrupts.count:
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
        "log": "the disk takes no more logs",
        "interrupt": "interrupted (once more to kill)",
        "max-run": f"--max-run {plan.request.max_run:g} is over" if plan.request.max_run else "",
        "stop-after": f"--stop-after {plan.request.stop_after:g} is over" if plan.request.stop_after else "",
    }[reason]
    return f"{why}: SIGTERM to {', '.join(running)}, SIGKILL in {plan.seconds_to_leave:g} s"


def _relay(selector: selectors.BaseSelector, listener: Listener, timeout: float) -> None:
    if not selector.get_map():
        time.sleep(timeout)
        return
    for key, _ in selector.select(timeout):
        host: _Host = key.data
        data = os.read(key.fd, _CHUNK_BYTES)
        if not data:
            selector.unregister(key.fileobj)
            # The pipe of a host that ends closes a moment before the host itself can be waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                host.process.wait(timeout=_TICK_SECONDS)
            continue
        host.keep(data)
        listener.output(host.name, data)


def _drain(selector: selectors.BaseSelector, listener: Listener) -> None:
    deadline = time.monotonic() + _DRAIN_SECONDS
    while selector.get_map() and time.monotonic() < deadline:
        _relay(selector, listener, _TICK_SECONDS)


def _end_orphans(others: set[int], listener: Listener) -> None:
    ended = end_orphans(but=others)
    if ended:
        listener.say(f"{ended} process{'es' if ended > 1 else ''} of the job outlived it: killed")
