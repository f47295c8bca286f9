"""Checks of the host itself: disks, memory, CPUs, names, ports, channels and versions; each needs a few reads."""

import contextlib
import errno
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from trainbox.contract.cluster.ranks import DEFAULT_PORT, LAST_PORT
from trainbox.contract.environment import Machine
from trainbox.contract.job import Channel, Job
from trainbox.diagnostics.finding import Finding, Kind
from trainbox.health import checks
from trainbox.health.checks import Stage, found
from trainbox.system.memory import read_memory
from trainbox.system.name_resolution import resolves

_SHM = Path("/dev/shm")  # noqa: S108 - this directory itself is checked
_TEMPORARY = Path("/tmp")  # noqa: S108 - as above
_TESTED_BYTES = 1024 * 1024
_LEAST_INODES = 0.01
_CPU_LIMITS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
_CPU_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_LOOKUPS_AT_ONCE = 16
#: Errors of the device, not of the mount.
_DEVICE_ERRORS = frozenset({errno.EIO, errno.ENXIO, errno.ENODEV})
Work = Callable[[], Iterator[Finding]]
ABSENT = "absent"
#: Looked up by name: to list all installed packages takes 0.25 s. NCCL's name has the version of CUDA.
_PACKAGES = {
    "trainbox": ("trainbox",),
    "torch": ("torch",),
    "nccl": ("nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-nccl-cu14", "nvidia-nccl-cu11", "nvidia-nccl"),
}
_TORCH_CUDA = re.compile(r"^cuda\b[^=\n]*=[ \t]*['\"]([^'\"]+)['\"]", re.MULTILINE)
#: File of the loaded kernel module; also visible inside a container.
_DRIVER = Path("/sys/module/nvidia/version")
#: Written by the EFA installer; the version is in the first line ("# EFA installer version: 1.34.0").
_EFA = Path("/opt/amazon/efa_installed_packages")
_EFA_VERSION = re.compile(r"EFA installer version:\s*([\d.]+)")


class Subject(msgspec.Struct, frozen=True):
    """What has to be checked on one host."""

    host: str
    machine: Machine
    stage: Stage
    #: None without a job: then only the machine is checked.
    job: Job | None = None
    #: Timeout in seconds of every check; by default those of the table.
    deadline: float | None = None

    @property
    def port(self) -> int:
        """Port of the ranks' rendezvous on the first host."""
        return self.job.port if self.job else DEFAULT_PORT

    @property
    def exchange_port(self) -> int:
        """Port of the health check itself: next to that of the ranks, which must stay free."""
        return self.port + 1 if self.port < LAST_PORT else self.port - 1

    @property
    def hosts(self) -> tuple[str, ...]:
        """All hosts of the job, the first one first."""
        return self.job.hosts if self.job else (self.host,)

    @property
    def instance_type(self) -> str:
        """Instance type of the job, `local` outside SageMaker."""
        return self.job.instance_type if self.job else "local"

    @property
    def processes(self) -> int:
        """Number of processes of the script on this host."""
        asked = self.job.settings.processes_per_host if self.job else None
        return asked or self.machine.gpus or 1

    @property
    def written(self) -> Mapping[str, Path]:
        """Directories that the job writes, by name."""
        if self.job is None:
            return {"here": Path.cwd()}
        layout = self.job.layout
        return {"model": layout.model_dir, "output": layout.output_data_dir, "checkpoints": self.job.checkpoints_dir}


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Check the free space of every mount once, named by the first directory on it."""
    seen = set()
    for name, wanted in {**subject.written, "tmp": _TEMPORARY}.items():
        path = _existing(wanted)
        if path is None or path.stat().st_dev in seen:
            continue
        seen.add(path.stat().st_dev)
        space = os.statvfs(path)
        free = space.f_bavail * space.f_frsize
        enough = free >= checks.COMFORTABLE_FREE_BYTES
        low = free >= checks.LEAST_FREE_BYTES
        limit = checks.COMFORTABLE_FREE_BYTES if low else checks.LEAST_FREE_BYTES
        yield found("host.disk", subject.host, enough, free, device=name, limit=limit, soft=low)
        if space.f_files:
            share = round(space.f_favail / space.f_files, 4)
            yield found("host.inodes", subject.host, share >= _LEAST_INODES, share, device=name, limit=_LEAST_INODES)


def check_write(subject: Subject, name: str, wanted: Path) -> Iterator[Finding]:
    """Write a file where the job will write, read it back and remove it."""
    path = _existing(wanted)
    directory = path or wanted
    file = directory / f".trainbox-health-{subject.host}-{os.getpid()}"
    content = os.urandom(_TESTED_BYTES)
    try:
        try:
            with file.open("wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            same = file.read_bytes() == content
        finally:
            file.unlink(missing_ok=True)
    except OSError as error:
        kind: Kind = "hardware" if error.errno in _DEVICE_ERRORS else "configuration"
        reason = f"{error.strerror}: {directory}"
        yield found("host.write", subject.host, False, reason, device=name, kind=kind)
        return
    value = "the same bytes" if same else "read back different bytes"
    yield found("host.write", subject.host, same, value, device=name, kind=None if same else "hardware")


def check_channel(subject: Subject, channel: Channel) -> Iterator[Finding]:
    """Check that a channel has a file; the search stops at the first one."""
    if channel.input_mode == "Pipe":
        first = Path(f"{channel.path}_0")
        there = first.is_fifo()
        value = f"{first.name} is {'there' if there else 'missing'}"
        yield found("host.channel", subject.host, there, value, device=channel.name, limit="a FIFO")
        return
    if not channel.path.is_dir():
        yield found("host.channel", subject.host, False, "missing", device=channel.name)
        return
    file = next((name for _, _, names in os.walk(channel.path) for name in names), None)
    # With ShardedByS3Key there may be fewer keys than hosts.
    soft = channel.distribution == "ShardedByS3Key"
    value = "has files" if file else "empty"
    yield found("host.channel", subject.host, file is not None, value, device=channel.name, soft=soft)


def check_shm(subject: Subject) -> Iterator[Finding]:
    """Check the free space of /dev/shm; Docker's default is 64 MiB."""
    if not _SHM.is_dir():
        yield found("host.shm", subject.host, False, "missing", limit=checks.COMFORTABLE_SHM_BYTES)
        return
    space = os.statvfs(_SHM)
    free = space.f_bavail * space.f_frsize
    enough = free >= checks.COMFORTABLE_SHM_BYTES
    yield found("host.shm", subject.host, enough, free, limit=checks.COMFORTABLE_SHM_BYTES)


def check_memory(subject: Subject) -> Iterator[Finding]:
    """Check the available memory: the smaller one of MemAvailable and the limit of the cgroup."""
    free = _meminfo("MemAvailable")
    memory = read_memory()
    if memory.limit_bytes is not None:
        free = min(free, memory.limit_bytes)
    limit = checks.COMFORTABLE_MEMORY_BYTES
    yield found("host.memory", subject.host, free >= limit, free, limit=limit)


def _meminfo(name: str) -> int:
    """Return a line of /proc/meminfo, which is in KiB (proc(5)), in bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise LookupError(f"/proc/meminfo has no {name}")


def check_cpus(subject: Subject) -> Iterator[Finding]:
    """Check that every process has a CPU.

    Sources: kernel documentation, admin-guide/cgroup-v2 (`cpu.max`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).
    """
    usable = float(len(os.sched_getaffinity(0)))
    quota = _cpu_quota()
    if quota is not None:
        usable = min(usable, quota)
    enough = usable >= subject.processes
    yield found("host.cpus", subject.host, enough, round(usable, 2), limit=subject.processes)


def _cpu_quota() -> float | None:
    """Return the CPU quota in CPUs; None if there is no limit."""
    for path in _CPU_LIMITS:
        try:
            words = path.read_text(encoding="ascii").split()
            words = words if len(words) > 1 else [*words, _CPU_PERIOD.read_text(encoding="ascii")]
        except OSError:
            continue
        return int(words[0]) / int(words[1]) if words[0].isdigit() else None
    return None


def check_files(subject: Subject) -> Iterator[Finding]:
    """Check the soft limit of open files."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = most == resource.RLIM_INFINITY or most >= checks.COMFORTABLE_FILES
    yield found("host.files", subject.host, enough, most, limit=checks.COMFORTABLE_FILES)


def check_memlock(subject: Subject) -> Iterator[Finding]:
    """Check that locked memory is unlimited: an EFA locks the memory that it registers (libfabric, fi_efa(7))."""
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = most == resource.RLIM_INFINITY
    yield found("host.memlock", subject.host, unlimited, "unlimited" if unlimited else most)


def check_names(subject: Subject, peers: Sequence[str]) -> Iterator[Finding]:
    """Resolve all names at once, as a dead name server delays each by seconds; list those without an address."""
    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
        unknown = [peer for peer, known in zip(peers, threads.map(resolves, peers), strict=True) if not known]
    for peer in unknown:
        yield found("host.dns", subject.host, False, "no address", device=peer)
    if not unknown:
        yield found("host.dns", subject.host, True, f"{len(peers)} of {len(peers)} names", limit="all names")


def check_port(subject: Subject) -> Iterator[Finding]:
    """Check on the first host that the port of the ranks can be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            subject.host, subject.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        yield found(
            "host.port", subject.host, False, f"{subject.port}: {error.strerror}", device=f"port {subject.port}"
        )
        return
    yield found("host.port", subject.host, True, "free", device=f"port {subject.port}")


def plan_checks(subject: Subject) -> list[tuple[str, str, Work]]:
    """Return the checks that this host needs: name, device and function."""
    simple = {
        "host.disk": check_disk,
        "host.shm": check_shm,
        "host.memory": check_memory,
        "host.cpus": check_cpus,
        "host.files": check_files,
    }
    if subject.machine.efa:
        simple["host.memlock"] = check_memlock
    if len(subject.hosts) > 1 and subject.host == subject.hosts[0]:
        simple["host.port"] = check_port
    planned: list[tuple[str, str, Work]] = [(name, "", partial(check, subject)) for name, check in simple.items()]
    planned += [
        ("host.write", name, partial(check_write, subject, name, path)) for name, path in subject.written.items()
    ]
    if subject.job is not None:
        planned += [
            ("host.channel", name, partial(check_channel, subject, channel))
            for name, channel in subject.job.channels.items()
        ]
    if len(subject.hosts) > 1:
        peers = [host for host in subject.hosts if host != subject.host]
        planned.append(("host.dns", "", partial(check_names, subject, peers)))
    return planned


def _existing(path: Path) -> Path | None:
    """Return the path, or the nearest existing directory above it."""
    return next((place for place in (path, *path.parents) if place.is_dir()), None)


def read_versions() -> dict[str, str]:
    """Return the version of each component without importing it; `absent` if the host does not have it."""
    versions = {component: _installed(names) for component, names in _PACKAGES.items()}
    versions["python"] = platform.python_version()
    versions["cuda"] = read_cuda()
    versions["driver"] = (_text(_DRIVER) or ABSENT).strip()
    versions["efa"] = _first(_EFA_VERSION, _EFA)
    return versions


def read_cuda() -> str:
    """Return the CUDA version that torch is built for; `absent` without torch or CUDA."""
    return _first(_TORCH_CUDA, _torch_version_file())


def _installed(names: Sequence[str]) -> str:
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ABSENT


def _torch_version_file() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).with_name("version.py") if spec and spec.origin else None


def _first(pattern: re.Pattern[str], path: Path | None) -> str:
    match = pattern.search(_text(path) or "") if path else None
    return match[1] if match else ABSENT


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
