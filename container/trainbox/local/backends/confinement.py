"""Pure: what the containers of a job may do on this machine, as one value from which the engine's options follow.

By default that is little: whoever runs a script that is not theirs gives it the job's tree and nothing else. SageMaker
itself gives a container root, the engine's default capabilities and a network: `--as-sagemaker`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

#: `none`: only itself. `internal`: the hosts of the job, and nobody else. `bridge`: whatever this machine reaches.
Network = Literal["none", "internal", "bridge"]
NETWORKS: tuple[Network, ...] = get_args(Network)
#: Of a host, threads included; far above any job, far below what a machine can have.
MOST_PIDS = 16_384
#: Writable places outside the job's tree. Compilers (Triton, torch.compile) execute what they write there.
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - a container's own
#: For a user whom the image does not know, and a home that cannot be written.
_HOME = {"HOME": "/tmp", "USER": "trainbox"}  # noqa: S108 - likewise


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """What the containers of a job may do."""

    network: Network
    #: Why it is not the narrowest; empty where it is, or was asked for.
    why_network: str = ""
    is_network_asked: bool = False
    #: Whether they have SageMaker's own conditions.
    as_sagemaker: bool = False
    #: `uid:gid` of their processes, and other groups; where it is empty, what the image says.
    user: str = ""
    groups: tuple[int, ...] = ()

    @property
    def interface(self) -> str:
        """The network interface of a host."""
        return "lo" if self.network == "none" else "eth0"

    @property
    def flags(self) -> list[str]:
        """What asks for the same again."""
        network = ["--network", self.network] if self.is_network_asked else []
        return [*(["--as-sagemaker"] if self.as_sagemaker else []), *network]

    @property
    def sentence(self) -> str:
        """The choice made for the user, and how to make another one."""
        if self.as_sagemaker:
            rights = "root and its capabilities as on SageMaker"
        else:
            rights = f"user {self.user}, no capabilities, its own files read-only, at most {MOST_PIDS:,} processes"
        network = {
            "none": "no network",
            "internal": "a network of the job's hosts alone",
            "bridge": f"a network{self.why_network}",
        }[self.network]
        change = [] if self.network == "bridge" else ["--network bridge gives one that leads outside"]
        change += [] if self.as_sagemaker else ["--as-sagemaker runs it as SageMaker does"]
        return f"it has {rights}, and {network}" + (f" ({', '.join(change)})" if change else "")


def confine(
    *,
    hosts: int,
    outside: Sequence[str],
    network: Network | None,
    as_sagemaker: bool,
    user: tuple[int, int],
    groups: Sequence[int],
    rootless: bool,
) -> Confinement:
    """Decide what the containers may do.

    Args:
        hosts: How many.
        outside: What the job fetches from elsewhere when it starts.
        network: What was asked for.
        as_sagemaker: Likewise.
        user: Who asks: user and group.
        groups: The other groups of theirs, by which they may read their data.
        rootless: Whether the engine is a user's, who then is root in its containers.
    """
    why = f", for {', '.join(outside)}" if outside and network is None and not as_sagemaker else ""
    narrowest: Network = "none" if hosts == 1 else "internal"
    chosen = network or ("bridge" if outside or as_sagemaker else narrowest)
    asked = network is not None
    if as_sagemaker:
        return Confinement(network=chosen, is_network_asked=asked, as_sagemaker=True)
    uid, gid = (0, 0) if rootless else user
    others = () if rootless else tuple(sorted({*groups} - {gid}))
    return Confinement(network=chosen, why_network=why, is_network_asked=asked, user=f"{uid}:{gid}", groups=others)


def host_options(confinement: Confinement, *, tmp_bytes: int) -> dict[str, Any]:
    """The options of the engine's host configuration that confine a container.

    Args:
        confinement: What it may do.
        tmp_bytes: How much it may write to each temporary directory: these are in memory.
    """
    if confinement.as_sagemaker:
        return {}
    size = f",size={tmp_bytes}" if tmp_bytes else ""
    return {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": dict.fromkeys(_TEMPORARY, f"rw,exec,nosuid,nodev,mode=1777{size}"),
        "pids_limit": MOST_PIDS,
        "group_add": [str(group) for group in confinement.groups] or None,
    }


def environment(confinement: Confinement, given: Mapping[str, str]) -> dict[str, str]:
    """The variables of a container: those of the plan, and a home that this user can write."""
    return dict(given) if confinement.as_sagemaker else {**_HOME, **given}
