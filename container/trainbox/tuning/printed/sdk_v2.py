"""The tuning job as code for SageMaker's Python SDK v2: an `Estimator` and its `HyperparameterTuner`."""

from trainbox.contract.hyperparameters import decode
from trainbox.contract.job_spec import InputChannel
from trainbox.tuning.printed.heading import heading
from trainbox.tuning.printed.places import RemoteJob, to_remote
from trainbox.tuning.printed.python_code import CodeCall, Name, write_code, write_import
from trainbox.tuning.printed.ranges import check_search, remote_ranges
from trainbox.tuning.printed.sdk_ranges import range_classes, search_members, static_for_sdk
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec

_WARM_START_TYPES = {
    "IdenticalDataAndAlgorithm": "WarmStartTypes.IDENTICAL_DATA_AND_ALGORITHM",
    "TransferLearning": "WarmStartTypes.TRANSFER_LEARNING",
}


def print_sdk_v2(spec: TuningJobSpec) -> str:
    """Pure: write Python code that starts the tuning job with SDK v2.

    Raises:
        RunError: SageMaker has no such tuning job.
    """
    check_search(spec)
    remote = to_remote(spec)
    uploads = [*(() if remote.source else remote.source_uploads), *remote.uploads]
    inputs = {channel.channel_name: _input(channel) for channel in remote.channels}
    start = CodeCall("tuner.fit", (inputs,) if inputs else (), {"wait": False})
    lines = [
        *heading("sagemaker>=2.257,<3", uploads, spec.parents),
        *_imports(spec, inputs),
        "",
        write_code(_estimator(spec, remote), before="estimator = "),
        write_code(_tuner(spec, remote), before="tuner = "),
        write_code(start),
    ]
    return "\n".join(lines) + "\n"


def _imports(spec: TuningJobSpec, inputs: dict[str, object]) -> list[str]:
    called = {each.function for each in inputs.values() if isinstance(each, CodeCall)}
    names = {*range_classes(remote_ranges(spec)), "HyperparameterTuner"}
    if spec.parents:
        names |= {"WarmStartConfig", "WarmStartTypes"}
    if _strategy_config(spec):
        names |= {"HyperbandStrategyConfig", "StrategyConfig"}
    if any(channel.shuffle_config for channel in spec.job.input_data_config):
        called.add("ShuffleConfig")
    given = [write_import("sagemaker.inputs", called)] if called else []
    return ["from sagemaker.estimator import Estimator", *given, write_import("sagemaker.tuner", names)]


def _estimator(spec: TuningJobSpec, remote: RemoteJob) -> CodeCall:
    job = spec.job
    given: dict[str, object] = {
        "image_uri": remote.image,
        "role": remote.role,
        "instance_count": remote.instance_count,
        "instance_type": remote.instance_type,
        "max_run": remote.max_run,
        "output_path": remote.output,
    }
    if remote.source:
        given |= {"source_dir": remote.source.directory, "entry_point": remote.source.file}
    if job.algorithm_specification.training_input_mode != "File":
        given["input_mode"] = job.algorithm_specification.training_input_mode
    if job.enable_managed_spot_training:
        wait = job.stopping_condition.max_wait_time_in_seconds or remote.max_run
        given |= {"use_spot_instances": True, "max_wait": wait}
    if job.checkpoint_config:
        given["checkpoint_s3_uri"] = job.checkpoint_config.s3_uri
        if job.checkpoint_config.local_path:
            given["checkpoint_local_path"] = job.checkpoint_config.local_path
    if job.retry_strategy:
        given["max_retry_attempts"] = job.retry_strategy.maximum_retry_attempts
    # With source the SDK writes each value as JSON, text in quotes; without it sends text as it is.
    static = {name: decode(text) if remote.source else text for name, text in static_for_sdk(remote).items()}
    maps = {"environment": remote.environment, "hyperparameters": static}
    return CodeCall("Estimator", (), {**given, **{name: value for name, value in maps.items() if value}})


def _tuner(spec: TuningJobSpec, remote: RemoteJob) -> CodeCall:
    given = search_members(spec, remote)
    if config := _strategy_config(spec):
        given["strategy_config"] = config
    if spec.parents:
        kind = Name(_WARM_START_TYPES[spec.warm_start_type])
        given["warm_start_config"] = CodeCall(
            "WarmStartConfig", (), {"warm_start_type": kind, "parents": [*spec.parents]}
        )
    return CodeCall("HyperparameterTuner", (Name("estimator"),), given)


def _strategy_config(spec: TuningJobSpec) -> CodeCall | None:
    if spec.search.strategy != "Hyperband" or spec.search.resource.max is None:
        return None
    limits = {"max_resource": spec.search.resource.max, "min_resource": spec.search.resource.min}
    return CodeCall("StrategyConfig", (CodeCall("HyperbandStrategyConfig", (), limits),))


def _input(channel: InputChannel) -> object:
    """A URI where that says it all, else the SDK's object."""
    files = channel.data_source.file_system_data_source
    if files is not None:
        given = {
            "file_system_id": files.file_system_id,
            "file_system_type": files.file_system_type,
            "directory_path": files.directory_path,
            "file_system_access_mode": files.file_system_access_mode,
        }
        return CodeCall(
            "FileSystemInput", (), given | ({"content_type": channel.content_type} if channel.content_type else {})
        )
    source = channel.data_source.s3_data_source
    if source is None:
        return ""
    shuffle = channel.shuffle_config
    given_or_not = {
        "distribution": ""
        if source.s3_data_distribution_type == "FullyReplicated"
        else source.s3_data_distribution_type,
        "content_type": channel.content_type,
        "compression": "" if channel.compression_type == "None" else channel.compression_type,
        "record_wrapping": "" if channel.record_wrapper_type == "None" else channel.record_wrapper_type,
        "s3_data_type": "" if source.s3_data_type == "S3Prefix" else source.s3_data_type,
        "input_mode": channel.input_mode,
        "attribute_names": source.attribute_names,
        "instance_groups": source.instance_group_names,
        "shuffle_config": CodeCall("ShuffleConfig", (shuffle.seed,)) if shuffle else None,
    }
    said = {name: value for name, value in given_or_not.items() if value}
    return CodeCall("TrainingInput", (source.s3_uri,), said) if said else source.s3_uri
