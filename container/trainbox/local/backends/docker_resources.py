"""What a job has at the engine, its network and its containers: made, found again after a kill, and removed."""

import contextlib
import ipaddress
import itertools
import secrets
import shlex
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainbox.errors import RunError
from trainbox.local.backends.confinement import Confinement, environment, host_options
from trainbox.local.backends.engine import LABEL, Image, asking, connect, unless_gone
from trainbox.local.backends.hosts import HostListener
from trainbox.local.backends.ownership import give_to_caller
from trainbox.local.plan import HostPlan, RunPlan

if TYPE_CHECKING:
    from docker import APIClient
    from docker.types import Mount

#: By these an attempt that was killed is found again; what `--keep` keeps has the last one, too.
_OUT_LABEL = "trainbox.out"
_MACHINE_LABEL = "trainbox.machine"
_KEEP_LABEL = "trainbox.keep"
#: For a subnet that nobody else takes in the meantime.
_TRIES = 5
_LOOPBACK = "127.0.0.1"
#: Of a bridge that this machine has no address on: by that the containers would reach its services.
_UNREACHABLE = {"com.docker.network.bridge.inhibit_ipv4": "true"}


class Resources:
    """The network and the containers of a job, to be removed whatever happens."""

    def __init__(self, client: "APIClient", plan: RunPlan, image: Image, confinement: Confinement) -> None:
        self._client = client
        self._plan = plan
        self._image = image
        self._confinement = confinement
        # Two jobs of one name do not meet, and neither meets what an earlier one has left.
        self._name = f"trainbox-{plan.request.job_name}-{secrets.token_hex(4)}"
        self._network = ""
        self._addresses: dict[str, str] = {}
        self._containers: list[str] = []

    def add_network(self) -> None:
        """A bridge of the job's own, on which its hosts find each other by name; none where it shall have none."""
        from docker.types import IPAMConfig, IPAMPool  # noqa: PLC0415

        hosts = [host.name for host in self._plan.hosts]
        if self._confinement.network == "none":
            # What looks up its own host's name, as torch elastic does, finds it.
            self._addresses = dict.fromkeys(hosts, _LOOPBACK)
            return
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
            is_internal = self._confinement.network == "internal"
            self._client.create_network(
                self._name,
                driver="bridge",
                check_duplicate=True,
                labels=_labels(self._plan),
                internal=is_internal,
                options=_UNREACHABLE if is_internal else {},
                **options,
            )
        self._network = self._name

    def add_container(self, host: HostPlan) -> str:
        """The container of a host, not started; returns its name."""
        from docker.types import DeviceRequest, LogConfig  # noqa: PLC0415

        client, name = self._client, f"{self._name}-{host.name}"
        share = self._plan.request.share
        gpus = {"device_ids": list(share.gpus)} if share.gpus else {"count": -1}
        config = client.create_host_config(
            network_mode=self._network or "none",
            mounts=mounts_of(host),
            extra_hosts=self._addresses,
            shm_size=self._image.shm_bytes,
            # What a host writes is in logs/HOST.log: the engine's own copy would only fill its disk.
            log_config=LogConfig(type="none"),
            cpuset_cpus=",".join(map(str, share.processors)) or None,
            device_requests=[DeviceRequest(**gpus, capabilities=[["gpu"]])] if self._image.gpus else None,
            **host_options(self._confinement, tmp_bytes=self._image.shm_bytes),
        )
        variables = environment(self._confinement, host.environment)
        with asking(f"make the container {name}", hint="the files named must be on the engine's own machine"):
            client.create_container(
                self._image.name,
                list(host.argv),
                entrypoint=list(host.entrypoint) or None,
                name=name,
                hostname=host.name,
                user=self._confinement.user or None,
                # In the body of the request: no other process sees it in an argument list.
                environment=[f"{key}={value}" for key, value in variables.items()],
                labels=_labels(self._plan),
                host_config=config,
                networking_config=self._endpoint(host.name) if self._network else None,
            )
        self._containers.append(name)
        return name

    def _endpoint(self, host: str) -> dict[str, Any]:
        address = self._addresses.get(host)
        endpoint = self._client.create_endpoint_config(aliases=[host], ipv4_address=address)
        return dict(self._client.create_networking_config({self._network: endpoint}))

    def remove(self, listener: HostListener) -> None:
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
            listener.note(f"error: {error.message}; to remove what is left: {by_hand}")
            return
        if self._containers:
            listener.note(f"kept: {', '.join([*self._containers, *networks])}; to remove them: {by_hand}")


def _labels(plan: RunPlan) -> dict[str, str]:
    keep = {_KEEP_LABEL: "yes"} if plan.request.keep else {}
    return {LABEL: plan.request.job_name, **_place_labels(plan), **keep}


def _place_labels(plan: RunPlan) -> dict[str, str]:
    return {_OUT_LABEL: str(plan.request.out), _MACHINE_LABEL: socket.gethostname()}


def mounts_of(host: HostPlan) -> "list[Mount]":
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


def remove_earlier(plan: RunPlan, image: Image, listener: HostListener) -> None:
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
            listener.note(f"left of an attempt that was killed, and removed: {found}")
            _remove(client, containers, networks)
        give_to_caller(client, written_by(plan), image, listener)


def written_by(plan: RunPlan) -> list[Path]:
    """Where hosts write, of this attempt or the one before; not their inputs, which may be the user's own files."""
    entries = [*plan.work.iterdir()] if plan.work.is_dir() else []
    return [*(path for path in entries if path != plan.inputs), plan.checkpoints]


def _unkept(found: Iterable[dict[str, Any]]) -> list[str]:
    return [str(each["Id"]) for each in found if _KEEP_LABEL not in (each.get("Labels") or {})]
