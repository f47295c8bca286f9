"""`input/config/*.json` and the environment become one frozen `Job`: the only reader of what SageMaker gives."""

import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.contract.cluster.ranks import DEFAULT_PORT, read_port
from trainbox.contract.config_files import convert, read_object, refuse_unusable
from trainbox.contract.credentials.checkpoint_keys import read_checkpoint_keys
from trainbox.contract.credentials.peer_key import PeerKey, as_handed_on, read_peer_key
from trainbox.contract.credentials.references import (
    Reference,
    fill_in,
    fill_in_raw,
    find_references,
    names_with_references,
    read_resolved,
)
from trainbox.contract.credentials.secrets import hidden_values
from trainbox.contract.hyperparameters import arguments, decode, flags_of, is_reserved
from trainbox.contract.layout import DEFAULT_ROOT, Layout
from trainbox.contract.settings import Settings, as_text, read_settings, require_known
from trainbox.contract.text import did_you_mean
from trainbox.errors import ContractError

HOMOGENEOUS_GROUP = "homogeneousCluster"

# API Channel.ChannelName; `.` and `..` fit the pattern and are no directory of their own.
CHANNEL_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9.\-_]{1,64}")


class Channel(msgspec.Struct, frozen=True):
    """One input of the job, from `inputdataconfig.json`.

    FastFile channels are reported as `File`, so they cannot be told apart (AWS, "How Amazon SageMaker AI provides
    training information").
    """

    name: str
    path: Path
    input_mode: Literal["File", "Pipe", "FastFile"] = "File"
    content_type: str | None = None
    distribution: Literal["FullyReplicated", "ShardedByS3Key"] | None = None
    record_wrapper: Literal["None", "RecordIO"] | None = None


class InstanceGroup(msgspec.Struct, frozen=True, rename={"name": "instance_group_name"}):
    """One group of a heterogeneous cluster; a homogeneous one has a single group."""

    name: str
    hosts: tuple[str, ...]
    instance_type: str = ""


class Job(msgspec.Struct, frozen=True):
    """Everything that SageMaker passes to a training container, parsed once."""

    layout: Layout
    name: str
    region: str
    #: The user's own, decoded; those for the container are in `reserved`.
    hyperparameters: Mapping[str, object]
    #: The user's own as they came: a script that declares types reads the text itself, so that `0123` can stay text.
    raw_hyperparameters: Mapping[str, object]
    reserved: Mapping[str, object]
    hosts: tuple[str, ...]
    current_host: str
    instance_type: str
    instance_group: str
    instance_groups: tuple[InstanceGroup, ...]
    network_interface: str
    channels: Mapping[str, Channel]
    checkpoints_dir: Path
    #: `None` where the request has no CheckpointConfig: then nothing uploads the directory.
    checkpoint_s3_uri: str | None
    has_checkpoint_config: bool
    settings: Settings
    #: The files as they are, for `SM_RESOURCE_CONFIG` and `SM_INPUT_DATA_CONFIG`.
    resource_config: Mapping[str, object]
    input_data_config: Mapping[str, object]
    #: Where the processes of the job meet on the first host: `MASTER_PORT`.
    port: int = DEFAULT_PORT
    #: By which they prove themselves to each other: `TRAINBOX_PEER_KEY`.
    peer_key: PeerKey | None = None
    #: Values that no log, report or failure file may hold.
    secrets: tuple[str, ...] = ()
    #: Hyperparameters whose values are secret whatever their names say: `trainbox_hide`, and those by reference.
    secret_names: frozenset[str] = frozenset()
    #: Choices made for the user, each with its reason; the supervisor logs them.
    notes: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The arguments of the script: the user's hyperparameters, then the raw arguments."""
        return (*arguments(self.hyperparameters, self.settings.arguments), *self.settings.raw_arguments)

    @property
    def host_rank(self) -> int:
        """The index of this host, from 0, in SageMaker's order (lexicographic: 1, 10, 2)."""
        return self.hosts.index(self.current_host)

    @property
    def is_first_host(self) -> bool:
        """Whether this host acts for all: rendezvous, shared files, log lines that appear once."""
        return self.host_rank == 0


class Wanted(msgspec.Struct, frozen=True):
    """What has to be asked for before the job is read: settings and keys may be among it."""

    references: tuple[Reference, ...]
    #: The texts of those in hyperparameters.
    of_hyperparameters: frozenset[str]
    region: str


class _ResourceConfig(msgspec.Struct, frozen=True):
    hosts: tuple[str, ...]
    current_host: str
    current_instance_type: str = "local"
    current_group_name: str = HOMOGENEOUS_GROUP
    instance_groups: tuple[InstanceGroup, ...] = ()
    network_interface_name: str = "eth0"
    topology: tuple[dict[str, object], ...] = ()


class _ChannelConfig(msgspec.Struct, frozen=True, rename="pascal"):
    training_input_mode: Literal["File", "Pipe", "FastFile"] = "File"
    content_type: str | None = None
    s3_distribution_type: Literal["FullyReplicated", "ShardedByS3Key"] | None = msgspec.field(
        default=None, name="S3DistributionType"
    )
    record_wrapper_type: Literal["None", "RecordIO"] | None = None


class _CheckpointConfig(msgspec.Struct, frozen=True):
    local_path: str = msgspec.field(default=str(DEFAULT_ROOT / "checkpoints"), name="LocalPath")
    s3_uri: str | None = msgspec.field(default=None, name="S3Uri")


def _environment() -> MutableMapping[str, str]:
    """The one place in the package that asks the operating system for the environment."""
    return os.environ


def read_environment() -> dict[str, str]:
    """Return the environment of this process.

    Only the entries of programs call this, once; what lies below them is handed what it needs. The functions that a
    script calls (`toolkit`, `torch.session`) are entries: a script hands nothing down.
    """
    return dict(_environment())


def add_to_environment(values: Mapping[str, str]) -> None:
    """Give this process variables, as if it had been started with them: for ranks, which are forked."""
    _environment().update(values)


def default_in_environment(name: str, value: str) -> None:
    """Give this process a variable unless it has it: for a library that looks for it when it is loaded."""
    _environment().setdefault(name, value)


def read_references(root: Path, env: Mapping[str, str]) -> Wanted:
    """Find the references to secrets in hyperparameters and variables, each once.

    Args:
        root: The tree, `/opt/ml` in a training container.
        env: The environment of the container.

    Raises:
        ContractError: The hyperparameters are malformed, or something begins as a reference and is none.
    """
    path = Layout(root).config_dir / "hyperparameters.json"
    decoded = _decode_all(read_object(path) or {}, path)
    found = [each for name, value in decoded.items() for each in find_references(value, f"{path}: key {name!r}")]
    of_hyperparameters = frozenset(reference.text for reference in found)
    found += [each for name, value in env.items() for each in find_references(value, f"the variable {name}")]
    references = {reference.text: reference for reference in found}
    return Wanted(tuple(references.values()), of_hyperparameters, _region(decoded, env))


def _region(hyperparameters: Mapping[str, object], env: Mapping[str, str]) -> str:
    return env.get("AWS_REGION") or as_text(hyperparameters.get("sagemaker_region"))


def read_job(root: Path, env: Mapping[str, str]) -> Job:
    """Read the contract below `root`.

    Args:
        root: The tree, `/opt/ml` in a training container.
        env: The environment of the container.

    Raises:
        ContractError: A file or a variable is malformed; the message names it, the key, what was found and what was
            expected.
    """
    layout = Layout(root)
    notes: list[str] = []
    given = read_object(layout.config_dir / "hyperparameters.json") or {}
    decoded = _decode_all(given, layout.config_dir / "hyperparameters.json")
    referring, resolved = names_with_references(decoded), read_resolved(env)
    given |= {name: fill_in_raw(given[name], resolved.values) for name in referring}
    decoded |= {name: fill_in(decoded[name], resolved.values) for name in referring}
    raw_resources = read_object(layout.config_dir / "resourceconfig.json")
    if raw_resources is None:
        notes.append(f"no {layout.config_dir / 'resourceconfig.json'}: taking this to be the only host, 'algo-1'")
        raw_resources = {"current_host": "algo-1", "hosts": ["algo-1"]}
    resources = _parse_resources(raw_resources, layout.config_dir / "resourceconfig.json")
    raw_channels = read_object(layout.config_dir / "inputdataconfig.json") or {}
    raw_checkpoints = read_object(layout.config_dir / "checkpointconfig.json")
    checkpoints = _parse_checkpoints(raw_checkpoints, layout.config_dir / "checkpointconfig.json")
    reserved = {name: value for name, value in decoded.items() if is_reserved(name)}
    require_known(decoded, env, layout.config_dir / "hyperparameters.json")
    settings = read_settings(reserved, env, layout.config_dir / "hyperparameters.json")
    _require_given(settings.hide, decoded, env)
    hidden = {*settings.hide, *referring, *resolved.hide}
    peer_key = read_peer_key(env)
    read_checkpoint_keys(env)  # not kept: a job is shown and compared; now, since a script comes to it late
    if reserved.get("trainbox_script"):
        notes += _notes_on_programs(settings, env)
    return Job(
        layout=layout,
        name=env.get("TRAINING_JOB_NAME") or as_text(reserved.get("sagemaker_job_name")),
        region=_region(reserved, env),
        hyperparameters={name: value for name, value in decoded.items() if not is_reserved(name)},
        raw_hyperparameters={name: value for name, value in given.items() if not is_reserved(name)},
        reserved=reserved,
        hosts=resources.hosts,
        current_host=resources.current_host,
        instance_type=resources.current_instance_type,
        instance_group=resources.current_group_name,
        instance_groups=resources.instance_groups,
        network_interface=resources.network_interface_name,
        channels=_parse_channels(raw_channels, layout),
        checkpoints_dir=below(layout, Path(checkpoints.local_path)),
        checkpoint_s3_uri=checkpoints.s3_uri,
        has_checkpoint_config=raw_checkpoints is not None,
        settings=settings,
        resource_config=raw_resources,
        input_data_config=raw_channels,
        port=read_port(env),
        secrets=hidden_values(
            *(env, given, decoded, flags_of(settings.raw_arguments), resolved.values, as_handed_on(peer_key)),
            also=hidden.union(resolved.values),
        ),
        secret_names=frozenset(hidden),
        peer_key=peer_key,
        notes=tuple(notes),
    )


def _notes_on_programs(settings: Settings, env: Mapping[str, str]) -> Iterable[str]:
    """Which of a bundled script, by its hyperparameter, and other programs does not run."""
    if settings.program:
        yield f"trainbox_script={settings.script} has no effect: the job names the program {settings.program}"
    elif env.get("SAGEMAKER_PROGRAM"):
        left_over = env["SAGEMAKER_PROGRAM"]
        yield f"SAGEMAKER_PROGRAM={left_over} has no effect: the job names trainbox_script={settings.script}"


def _require_given(names: Iterable[str], hyperparameters: Mapping[str, object], env: Mapping[str, str]) -> None:
    """Refuse to hide what is not there: a name that is misspelt would leave the value in every log."""
    for name in names:
        if name not in hyperparameters and name not in env:
            like = did_you_mean(name, hyperparameters)
            raise ContractError(
                f"trainbox_hide: there is no hyperparameter and no variable {name!r}{like}",
                hint="name those of this job, separated by commas",
            )


def _decode_all(given: Mapping[str, object], path: Path) -> dict[str, object]:
    decoded = {name: decode(value) for name, value in given.items()}
    for name, value in decoded.items():
        refuse_unusable(value, name, path)
    return decoded


def _parse_resources(raw: Mapping[str, object], path: Path) -> _ResourceConfig:
    resources = convert(raw, _ResourceConfig, path)
    if not resources.hosts:
        raise ContractError(f"{path}: key 'hosts': found an empty list, expected the names of all hosts")
    if len(set(resources.hosts)) != len(resources.hosts):
        raise ContractError(f"{path}: key 'hosts': found a name twice in {list(resources.hosts)}")
    if resources.current_host not in resources.hosts:
        raise ContractError(
            f"{path}: key 'current_host': found {resources.current_host!r}, expected one of {list(resources.hosts)}"
        )
    return resources


def _parse_channels(raw: Mapping[str, object], layout: Layout) -> dict[str, Channel]:
    path = layout.config_dir / "inputdataconfig.json"
    configs = convert(raw, dict[str, _ChannelConfig], path)
    for name in configs:
        if not CHANNEL_NAME.fullmatch(name):
            raise ContractError(f"{path}: key {name!r}: expected a channel name, [A-Za-z0-9.-_], at most 64 characters")
    return {
        name: Channel(
            name=name,
            path=layout.channel_dir(name),
            input_mode=config.training_input_mode,
            content_type=config.content_type,
            distribution=config.s3_distribution_type,
            record_wrapper=config.record_wrapper_type,
        )
        for name, config in sorted(configs.items())
    }


def _parse_checkpoints(raw: Mapping[str, object] | None, path: Path) -> _CheckpointConfig:
    config = convert(raw or {}, _CheckpointConfig, path)
    if not Path(config.local_path).is_absolute():
        raise ContractError(f"{path}: key 'LocalPath': found {config.local_path!r}, expected an absolute path")
    return config


def below(layout: Layout, path: Path) -> Path:
    """A path of the contract in this tree: `/opt/ml/checkpoints` lies at `<root>/checkpoints`."""
    return layout.root / path.relative_to(DEFAULT_ROOT) if path.is_relative_to(DEFAULT_ROOT) else path
