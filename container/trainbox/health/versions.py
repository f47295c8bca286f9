"""Which versions a host has, found without importing or loading any of it, and pure: whether the hosts differ."""

import contextlib
import importlib.metadata
import importlib.util
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainbox.contract.finding import Finding
from trainbox.health.checks import CHECKS, found

ABSENT = "absent"
_PREFIX = "versions."
#: By name, for to look at all that is installed takes a quarter of a second. NCCL's has that of CUDA.
_PACKAGES = {
    "trainbox": ("trainbox",),
    "torch": ("torch",),
    "nccl": ("nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-nccl-cu14", "nvidia-nccl-cu11", "nvidia-nccl"),
}
_TORCH_CUDA = re.compile(r"^cuda\b[^=\n]*=[ \t]*['\"]([^'\"]+)['\"]", re.MULTILINE)
#: Linux' own file of a loaded module, there also inside a container.
_DRIVER = Path("/sys/module/nvidia/version")
#: What Amazon's installer of EFA leaves: its version is in the first line ("# EFA installer version: 1.34.0").
_EFA = Path("/opt/amazon/efa_installed_packages")
_EFA_VERSION = re.compile(r"EFA installer version:\s*([\d.]+)")


def read_versions() -> dict[str, str]:
    """By component; `absent` for what the host does not have."""
    versions = {component: _installed(names) for component, names in _PACKAGES.items()}
    versions["python"] = platform.python_version()
    versions["cuda"] = read_cuda()
    versions["driver"] = (_text(_DRIVER) or ABSENT).strip()
    versions["efa"] = _first(_EFA_VERSION, _EFA)
    return versions


def read_cuda() -> str:
    """The CUDA that torch is built for; `absent` where it is built for processors, or is not there."""
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


def compare_versions(versions: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Hold every host against what most hosts have; of two kinds equally common, that of the first host.

    Args:
        versions: What each host has, by host and component.
    """
    for check in CHECKS:
        component = check.removeprefix(_PREFIX)
        if component == check or not versions:
            continue
        had = {host: of_host.get(component, ABSENT) for host, of_host in versions.items()}
        common = Counter(had.values()).most_common(1)[0][0]  # the first of equals: that of the first host
        example = next(host for host, version in had.items() if version == common)
        for host, version in had.items():
            same = version == common
            limit = common if same else f"{common} on {example}"
            yield found(check, host, same, version, limit=limit)
