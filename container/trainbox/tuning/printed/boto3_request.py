"""The request of CreateHyperParameterTuningJob, and the code that sends it with boto3."""

from typing import Any

import msgspec

from trainbox.contract.job_spec import JobSpec
from trainbox.tuning.printed.heading import heading
from trainbox.tuning.printed.places import REGION, RemoteJob, to_remote
from trainbox.tuning.printed.python_code import CodeCall, Name, write_code
from trainbox.tuning.printed.ranges import check_search, number_of_trials, remote_ranges
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec
from trainbox.tuning.search_space import CategoricalRange, IntegerRange, Objective, ParameterRange

#: What SageMaker gives a training job for its disks where nothing is said; the member is required here.
VOLUME_GB = 30


def print_boto3(spec: TuningJobSpec) -> str:
    """Pure: write Python code that starts the tuning job with boto3.

    Raises:
        RunError: SageMaker has no such tuning job.
    """
    remote = to_remote(spec)
    client = CodeCall("boto3.client", ("sagemaker",), {"region_name": REGION})
    lines = [
        *heading("boto3", [*remote.source_uploads, *remote.uploads], spec.parents),
        "import boto3",
        "",
        write_code(to_tuning_request(spec), before="request = "),
        "",
        write_code(client, before="sagemaker = "),
        write_code(CodeCall("print", (Name("sagemaker.create_hyper_parameter_tuning_job(**request)"),))),
    ]
    return "\n".join(lines) + "\n"


def to_tuning_request(spec: TuningJobSpec) -> dict[str, Any]:
    """Pure: write a tuning job as a request of CreateHyperParameterTuningJob.

    Raises:
        RunError: SageMaker has no such tuning job.
    """
    check_search(spec)
    remote = to_remote(spec)
    request: dict[str, Any] = {
        "HyperParameterTuningJobName": remote.name,
        "HyperParameterTuningJobConfig": _config(spec),
        "TrainingJobDefinition": _definition(spec, remote),
    }
    if spec.parents:
        parents = [{"HyperParameterTuningJobName": name} for name in spec.parents]
        request["WarmStartConfig"] = {
            "ParentHyperParameterTuningJobs": parents,
            "WarmStartType": spec.warm_start_type,
        }
    return request


def metric_definitions(job: JobSpec, objective: Objective) -> list[dict[str, str]]:
    """Pure: the metrics of the job, and the objective, which must be one of them."""
    given = job.algorithm_specification.metric_definitions
    others = [{"Name": each.name, "Regex": each.regex} for each in given if each.name != objective.name]
    return [{"Name": objective.name, "Regex": objective.regex}, *others]


def _config(spec: TuningJobSpec) -> dict[str, Any]:
    ranges = remote_ranges(spec)
    trials = number_of_trials(spec, ranges)
    config: dict[str, Any] = {
        "Strategy": spec.search.strategy,
        "HyperParameterTuningJobObjective": {
            "Type": spec.search.objective.goal,
            "MetricName": spec.search.objective.name,
        },
        "ResourceLimits": {"MaxNumberOfTrainingJobs": trials, "MaxParallelTrainingJobs": spec.search.max_parallel},
        "ParameterRanges": _parameter_ranges(ranges),
        "TrainingJobEarlyStoppingType": "Auto" if spec.search.early_stopping else "Off",
        "RandomSeed": spec.search.seed,
    }
    if spec.search.strategy == "Hyperband" and spec.search.resource.max is not None:
        limits = {"MinResource": spec.search.resource.min, "MaxResource": spec.search.resource.max}
        config["StrategyConfig"] = {"HyperbandStrategyConfig": limits}
    return config


def _parameter_ranges(ranges: tuple[ParameterRange, ...]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in ranges:
        if isinstance(each, CategoricalRange):
            kinds.setdefault("CategoricalParameterRanges", []).append({"Name": each.name, "Values": [*each.values]})
        else:
            kind = "IntegerParameterRanges" if isinstance(each, IntegerRange) else "ContinuousParameterRanges"
            limits = {"MinValue": str(each.low), "MaxValue": str(each.high), "ScalingType": each.scaling}
            kinds.setdefault(kind, []).append({"Name": each.name, **limits})
    return kinds


def _definition(spec: TuningJobSpec, remote: RemoteJob) -> dict[str, Any]:
    job = spec.job
    definition: dict[str, Any] = {
        "AlgorithmSpecification": {
            "TrainingImage": remote.image,
            "TrainingInputMode": job.algorithm_specification.training_input_mode,
            "MetricDefinitions": metric_definitions(job, spec.search.objective),
        },
        "RoleArn": remote.role,
        "StaticHyperParameters": dict(remote.static),
        "InputDataConfig": [_members(channel) for channel in remote.channels],
        "OutputDataConfig": {"S3OutputPath": remote.output},
        "ResourceConfig": {
            "InstanceType": remote.instance_type,
            "InstanceCount": remote.instance_count,
            "VolumeSizeInGB": VOLUME_GB,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": remote.max_run},
        "Environment": dict(remote.environment),
    }
    if job.checkpoint_config:
        definition["CheckpointConfig"] = _members(job.checkpoint_config)
    if job.retry_strategy:
        definition["RetryStrategy"] = _members(job.retry_strategy)
    if job.enable_managed_spot_training:
        definition["EnableManagedSpotTraining"] = True
        definition["StoppingCondition"]["MaxWaitTimeInSeconds"] = (
            job.stopping_condition.max_wait_time_in_seconds or remote.max_run
        )
    return {name: value for name, value in definition.items() if value not in ({}, [])}


def _members(value: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found
