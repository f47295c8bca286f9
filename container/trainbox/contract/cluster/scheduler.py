"""Who runs this container, as far as its environment says, and what a stop means there."""

from collections.abc import Mapping

#: SageMaker kills 120 s after SIGTERM (API StopTrainingJob); 20 s are left for the supervisor to tidy and report.
DEFAULT_GRACE_SECONDS = 100.0
#: Slurm (`KillWait`) and Kubernetes (`terminationGracePeriodSeconds`) kill after 30 s by default.
DEFAULT_GRACE_SECONDS_OF_SCHEDULERS = 25.0
#: They go by the exit code: a job that was stopped must not look like one that is done.
STOP_EXIT_CODE_OF_SCHEDULERS = 143
#: SageMaker, its local mode and `trainbox run` name the job, and know that they have stopped it.
_SAGEMAKER = ("TRAINING_JOB_ARN", "TRAINING_JOB_NAME")
_SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")


def is_under_scheduler(env: Mapping[str, str]) -> bool:
    """Whether Slurm or Kubernetes runs this container, and not SageMaker on top of it."""
    return any(env.get(name) for name in _SCHEDULERS) and not any(env.get(name) for name in _SAGEMAKER)


def default_grace_seconds(env: Mapping[str, str]) -> float:
    """How long a stop may take where nobody says it."""
    return DEFAULT_GRACE_SECONDS_OF_SCHEDULERS if is_under_scheduler(env) else DEFAULT_GRACE_SECONDS


def default_stop_exit_code(env: Mapping[str, str]) -> int:
    """The exit code of a job that was stopped and has saved, where nobody says it."""
    return STOP_EXIT_CODE_OF_SCHEDULERS if is_under_scheduler(env) else 0
