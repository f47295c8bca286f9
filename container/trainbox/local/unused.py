"""Pure: find the members of a job that have no effect on this machine, so that they are reported."""

from collections.abc import Iterator

from trainbox.contract.job_spec import JobSpec
from trainbox.local.local_options import LocalOptions


def unused(spec: JobSpec, options: LocalOptions) -> Iterator[str]:
    """Yield a note with all members that have no effect here."""
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
        yield f"no effect on this machine: {', '.join(names)}"
