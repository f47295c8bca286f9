"""Pure: what of a job has no effect on this machine, so that a person is told."""

from collections.abc import Iterator

from trainbox.contract.job_spec import JobSpec
from trainbox.workbench.local_options import LocalOptions


def unused(spec: JobSpec, options: LocalOptions) -> Iterator[str]:
    """What has no effect here, in one line, and what differs from what SageMaker would do."""
    condition, algorithm = spec.stopping_condition, spec.algorithm_specification
    given = {
        "RoleArn": bool(spec.role_arn),
        "TrainingImage": bool(algorithm.training_image) and not options.docker,
        "OutputDataConfig": spec.output_data_config is not None,
        "CheckpointConfig.S3Uri": spec.checkpoint_config is not None,
        "EnableManagedSpotTraining": spec.enable_managed_spot_training,
        "MaxWaitTimeInSeconds": condition.max_wait_time_in_seconds is not None,
        "MaxPendingTimeInSeconds": condition.max_pending_time_in_seconds is not None,
        "RetryStrategy": spec.retry_strategy is not None,
        "FileSystemAccessMode rw": any(
            source.file_system_access_mode == "rw"
            for channel in spec.input_data_config
            if (source := channel.data_source.file_system_data_source) is not None
        ),
        "ShuffleConfig": any(channel.shuffle_config for channel in spec.input_data_config),
    }
    names = [*(name for name, is_given in given.items() if is_given), *(member.name for member in spec.ignored)]
    if names:
        yield f"without effect on this machine: {', '.join(names)}"
