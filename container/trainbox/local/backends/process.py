"""The process backend: each host of a plan is a supervisor on this machine, and leaves no process behind."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from trainbox.clock import AwakeClock
from trainbox.errors import RunError
from trainbox.local.backends.descendants import Marks, end_orphans, mount_namespace, orphans_come_here
from trainbox.local.backends.hosts import (
    TICK_SECONDS,
    Ended,
    Host,
    HostListener,
    check_logs,
    drain,
    hang_seconds_of,
    watch,
)
from trainbox.local.backends.namespace import started_in
from trainbox.local.plan import HostPlan, RunPlan
from trainbox.local.results.folder import held, is_held
from trainbox.local.stop_request import StopRequest
from trainbox.system.procfs import LOOK_SECONDS, StoppedProcesses
from trainbox.system.shm_dir import remove_abandoned
from trainbox.system.subreaper import children


class _Process(Host):
    """A host that is a process.

    Args:
        plan: What it runs.
        log: As of `Host`.
        lock: A descriptor that it inherits.
        hang_seconds: It is killed once it has been stopped (SIGSTOP) for longer; 0 never looks.
        umask: Of the files it makes.
    """

    def __init__(self, plan: HostPlan, log: Path, lock: int, *, hang_seconds: float, umask: int) -> None:
        super().__init__(plan.name, log)
        self._asked = False
        self._hang_seconds = hang_seconds
        self._stopped = StoppedProcesses(AwakeClock(time.monotonic))
        self._look_at = 0.0
        self._hung = ""
        #: Its mount namespace, once it has one of its own.
        self.namespace = ""
        # A pipe that ends with this process: `namespace` sees whether it is still there.
        stdin, self._alive = os.pipe()
        # What starts the host lets them through once it can say in words that it was stopped; it inherits the mask.
        held_back = (signal.SIGTERM, signal.SIGINT) if plan.is_supervised else ()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
        try:
            self.process = subprocess.Popen(
                started_in(plan.namespace, plan.argv),
                env=plan.environment,
                stdin=stdin,
                stdout=subprocess.PIPE,
                # One pipe for both keeps their order.
                stderr=subprocess.STDOUT,
                cwd="/",
                # Ctrl-C on the terminal reaches trainbox run alone, which then says SIGTERM as SageMaker does.
                start_new_session=True,
                pass_fds=(lock,),
                bufsize=0,
                umask=umask,
            )
        except OSError:
            os.close(self._alive)
            self.close_log()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            os.close(stdin)
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        self.pipe = self.process.stdout

    def has_ended(self) -> bool:
        if self.exit_code is None:
            code = self.process.poll()
            if code is None:
                self.namespace = self.namespace or mount_namespace(self.process.pid)
                self._end_stopped()
            else:
                self.exit_code = code if code >= 0 else 128 - code
                if code < 0 and not self._asked:  # from elsewhere, and it could write no failure file
                    how = self._hung or f"was killed by {_name(-code)}"
                    self.reason = f"the supervisor of {self.name} {how}"
        return self.exit_code is not None

    def _end_stopped(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for seconds in self._stopped.find({self.process.pid: self._hang_seconds}).values():
            self._hung = f"was stopped (SIGSTOP) for {seconds:.1f} s and was ended"
            self.process.kill()

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)

    def stop(self, seconds: float) -> None:  # noqa: ARG002 - `watch` kills when they are over
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # one that is stopped would not hear it

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        self._asked = True
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


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def run_hosts(plan: RunPlan, listener: HostListener, stop_request: StopRequest) -> Ended:
    """Start all hosts and come back when all have ended; no process of theirs is left.

    Raises:
        RunError: A host cannot be started, or its log cannot be written.
    """
    others = children(zombies=True)
    remove_abandoned()
    hosts: list[_Process] = []
    logs = plan.request.out / "logs"
    with held(logs) as lock, orphans_come_here(), selectors.DefaultSelector() as selector:
        try:
            for host_plan in plan.hosts:
                log = logs / f"{host_plan.name}.log"
                hosts.append(_start(plan, host_plan, log, lock))
                selector.register(hosts[-1].pipe, selectors.EVENT_READ, hosts[-1])
            ended = watch(plan, hosts, selector, listener, stop_request)
            _end_orphans(plan, hosts, others, listener)
            drain(selector, listener)
        finally:
            for host in hosts:
                host.close()
            _end_orphans(plan, hosts, others, listener)
            remove_abandoned()
    check_logs(hosts)
    return ended


def await_earlier(plan: RunPlan, listener: HostListener, stop_request: StopRequest) -> None:
    """Wait until the hosts of an attempt whose `trainbox run` was killed have left: they save what this one resumes.

    Raises:
        RunError: They do not leave in the time that a stop gives, or this run is interrupted meanwhile.
    """
    logs, until, is_said = plan.request.out / "logs", time.monotonic() + plan.seconds_to_leave, False
    earlier = plan.request.previous or plan.request.replaced
    attempt = f"attempt {earlier.attempt if earlier else plan.attempt - 1}"
    while is_held(logs):
        if not is_said:
            is_said = True
            listener.note(f"hosts of {attempt}, which was killed, are still leaving: waiting for them")
        if stop_request.count or time.monotonic() >= until:
            why = "interrupted" if stop_request.count else f"after {plan.seconds_to_leave:g} s"
            raise RunError(
                f"hosts of {attempt}, which was killed, still run ({why})",
                hint=f"'fuser -v {logs}' names them: end them, and resume again",
            )
        time.sleep(TICK_SECONDS)


def _start(plan: RunPlan, host: HostPlan, log: Path, lock: int) -> _Process:
    try:
        return _Process(host, log, lock, hang_seconds=hang_seconds_of(plan, host), umask=plan.request.umask)
    except OSError as error:
        raise RunError(f"host {host.name} cannot be started: {error.strerror}: {error.filename}") from error


def _end_orphans(plan: RunPlan, hosts: Sequence[_Process], others: set[int], listener: HostListener) -> None:
    """End what the hosts left; in a program that starts other processes, too, by the marks of the job."""
    marks = Marks(frozenset(host.namespace for host in hosts) - {""}, tuple(host.tree for host in plan.hosts))
    ended = end_orphans(but=others) if plan.request.owns_children else end_orphans(but=others, is_ours=marks.are_of)
    if ended:
        listener.note(f"{ended} process{'es' if ended > 1 else ''} of the job outlived it: killed")
