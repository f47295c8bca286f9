"""Stands in for nvidia-ml-py where there is no GPU: the real module, whose calls answer from a recording.

Constants, structures and exceptions are nvidia-ml-py's own, so a name it does not have cannot be used by mistake. A
recording is JSON: by call what it returns, per GPU. `{"error": N}` raises NVMLError(N), `{"hang": true}` never returns.
It is read at every call: whoever replaces the file changes what the GPUs say from then on.
"""

# ruff: noqa: N802 - the names are NVML's
import ctypes
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_PLACES = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
_SPEC = importlib.machinery.PathFinder.find_spec("pynvml", _PLACES)
assert _SPEC
assert _SPEC.loader
_REAL: Any = importlib.util.module_from_spec(_SPEC)
_OURS = sys.modules.get("pynvml")
sys.modules["pynvml"] = _REAL  # it looks itself up while it is loaded
_SPEC.loader.exec_module(_REAL)
if _OURS is not None:
    sys.modules["pynvml"] = _OURS
globals().update({name: value for name, value in vars(_REAL).items() if not name.startswith("__")})

_RECORDING = Path(os.environ["NVML_RECORDING"])
#: Of what NVML's handles point to.
_FIRST_ADDRESS = 0x1000


def _recorded() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(_RECORDING.read_text())
    return recorded


def _handle(index: int) -> Any:
    """A pointer, as NVML gives it."""
    return ctypes.cast(_FIRST_ADDRESS + index, _REAL.c_nvmlDevice_t)


def _index(handle: Any) -> int:
    return (ctypes.cast(handle, ctypes.c_void_p).value or 0) - _FIRST_ADDRESS


def _play(value: Any) -> Any:
    if isinstance(value, dict) and "error" in value:
        raise _REAL.NVMLError(value["error"])
    if isinstance(value, dict) and "hang" in value:
        time.sleep(600)
    if isinstance(value, dict) and "crash" in value:
        raise ZeroDivisionError(value["crash"])
    return value


def _of_gpu(name: str) -> Any:
    def call(handle: Any, *arguments: Any) -> Any:
        value = _play(_recorded()["gpus"][_index(handle)].get(name, {"error": _REAL.NVML_ERROR_NOT_SUPPORTED}))
        if name == "nvmlDeviceGetFieldValues":
            return [_field(value, field) for field in arguments[0]]
        if name == "nvmlDeviceGetNvLinkState":
            # By link; beyond the last one NVML refuses the number.
            return _play(dict(enumerate(value)).get(arguments[0], {"error": _REAL.NVML_ERROR_INVALID_ARGUMENT}))
        if name == "nvmlDeviceGetComputeRunningProcesses":
            return [_process(*process) for process in value]
        return tuple(value) if isinstance(value, list) else value

    assert hasattr(_REAL, name), f"nvidia-ml-py has no {name}"
    return call


def _field(recorded: dict[str, Any], wanted: int) -> Any:
    """A nvmlFieldValue_t as the driver fills it in; what is not recorded is a field the driver does not know."""
    by_id = {getattr(_REAL, name): value for name, value in recorded.items()}
    filled = _REAL.c_nvmlFieldValue_t()
    filled.fieldId = wanted
    value = by_id.get(wanted, {"error": _REAL.NVML_ERROR_INVALID_ARGUMENT})
    if isinstance(value, dict):
        filled.nvmlReturn = value["error"]
        return filled
    filled.nvmlReturn = _REAL.NVML_SUCCESS
    filled.valueType = _REAL.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    filled.value.ullVal = value
    return filled


def _process(pid: int, used: int | None) -> Any:
    """What nvidia-ml-py makes of a nvmlProcessInfo_t: bytes, None where they are not available."""
    return _REAL.nvmlFriendlyObject({"pid": pid, "usedGpuMemory": used})


def nvmlInit() -> None:
    _play(_recorded().get("nvmlInit"))


def nvmlSystemGetDriverVersion() -> Any:
    return _play(_recorded()["nvmlSystemGetDriverVersion"])


def nvmlDeviceGetCount() -> Any:
    recorded = _recorded()
    return _play(recorded.get("nvmlDeviceGetCount", len(recorded["gpus"])))


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    _play(_recorded()["gpus"][index].get("nvmlDeviceGetHandleByIndex"))
    return _handle(index)


def nvmlEventSetCreate() -> list[Any]:
    """Holds those that have been waited for."""
    return []


def nvmlDeviceRegisterEvents(handle: Any, types: int, listened: list[Any]) -> None:
    del handle, types, listened


def nvmlEventSetWait(listened: list[Any], timeout_ms: int) -> Any:
    """The next event of the recording: GPU, type by name, data; then nothing but timeouts."""
    until = time.monotonic() + timeout_ms / 1000
    while not (coming := _recorded().get("events", [])[len(listened) :]):
        _play(_recorded().get("nvmlEventSetWait"))
        if time.monotonic() >= until:
            raise _REAL.NVMLError(_REAL.NVML_ERROR_TIMEOUT)
        time.sleep(0.01)
    listened.append(coming[0])
    index, kind, data = coming[0]
    return _REAL.nvmlFriendlyObject({"device": _handle(index), "eventType": getattr(_REAL, kind), "eventData": data})


def nvmlEventSetFree(listened: list[Any]) -> None:
    listened.clear()


for _name in (
    *("nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows"),
    *("nvmlDeviceGetRetiredPagesPendingStatus", "nvmlDeviceGetCurrentClocksEventReasons"),
    *("nvmlDeviceGetCurrPcieLinkWidth", "nvmlDeviceGetMaxPcieLinkWidth", "nvmlDeviceGetNvLinkState"),
    *("nvmlDeviceGetFieldValues", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetSupportedEventTypes"),
):
    globals()[_name] = _of_gpu(_name)
