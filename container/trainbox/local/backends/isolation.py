"""How far each host of a local job can have a file system of its own: tried out, and said with its reason."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.errors import RunError
from trainbox.local.backends import namespace
from trainbox.local.backends.confinement import Confinement, confine
from trainbox.local.backends.engine import Image, find_image
from trainbox.local.backends.namespace import OPT_ML, probe
from trainbox.local.local_options import LocalOptions

_HOSTS_FILE = Path("/etc/hosts")


class Isolation(msgspec.Struct, frozen=True):
    """What the machine allows.

    Args:
        kind: Whose mount namespaces: root's, an unprivileged user's, a container's, or none.
        at_opt_ml: Whether the tree of a host can be mounted at `/opt/ml`.
        can_name_hosts: Whether each host can have an `/etc/hosts` in which all the others are.
        reason: Why not at `/opt/ml`; empty if there.
        image: What the containers are made of, if they are.
        confinement: What these may do.
    """

    kind: namespace.Kind | Literal["container"] = "none"
    at_opt_ml: bool = False
    can_name_hosts: bool = False
    reason: str = ""
    image: Image | None = None
    confinement: Confinement | None = None

    @property
    def interface(self) -> str:
        """The network interface of a host; all processes on this machine talk over its loopback interface."""
        return "lo" if self.confinement is None else self.confinement.interface

    @property
    def sentence(self) -> str:
        """The choice made for the user, and its reason, in one line."""
        if self.image is not None and self.confinement is not None:
            return f"{self.image.sentence}; {self.confinement.sentence}"
        if self.at_opt_ml:
            return "each host has its own /opt/ml (a private mount), its inputs read-only"
        inputs = (
            "inputs read-only" if self.kind != "none" else "inputs as links, which do not protect them from writing"
        )
        return (
            f"TRAINBOX_ROOT is used, {inputs}: {self.reason}; a script with hard-coded /opt/ml paths will not find them"
        )


def in_containers(image: Image, confinement: Confinement) -> Isolation:
    """Containers of an image: a file system, a name and an address for each host."""
    return Isolation(kind="container", at_opt_ml=True, can_name_hosts=True, image=image, confinement=confinement)


def check_containers(options: LocalOptions, hosts: int) -> None:
    """Refuse what is said of containers where it has no effect.

    Raises:
        RunError: There are none, or they could not work together.
    """
    if options.keep and not options.docker:
        raise RunError("--keep: there is nothing to keep without --docker", hint="leave it out, or add --docker")
    for flag, is_given in (("--as-sagemaker", options.as_sagemaker), ("--network", options.network is not None)):
        if is_given and not options.docker:
            raise RunError(f"{flag} says what containers may do, and there are none", hint="add --docker")
    if options.network == "none" and hosts > 1:
        raise RunError(
            f"--network none: {hosts} hosts must reach each other",
            hint="--network internal (the default) gives them a network that leads nowhere else",
        )


def find_containers(image_name: str, options: LocalOptions, hosts: int, outside: Sequence[str]) -> Isolation:
    """Containers of an image, and what they may do: no more than the job needs.

    Args:
        image_name: Of the image.
        options: How the job runs here; its environment says where the engine is.
        hosts: How many.
        outside: What the job fetches from elsewhere when it starts.

    Raises:
        RunError: No engine answers, it does not have the image, or cannot run it.
    """
    try:
        image = find_image(image_name, options.env or {})
    except RunError as error:
        if not image_name.endswith((".py", ".sh")):
            raise
        hint = f"--docker takes the name of an image: did you mean {image_name} --docker?"
        raise RunError(error.message, hint=hint) from error
    confinement = confine(
        hosts=hosts,
        outside=outside,
        network=options.network,
        as_sagemaker=options.as_sagemaker,
        user=(os.geteuid(), os.getegid()),
        groups=os.getgroups(),
        rootless=image.rootless,
    )
    return in_containers(image, confinement)


def find_isolation() -> Isolation:
    """Try what this user may do, best first; nothing is changed."""
    kind: Literal["root", "user"] = "root" if os.geteuid() == 0 else "user"
    refusal = probe(kind)
    return Isolation(reason=f"no private mounts here ({refusal})") if refusal else isolate(kind)


def isolate(kind: Literal["root", "user"]) -> Isolation:
    """Private mounts, which this user was found to be allowed."""
    missing = _missing_mountpoint(kind)
    return Isolation(kind=kind, at_opt_ml=not missing, can_name_hosts=_HOSTS_FILE.is_file(), reason=missing)


def _missing_mountpoint(kind: namespace.Kind) -> str:
    if OPT_ML.is_dir():
        return ""
    if kind == "root" and _can_be_made(OPT_ML):
        return ""
    return f"there is no directory {OPT_ML} to mount on; 'sudo mkdir {OPT_ML}' once makes one"


def _can_be_made(path: Path) -> bool:
    existing = next(parent for parent in path.parents if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)
