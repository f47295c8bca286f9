"""A training job as data: the members of SageMaker's CreateTrainingJob that decide what runs.

A command line, a file and a request of the API all become a `JobSpec`. A request body, or a file for
`aws sagemaker create-training-job --cli-input-json`, is JSON with the API's own names; `from_request` reads it and
`to_request` writes it. What the API has no member for (the directory of a result, a rehearsed fault) is not part of it.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from trainbox.contract.text import did_you_mean
from trainbox.errors import ContractError

InputMode = Literal["File", "Pipe", "FastFile"]
#: Where the files of this machine are, in place of `s3://`; what follows is the path as it is, not percent-encoded.
FILE_SCHEME = "file://"

#: Members that SageMaker accepts and that have no effect on this machine, by their place in the request; and why.
IGNORED: Mapping[str, str] = {
    "VpcConfig": "the hosts have the network of this machine",
    "Tags": "nothing here is tagged",
    "EnableNetworkIsolation": "trainbox run --docker gives a job of one host no network",
    "EnableInterContainerTrafficEncryption": "the hosts are on one machine",
    "DebugHookConfig": "there is no SageMaker Debugger here",
    "DebugRuleConfigurations": "there is no SageMaker Debugger here",
    "ProfilerConfig": "there is no SageMaker Profiler here",
    "ProfilerRuleConfigurations": "there is no SageMaker Profiler here",
    "TensorBoardOutputConfig": "nothing is uploaded",
    "ExperimentConfig": "there are no SageMaker Experiments here",
    "MlflowConfig": "there is no MLflow server of SageMaker here",
    "ModelPackageConfig": "there is no model registry here",
    "RemoteDebugConfig": "the processes can be reached from this machine",
    "InfraCheckConfig": "trainbox run --preflight checks this machine",
    "SessionChainingConfig": "no role is assumed",
    "AlgorithmSpecification.EnableSageMakerMetricsTimeSeries": "metrics are kept in job.json",
    "AlgorithmSpecification.TrainingImageConfig": "the engine pulls with its own credentials",
    "OutputDataConfig.KmsKeyId": "nothing is encrypted",
    "ResourceConfig.VolumeSizeInGB": "the disk is that of this machine",
    "ResourceConfig.VolumeKmsKeyId": "nothing is encrypted",
    "ResourceConfig.KeepAlivePeriodInSeconds": "no instance is kept",
    "ResourceConfig.TrainingPlanArn": "no capacity is reserved",
    "ResourceConfig.InstancePlacementConfig": "all hosts are on this machine",
}
#: Members that SageMaker accepts and that cannot be honoured here; with what to do instead.
UNSUPPORTED: Mapping[str, str] = {
    "ServerlessJobConfig": "give an image or a script",
    "AlgorithmSpecification.AlgorithmName": "give TrainingImage in place of an algorithm of the marketplace",
    "ResourceConfig.InstancePreferences": "give InstanceType and InstanceCount",
    "ResourceConfig.SelectedInstanceType": "give InstanceType",
    "ResourceConfig.SelectedInstanceCount": "give InstanceCount",
    "InputDataConfig.DataSource.DatasetSource": "give S3DataSource",
    "InputDataConfig.DataSource.S3DataSource.ModelAccessConfig": "download the model, and give its directory",
    "InputDataConfig.DataSource.S3DataSource.HubAccessConfig": "download the model, and give its directory",
}


class _Members(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """Fields that are members of the request under the API's spelling; what is left at its default is left out."""


class S3DataSource(_Members, frozen=True):
    """Objects below a prefix of S3, or files of this machine (`file:///data/train`)."""

    s3_data_type: Literal["S3Prefix", "ManifestFile", "AugmentedManifestFile"]
    s3_uri: str
    s3_data_distribution_type: Literal["FullyReplicated", "ShardedByS3Key"] = "FullyReplicated"
    attribute_names: tuple[str, ...] = ()
    instance_group_names: tuple[str, ...] = ()


class FileSystemDataSource(_Members, frozen=True):
    """A directory of EFS or FSx for Lustre; here, the directory of the same path on this machine."""

    file_system_id: str
    file_system_access_mode: Literal["rw", "ro"]
    file_system_type: Literal["EFS", "FSxLustre"]
    directory_path: str


class DataSource(_Members, frozen=True):
    """Where a channel comes from: one of the two."""

    s3_data_source: S3DataSource | None = None
    file_system_data_source: FileSystemDataSource | None = None


class ShuffleConfig(_Members, frozen=True):
    """The seed of the order of the objects."""

    seed: int


class InputChannel(_Members, frozen=True):
    """An input channel; `input_mode` is None where it is that of the algorithm."""

    channel_name: str
    data_source: DataSource
    content_type: str = ""
    compression_type: Literal["None", "Gzip"] = "None"
    record_wrapper_type: Literal["None", "RecordIO"] = "None"
    input_mode: InputMode | None = None
    shuffle_config: ShuffleConfig | None = None


class MetricDefinition(_Members, frozen=True):
    """A metric, and the regular expression whose first group finds its value in a line of the log."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    regex: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class AlgorithmSpecification(_Members, frozen=True):
    """The image, how it is started, and the metrics in its log."""

    training_image: str = ""
    training_input_mode: InputMode = "File"
    metric_definitions: Annotated[tuple[MetricDefinition, ...], msgspec.Meta(max_length=40)] = ()
    container_entrypoint: tuple[str, ...] = ()
    container_arguments: tuple[str, ...] = ()


class ResourceGroup(_Members, frozen=True):
    """An instance group of a heterogeneous cluster."""

    instance_group_name: str
    instance_count: int
    instance_type: str = ""


class ResourceConfig(_Members, frozen=True):
    """The hosts of the job: their number and type, or groups."""

    instance_type: str = ""
    instance_count: int | None = None
    instance_groups: tuple[ResourceGroup, ...] = ()


class OutputDataConfig(_Members, frozen=True):
    """Where SageMaker uploads the model and the output."""

    s3_output_path: str
    compression_type: Literal["GZIP", "NONE"] = "GZIP"


class CheckpointConfig(_Members, frozen=True):
    """Where checkpoints are kept, and where the script writes them (`/opt/ml/checkpoints` by default)."""

    s3_uri: str
    local_path: str = ""


class StoppingCondition(_Members, frozen=True):
    """After how many seconds the job is stopped; for spot instances, including the time spent waiting."""

    max_runtime_in_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_wait_time_in_seconds: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_pending_time_in_seconds: int | None = None


class RetryStrategy(_Members, frozen=True):
    """How often SageMaker restarts the job after an internal error."""

    maximum_retry_attempts: Annotated[int, msgspec.Meta(ge=1, le=30)]


class LocalScript(msgspec.Struct, frozen=True, kw_only=True):
    """What runs inside the image: trainbox's own addition, which a request says by reserved hyperparameters.

    One of `file`, `module` and `name` is given.
    """

    #: A program, relative to `source_dir`.
    file: str = ""
    #: A module, as `python -m` runs it.
    module: str = ""
    #: A bundled script, or one that the image has.
    name: str = ""
    #: `file:///directory`, `s3://bucket/source.tar.gz`, or a directory of the image.
    source_dir: str = ""
    #: Arguments after those of the hyperparameters.
    arguments: tuple[str, ...] = ()


class IgnoredMember(msgspec.Struct, frozen=True):
    """A member of the request that has no effect here; its value is kept, as JSON, for the request's way back."""

    #: Its place, such as `ResourceConfig.VolumeSizeInGB`.
    name: str
    value: str

    @property
    def sentence(self) -> str:
        """The member and why it has no effect, in one line."""
        return f"{self.name} has no effect here: {IGNORED[self.name]}"


class JobSpec(_Members, frozen=True):
    """A training job: the members of CreateTrainingJob in snake_case, the script, and what has no effect here."""

    training_job_name: str = ""
    algorithm_specification: AlgorithmSpecification = AlgorithmSpecification()
    script: LocalScript | None = None
    hyper_parameters: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}
    input_data_config: tuple[InputChannel, ...] = ()
    output_data_config: OutputDataConfig | None = None
    resource_config: ResourceConfig = ResourceConfig()
    stopping_condition: StoppingCondition = StoppingCondition()
    checkpoint_config: CheckpointConfig | None = None
    retry_strategy: RetryStrategy | None = None
    enable_managed_spot_training: bool = False
    role_arn: str = ""
    ignored: tuple[IgnoredMember, ...] = ()


#: The fields of a JobSpec that the request does not have.
_OWN_FIELDS = ("Script", "Ignored")
_FILE, _SOURCE, _NAME, _MODULE, _ARGUMENTS = (
    *("sagemaker_program", "sagemaker_submit_directory", "trainbox_script", "trainbox_module"),
    "trainbox_raw_arguments",
)
#: Hyperparameters that say what runs: `LocalScript` has them.
SCRIPT_HYPERPARAMETERS = (_FILE, _SOURCE, _NAME, _MODULE, _ARGUMENTS)


def from_request(body: Mapping[str, Any]) -> JobSpec:
    """Read a request of CreateTrainingJob, as boto3 and the AWS CLI take it.

    Raises:
        ContractError: A member is unknown, unsupported here or malformed; the message names it.
    """
    problems = [*_unknown(body, JobSpec, "")]
    if problems:
        raise ContractError(f"CreateTrainingJob: {'; '.join(problems)}", hint="the names are those of the API")
    members, ignored = _without_ignored(body)
    given = _convert(members.pop("HyperParameters", {}), dict[str, str], "HyperParameters")
    own = {name: given.pop(name) for name in SCRIPT_HYPERPARAMETERS if name in given}
    fields = {"HyperParameters": given, "Ignored": ignored, "Script": _read_script(own)}
    spec: JobSpec = _convert({**members, **fields}, JobSpec, "")
    for channel in spec.input_data_config:
        sources = (channel.data_source.s3_data_source, channel.data_source.file_system_data_source)
        if sources.count(None) != 1:
            where = f"InputDataConfig, channel {channel.channel_name!r}: DataSource"
            raise ContractError(f"{where} has {2 - sources.count(None)} of S3DataSource and FileSystemDataSource")
    return spec


def to_request(spec: JobSpec) -> dict[str, Any]:
    """Write a job as a request of CreateTrainingJob.

    Raises:
        ContractError: The API has no way to say it.
    """
    try:
        body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec))
    except UnicodeEncodeError as error:
        raise ContractError(f"CreateTrainingJob: {error.object!a} is not UTF-8", hint="rename it") from None
    for name in _OWN_FIELDS:
        body.pop(name, None)
    reserved = sorted(set(spec.hyper_parameters) & set(SCRIPT_HYPERPARAMETERS))
    if reserved:
        raise ContractError(f"HyperParameters.{reserved[0]}: a JobSpec has this one in its script")
    hyperparameters = {**spec.hyper_parameters, **script_hyperparameters(spec.script)}
    if hyperparameters:
        body["HyperParameters"] = hyperparameters
    body["AlgorithmSpecification"] = {"TrainingInputMode": "File", **body.get("AlgorithmSpecification", {})}
    condition = body.get("StoppingCondition", {})
    if (seconds := condition.get("MaxRuntimeInSeconds")) is not None:
        if seconds != int(seconds):
            raise ContractError(f"StoppingCondition.MaxRuntimeInSeconds {seconds:g}: the API takes whole seconds")
        condition["MaxRuntimeInSeconds"] = int(seconds)
    for member in spec.ignored:
        outer, _, inner = member.name.rpartition(".")
        place = body.setdefault(outer, {}) if outer else body
        place[inner] = json.loads(member.value)
    return body


def read_spec(path: Path) -> JobSpec:
    """Read the file of a request: the JSON that `aws sagemaker create-training-job --cli-input-json` takes.

    Raises:
        ContractError: It cannot be read, is not a JSON object, or is not a request of CreateTrainingJob.
    """
    try:
        body = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ContractError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"{path} is not a JSON object: {error}") from error
    try:
        return from_request(body)
    except ContractError as error:
        raise ContractError(f"{path}: {error.message}", hint=error.hint) from None


def _convert(value: object, kind: Any, where: str) -> Any:  # noqa: ANN401 - the type that was asked for
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).replace(" | null", "").partition(" - at `$")
        place = f"{where}{path.rstrip('`')}".strip(".") or "the request"
        raise ContractError(f"CreateTrainingJob: {place}: {what[:1].lower()}{what[1:]}") from error


def _unknown(value: object, kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    """Yield what is wrong with the names of members, at any depth."""
    if not isinstance(value, Mapping):
        return
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    known = {name: found for name, found in known.items() if kind is not JobSpec or name not in _OWN_FIELDS}
    for name, inner in value.items():
        place = f"{path}{name}"
        if place in UNSUPPORTED:
            yield f"{place} is not supported here: {UNSUPPORTED[place]}"
        elif name in known:
            struct = _struct_of(known[name])
            if struct is not None:
                for each in inner if isinstance(inner, list | tuple) else [inner]:
                    yield from _unknown(each, struct, f"{place}.")
        elif place not in IGNORED:
            there = [each.removeprefix(path) for each in (*IGNORED, *UNSUPPORTED) if each.startswith(path)]
            names = [*known, *(each for each in there if "." not in each)]
            owner = f"{path.rstrip('.')} has" if path else "it has"
            yield f"{owner} no member {str(name)!r}{did_you_mean(str(name), names)}"


def _struct_of(kind: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - any annotation
    """The struct in an annotation such as `tuple[InputChannel, ...]`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for each in get_args(kind) if (found := _struct_of(each)) is not None), None)


def _without_ignored(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[IgnoredMember, ...]]:
    members = dict(body)
    ignored = []
    for place in IGNORED:
        outer, _, inner = place.rpartition(".")
        owner = members.get(outer) if outer else members
        if isinstance(owner, Mapping) and inner in owner:
            ignored.append(IgnoredMember(place, json.dumps(owner[inner])))
            left = {name: value for name, value in owner.items() if name != inner}
            members = {**members, outer: left} if outer else left
    return members, tuple(ignored)


def _read_script(given: Mapping[str, str]) -> LocalScript | None:
    """What the reserved hyperparameters say; the SDK writes each as JSON, in quotes."""
    if not given:
        return None
    plain = {name: _unquoted(text) for name, text in given.items() if name != _ARGUMENTS}
    names = [name for name in (_FILE, _MODULE, _NAME) if name in plain]
    if len(names) > 1:
        raise ContractError(f"HyperParameters: {' and '.join(names)} both say what runs", hint="give one of them")
    arguments: tuple[str, ...] = ()
    if _ARGUMENTS in given:
        try:
            arguments = msgspec.json.decode(given[_ARGUMENTS], type=tuple[str, ...])
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise ContractError(f"HyperParameters.{_ARGUMENTS}: expected a JSON list of strings") from None
    file, module, name, source = (plain.get(each, "") for each in (_FILE, _MODULE, _NAME, _SOURCE))
    return LocalScript(file=file, module=module, name=name, source_dir=source, arguments=arguments)


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text


def script_hyperparameters(script: LocalScript | None) -> dict[str, str]:
    """The reserved hyperparameters that say what runs."""
    if script is None:
        return {}
    values = {_FILE: script.file, _MODULE: script.module, _NAME: script.name, _SOURCE: script.source_dir}
    written = {name: json.dumps(text) if text.startswith('"') else text for name, text in values.items() if text}
    return written | ({_ARGUMENTS: json.dumps(script.arguments)} if script.arguments else {})
