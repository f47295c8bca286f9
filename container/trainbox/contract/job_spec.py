"""A training job as data: the members of SageMaker's CreateTrainingJob that decide what runs.

A command line, a file and a request of the API all become a `JobSpec`; `job_request` reads and writes requests. What
the API has no member for (the directory of a result, a rehearsed fault) is not part of it.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

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
