"""Reads the state and the events of GPUs with NVML, NVIDIA's management library; the only module that calls it.

`nvidia-ml-py` (the module `pynvml`) is imported on demand: the import works without a driver, `nvmlInit` fails.
Names, types and units are those of NVML's C API (docs.nvidia.com/deploy/nvml-api), as nvidia-ml-py returns them.
"""

import ctypes
import importlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

import msgspec

#: Errors of an old driver or GPU without this feature: the value is unknown, and the GPU is healthy.
_NOT_KNOWN = (
    "NVMLError_NotSupported",
    "NVMLError_FunctionNotFound",
    "NVMLError_InvalidArgument",
    "NVMLError_NoPermission",
    "NVMLError_NoData",
    "NVMLError_ArgumentVersionMismatch",
    "NVMLError_Deprecated",
)


class GpuReading(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of one GPU. None: the driver, the GPU or nvidia-ml-py does not support it; `unread` has the reason."""

    index: int
    name: str | None = None
    uuid: str | None = None
    #: NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, one of NVML_GPU_RECOVERY_ACTION_*; drivers from 570 on.
    recovery_action: int | None = None
    #: Count of uncorrected memory errors since the driver was loaded or the GPU was reset (NVML_VOLATILE_ECC).
    ecc_uncorrected: int | None = None
    #: Whether the remapping of rows waits for a reset, and whether one has failed (Ampere and later).
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    #: Whether the retirement of pages waits for a reset (before Ampere).
    pages_pending: bool | None = None
    #: A mask of nvmlClocksEventReason*.
    throttle: int | None = None
    #: PCIe lanes in use and supported.
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    #: Number of links that are up; errors of all links since the driver was loaded, by kind.
    nvlinks: int | None = None
    nvlink_errors: Mapping[str, int] | None = None
    #: Compute processes with their memory in bytes; pids are those of the host, not of the container.
    processes: tuple[tuple[int, int | None], ...] | None = None
    unread: Mapping[str, str] = {}
    #: The call that failed as on no healthy GPU, with its error; empty on a healthy one.
    broken: str = ""


class Event(msgspec.Struct, frozen=True):
    """One event that the driver reported."""

    #: Index of the GPU; None if the driver does not report it.
    index: int | None
    #: Xid number; None for a double-bit ECC error.
    xid: int | None


class EventsLost(msgspec.Struct, frozen=True):
    """Waiting for NVML events failed permanently; one lost GPU disables it for the whole host."""

    why: str


class Gpus(Protocol):
    """The part of NVML that the checks use."""

    def driver(self) -> str:
        """Return the version of the driver."""

    def count(self) -> int:
        """Return the number of GPUs."""

    def read(self, index: int, fields: Collection[str] | None = None) -> GpuReading:
        """Read all fields of one GPU, or the given ones."""

    def events(self, timeout_ms: int) -> Iterator[Event | EventsLost | None]:
        """Yield Xids and double-bit errors of all GPUs as they occur, and None after each timeout without one."""


class NvmlMissing(Exception):  # noqa: N818 - the name is a state, not an error
    """NVML cannot be used.

    Args:
        reason: The error of NVML or Python.
        installed: Whether nvidia-ml-py is installed; then the driver is missing.
    """

    def __init__(self, reason: str, *, installed: bool) -> None:
        super().__init__(reason)
        self.installed = installed


def open_gpus() -> "Nvml":
    """Load and initialise NVML.

    Raises:
        NvmlMissing: nvidia-ml-py or the driver is missing, or they do not match.
    """
    try:
        library = importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise NvmlMissing(str(error), installed=False) from None
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise NvmlMissing(str(error), installed=True) from None
    return Nvml(library)


class Nvml:
    """NVML through nvidia-ml-py.

    Args:
        library: The module `pynvml`, initialised.
    """

    def __init__(self, library: Any) -> None:  # noqa: ANN401 - nvidia-ml-py has no types
        self._library = library
        self._not_known = tuple(getattr(library, name) for name in _NOT_KNOWN if hasattr(library, name))

    def driver(self) -> str:
        """Return the result of nvmlSystemGetDriverVersion."""
        return str(self._library.nvmlSystemGetDriverVersion())

    def count(self) -> int:
        """Return the result of nvmlDeviceGetCount."""
        return int(self._library.nvmlDeviceGetCount())

    def read(self, index: int, fields: Collection[str] | None = None) -> GpuReading:
        """Read each field with one call; the first error of a broken GPU ends the reading."""
        library = self._library
        values: dict[str, object] = {}
        unread: dict[str, str] = {}
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
        except library.NVMLError as error:
            return GpuReading(index, broken=f"nvmlDeviceGetHandleByIndex: {error}")
        for field, call in _CALLS.items():
            if fields is not None and field not in fields:
                continue
            try:
                values[field] = call(library, handle)
            except AttributeError as error:  # this nvidia-ml-py is too old for the constant or call
                unread[field] = f"this nvidia-ml-py does not know it: {error.name}"
            except self._not_known as error:
                unread[field] = str(error)
            except library.NVMLError as error:
                values["broken"] = f"{field}: {error}"
                break
        remapped = values.pop("remapped", None)
        if isinstance(remapped, tuple):
            values |= {"remap_pending": bool(remapped[2]), "remap_failed": bool(remapped[3])}
        return msgspec.convert({"index": index, "unread": unread, **values}, GpuReading)

    def events(self, timeout_ms: int) -> Iterator[Event | EventsLost | None]:
        """Yield the events of nvmlEventSetWait on all GPUs; GPUs without event support are left out."""
        library = self._library
        places: dict[int, int] = {}
        listened = library.nvmlEventSetCreate()
        try:
            for index in range(self.count()):
                try:
                    handle = library.nvmlDeviceGetHandleByIndex(index)
                    self._listen(handle, listened)
                except library.NVMLError as error:
                    yield EventsLost(f"gpu{index}: {error}")
                else:
                    places[_address(handle)] = index
            while True:
                try:
                    event = library.nvmlEventSetWait(listened, timeout_ms)
                except library.NVMLError_Timeout:
                    yield None
                except library.NVMLError as error:
                    yield EventsLost(str(error))
                    break
                else:
                    is_xid = event.eventType == library.nvmlEventTypeXidCriticalError
                    # Not nvmlDeviceGetIndex: a GPU that has fallen off the bus does not answer it any more.
                    yield Event(places.get(_address(event.device)), int(event.eventData) if is_xid else None)
        finally:
            library.nvmlEventSetFree(listened)
        while True:  # as if no event came: the caller continues to read the GPUs
            time.sleep(timeout_ms / 1000)
            yield None

    def _listen(self, handle: object, listened: object) -> None:
        library = self._library
        wanted = library.nvmlEventTypeXidCriticalError | library.nvmlEventTypeDoubleBitEccError
        supported = wanted & library.nvmlDeviceGetSupportedEventTypes(handle)
        if supported:
            library.nvmlDeviceRegisterEvents(handle, supported, listened)


def _address(handle: Any) -> int:  # noqa: ANN401
    """Return the address of a handle: ctypes does not compare pointers."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _field(library: Any, handle: object, name: str) -> int:  # noqa: ANN401
    """Read one value with nvmlDeviceGetFieldValues, which has its own result code: an old driver may reject it."""
    value = library.nvmlDeviceGetFieldValues(handle, [getattr(library, name)])[0]
    if value.nvmlReturn != library.NVML_SUCCESS:
        raise library.NVMLError(value.nvmlReturn)
    members = {
        library.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        library.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        library.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        library.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    }
    return int(getattr(value.value, members[value.valueType]))


def _links(library: Any, handle: object) -> int:  # noqa: ANN401
    """Return the number of links that are up; NVML rejects link numbers that the GPU does not have."""
    up = 0
    for link in range(library.NVML_NVLINK_MAX_LINKS):
        try:
            up += library.nvmlDeviceGetNvLinkState(handle, link) == library.NVML_FEATURE_ENABLED
        except (library.NVMLError_NotSupported, library.NVMLError_InvalidArgument):
            if link == 0:
                raise
            break
    return up


def _link_errors(library: Any, handle: object) -> dict[str, int]:  # noqa: ANN401
    return {
        kind: _field(library, handle, f"NVML_FI_DEV_NVLINK_{kind.upper()}_ERROR_COUNT_TOTAL")
        for kind in ("replay", "recovery", "crc_flit", "crc_data")
    }


#: The most important values come first, in case a later call hangs.
_CALLS: Mapping[str, Callable[[Any, Any], object]] = {
    "recovery_action": lambda nvml, gpu: _field(nvml, gpu, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"),
    "uuid": lambda nvml, gpu: nvml.nvmlDeviceGetUUID(gpu),
    "name": lambda nvml, gpu: nvml.nvmlDeviceGetName(gpu),
    "ecc_uncorrected": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEccErrors(
        gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    ),
    "remapped": lambda nvml, gpu: nvml.nvmlDeviceGetRemappedRows(gpu),
    "pages_pending": lambda nvml, gpu: nvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu) == nvml.NVML_FEATURE_ENABLED,
    "throttle": lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
    "pcie_width": lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu),
    "pcie_width_max": lambda nvml, gpu: nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu),
    "nvlinks": _links,
    "nvlink_errors": _link_errors,
    "processes": lambda nvml, gpu: tuple(
        (process.pid, process.usedGpuMemory) for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    ),
}
