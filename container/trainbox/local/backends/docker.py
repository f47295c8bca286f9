"""The container backend: each host of a plan is a container, started and stopped as SageMaker does, and then removed.

All of a job's containers are on a bridge network of its own, so that `algo-1` is its own first host however many jobs
run at once. What only the engine does, it does: `docker stop` for the end of a job, the hosts' names, the mounts.
"""

import contextlib
import math
import os
import selectors
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainbox.clock import AwakeClock, Silence
from trainbox.contract.failures.failure import LARGEST_FAILURE_BYTES
from trainbox.errors import RunError
from trainbox.files import read_below
from trainbox.local.backends.confinement import Confinement
from trainbox.local.backends.docker_resources import Resources, written_by
from trainbox.local.backends.engine import Image, asking, connect, unless_gone
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
from trainbox.local.backends.ownership import give_to_caller
from trainbox.local.plan import HostPlan, RunPlan
from trainbox.local.stop_request import StopRequest
from trainbox.system.procfs import is_stopped, process_state

if TYPE_CHECKING:
    from docker import APIClient

#: A line that is longer is relayed in pieces.
_LONGEST_LINE_BYTES = 1024 * 1024
_KILLED = 137
_SECONDS_TO_GET_READY = 1.0
#: From one question to the engine how a host is to the next.
_LOOK_SECONDS = 1.0
#: What a shell, `env` and the engine itself call a command that cannot be executed or found.
_NO_COMMAND = (126, 127)


class _Container(Host):
    """A host that is a container, created and attached to, but not yet started.

    Args:
        container: As the engine calls it.
        plan: Of the job.
        host: What it runs.
        client: Of the engine.
        log: As of `Host`.
    """

    def __init__(self, container: str, plan: RunPlan, host: HostPlan, client: "APIClient", log: Path) -> None:
        super().__init__(host.name, log)
        self._container = container
        self._engine_env = plan.request.inherited
        self._client = client
        self._stopped = False
        self._hang_seconds = hang_seconds_of(plan, host)
        self._silence = Silence[str](AwakeClock(time.monotonic))
        self._look_at = 0.0
        self._hung = ""
        self._spoken = threading.Event()
        self._silent = threading.Event()
        self._threads: list[threading.Thread] = []
        # Attached before it is started: not one line is missed. Through a pipe both backends are read by one loop.
        with asking(f"attach to host {self.name}"):
            self._id = str(client.inspect_container(container)["Id"])
            self._frames = client.attach(container, stream=True, demux=True)
        reader, writer = os.pipe()
        self.pipe = os.fdopen(reader, "rb", buffering=0)
        self._in_thread(_relay, self._frames, writer, self._spoken, self._silent)

    def _in_thread(self, target: Any, *args: object) -> None:  # noqa: ANN401 - any function
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def start(self, image: Image) -> None:
        try:
            with asking(f"start host {self.name}"):
                self._client.start(self._container)
        except RunError as error:
            if self._state().get("ExitCode") in _NO_COMMAND:
                raise _no_train(f"host {self.name} cannot be started", image) from error
            raise

    def has_ended(self) -> bool:
        # The stream ends with the container, or with the engine.
        if self.exit_code is None and self._silent.is_set():
            state = self._state()
            if not state.get("Running", False):
                self.exit_code = int(state.get("ExitCode", _KILLED))
                self.reason = "" if self._stopped else self._hung or _reason(state, self.exit_code)
        if self.exit_code is None:
            self._end_frozen()
        return self.exit_code is not None

    def _end_frozen(self) -> None:
        """Kill it once it has been paused, or its first process stopped, for too long: it would never end."""
        now = time.monotonic()
        if not self._hang_seconds or now < self._look_at or self._hung:
            return
        self._look_at = now + _LOOK_SECONDS
        state = self._state()
        found = {"was paused": bool(state.get("Paused")), "was stopped (SIGSTOP)": _is_frozen(state, self._id)}
        seconds = self._silence.seconds(found)
        for how, is_so in found.items():
            if is_so and seconds[how] > self._hang_seconds:
                self._hung = f"the container of {self.name} {how} for {seconds[how]:.1f} s and was ended"
                with asking(f"kill host {self.name}"), unless_gone():
                    self._client.kill(self._container)
                return

    def wait(self, seconds: float) -> None:
        self._silent.wait(seconds)

    def stop(self, seconds: float) -> None:
        self._stopped = True
        self._in_thread(self._stop, seconds)

    def _stop(self, seconds: float) -> None:
        # The kernel drops a SIGTERM that process 1 does not handle: what has not said a word may not be ready for it.
        self._spoken.wait(_SECONDS_TO_GET_READY)
        # `docker stop` comes back when the container has ended: a connection of its own, for a thread of its own.
        # If it cannot be asked to, `watch` kills the host when its time is over.
        with (
            contextlib.suppress(RunError),
            contextlib.closing(connect(self._engine_env)) as client,
            asking(f"stop host {self.name}"),
        ):
            client.stop(self._container, timeout=math.ceil(seconds))

    def kill(self) -> None:
        self._stopped = True
        with asking(f"kill host {self.name}"), unless_gone():
            self._client.kill(self._container)

    def _state(self) -> dict[str, Any]:
        """What the engine says of it; nothing if somebody has removed it."""
        found: dict[str, Any] = {}
        with asking(f"say how host {self.name} is"), unless_gone():
            found = self._client.inspect_container(self._container)
        return dict(found.get("State", {}))

    def close(self) -> None:
        """The container is gone: so are the threads that listened to it."""
        with contextlib.suppress(OSError):
            self._frames.close()
        self.pipe.close()
        for thread in self._threads:
            thread.join(TICK_SECONDS)
        self._frames._response.close()  # noqa: SLF001 - else the socket is open until its garbage is collected
        self.close_log()


def _is_frozen(state: Mapping[str, Any], container: str) -> bool:
    """Whether the first process of a container is stopped; false where it runs on another machine or cannot be seen."""
    pid = int(state.get("Pid") or 0)
    if not pid or not is_stopped(process_state(pid)):
        return False
    with contextlib.suppress(OSError):
        # Behind a socket there may be another machine, where another process has this number.
        return container in Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    return False


def _relay(
    frames: Iterable[tuple[bytes | None, bytes | None]],
    writer: int,
    spoken: threading.Event,
    silent: threading.Event,
) -> None:
    """Write both streams into one pipe, by whole lines: the engine cuts them anywhere."""
    pending = [b"", b""]
    with os.fdopen(writer, "wb", buffering=0) as pipe, contextlib.suppress(OSError, ValueError):
        for frame in frames:
            spoken.set()
            stream = 0 if frame[0] is not None else 1
            data = frame[stream] or b""
            if data.startswith(b"\n") and not pending[stream]:
                # It ends the line that the other stream has left open: the supervisor does so before its last words.
                _write(pipe.fileno(), pending[1 - stream])
                pending[1 - stream] = b""
            whole, newline, rest = (pending[stream] + data).rpartition(b"\n")
            if len(rest) > _LONGEST_LINE_BYTES:
                whole, newline, rest = whole + newline + rest, b"", b""
            pending[stream] = rest
            _write(pipe.fileno(), whole + newline)
        for rest in pending:
            _write(pipe.fileno(), rest)
    spoken.set()
    silent.set()


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _reason(state: dict[str, Any], exit_code: int) -> str:
    """What the supervisor could not say, because it was killed itself."""
    if not state:
        return "the container was removed from outside while the job ran"
    if exit_code != _KILLED:
        return ""
    if state.get("OOMKilled"):
        return "out of memory: the kernel killed the container; use a machine with more, or a smaller batch"
    return "the container was killed from outside (SIGKILL to its first process)"


def _no_train(what: str, image: Image) -> RunError:
    return RunError(
        f"{what}: the image {image.name} has no program 'train' on its PATH, or one that starts what is not there",
        hint="SageMaker runs 'docker run IMAGE train': install trainbox in the image, or a 'train' of your own",
    )


def run_containers(
    plan: RunPlan, image: Image, confinement: Confinement, listener: HostListener, stop_request: StopRequest
) -> Ended:
    """Start all hosts and come back when all have ended; no container or network of theirs is left, unless asked for.

    Raises:
        RunError: The engine cannot start a host or stops answering, the image has no `train`, a log cannot be written.
    """
    hosts: list[_Container] = []
    with contextlib.closing(connect(plan.request.inherited)) as client, selectors.DefaultSelector() as selector:
        resources = Resources(client, plan, image, confinement)
        try:
            resources.add_network()
            for host_plan in plan.hosts:
                hosts.append(_attached(resources.add_container(host_plan), plan, host_plan, client))
                selector.register(hosts[-1].pipe, selectors.EVENT_READ, hosts[-1])
            for host in hosts:
                host.start(image)
            ended = watch(plan, hosts, selector, listener, stop_request)
            drain(selector, listener)
        finally:
            resources.remove(listener)
            for host in hosts:
                host.close()
            give_to_caller(client, written_by(plan), image, listener)
    check_logs(hosts)
    _check_train(plan, image, ended)
    return ended


def _attached(container: str, plan: RunPlan, host: HostPlan, client: "APIClient") -> _Container:
    log = plan.request.out / "logs" / f"{host.name}.log"
    try:
        return _Container(container, plan, host, client, log)
    except OSError as error:
        raise RunError(f"host {host.name} cannot be started: {error.strerror}: {error.filename}") from error


def _check_train(plan: RunPlan, image: Image, ended: Ended) -> None:
    """Where the ENTRYPOINT looks for `train`, its code is all that tells; a supervisor would have left a reason."""
    trees = {host.name: host.tree for host in plan.hosts if host.is_supervised}
    for host in ended.hosts:
        if host.name not in trees:
            continue  # it was started with a command of the request
        said = b""
        with contextlib.suppress(OSError):
            said = read_below(trees[host.name], "output/failure", LARGEST_FAILURE_BYTES).strip(b"\0 \n")
        if host.name == ended.failed and host.exit_code in _NO_COMMAND and not said:
            raise _no_train(f"host {host.name} left with exit code {host.exit_code}", image)
