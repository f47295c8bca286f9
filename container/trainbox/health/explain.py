"""What is checked and what follows, in words: `trainbox health --explain` prints it, docs/health.md shows it."""

from collections.abc import Iterator

from trainbox.health.checks import CHECKS

#: What SageMaker does by itself. Sources: API_InfraCheckConfig, API_RetryStrategy, API_StoppingCondition and
#: "Automated cluster repair" (model-checkpoints-cluster-repair) of its documentation; the SDKs' own signatures.
SAGEMAKER = """\
Before the job: InfraCheckConfig.EnableInfraCheck
  SageMaker tests the hardware of the instances and the network between them before your container starts; the only
  check of its own that comes so early. Off by default; what it tests in detail is not documented.
    boto3   create_training_job(…, InfraCheckConfig={"EnableInfraCheck": True})
    SDK v3  ModelTrainer(…).with_infra_check_config(InfraCheckConfig(enable_infra_check=True))
    SDK v2  Estimator(…, enable_infra_check=True)

After a fault of SageMaker's own: RetryStrategy
  Starts the job again when it has failed with InternalServerError, and then only: exit codes of the container (64 and
  78 among them) are no such error. MaxRuntimeInSeconds then counts for all attempts together. 1 to 30 attempts.
    boto3   create_training_job(…, RetryStrategy={"MaximumRetryAttempts": 3})
    SDK v3  ModelTrainer(…).with_retry_strategy(RetryStrategy(maximum_retry_attempts=3))
    SDK v2  Estimator(…, max_retry_attempts=3)

After the job has failed on GPU instances: cluster repair
  SageMaker then checks the GPUs, and only then; it resets, reboots or replaces what is broken, up to ten times and
  without charge, and starts the job again from its checkpoints. There is nothing to set, but a job that hangs never
  gets there: that is why a host with a hardware fault ends the job at once, and leaves the GPU as it is.

Nothing of SageMaker's starts a job again for an exit code. Rules of EventBridge, retries of Pipelines and Step
Functions can: the job's FailureReason begins with HARDWARE or CONFIGURATION, then host, device and check.
"""
WHAT_FOLLOWS = (
    ("hardware", "78", "all hosts end; `output/failure` begins `HARDWARE <host> <device> <check>`; no GPU is reset"),
    (
        "configuration",
        "64",
        "all hosts end at once; the same job would fail again: the request or the image must change",
    ),
    ("transient", "0", "a warning, and the job goes on"),
)


def check_rows() -> Iterator[tuple[str, ...]]:
    """Name, what it looks at, what passes, whose affair, and what a failure does, for each check."""
    for name, check in CHECKS.items():
        yield (name, check.about, check.limit, check.kind, "fails" if check.hard else "warns")


def explanation() -> str:
    """All of it as text."""
    rows = [f"  {name:26}{effect:7}{kind:15}{about}; {limit}" for name, about, limit, kind, effect in check_rows()]
    follows = [f"  {kind:15}exit code {code:4}{text}" for kind, code, text in WHAT_FOLLOWS]
    checks = "\n".join(["What is checked, and what passes:", *rows])
    return f"{checks}\n\nWhat follows:\n" + "\n".join(follows) + f"\n\n{SAGEMAKER}"
