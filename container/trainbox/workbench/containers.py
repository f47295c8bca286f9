"""The container backend: each host of a plan is a container, started and stopped as SageMaker does, and then removed.

All of a job's containers are on a bridge network of its own, so that `algo-1` is its own first host however many jobs
run at once. What only the engine does, it does: `docker stop` for the end of a job, the hosts' names, the mounts.
"""

import contextlib
import ipaddress
import itertools
import math
import os
import secrets
import selectors
import shlex
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainbox.errors import RunError
from trainbox.workbench.engine import LABEL, Image, asking, connect, run_once, unless_gone
from trainbox.workbench.hosts import TICK_SECONDS, Ended, Host, Listener, check_logs, drain, watch
from trainbox.workbench.interrupts import Interrupts
from trainbox.workbench.plan import HostPlan, RunPlan

if TYPE_CHECKING:
    from docker import APIClient
    from docker.types import Mount

#: By these an attempt that was killed is found again; what `--keep` keeps has the last one, too.
_OUT_LABEL = "trainbox.out"
_MACHINE_LABEL = "trainbox.machine"
_KEEP_LABEL = "trainbox.keep"
#: A line that is longer is relayed in pieces.
_LONGEST_LINE_BYTES = 1024 * 1024
_KILLED = 137
#: For a subnet that nobody else takes in the meantime.
_TRIES = 5
_SECONDS_TO_GET_READY = 1.0
#: What a shell, `env` and the engine itself call a command that cannot be executed or found.
_NO_COMMAND = (126, 127)


class _Container(Host):
    """A host that is a container, created and attached to, but not yet started."""

    def __init__(self, container: str, plan: RunPlan, name: str, client: "APIClient", log: Path) -> None:
        super().__init__(name, log)
        self._container = container
        self._engine_env = plan.request.inherited
        self._client = client
        self._stopped = False
        self._spoken = threading.Event()
        self._silent = threading.Event()
        self._threads: list[threading.Thread] = []
        # Attached before it is started: not one line is missed. Through a pipe both backends are read by one loop.
        with asking(f"attach to host {name}"):
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
                self.reason = "" if self._stopped else _reason(state, self.exit_code)
        return self.exit_code is not None

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


def run_containers(plan: RunPlan, image: Image, listener: Listener, interrupts: Interrupts) -> Ended:
    """Start all hosts and come back when all have ended; no container or network of theirs is left, unless asked for.

    Raises:
        RunError: The engine cannot start a host or stops answering, the image has no `train`, a log cannot be written.
    """
    hosts: list[_Container] = []
    with contextlib.closing(connect(plan.request.inherited)) as client, selectors.DefaultSelector() as selector:
        made = _Made(client, plan, image)
        try:
            made.add_network()
            for host_plan in plan.hosts:
                hosts.append(_attached(made.add_container(host_plan), plan, host_plan.name, client))
                selector.register(hosts[-1].pipe, selectors.EVENT_READ, hosts[-1])
            for host in hosts:
                host.start(image)
            ended = watch(plan, hosts, selector, listener, interrupts)
            drain(selector, listener)
        finally:
            made.remove(listener)
            for host in hosts:
                host.close()
            _give_to_caller(client, plan, image, listener)
    check_logs(hosts)
    _check_train(plan, image, ended)
    return ended


def _attached(container: str, plan: RunPlan, name: str, client: "APIClient") -> _Container:
    log = plan.request.out / "logs" / f"{name}.log"
    try:
        return _Container(container, plan, name, client, log)
    except OSError as error:
        raise RunError(f"host {name} cannot be started: {error.strerror}: {error.filename}") from error


class _Made:
    """What the engine has made for a job, to be removed whatever happens."""

    def __init__(self, client: "APIClient", plan: RunPlan, image: Image) -> None:
        self._client = client
        self._plan = plan
        self._image = image
        # Two jobs of one name do not meet, and neither meets what an earlier one has left.
        self._name = f"trainbox-{plan.request.job_name}-{secrets.token_hex(4)}"
        self._network = ""
        self._addresses: dict[str, str] = {}
        self._containers: list[str] = []

    def add_network(self) -> None:
        """A bridge of the job's own, on which its hosts find each other by name."""
        from docker.types import IPAMConfig, IPAMPool  # noqa: PLC0415

        hosts = [host.name for host in self._plan.hosts]
        self._create_network()
        if len(hosts) == 1:
            return
        # The engine's name server forgets a host when it ends, which a quick one does before the others have looked it
        # up. So each gets a fixed address, and all are told them; and the engine fixes addresses only in a subnet that
        # it was given: the free one it has just chosen.
        for tries_left in reversed(range(_TRIES)):
            subnet = self._give_up_network()
            try:
                self._create_network(ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)]))
                break
            except RunError:  # another job has been quicker
                if not tries_left:
                    raise
            self._create_network()
        # The first address is the gateway's.
        free = itertools.islice(ipaddress.ip_network(subnet).hosts(), 1, None)
        self._addresses = {host: str(address) for host, address in zip(hosts, free, strict=False)}

    def _give_up_network(self) -> str:
        """Remove the network; its subnet is then free."""
        with asking(f"say how the network {self._name} is"):
            subnet = str(self._client.inspect_network(self._name)["IPAM"]["Config"][0]["Subnet"])
            self._client.remove_network(self._name)
        self._network = ""
        return subnet

    def _create_network(self, **options: object) -> None:
        with asking(f"make the network {self._name}", hint="'docker network prune' removes those nobody uses"):
            self._client.create_network(
                self._name, driver="bridge", check_duplicate=True, labels=_labels(self._plan), **options
            )
        self._network = self._name

    def add_container(self, host: HostPlan) -> str:
        """The container of a host, not started; returns its name."""
        from docker.types import DeviceRequest, LogConfig  # noqa: PLC0415

        client, name = self._client, f"{self._name}-{host.name}"
        config = client.create_host_config(
            network_mode=self._network,
            mounts=_mounts(host),
            extra_hosts=self._addresses,
            shm_size=self._image.shm_bytes,
            # What a host writes is in logs/HOST.log: the engine's own copy would only fill its disk.
            log_config=LogConfig(type="none"),
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if self._image.gpus else None,
        )
        endpoint = client.create_endpoint_config(aliases=[host.name], ipv4_address=self._addresses.get(host.name))
        with asking(f"make the container {name}", hint="the files named must be on the engine's own machine"):
            client.create_container(
                self._image.name,
                list(host.argv),
                name=name,
                hostname=host.name,
                # In the body of the request: no other process sees it in an argument list.
                environment=[f"{key}={value}" for key, value in host.environment.items()],
                labels=_labels(self._plan),
                host_config=config,
                networking_config=client.create_networking_config({self._network: endpoint}),
            )
        self._containers.append(name)
        return name

    def remove(self, listener: Listener) -> None:
        """Remove all of it, or end and name it; what the engine does not do is said, too."""
        networks = [self._network] if self._network else []
        commands = [["docker", "rm", "-f", "-v", *self._containers]] if self._containers else []
        commands += [["docker", "network", "rm", name] for name in networks]
        by_hand = "; ".join(map(shlex.join, commands))
        try:
            if not self._plan.request.keep:
                _remove(self._client, self._containers, networks)
                return
            for name in self._containers:
                with asking(f"end {name}"), unless_gone():
                    self._client.kill(name)
        except RunError as error:
            listener.say(f"error: {error.message}; to remove what is left: {by_hand}")
            return
        if networks:
            listener.say(f"kept: {', '.join([*self._containers, *networks])}; to remove them: {by_hand}")


def _labels(plan: RunPlan) -> dict[str, str]:
    keep = {_KEEP_LABEL: "yes"} if plan.request.keep else {}
    return {LABEL: plan.request.job_name, **_place_labels(plan), **keep}


def _place_labels(plan: RunPlan) -> dict[str, str]:
    return {_OUT_LABEL: str(plan.request.out), _MACHINE_LABEL: socket.gethostname()}


def _mounts(host: HostPlan) -> "list[Mount]":
    """The tree of a host at `/opt/ml`; what the plan mounts into the tree is mounted into that."""
    from docker.types import Mount  # noqa: PLC0415

    def seen(place: Path) -> str:
        return str(host.root / place.relative_to(host.tree) if place.is_relative_to(host.tree) else place)

    # Not as SOURCE:TARGET: a path may have a colon.
    return [Mount(seen(each.target), str(each.source), "bind", read_only=each.read_only) for each in host.mounts]


def _remove(client: "APIClient", containers: Iterable[str], networks: Iterable[str]) -> None:
    """Try to remove each of them, and only then complain."""
    removals = [(client.remove_container, name, {"force": True, "v": True}) for name in containers]
    removals += [(client.remove_network, name, {}) for name in networks]
    problems: list[RunError] = []
    for remove, name, options in removals:
        try:
            with asking(f"remove {name}"), unless_gone():
                remove(name, **options)
        except RunError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def remove_earlier(plan: RunPlan, image: Image, listener: Listener) -> None:
    """End what an attempt that was killed left in the engine: it would write where this one does.

    The lock on the result's directory is ours: nobody else's job is there.
    """
    wanted = {"label": [f"{name}={value}" for name, value in _place_labels(plan).items()]}
    with contextlib.closing(connect(plan.request.inherited)) as client:
        with asking("list its containers"):
            containers = _unkept(client.containers(all=True, filters=wanted))
            networks = _unkept(client.networks(filters=wanted))
        if containers or networks:
            found = ", ".join(
                f"{len(each)} {name}" for name, each in (("container", containers), ("network", networks)) if each
            )
            listener.say(f"left of an attempt that was killed, and removed: {found}")
            _remove(client, containers, networks)
        _give_to_caller(client, plan, image, listener)


def _unkept(found: Iterable[dict[str, Any]]) -> list[str]:
    return [str(each["Id"]) for each in found if _KEEP_LABEL not in (each.get("Labels") or {})]


def _give_to_caller(client: "APIClient", plan: RunPlan, image: Image, listener: Listener) -> None:
    """Root in a container wrote these files, on SageMaker as here; their owner becomes whoever called."""
    places = [plan.work, plan.checkpoints]
    foreign = list(_foreign(places))
    if not foreign:
        return
    if os.geteuid() == 0:
        for path in foreign:
            os.chown(path, 0, os.getegid(), follow_symlinks=False)
        return
    try:
        code = _chown(client, places, image)
        problem = f"chown in {image.name} left with exit code {code}" if code else ""
    except RunError as error:
        problem = error.message
    if problem:
        by_hand = shlex.join(["sudo", "chown", "-hR", f"{os.geteuid()}:{os.getegid()}", *map(str, places)])
        listener.say(f"error: files of another user are left ({problem}): {by_hand}")


def _foreign(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        for parent, directories, names in os.walk(place):
            for path in (Path(parent, name) for name in (*directories, *names)):
                if path.lstat().st_uid != os.geteuid():
                    yield path


def _chown(client: "APIClient", places: Sequence[Path], image: Image) -> int:
    """Only root may give files away: root in a short container of the same image does it."""
    from docker.types import Mount  # noqa: PLC0415

    # Of an engine that is a user's, root in a container is that user.
    owner = "0:0" if image.rootless else f"{os.geteuid()}:{os.getegid()}"
    inside = {f"/given/{number}": str(place) for number, place in enumerate(places) if place.is_dir()}
    mounts = [Mount(target, source, "bind") for target, source in inside.items()]
    return run_once(client, image.name, ["chown", "-hR", owner, *inside], mounts=mounts)


def _check_train(plan: RunPlan, image: Image, ended: Ended) -> None:
    """Where the ENTRYPOINT looks for `train`, its code is all that tells; a supervisor would have left a reason."""
    trees = {host.name: host.tree for host in plan.hosts}
    for host in ended.hosts:
        failure = trees[host.name] / "output" / "failure"
        said = failure.read_bytes().strip(b"\0 \n") if failure.is_file() else b""
        if host.name == ended.failed and host.exit_code in _NO_COMMAND and not said:
            raise _no_train(f"host {host.name} left with exit code {host.exit_code}", image)
