"""The table of all checks: what each compares, its limit, and what follows if it fails."""

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from trainbox.diagnostics.finding import Finding, Kind, Status, Value
from trainbox.system.network import SMALL_SHM_BYTES

Stage = Literal["fast", "full"]
Scope = Literal["host", "versions", "gpu", "collective"]
MIB = 1024 * 1024
LEAST_FREE_BYTES = 256 * MIB
COMFORTABLE_FREE_BYTES = 2048 * MIB
COMFORTABLE_SHM_BYTES = SMALL_SHM_BYTES
COMFORTABLE_MEMORY_BYTES = 512 * MIB
COMFORTABLE_FILES = 1024
MOST_SKEW_SECONDS = 1.0
LEAST_SHARE_OF_MEDIAN = 0.8
MOST_LINK_ERRORS = 0
DID_NOT_FINISH = "did not finish"
_ONE_IMAGE = "give all hosts the same image, by its digest, and no unpinned package in requirements.txt"
#: A container must not reset a GPU or reboot a node.
_REPLACE = "repair or replace the node; SageMaker does it after the job has failed"


class HealthCheck(msgspec.Struct, frozen=True):
    """One row of the table of checks."""

    scope: Scope
    kind: Kind
    #: What it looks at, as shown in the docs.
    about: str
    #: What passes, in words.
    limit: str
    #: What to do when it does not pass.
    hint: str
    #: Unit of `value` and `limit` if they are numbers.
    unit: str = ""
    #: A failed hard check fails the job; a failed soft check warns, and fails the job only with --strict.
    hard: bool = True
    stage: Stage = "fast"
    #: Timeout; after it the check is killed and reported as `did not finish`.
    seconds: float = 20.0


CHECKS: Mapping[str, HealthCheck] = {
    "host.disk": HealthCheck(
        "host", "configuration", "free space of every mount the job writes: model, output, checkpoints, `/tmp`",
        f"{LEAST_FREE_BYTES // MIB} MiB; below {COMFORTABLE_FREE_BYTES // MIB} MiB it warns",
        "ask for a larger VolumeSizeInGB, or keep fewer checkpoints", unit="bytes",
    ),
    "host.inodes": HealthCheck(
        "host", "configuration", "free inodes of the same mounts", "1 %", "remove small files, or take a larger volume",
    ),
    "host.write": HealthCheck(
        "host", "configuration",
        "1 MiB written, synced to the disk, read back and removed in model, output and checkpoints",
        "the same bytes", "the directory must be mounted for writing, with space left",
    ),
    "host.channel": HealthCheck(
        "host", "configuration", "every channel of the request exists and has files", "one file",
        "look at the S3 prefix of the channel: does it end where the files are?",
    ),
    "host.shm": HealthCheck(
        "host", "configuration", "free space of `/dev/shm`, where data loaders and NCCL exchange",
        f"{COMFORTABLE_SHM_BYTES // MIB} MiB", "docker: --shm-size; fewer data loader workers",
        hard=False, unit="bytes",
    ),
    "host.memory": HealthCheck(
        "host", "configuration",
        "available memory, within the limit of the cgroup", f"{COMFORTABLE_MEMORY_BYTES // MIB} MiB",
        "use a larger instance, or find the process that uses the memory", hard=False, unit="bytes",
    ),
    "host.cpus": HealthCheck(
        "host", "configuration", "CPUs available within the affinity and the cgroup's quota", "one for each process",
        "docker: --cpus, --cpuset-cpus; fewer processes_per_host", hard=False,
    ),
    "host.files": HealthCheck(
        "host", "configuration", "limit of open files of a process", f"{COMFORTABLE_FILES}",
        "docker: --ulimit nofile=65536",
        hard=False,
    ),
    "host.memlock": HealthCheck(
        "host", "configuration", "limit of locked memory of a process, on hosts with an EFA", "unlimited",
        "docker: --ulimit memlock=-1", hard=False,
    ),
    "host.dns": HealthCheck(
        "host", "configuration", "the name of every other host of the job resolves", "an address",
        "the job's security group must allow DNS; did that host start?",
    ),
    "host.port": HealthCheck(
        "host", "configuration", "the port of the ranks' rendezvous is free on the first host", "free",
        "set the variable MASTER_PORT to another port",
    ),
    "host.arrival": HealthCheck(
        "host", "hardware", "every host of the job takes part in these checks", "within trainbox_peer_timeout_seconds",
        "see that host's log; the job's security group must allow all traffic within itself",
    ),
    "host.clock": HealthCheck(
        "host", "hardware", "the host's clock against that of the first host", f"{MOST_SKEW_SECONDS:g} s",
        "logs of the hosts cannot be put in order; beyond 15 minutes S3 refuses requests", hard=False, unit="s",
    ),
    **{
        f"versions.{component}": HealthCheck(
            "versions", "configuration", f"the version of {name} is the same on all hosts", "that of most hosts", hint,
        )
        for component, name, hint in (
            ("trainbox", "trainbox", _ONE_IMAGE), ("python", "Python", _ONE_IMAGE), ("torch", "torch", _ONE_IMAGE),
            ("cuda", "CUDA that torch is built for", _ONE_IMAGE), ("nccl", "NCCL", _ONE_IMAGE),
            ("driver", "the NVIDIA driver", "all hosts of a job need the same driver: replace this host"),
            ("efa", "the EFA software", _ONE_IMAGE),
        )
    },
    "nvml.library": HealthCheck(
        "gpu", "hardware", "NVML can be loaded on a host with GPUs", "loaded",
        "the driver does not answer: replace the node",
    ),
    "nvml.count": HealthCheck(
        "gpu", "hardware", "number of GPUs in NVML, against that of the instance type, else against `/dev/nvidia*`",
        "all", "a GPU is missing, or the container was started without it (docker: --gpus all)",
    ),
    "nvml.answers": HealthCheck(
        "gpu", "hardware", "every NVML call for this GPU succeeds", "all calls", _REPLACE,
    ),
    "nvml.recovery_action": HealthCheck(
        "gpu", "hardware", "recovery action that the driver requests (driver 570 and later)", "none", _REPLACE,
    ),
    "nvml.ecc_uncorrected": HealthCheck(
        "gpu", "hardware", "uncorrected memory errors since the driver was loaded", "0", _REPLACE,
    ),
    "nvml.row_remap_failed": HealthCheck("gpu", "hardware", "remapping of a memory row failed", "no", _REPLACE),
    "nvml.row_remap_pending": HealthCheck(
        "gpu", "hardware", "remapping of a memory row waits for a GPU reset", "no", _REPLACE,
    ),
    "nvml.retired_pages": HealthCheck(
        "gpu", "hardware", "retirement of a memory page waits for a GPU reset", "no", _REPLACE,
    ),
    "nvml.xid": HealthCheck(
        "gpu", "hardware", "Xid and double-bit errors that the driver reports during the run", "none", _REPLACE,
    ),
    "nvml.throttle": HealthCheck(
        "gpu", "hardware", "slowed down by heat, power brake or hardware", "none", "the job will be slow", hard=False,
    ),
    "nvml.pcie_width": HealthCheck(
        "gpu", "hardware", "lanes of PCIe in use", "all that the GPU has",
        "copies to this GPU will be slow", hard=False,
    ),
    "nvml.nvlink": HealthCheck(
        "gpu", "hardware", "NVLinks that are up", "those of the best GPU of the host",
        "collectives will be slow", hard=False,
    ),
    "nvml.nvlink_errors": HealthCheck(
        "gpu", "hardware", "replays, recoveries and CRC errors of all NVLinks since the driver was loaded",
        f"{MOST_LINK_ERRORS}", "collectives may be slow; a rising number is a faulty link", hard=False,
    ),
    "nvml.processes": HealthCheck(
        "gpu", "configuration", "compute processes that exist before those of the job", "0",
        "another job uses this GPU, or an earlier one left a process running", hard=False,
    ),
    "gpu.exact": HealthCheck(
        "gpu", "hardware", "integer matrix products, bit for bit against the CPU (without a GPU: --full)",
        "0 wrong",
        _REPLACE, seconds=60,
    ),
    "gpu.bandwidth": HealthCheck(
        "gpu", "hardware", "copy bandwidth within the device, to it and from it, against the median of the job",
        f"{LEAST_SHARE_OF_MEDIAN:g} of the median", "the job waits for its slowest device", hard=False, unit="GB/s",
    ),
    "collective.local": HealthCheck(
        "collective", "hardware", "the sum over all ranks of a host, exact", "exact", _REPLACE, seconds=60,
    ),
    "collective.pair": HealthCheck(
        "collective", "hardware",
        "the sum over two hosts, exact; a host that fails is paired again, and is faulty if it fails twice", "exact",
        "the node or its network is faulty; if no pair works, allow all traffic within the job's security group",
        seconds=60,
    ),
    "collective.world": HealthCheck(
        "collective", "hardware",
        "the sum over all hosts, exact; if it fails although pairs work, which hosts reach each other",
        "exact", "the network between two hosts, or of one host, is faulty", seconds=60,
    ),
    "collective.bandwidth": HealthCheck(
        "collective", "hardware",
        "bus bandwidth of each pair as in nccl-tests; a host is reported if it was slow twice",
        "0.2 of the best pair (gloo), 0.7 of the median (nccl)", "all hosts wait for the slowest link",
        hard=False, unit="GB/s",
    ),
    "collective.latency": HealthCheck(
        "collective", "hardware",
        "time for the sum of one number over each pair; a host is reported if it was slow twice",
        "10 times the best pair, at least 2 ms", "all hosts wait for the slowest link", hard=False, unit="us",
    ),
}  # fmt: skip


def found(
    check: str,
    host: str,
    passes: bool,
    value: Value,
    *,
    device: str = "",
    limit: Value = None,
    kind: Kind | None = None,
    soft: bool = False,
    hint: str = "",
) -> Finding:
    """Return the finding of a check, completed from the table.

    Args:
        check: Its name in the table.
        host: The host that was checked.
        passes: Whether it passes.
        value: The observed value.
        device: The part of the host.
        limit: What the value is compared with; by default the text of the table.
        kind: Who has to act, if not as in the table.
        soft: Whether it only warns although the check is a hard one.
        hint: What to do, if not as in the table; for a check that passes, why nothing was measured.
    """
    row = CHECKS[check]
    status: Status = "pass" if passes else "warn" if soft or not row.hard else "fail"
    hint = hint or ("" if passes else row.hint)
    return Finding(check, host, device, status, value, row.limit if limit is None else limit, kind or row.kind, hint)


def unfinished(check: str, host: str, why: str, *, device: str, seconds: float) -> Finding:
    """Return the finding of a check that hung or crashed; a soft check does not fail the job by that.

    Args:
        check: Its name in the table.
        host: The host that was checked.
        why: How it ended.
        device: The part of the host.
        seconds: Its timeout.
    """
    row = CHECKS[check]
    kind: Kind = row.kind if row.hard else "transient"
    return Finding(check, host, device, "fail", DID_NOT_FINISH, f"{seconds:g} s", kind, why)


def amount(check: str, value: Value) -> str:
    """Return a value with its unit."""
    unit = CHECKS[check].unit if check in CHECKS else ""
    if value is None or isinstance(value, str) or not unit:
        return "" if value is None else f"{value}"
    return f"{value / MIB:,.0f} MiB" if unit == "bytes" else f"{value:g} {unit}"


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
    """Yield for each check: name, subject, limit, class and effect of a failure."""
    for name, check in CHECKS.items():
        yield (name, check.about, check.limit, check.kind, "fails" if check.hard else "warns")


def explanation() -> str:
    """Return the checks, their effects and SageMaker's own features as text."""
    rows = [f"  {name:26}{effect:7}{kind:15}{about}; {limit}" for name, about, limit, kind, effect in check_rows()]
    follows = [f"  {kind:15}exit code {code:4}{text}" for kind, code, text in WHAT_FOLLOWS]
    checks = "\n".join(["Checks and their limits:", *rows])
    return f"{checks}\n\nWhat follows:\n" + "\n".join(follows) + f"\n\n{SAGEMAKER}"
