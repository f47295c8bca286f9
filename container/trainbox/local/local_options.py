"""How a job runs on this machine: what CreateTrainingJob has no member for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.contract.fault_injection import Drill
from trainbox.local.backends.confinement import Network
from trainbox.local.given import Origin


class MemberNames(msgspec.Struct, frozen=True):
    """How messages name arguments: by the members of a request, or by flags."""

    hyperparameter: str = "HyperParameters"
    variable: str = "Environment"
    channel: str = "InputDataConfig, channel"
    hosts: str = "ResourceConfig, hosts"
    max_run: str = "MaxRuntimeInSeconds"
    job_name: str = "TrainingJobName"


class MachineShare(msgspec.Struct, frozen=True):
    """What a job has of a machine that others use, too; empty: all that this process has."""

    processors: tuple[int, ...] = ()
    #: As `CUDA_VISIBLE_DEVICES` names them.
    gpus: tuple[str, ...] = ()


class LocalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a job runs here."""

    #: The environment of the program that runs it; None: that of this process.
    env: Mapping[str, str] | None = None
    #: Where relative paths begin; by default the current directory.
    directory: Path = Path()
    #: Where the result goes; by default `trainbox-out/JOB`.
    out: Path | None = None
    #: The next attempt of the job in `out`, on the same checkpoints.
    resume: bool = False
    #: A new job in `out`, whose earlier result is removed first.
    overwrite: bool = False
    #: Requirements are installed anew.
    fresh: bool = False
    #: Stop after so many seconds, as StopTrainingJob does.
    stop_after: float | None = None
    #: Faults that the job is to survive.
    drills: tuple[Drill, ...] = ()
    #: Checks of this machine before the script; None: as the environment says, else off.
    preflight: Literal["off", "fast", "full"] | None = None
    #: Each host is a container of `TrainingImage`, not a process.
    docker: bool = False
    as_sagemaker: bool = False
    network: Network | None = None
    #: Containers and their network stay when the job has ended.
    keep: bool = False
    #: By channel: where the objects of its manifest lie, a directory or `s3://bucket/prefix`.
    places: Mapping[str, str] = {}
    #: Sources of values that are not part of the command; these values are secret, also under harmless names.
    hyperparameter_origins: Mapping[str, Origin] = {}
    env_origins: Mapping[str, Origin] = {}
    #: By setting, the flags that set it; for messages.
    flags: Mapping[str, str] = {}
    #: Whether this program starts no other child processes while the job runs: all that remain are then ended,
    #: also those that hide their origin.
    owns_children: bool = False
    #: What the job has of this machine.
    share: MachineShare = MachineShare()
    #: Whose private mounts an earlier job was found to be allowed; None: that is tried out, which takes a process.
    private_mounts: Literal["root", "user"] | None = None
    #: For the files that hosts create; -1 is the umask of this process.
    host_umask: int = -1
    names: MemberNames = MemberNames()
