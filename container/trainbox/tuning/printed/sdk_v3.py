"""The tuning job as code for SageMaker's Python SDK v3: a `ModelTrainer` and its `HyperparameterTuner`."""

from collections.abc import Mapping

import msgspec

from trainbox.contract.job_spec import DataSource, InputChannel, S3DataSource
from trainbox.tuning.printed.heading import heading
from trainbox.tuning.printed.places import RemoteJob, to_remote
from trainbox.tuning.printed.python_code import CodeCall, Name, write_code, write_import
from trainbox.tuning.printed.ranges import check_search
from trainbox.tuning.printed.sdk_ranges import search_members, static_for_sdk
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec

#: Where the SDK has its classes.
_SHAPES, _CONFIGS = "sagemaker.core.shapes", "sagemaker.core.training.configs"
_CLASSES = {
    **dict.fromkeys(("Compute", "InputData", "SourceCode", "OutputDataConfig", "StoppingCondition"), _CONFIGS),
    **dict.fromkeys(("Channel", "DataSource", "S3DataSource", "FileSystemDataSource", "ShuffleConfig"), _SHAPES),
    **dict.fromkeys(("CheckpointConfig", "RetryStrategy", "HyperbandStrategyConfig"), _SHAPES),
    "HyperParameterTuningJobStrategyConfig": _SHAPES,
    "HyperParameterTuningJobWarmStartConfig": _SHAPES,
    "ParentHyperParameterTuningJob": _SHAPES,
    "ModelTrainer": "sagemaker.train.model_trainer",
    "HyperparameterTuner": "sagemaker.train.tuner",
    **dict.fromkeys(("CategoricalParameter", "ContinuousParameter", "IntegerParameter"), "sagemaker.core.parameter"),
}


def print_sdk_v3(spec: TuningJobSpec) -> str:
    """Pure: write Python code that starts the tuning job with SDK v3.

    Raises:
        RunError: SageMaker has no such tuning job.
    """
    check_search(spec)
    remote = to_remote(spec)
    trainer, tuner = _trainer(spec, remote), _tuner(spec, remote)
    inputs = [_input(channel) for channel in remote.channels]
    start = CodeCall("tuner.tune", (), {**({"inputs": inputs} if inputs else {}), "wait": False})
    uploads = [*(() if remote.source else remote.source_uploads), *remote.uploads]
    retry = [_shape(spec.job.retry_strategy)] if spec.job.retry_strategy else []
    lines = [
        *heading("sagemaker-train>=1.27", uploads, spec.parents),
        *_imports(_classes_in((trainer, tuner, inputs, *retry))),
        "",
        write_code(trainer, before="trainer = "),
        *(write_code(CodeCall("trainer.with_retry_strategy", (each,))) for each in retry),
        write_code(tuner, before="tuner = "),
        write_code(start),
    ]
    return "\n".join(lines) + "\n"


def _imports(classes: set[str]) -> list[str]:
    modules: dict[str, set[str]] = {}
    for name in {*classes, "HyperparameterTuner", "ModelTrainer"}:
        modules.setdefault(_CLASSES[name], set()).add(name)
    return [write_import(module, names) for module, names in sorted(modules.items())]


def _trainer(spec: TuningJobSpec, remote: RemoteJob) -> CodeCall:
    job = spec.job
    spot = {"enable_managed_spot_training": True} if job.enable_managed_spot_training else {}
    compute = {"instance_type": remote.instance_type, "instance_count": remote.instance_count}
    limits = {"max_runtime_in_seconds": remote.max_run}
    if spot:
        limits["max_wait_time_in_seconds"] = job.stopping_condition.max_wait_time_in_seconds or remote.max_run
    given: dict[str, object] = {
        "training_image": remote.image,
        "role": remote.role,
        "base_job_name": remote.name,
        "compute": CodeCall("Compute", (), {**compute, **spot}),
        "stopping_condition": CodeCall("StoppingCondition", (), limits),
        "output_data_config": CodeCall("OutputDataConfig", (), {"s3_output_path": remote.output}),
    }
    if remote.source:
        source = {"source_dir": remote.source.directory, "entry_script": remote.source.file}
        given["source_code"] = CodeCall("SourceCode", (), source)
    if job.algorithm_specification.training_input_mode != "File":
        given["training_input_mode"] = job.algorithm_specification.training_input_mode
    if job.checkpoint_config:
        given["checkpoint_config"] = _shape(job.checkpoint_config)
    maps = {"environment": remote.environment, "hyperparameters": static_for_sdk(remote)}
    return CodeCall("ModelTrainer", (), {**given, **{name: value for name, value in maps.items() if value}})


def _tuner(spec: TuningJobSpec, remote: RemoteJob) -> CodeCall:
    given = {"model_trainer": Name("trainer"), **search_members(spec, remote)}
    if spec.search.strategy == "Hyperband" and spec.search.resource.max is not None:
        limits = {"min_resource": spec.search.resource.min, "max_resource": spec.search.resource.max}
        config = {"hyperband_strategy_config": CodeCall("HyperbandStrategyConfig", (), limits)}
        given["strategy_config"] = CodeCall("HyperParameterTuningJobStrategyConfig", (), config)
    if spec.parents:
        parents = [
            CodeCall("ParentHyperParameterTuningJob", (), {"hyper_parameter_tuning_job_name": name})
            for name in spec.parents
        ]
        warm_start = {"parent_hyper_parameter_tuning_jobs": parents, "warm_start_type": spec.warm_start_type}
        given["warm_start_config"] = CodeCall("HyperParameterTuningJobWarmStartConfig", (), warm_start)
    return CodeCall("HyperparameterTuner", (), given)


def _input(channel: InputChannel) -> CodeCall:
    """`InputData` where that says it all, else `Channel`: the tuner takes nothing but a URI from an `InputData`."""
    source = channel.data_source.s3_data_source
    if source is not None:
        plain = InputChannel(
            channel_name=channel.channel_name,
            content_type=channel.content_type,
            data_source=DataSource(s3_data_source=S3DataSource(s3_data_type="S3Prefix", s3_uri=source.s3_uri)),
        )
        if channel == plain:
            kind = {"content_type": channel.content_type} if channel.content_type else {}
            place = {"channel_name": channel.channel_name, "data_source": source.s3_uri}
            return CodeCall("InputData", (), {**place, **kind})
    return _shape(channel)


def _shape(value: msgspec.Struct) -> CodeCall:
    """A value of a JobSpec as the SDK's class, whose members have the same names."""
    name = {"InputChannel": "Channel"}.get(type(value).__name__, type(value).__name__)
    members: dict[str, object] = {}
    for field in msgspec.structs.fields(value):
        member = getattr(value, field.name)
        if member != field.default:
            members[field.name] = _shape(member) if isinstance(member, msgspec.Struct) else member
    return CodeCall(name, (), members)


def _classes_in(values: object) -> set[str]:
    """Every class that is called, at any depth."""
    match values:
        case CodeCall():
            return {values.function} | _classes_in([*values.positional, *values.keywords.values()])
        case Mapping():
            return _classes_in(list(values.values()))
        case list() | tuple():
            return {name for each in values for name in _classes_in(each)}
        case _:
            return set()
