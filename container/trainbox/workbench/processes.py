"""The process backend: each host of a plan is a supervisor on this machine, and leaves no process behind."""

import contextlib
import os
import selectors
import signal
import subprocess
from pathlib import Path

from trainbox.errors import RunError
from trainbox.launch.orphans import children
from trainbox.launch.scratch import remove_abandoned
from trainbox.workbench.descendants import end_orphans, orphans_come_here
from trainbox.workbench.hosts import Ended, Host, Listener, check_logs, drain, watch
from trainbox.workbench.interrupts import Interrupts
from trainbox.workbench.plan import HostPlan, RunPlan


class _Process(Host):
    """A host that is a process."""

    def __init__(self, plan: HostPlan, log: Path) -> None:
        super().__init__(plan.name, log)
        # A pipe that ends with this process: `namespace` sees whether it is still there.
        stdin, self._alive = os.pipe()
        try:
            self.process = subprocess.Popen(
                plan.argv,
                env=plan.environment,
                stdin=stdin,
                stdout=subprocess.PIPE,
                # One pipe for both keeps their order.
                stderr=subprocess.STDOUT,
                cwd="/",
                # Ctrl-C on the terminal reaches trainbox run alone, which then says SIGTERM as SageMaker does.
                start_new_session=True,
                bufsize=0,
            )
        except OSError:
            os.close(self._alive)
            self.close_log()
            raise
        finally:
            os.close(stdin)
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        self.pipe = self.process.stdout

    def has_ended(self) -> bool:
        if self.exit_code is None:
            code = self.process.poll()
            if code is not None:
                self.exit_code = code if code >= 0 else 128 - code
        return self.exit_code is not None

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)

    def stop(self, seconds: float) -> None:  # noqa: ARG002 - `watch` kills when they are over
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def close(self) -> None:
        """Whatever happened before: nothing of this host runs on."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.has_ended()
        os.close(self._alive)
        self.pipe.close()
        self.close_log()


def run_hosts(plan: RunPlan, listener: Listener, interrupts: Interrupts) -> Ended:
    """Start all hosts and come back when all have ended; no process of theirs is left.

    Raises:
        RunError: A host cannot be started, or its log cannot be written.
    """
    others = children(zombies=True)
    remove_abandoned()
    hosts: list[_Process] = []
    with orphans_come_here(), selectors.DefaultSelector() as selector:
        try:
            for host_plan in plan.hosts:
                hosts.append(_start(host_plan, plan.request.out / "logs" / f"{host_plan.name}.log"))
                selector.register(hosts[-1].pipe, selectors.EVENT_READ, hosts[-1])
            ended = watch(plan, hosts, selector, listener, interrupts)
            _end_orphans(others, listener)
            drain(selector, listener)
        finally:
            for host in hosts:
                host.close()
            _end_orphans(others, listener)
            remove_abandoned()
    check_logs(hosts)
    return ended


def _start(plan: HostPlan, log: Path) -> _Process:
    try:
        return _Process(plan, log)
    except OSError as error:
        raise RunError(f"host {plan.name} cannot be started: {error.strerror}: {error.filename}") from error


def _end_orphans(others: set[int], listener: Listener) -> None:
    ended = end_orphans(but=others)
    if ended:
        listener.say(f"{ended} process{'es' if ended > 1 else ''} of the job outlived it: killed")
