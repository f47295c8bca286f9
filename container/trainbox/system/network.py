"""Why NCCL or gloo may not get through on a host: hints from facts about it, not from the words of an error.

What NCCL says is nearly always "unhandled system error"; what is wrong is nearly always one of these.
"""

import os
import re
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.system.machine import read_machine

Backend = Literal["nccl", "gloo"]

_MIB = 1024 * 1024
#: Docker gives 64 MiB unless told otherwise.
SMALL_SHM_BYTES = 512 * _MIB
_FULL_SHM_BYTES = 16 * _MIB
_SHM = Path("/dev/shm")  # noqa: S108 - the place itself is what is looked at
_INTERFACE_VARIABLES: Mapping[Backend, str] = {"nccl": "NCCL_SOCKET_IFNAME", "gloo": "GLOO_SOCKET_IFNAME"}
#: Any of these may ask for an Elastic Fabric Adapter: libfabric's provider, NCCL's name of a network, its plug-in.
_OFI_VARIABLES = {
    "FI_PROVIDER": re.compile("efa"),
    "NCCL_NET": re.compile("libfabric|ofi", re.IGNORECASE),
    "NCCL_NET_PLUGIN": re.compile("libfabric|ofi", re.IGNORECASE),
}
_LOOPBACK = "lo"


class Facts(msgspec.Struct, frozen=True):
    """What a host has, and what its ranks were told."""

    backend: Backend
    #: Hosts of the job, and ranks and GPUs of this one.
    hosts: int
    ranks: int
    gpus: int
    #: By name; None where they cannot be listed.
    interfaces: tuple[str, ...] | None
    #: Whether there is an Elastic Fabric Adapter and the library that drives it.
    efa: bool
    #: Size of /dev/shm and what is free of it; None where there is none.
    shm_bytes: int | None
    shm_free_bytes: int | None
    #: What a process may lock; None: without a limit.
    memlock_bytes: int | None
    #: Those that say which network to take.
    variables: Mapping[str, str]
    #: By host and component.
    versions: Mapping[str, Mapping[str, str]] = {}


class NetworkRule(msgspec.Struct, frozen=True):
    """A sign of a network problem, and what to do about it."""

    #: One line of the docs: in which facts it sees a reason.
    when: str
    advice: str
    backends: tuple[Backend, ...]
    #: The fact in words; empty where it is not so.
    sees: Callable[[Facts], str]


def _too_few_gpus(facts: Facts) -> str:
    return f"{facts.ranks} ranks on a host with {facts.gpus} GPU(s)" if facts.ranks > facts.gpus else ""


def _no_interface(facts: Facts) -> str:
    variable = _INTERFACE_VARIABLES[facts.backend]
    value = facts.variables.get(variable, "")
    if not value or facts.interfaces is None or chosen(facts):
        return ""
    return f"{variable}={value}, and this host has {', '.join(facts.interfaces) or 'no interface'}"


def _loopback(facts: Facts) -> str:
    alone = facts.hosts > 1 and chosen(facts) == (_LOOPBACK,)
    return f"NCCL_SOCKET_IFNAME={facts.variables['NCCL_SOCKET_IFNAME']} on {facts.hosts} hosts" if alone else ""


def _no_efa(facts: Facts) -> str:
    asking = [
        f"{name}={facts.variables[name]}"
        for name, asks in _OFI_VARIABLES.items()
        if asks.search(facts.variables.get(name, ""))
    ]
    return f"{', '.join(asking)}, and this host has no EFA or no libfabric" if asking and not facts.efa else ""


def _skew(facts: Facts) -> str:
    """The first component of which not all hosts have the same version; an example of each."""
    for name in {name: None for of_host in facts.versions.values() for name in of_host}:
        examples: dict[str, str] = {}
        for host, of_host in facts.versions.items():
            examples.setdefault(of_host.get(name, "none"), host)
        if len(examples) > 1:
            return f"{name} " + ", ".join(f"{version} on {host}" for version, host in examples.items())
    return ""


def _full_shm(facts: Facts) -> str:
    free = facts.shm_free_bytes
    return "" if free is None or free >= _FULL_SHM_BYTES else f"{_SHM} has {free // _MIB} MiB left"


def _small_shm(facts: Facts) -> str:
    if facts.shm_bytes is None:
        return f"there is no {_SHM}"
    return f"{_SHM} has {facts.shm_bytes // _MIB} MiB" if facts.shm_bytes < SMALL_SHM_BYTES else ""


def _locks_too_little(facts: Facts) -> str:
    limited = facts.efa and facts.memlock_bytes is not None
    return f"an EFA, and processes may lock {(facts.memlock_bytes or 0) // _MIB} MiB" if limited else ""


#: In this order: what certainly cannot work comes before what may be too little.
RULES: tuple[NetworkRule, ...] = (
    NetworkRule(
        "more ranks than GPUs on a host", "NCCL takes no GPU twice: fewer processes_per_host",
        ("nccl",), _too_few_gpus,
    ),
    NetworkRule(
        "`NCCL_SOCKET_IFNAME` or `GLOO_SOCKET_IFNAME` names an interface that the host does not have",
        "leave it out: trainbox passes on the one that SageMaker names", ("nccl", "gloo"), _no_interface,
    ),
    NetworkRule(
        "`NCCL_SOCKET_IFNAME` leaves nothing but loopback, on several hosts",
        "it reaches no other host: name the interface between them", ("nccl",), _loopback,
    ),
    NetworkRule(
        "`FI_PROVIDER`, `NCCL_NET` or `NCCL_NET_PLUGIN` ask for an EFA (OFI), and the host has none or no libfabric",
        "leave it out, or take an instance type with EFA and an image with its installer", ("nccl",), _no_efa,
    ),
    NetworkRule(
        "hosts have different versions of torch or NCCL", "give all hosts the same image, by its digest",
        ("nccl",), _skew,
    ),
    NetworkRule(
        f"less than {_FULL_SHM_BYTES // _MIB} MiB free in `/dev/shm`",
        "something fills it: fewer data loader workers, or with docker a larger --shm-size",
        ("nccl", "gloo"), _full_shm,
    ),
    NetworkRule(
        f"`/dev/shm` of less than {SMALL_SHM_BYTES // _MIB} MiB", "with docker a larger --shm-size",
        ("nccl",), _small_shm,
    ),
    NetworkRule(
        "an EFA, and a limit on the memory that processes may lock", "with docker --ulimit memlock=-1",
        ("nccl",), _locks_too_little,
    ),
)  # fmt: skip


def find_hints(facts: Facts) -> tuple[str, ...]:
    """Pure: what is to be thought of, the likeliest first; nothing where all is as it should be."""
    seen = ((rule, rule.sees(facts)) for rule in RULES if facts.backend in rule.backends)
    return tuple(f"{fact}: {rule.advice}" for rule, fact in seen if fact)


def chosen(facts: Facts) -> tuple[str, ...]:
    """The interfaces that the variable of the backend leaves.

    NCCL takes beginnings of names, whole names behind `=` and what is to be left out behind `^` (NCCL documentation,
    NCCL_SOCKET_IFNAME); gloo takes whole names.
    """
    value = facts.variables.get(_INTERFACE_VARIABLES[facts.backend], "")
    is_whole = facts.backend == "gloo" or value.lstrip("^").startswith("=")
    names = value.lstrip("^").removeprefix("=").split(",")
    return tuple(
        interface
        for interface in facts.interfaces or ()
        if any(interface == name if is_whole else interface.startswith(name) for name in names)
        is not value.startswith("^")
    )


def gather(backend: Backend, *, hosts: int, ranks: int, env: Mapping[str, str]) -> Facts:
    """The facts of this host.

    Args:
        backend: Whose failure is to be explained.
        hosts: Of the job.
        ranks: Of this host.
        env: What the ranks were told.
    """
    machine = read_machine()
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    shm = os.statvfs(_SHM) if _SHM.is_dir() else None
    names = (*_INTERFACE_VARIABLES.values(), *_OFI_VARIABLES)
    return Facts(
        backend=backend,
        hosts=hosts,
        ranks=ranks,
        gpus=machine.gpus,
        interfaces=machine.interfaces,
        efa=machine.efa,
        shm_bytes=shm.f_blocks * shm.f_frsize if shm else None,
        shm_free_bytes=shm.f_bavail * shm.f_frsize if shm else None,
        memlock_bytes=None if memlock == resource.RLIM_INFINITY else memlock,
        variables={name: env[name] for name in names if name in env},
    )
