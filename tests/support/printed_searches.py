"""Searches as people have them, for what is printed and reported."""

import json

import msgspec

from trainbox.contract.job_spec import (
    AlgorithmSpecification,
    CheckpointConfig,
    DataSource,
    FileSystemDataSource,
    InputChannel,
    JobSpec,
    LocalScript,
    MetricDefinition,
    ResourceConfig,
    RetryStrategy,
    S3DataSource,
    ShuffleConfig,
    StoppingCondition,
)
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec
from trainbox.tuning.search_space import CategoricalRange, ContinuousRange, IntegerRange, Objective, SearchSettings

AUC = Objective(name="Test AUC", goal="Maximize", regex=r"Test AUC: ([0-9\.]+)")


def channel(name: str, uri: str) -> InputChannel:
    source = S3DataSource(s3_data_type="S3Prefix", s3_uri=uri)
    return InputChannel(channel_name=name, data_source=DataSource(s3_data_source=source))


def seed_search(directory: str = "/home/me/src") -> TuningJobSpec:
    """A script that knows nothing of trainbox, in a directory, and a regex."""
    return TuningJobSpec(
        name="forest search",
        job=JobSpec(
            script=LocalScript(file="train.py", source_dir=f"file://{directory}", arguments=("--verbose",)),
            hyper_parameters={
                "n-estimators": "100",
                "criterion": "gini",
                "given-by-variable": "hunter2",
                "warm-start": "true",
                "weights": "[1.5, null]",
            },
            environment={"LEVEL": "info", "API_TOKEN": "hunter2-hunter2"},
            input_data_config=(
                channel("train", "file:///data/my train"),
                sharded_channel(),
            ),
            resource_config=ResourceConfig(instance_count=1),
            stopping_condition=StoppingCondition(max_runtime_in_seconds=600),
        ),
        search=SearchSettings(
            ranges=(
                IntegerRange("n-estimators", 50, 300),
                IntegerRange("max-depth", 5, 20, scaling="Logarithmic"),
            ),
            objective=AUC,
            max_trials=10,
            max_parallel=2,
        ),
        hide=("given-by-variable",),
    )


def sharded_channel() -> InputChannel:
    return InputChannel(
        channel_name="test",
        content_type="text/csv",
        input_mode="FastFile",
        shuffle_config=ShuffleConfig(seed=3),
        data_source=DataSource(
            s3_data_source=S3DataSource(
                s3_data_type="S3Prefix", s3_uri="s3://mine/test/", s3_data_distribution_type="ShardedByS3Key"
            )
        ),
    )


def bundled_search() -> TuningJobSpec:
    """A script of the image on two hosts, with every kind of range, early stopping, a seed and a warm start."""
    return TuningJobSpec(
        name="churn-xgboost-2026-11-30-04-47-22-with-a-long-name",
        job=JobSpec(
            algorithm_specification=AlgorithmSpecification(
                metric_definitions=(
                    MetricDefinition(name="validation:logloss", regex="logloss=([0-9.]+)"),
                    MetricDefinition(name="validation:auc", regex="an older one ([0-9])"),
                )
            ),
            script=LocalScript(name="xgboost"),
            hyper_parameters={
                "objective": "binary:logistic",
                "num_round": "100",
                "monotone_constraints": json.dumps([1, -1]),
                "verbose": "true",
            },
            input_data_config=(channel("train", "s3://mine/train/"),),
            resource_config=ResourceConfig(instance_type="ml.m5.large", instance_count=2),
        ),
        search=SearchSettings(
            ranges=(
                ContinuousRange("eta", 0.00001, 0.3, scaling="Logarithmic"),
                ContinuousRange("subsample", 0.5, 0.99, scaling="ReverseLogarithmic"),
                IntegerRange("max_depth", 3, 10),
                CategoricalRange("booster", ("gbtree", "dart")),
            ),
            objective=Objective("validation:auc", "Maximize", r"validation:auc=(-?[0-9]+(?:\.[0-9]+)?)(?:\s|$)"),
            max_trials=20,
            max_parallel=4,
            seed=7,
            early_stopping=True,
        ),
        parents=("churn-first", "churn-second"),
    )


def everything() -> TuningJobSpec:
    """What only a request can say: spot, checkpoints, a file system, retries."""
    spec = bundled_search()
    files = FileSystemDataSource(
        file_system_id="fs-0123456789abcdef0",
        file_system_access_mode="ro",
        file_system_type="FSxLustre",
        directory_path="/fsx/validation",
    )
    job = msgspec.structs.replace(
        spec.job,
        input_data_config=(
            *spec.job.input_data_config,
            InputChannel(channel_name="validation", data_source=DataSource(file_system_data_source=files)),
        ),
        enable_managed_spot_training=True,
        checkpoint_config=CheckpointConfig(s3_uri="s3://mine/checkpoints/", local_path="/opt/ml/checkpoints"),
        retry_strategy=RetryStrategy(maximum_retry_attempts=2),
    )
    return msgspec.structs.replace(spec, job=job)
