"""The one table of all checks: when each runs, what it holds against what, and what follows if it fails."""

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
#: Whatever else one would do to a GPU (reset, reboot) is not for a container to do.
_REPLACE = "the node is to be repaired or replaced; SageMaker does it after the job has failed"


class HealthCheck(msgspec.Struct, frozen=True):
    """One row."""

    scope: Scope
    kind: Kind
    #: One line of the docs: what it looks at.
    about: str
    #: What passes, in words.
    limit: str
    #: What to do when it does not pass.
    hint: str
    #: That of `value` and `limit` where they are numbers.
    unit: str = ""
    #: A hard check that does not pass fails the job; a soft one warns, and fails it with --strict.
    hard: bool = True
    stage: Stage = "fast"
    #: After this it is ended and counts as `did not finish`.
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
        "1 MiB written, brought to the disk, read back and removed in model, output and checkpoints",
        "the same bytes", "the directory must be mounted for writing, with space left",
    ),
    "host.channel": HealthCheck(
        "host", "configuration", "every channel of the request is there and not empty", "one file",
        "look at the S3 prefix of the channel: does it end where the files are?",
    ),
    "host.shm": HealthCheck(
        "host", "configuration", "free space of `/dev/shm`, where data loaders and NCCL exchange",
        f"{COMFORTABLE_SHM_BYTES // MIB} MiB", "docker: --shm-size; fewer data loader workers",
        hard=False, unit="bytes",
    ),
    "host.memory": HealthCheck(
        "host", "configuration",
        "memory that is free, within the cgroup's limit", f"{COMFORTABLE_MEMORY_BYTES // MIB} MiB",
        "a larger instance, or find what already uses it", hard=False, unit="bytes",
    ),
    "host.cpus": HealthCheck(
        "host", "configuration", "processors that the affinity and the cgroup's quota leave", "one for each process",
        "docker: --cpus, --cpuset-cpus; fewer processes_per_host", hard=False,
    ),
    "host.files": HealthCheck(
        "host", "configuration", "open files that a process may have", f"{COMFORTABLE_FILES}",
        "docker: --ulimit nofile=65536",
        hard=False,
    ),
    "host.memlock": HealthCheck(
        "host", "configuration", "memory that a process may lock, where there is an EFA", "unlimited",
        "docker: --ulimit memlock=-1", hard=False,
    ),
    "host.dns": HealthCheck(
        "host", "configuration", "the name of every other host of the job resolves", "an address",
        "the job's security group must allow DNS; did that host start?",
    ),
    "host.port": HealthCheck(
        "host", "configuration", "the port where the ranks will meet is free on the first host", "free",
        "the variable MASTER_PORT names another",
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
            ("driver", "the NVIDIA driver", "hosts of one job have one driver: this one is to be replaced"),
            ("efa", "what drives the EFA", _ONE_IMAGE),
        )
    },
    "nvml.library": HealthCheck(
        "gpu", "hardware", "NVML can be loaded on a host with GPUs", "loaded",
        "the driver does not answer: the node is to be replaced",
    ),
    "nvml.count": HealthCheck(
        "gpu", "hardware", "GPUs that NVML shows against those of the instance type, else against `/dev/nvidia*`",
        "all", "a GPU has gone, or the container was started without it (docker: --gpus all)",
    ),
    "nvml.answers": HealthCheck(
        "gpu", "hardware", "every call about this GPU is answered", "all calls", _REPLACE,
    ),
    "nvml.recovery_action": HealthCheck(
        "gpu", "hardware", "what the driver asks for (driver 570 and later)", "none", _REPLACE,
    ),
    "nvml.ecc_uncorrected": HealthCheck(
        "gpu", "hardware", "uncorrected memory errors since the driver was loaded", "0", _REPLACE,
    ),
    "nvml.row_remap_failed": HealthCheck("gpu", "hardware", "a row of memory could not be remapped", "no", _REPLACE),
    "nvml.row_remap_pending": HealthCheck(
        "gpu", "hardware", "a row of memory waits for a reset to be remapped", "no", _REPLACE,
    ),
    "nvml.retired_pages": HealthCheck(
        "gpu", "hardware", "a page of memory waits for a reset to be retired", "no", _REPLACE,
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
        f"{MOST_LINK_ERRORS}", "collectives may be slow; a rising number is a bad link", hard=False,
    ),
    "nvml.processes": HealthCheck(
        "gpu", "configuration", "compute processes that are there before the job's own", "0",
        "another job has this GPU, or an earlier one left a process behind", hard=False,
    ),
    "gpu.exact": HealthCheck(
        "gpu", "hardware", "integer matrix products, bit for bit against the processor (without a GPU: --full)",
        "0 wrong",
        _REPLACE, seconds=60,
    ),
    "gpu.bandwidth": HealthCheck(
        "gpu", "hardware", "gigabytes per second copied within the device, to it and from it, against the job's median",
        f"{LEAST_SHARE_OF_MEDIAN:g} of the median", "the job waits for its slowest device", hard=False, unit="GB/s",
    ),
    "collective.local": HealthCheck(
        "collective", "hardware", "the sum over all ranks of a host, exact", "exact", _REPLACE, seconds=60,
    ),
    "collective.pair": HealthCheck(
        "collective", "hardware",
        "the sum over two hosts, exact; who fails meets another host, and is bad if it fails twice", "exact",
        "the node or its network is bad; where no pair works, the job's security group must allow all traffic in it",
        seconds=60,
    ),
    "collective.world": HealthCheck(
        "collective", "hardware", "the sum over all hosts, exact; where it fails although pairs work, who reaches whom",
        "exact", "the way between two hosts, or one host's network, is bad", seconds=60,
    ),
    "collective.bandwidth": HealthCheck(
        "collective", "hardware", "bus bandwidth of each pair, as nccl-tests compute it, of hosts that were slow twice",
        "0.2 of the best pair (gloo), 0.7 of the median (nccl)", "all hosts wait for the slowest link",
        hard=False, unit="GB/s",
    ),
    "collective.latency": HealthCheck(
        "collective", "hardware", "the sum of one number over each pair, of hosts that were slow twice",
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
    """The finding of a check, with what the table says of it.

    Args:
        check: Its name in the table.
        host: Where.
        passes: Whether it passes.
        value: What was found.
        device: What of the host.
        limit: What the value is held against; by default the words of the table.
        kind: Whose affair, where it is another than usual.
        soft: Whether this only warns although the check is a hard one.
        hint: What to do, where it is something else than usual; why nothing was measured, where it passes.
    """
    row = CHECKS[check]
    status: Status = "pass" if passes else "warn" if soft or not row.hard else "fail"
    hint = hint or ("" if passes else row.hint)
    return Finding(check, host, device, status, value, row.limit if limit is None else limit, kind or row.kind, hint)


def unfinished(check: str, host: str, why: str, *, device: str, seconds: float) -> Finding:
    """The finding of a check that hung or crashed. One that would only have warned does not end a job by that.

    Args:
        check: Its name in the table.
        host: Where.
        why: What is known of its end.
        device: What of the host.
        seconds: The time it had.
    """
    row = CHECKS[check]
    kind: Kind = row.kind if row.hard else "transient"
    return Finding(check, host, device, "fail", DID_NOT_FINISH, f"{seconds:g} s", kind, why)


def amount(check: str, value: Value) -> str:
    """A value with its unit."""
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
    """Name, what it looks at, what passes, whose affair, and what a failure does, for each check."""
    for name, check in CHECKS.items():
        yield (name, check.about, check.limit, check.kind, "fails" if check.hard else "warns")


def explanation() -> str:
    """All of it as text."""
    rows = [f"  {name:26}{effect:7}{kind:15}{about}; {limit}" for name, about, limit, kind, effect in check_rows()]
    follows = [f"  {kind:15}exit code {code:4}{text}" for kind, code, text in WHAT_FOLLOWS]
    checks = "\n".join(["What is checked, and what passes:", *rows])
    return f"{checks}\n\nWhat follows:\n" + "\n".join(follows) + f"\n\n{SAGEMAKER}"
