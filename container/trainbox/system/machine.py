"""What this host has: processors, GPUs, Neuron cores and SageMaker's own launchers."""

import itertools
import json
import os
import re
import sys
from pathlib import Path

from trainbox.contract.environment import Machine

_GPU = re.compile(r"nvidia\d+")
_IDENTIFIERS = ("GPU-", "MIG-")
_NEURON_SECONDS = 10
_INTERFACES = Path("/sys/class/net")
#: What rdma-core shows of an EFA, and where Amazon's installer and distributions put its library.
_ADAPTERS = Path("/sys/class/infiniband")
_LIBFABRIC = ("/opt/amazon/efa/lib*/libfabric.so*", "/usr/lib*/libfabric.so*", "/usr/lib/*/libfabric.so*")


def read_machine(
    devices: Path = Path("/dev"), *, modules: tuple[str, ...] = (), listed_gpus: str | None = None
) -> Machine:
    """Count without loading a driver: a GPU is a device node, which the NVIDIA runtime makes for the visible ones only.

    sagemaker-training starts `nvidia-smi` and `neuron-ls` three times per job instead.

    Args:
        devices: Where device nodes are.
        modules: Python modules to look for.
        listed_gpus: What `CUDA_VISIBLE_DEVICES` says; None where it is not set.
    """
    names = _names(devices) or ()
    return Machine(
        cpus=_count_processors(),
        gpus=len(find_gpus(listed_gpus, devices)),
        neurons=_count_neurons() if any(name.startswith("neuron") for name in names) else 0,
        smddprun=_find_tool("smddprun") is not None,
        smddpmprun=_find_tool("smddpmprun") is not None,
        interfaces=_names(_INTERFACES),
        efa=bool(_names(_ADAPTERS)) and any(any(Path("/").glob(place[1:])) for place in _LIBFABRIC),
        modules=_importable(modules),
    )


def find_gpus(listed: str | None, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Return the GPUs that a program may use, as `CUDA_VISIBLE_DEVICES` names them: a number, or an identifier.

    CUDA takes those of the list up to the first that is not there (CUDA C Programming Guide, environment variables).

    Args:
        listed: What that variable says; None where it is not set.
        devices: Where device nodes are.
    """
    count = sum(1 for name in _names(devices) or () if _GPU.fullmatch(name))
    if listed is None or not count:
        return tuple(map(str, range(count)))
    names = (name.strip() for name in listed.split(","))
    return tuple(
        itertools.takewhile(
            lambda name: name.startswith(_IDENTIFIERS) or (name.isdecimal() and int(name) < count), names
        )
    )


def _count_processors() -> int:
    """Those that this host may use: fewer than the machine has in a cpuset, or where jobs share the machine."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _names(directory: Path) -> tuple[str, ...] | None:
    try:
        return tuple(sorted(path.name for path in directory.iterdir()))
    except OSError:
        return None


def _importable(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are there, found without importing any; pip may just have installed one."""
    if not modules:
        return ()
    import importlib.util  # noqa: PLC0415 - most jobs look for none

    importlib.invalidate_caches()
    return tuple(module for module in modules if importlib.util.find_spec(module))


def _find_tool(name: str) -> Path | None:
    """Where PATH has a program; `shutil.which` would cost the start of every job three milliseconds."""
    places = (Path(directory, name) for directory in os.get_exec_path())
    return next((place for place in places if os.access(place, os.X_OK)), None)


def _count_neurons() -> int:
    """Neuron cores by the vendor's own tool, as sagemaker-training counts them. Has not run on such a host."""
    tool = _find_tool("neuron-ls")
    if tool is None:
        return 0
    import subprocess  # noqa: PLC0415 - a host without Neuron cores starts nothing here

    try:
        answer = subprocess.run([tool, "-j"], capture_output=True, timeout=_NEURON_SECONDS, check=True)
        return sum(int(device.get("nc_count", 0)) for device in json.loads(answer.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0  # sagemaker-training counts none then, too
