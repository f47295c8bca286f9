"""Records what NVML says of the GPUs of this host, for tests on hosts that have none.

    python tests/gpu/record_nvml.py > tests/support/recorded/h200.json

What a driver refuses is recorded as the error that it gives; the UUID is not that of the GPU.
"""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from tests.support.recordings import A100

pynvml: Any = importlib.import_module("pynvml")  # it has no types

_ARGUMENTS: dict[str, tuple[int, ...]] = {
    "nvmlDeviceGetTotalEccErrors": (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
}
_CALLS = (*A100, "nvmlDeviceGetRetiredPagesPendingStatus")


def ask(call: Callable[..., Any], *arguments: object) -> Any:
    """What a call returns, as JSON has it, or how it fails."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        return {"error": error.value}


def read_field(handle: object, name: str) -> Any:
    """One value of `nvmlDeviceGetFieldValues`, or how it fails."""
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [getattr(pynvml, name)])
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        return {"error": value.nvmlReturn}
    members = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal")  # nvmlValueType_t, in its order
    return getattr(value.value, members[value.valueType])


def read_links(handle: object) -> Any:
    """The state of each link, up to the first that the GPU does not have."""
    states = [ask(pynvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(pynvml.NVML_NVLINK_MAX_LINKS)]
    there = [state for state in states if not isinstance(state, dict)]
    return there or states[0]


def read_gpu(index: int) -> dict[str, Any]:
    """All calls that the checks make."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    said: dict[str, Any] = {}
    for name in _CALLS:
        if name == "nvmlDeviceGetFieldValues":
            said[name] = {field: read_field(handle, field) for field in A100[name]}
        elif name == "nvmlDeviceGetNvLinkState":
            said[name] = read_links(handle)
        elif name == "nvmlDeviceGetComputeRunningProcesses":
            said[name] = [[one.pid, one.usedGpuMemory] for one in ask(getattr(pynvml, name), handle)]
        elif name == "nvmlDeviceGetUUID":
            said[name] = f"GPU-00000000-0000-0000-0000-{index:012}"
        else:
            said[name] = ask(getattr(pynvml, name), handle, *_ARGUMENTS.get(name, ()))
    return said


def main() -> None:
    """Print the recording of all GPUs."""
    pynvml.nvmlInit()
    gpus = [read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    print(json.dumps({"nvmlSystemGetDriverVersion": pynvml.nvmlSystemGetDriverVersion(), "gpus": gpus}, indent=1))


if __name__ == "__main__":
    main()
