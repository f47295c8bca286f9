"""Pure: a request becomes a plan, every file, mount, argument and variable of every host, which can be printed."""

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from trainbox.contract.credentials.peer_key import as_handed_on
from trainbox.contract.credentials.secrets import redact, redact_arguments
from trainbox.contract.environment import GPU_VARIABLE
from trainbox.local.backends import namespace
from trainbox.local.backends.namespace import OPT_ML
from trainbox.local.inputs.hosts import Cluster, form_cluster
from trainbox.local.inputs.manifest import Entry
from trainbox.local.inputs.sharing import Share, Stream, input_data_config, notes, shares
from trainbox.local.overlays.overlay import Overlay
from trainbox.local.request import RunRequest
from trainbox.local.results.record import WORK

#: `docker stop -t 120`: what SageMaker gives between SIGTERM and SIGKILL (API StopTrainingJob).
SECONDS_TO_LEAVE = 120.0

#: Below the work directory, beside the trees of the hosts.
INPUTS = "inputs"
#: The file of a host's tree that may hold secrets.
HYPERPARAMETERS = "input/config/hyperparameters.json"
#: Channels of programs that the command of SageMaker's SDK v3 makes executable, as inputs in the cloud can be changed.
_DRIVERS = ("input/data/sm_drivers", "input/data/code")
#: Looks for a command on the PATH, as an engine does.
_ENV = "/usr/bin/env"
#: What must not leak from the job or shell that `trainbox run` was itself started from into the job it starts.
_JOB_PREFIXES = ("SM_", "SAGEMAKER_", "TRAINBOX_", "TRAINING_JOB_")
_JOB_VARIABLES = frozenset(
    {
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT"),
    }
)


class Mount(msgspec.Struct, frozen=True):
    """A directory or file of this machine at its place in a host's tree."""

    source: Path
    target: Path
    read_only: bool = False


class HostPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One host: what is written into its tree, what is mounted, what is started."""

    name: str
    #: Where the tree is built, and where the host itself sees it.
    tree: Path
    root: Path
    #: Relative to the tree.
    directories: tuple[str, ...]
    files: Mapping[str, str]
    links: Mapping[str, Path]
    #: Directories that the host may change, by their place in the tree.
    copies: Mapping[str, Path] = {}
    #: In order: those inside the tree come before the tree's own.
    mounts: tuple[Mount, ...]
    #: What it gets of each channel.
    shares: Mapping[str, Share] = {}
    #: Directories to make of some files of a channel; they are mounted.
    views: Mapping[Path, tuple[Entry, ...]] = {}
    #: By the beginning of their names, relative to the tree, what comes through the pipes.
    streams: Mapping[str, Stream] = {}
    argv: tuple[str, ...]
    #: Where that is started (`namespace.spec`); empty in a container.
    namespace: str = ""
    #: In place of that of the image, in a container.
    entrypoint: tuple[str, ...] = ()
    #: Whether trainbox's supervisor is started, and not a command of the request.
    is_supervised: bool = True
    environment: Mapping[str, str]


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `trainbox run` will do."""

    request: RunRequest
    attempt: int
    work: Path
    hosts: tuple[HostPlan, ...]
    #: The difference of the hosts' environment to the one of `trainbox run`.
    added: Mapping[str, str]
    removed: tuple[str, ...]
    seconds_to_leave: float = SECONDS_TO_LEAVE
    #: The environment whose Python runs the hosts, where the job has requirements.
    overlay: Overlay | None = None
    #: What a person may not expect of the inputs.
    notes: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> Path:
        """Shared by all hosts and attempts, as one S3 prefix is in the cloud."""
        return self.request.out / "checkpoints"

    @property
    def inputs(self) -> Path:
        """Directories made of some files of a channel, for each host; no host can write there."""
        return self.work / INPUTS

    @property
    def hosts_file(self) -> Path:
        """What each host sees as `/etc/hosts`."""
        return self.work / "etc-hosts"


def plan_run(request: RunRequest, overlay: Overlay | None = None) -> RunPlan:
    """Decide everything; nothing is read, written or started here."""
    added = {"TRAINING_JOB_NAME": request.job_name, **_own_variables(request), **request.env}
    removed = tuple(
        sorted(
            name
            for name in ({} if request.isolation.image else request.inherited)
            if (name.startswith(_JOB_PREFIXES) or name in _JOB_VARIABLES) and name not in added
        )
    )
    cluster = form_cluster(request.groups, _host_names(request), request.instance_type)
    return RunPlan(
        request=request,
        attempt=request.previous.attempt + 1 if request.previous else 1,
        work=request.out / WORK,
        hosts=tuple(_plan_host(request, name, cluster, added, removed, overlay=overlay) for name in cluster.hosts),
        added=added,
        removed=removed,
        overlay=overlay,
        notes=tuple(notes(request.channels, cluster)),
    )


def _own_variables(request: RunRequest) -> dict[str, str]:
    own = {"TRAINBOX_DRILL": ", ".join(map(str, request.drills))} if request.drills else {}
    own["TRAINBOX_PREFLIGHT"] = request.preflight
    own |= as_handed_on(request.peer_key)
    return own if request.master_port is None else {**own, "MASTER_PORT": str(request.master_port)}


def _host_names(request: RunRequest) -> tuple[str, ...]:
    """SageMaker's names where they can be made to resolve, loopback addresses elsewhere; in the order of numbers."""
    named = request.isolation.can_name_hosts or request.hosts == 1
    return tuple(f"algo-{n}" if named else f"127.0.0.{n}" for n in range(1, request.hosts + 1))


def _plan_host(
    request: RunRequest,
    name: str,
    cluster: Cluster,
    added: Mapping[str, str],
    removed: tuple[str, ...],
    *,
    overlay: Overlay | None,
) -> HostPlan:
    tree = request.out / WORK / name
    root = OPT_ML if request.isolation.at_opt_ml else tree
    given = shares(request.channels, cluster, name)
    views = {} if request.isolation.kind == "none" else _views(request, name, given)
    inputs = _inputs(given, views)
    copies = {place: inputs.pop(place) for place in _DRIVERS if request.command and place in inputs}
    mounts = _mounts(request, tree, inputs)
    inherited = {} if request.isolation.image else request.inherited
    environment = {key: value for key, value in inherited.items() if key not in removed}
    environment |= {**added, **({} if root == OPT_ML else {"TRAINBOX_ROOT": str(tree)})}
    if request.isolation.image is None:
        environment |= _packages_apart(root, environment)
        if request.share.gpus:
            environment[GPU_VARIABLE] = ",".join(request.share.gpus)
    if overlay is not None:
        environment |= _activated(overlay, environment)
    return HostPlan(
        name=name,
        tree=tree,
        root=root,
        directories=("input/config", "input/data", "model", "output/data"),
        files=_config_files(request, name, cluster, given, root),
        copies=copies,
        links={} if mounts else {**inputs, "checkpoints": request.out / "checkpoints"},
        mounts=mounts,
        shares=given,
        views={directory: given[channel].files or () for channel, directory in views.items()},
        streams={f"input/data/{each}": share.stream for each, share in given.items() if share.stream is not None},
        argv=_argv(request, sys.executable if overlay is None else str(overlay.python)),
        namespace=_namespace(request, mounts),
        entrypoint=request.entrypoint if request.isolation.kind == "container" else (),
        is_supervised=not request.command,
        environment=environment,
    )


def _packages_apart(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """What pip installs for the job goes into its own tree, not into the environment that runs trainbox here."""
    packages = str(root / "packages")
    path = [packages, environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else [packages]
    return {"PIP_TARGET": packages, "PYTHONPATH": ":".join(path)}


def _activated(overlay: Overlay, environment: Mapping[str, str]) -> dict[str, str]:
    """As the environment's own `activate` does it, for shell scripts: its commands come first."""
    path = [str(overlay.path / "bin"), *filter(None, [environment.get("PATH")])]
    return {"PATH": ":".join(path), "VIRTUAL_ENV": str(overlay.path)}


def _views(request: RunRequest, host: str, given: Mapping[str, Share]) -> dict[str, Path]:
    """Where a directory is made of some files of a channel, by channel; outside of the tree, which hosts may change."""
    directory = request.out / WORK / INPUTS / host
    return {name: directory / name for name, share in given.items() if share.files is not None and not share.stream}


def _inputs(given: Mapping[str, Share], views: Mapping[str, Path]) -> dict[str, Path]:
    """What lies below `input/data`: a channel is always a directory, one file lies in it; a pipe is made there."""
    inputs: dict[str, Path] = {}
    for name, share in given.items():
        place = f"input/data/{name}"
        if share.stream is not None:
            continue
        if name in views:
            inputs[place] = views[name]
        elif share.files is not None:
            inputs |= {f"{place}/{entry.name}": entry.path for entry in share.files}
        else:
            inputs[f"{place}/{share.source.name}" if share.is_file else place] = share.source
    return inputs


def _mounts(request: RunRequest, tree: Path, inputs: Mapping[str, Path]) -> tuple[Mount, ...]:
    if request.isolation.kind == "none":
        return ()
    mounts = [Mount(source, tree / place, read_only=True) for place, source in inputs.items()]
    mounts.append(Mount(request.out / "checkpoints", tree / "checkpoints"))
    # The engine writes that of its containers itself.
    if request.isolation.can_name_hosts and request.isolation.image is None:
        mounts.append(Mount(request.out / WORK / "etc-hosts", Path("/etc/hosts"), read_only=True))
    if request.isolation.at_opt_ml:
        mounts.append(Mount(tree, OPT_ML))
    return tuple(mounts)


def _config_files(
    request: RunRequest, name: str, cluster: Cluster, given: Mapping[str, Share], root: Path
) -> dict[str, str]:
    contents: dict[str, object] = {
        "hyperparameters.json": _hyperparameters(request, root),
        "inputdataconfig.json": input_data_config(request.channels, tuple(given)),
        "resourceconfig.json": {
            "current_host": name,
            "current_instance_type": cluster.type_of(name),
            "current_group_name": cluster.group_of(name),
            "hosts": list(cluster.hosts),
            "instance_groups": [
                {
                    "instance_group_name": group.name,
                    "instance_type": group.instance_type,
                    "hosts": list(group.hosts),
                }
                for group in cluster.groups
            ],
            "network_interface_name": request.isolation.interface,
        },
        "checkpointconfig.json": {"LocalPath": str(OPT_ML / "checkpoints")},
    }
    return {f"input/config/{file}": json.dumps(content, ensure_ascii=False) for file, content in contents.items()}


def _hyperparameters(request: RunRequest, root: Path) -> dict[str, str]:
    """Plain strings, as the API sends them."""
    source = request.submit_directory or str(root / "code")
    if request.command or not request.script:
        own = {}  # what it is told is in the hyperparameters already
    elif request.module is not None:
        own = {"trainbox_module": request.module, "sagemaker_submit_directory": source}
    elif request.submit_directory:
        own = {"sagemaker_program": request.script, "sagemaker_submit_directory": source}
    elif request.source is None:
        own = _named_in_image(request.script)
    else:
        own = {"sagemaker_program": request.script, "sagemaker_submit_directory": source}
    if request.processes is not None:
        own["processes_per_host"] = str(request.processes)
    if request.raw_arguments:
        own["trainbox_raw_arguments"] = json.dumps(request.raw_arguments)
    if request.hide:
        own["trainbox_hide"] = json.dumps(request.hide)
    return {**request.hyperparameters, **own}


def _named_in_image(script: str) -> dict[str, str]:
    """A script by its name, or by the path that it has in the image."""
    if not script.startswith("/"):
        return {"trainbox_script": script}
    return {"sagemaker_program": Path(script).name, "sagemaker_submit_directory": str(Path(script).parent)}


def redacted_hyperparameters(host: HostPlan, hide: Collection[str]) -> str:
    """The file of the hyperparameters with nothing secret in it, however short."""
    given = redact(json.loads(host.files[HYPERPARAMETERS]), hide)
    raw = "trainbox_raw_arguments"
    if raw in given:
        given[raw] = json.dumps([*redact_arguments(json.loads(str(given[raw])))])
    return json.dumps(given, ensure_ascii=False)


def _argv(request: RunRequest, python: str) -> tuple[str, ...]:
    if request.isolation.kind == "container":
        # What SageMaker gives to the image's own ENTRYPOINT.
        return request.arguments if request.command else ("train",)
    if request.command:
        return (_ENV, "--", *request.command)
    # The supervisor of this very trainbox; -P: a module of the user's must not stand in for one of Python's.
    return (python, "-P", "-m", "trainbox.supervisor")


def _namespace(request: RunRequest, mounts: tuple[Mount, ...]) -> str:
    if request.isolation.kind == "container":
        return ""
    listed = [(mount.source, mount.target, mount.read_only) for mount in mounts]
    return namespace.spec(request.isolation.kind, listed, request.share.processors)
