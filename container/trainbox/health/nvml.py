"""What NVIDIA's management library says of each GPU, read once into a value; the only module that calls it.

`nvidia-ml-py` (the module `pynvml`) is loaded when asked for: it imports without a driver, and fails at `nvmlInit`.
Names, types and units are those of NVML's C API (docs.nvidia.com/deploy/nvml-api), as nvidia-ml-py passes them on.
"""

import ctypes
import importlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

import msgspec

#: A call of an old driver or on an old GPU that has no such thing; the value is then not known, and nothing is wrong.
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
    """One GPU. None: the driver, the GPU or nvidia-ml-py does not know it; `unread` says why."""

    index: int
    name: str | None = None
    uuid: str | None = None
    #: NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, one of NVML_GPU_RECOVERY_ACTION_*; drivers from 570 on.
    recovery_action: int | None = None
    #: Uncorrected memory errors since the driver was loaded or the GPU was reset (NVML_VOLATILE_ECC).
    ecc_uncorrected: int | None = None
    #: Whether rows wait for a reset to be remapped, and whether a remapping has failed (Ampere and later).
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    #: Whether pages wait for a reset to be retired (before Ampere).
    pages_pending: bool | None = None
    #: A mask of nvmlClocksEventReason*.
    throttle: int | None = None
    #: Lanes.
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    #: How many links are up; and errors of all links since the driver was loaded, by what they are.
    nvlinks: int | None = None
    nvlink_errors: Mapping[str, int] | None = None
    #: Compute processes and the bytes that each holds; pids are the host's, not the container's.
    processes: tuple[tuple[int, int | None], ...] | None = None
    unread: Mapping[str, str] = {}
    #: The call that failed in a way that a sound GPU never does, and how: empty on a sound one.
    broken: str = ""


class Event(msgspec.Struct, frozen=True):
    """Something that the driver reported while somebody listened."""

    #: Of the GPU; None where the driver does not tell it.
    index: int | None
    #: The number of the Xid; None for a double-bit ECC error.
    xid: int | None


class EventsLost(msgspec.Struct, frozen=True):
    """Listening has failed, and will not come back: a lost GPU does that to all of a host."""

    why: str


class Gpus(Protocol):
    """All that the checks need of NVML."""

    def driver(self) -> str:
        """The version of the driver."""

    def count(self) -> int:
        """How many GPUs the driver shows."""

    def read(self, index: int, fields: Collection[str] | None = None) -> GpuReading:
        """About one GPU everything, or what is named."""

    def events(self, timeout_ms: int) -> Iterator[Event | EventsLost | None]:
        """Xids and double-bit errors of all GPUs as they come, None whenever the time passed without any."""


class NvmlMissing(Exception):  # noqa: N818 - it says what is there
    """NVML cannot be used at all.

    Args:
        reason: Why, in NVML's or Python's words.
        installed: Whether nvidia-ml-py is there: then it is the driver that is not.
    """

    def __init__(self, reason: str, *, installed: bool) -> None:
        super().__init__(reason)
        self.installed = installed


def open_gpus() -> "Nvml":
    """Load and initialise NVML.

    Raises:
        NvmlMissing: There is no nvidia-ml-py, no driver, or they do not fit.
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
    """The real one.

    Args:
        library: The module `pynvml`, initialised.
    """

    def __init__(self, library: Any) -> None:  # noqa: ANN401 - nvidia-ml-py has no types
        self._library = library
        self._not_known = tuple(getattr(library, name) for name in _NOT_KNOWN if hasattr(library, name))

    def driver(self) -> str:
        """By nvmlSystemGetDriverVersion."""
        return str(self._library.nvmlSystemGetDriverVersion())

    def count(self) -> int:
        """By nvmlDeviceGetCount."""
        return int(self._library.nvmlDeviceGetCount())

    def read(self, index: int, fields: Collection[str] | None = None) -> GpuReading:
        """One call for each value; the first that fails as no sound GPU does ends the reading."""
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
            except AttributeError as error:  # a constant or call that this nvidia-ml-py is too old for
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
        """By nvmlEventSetWait, on all GPUs; those that have no such events are left out."""
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
        while True:  # as if nothing came: whoever reads the GPUs in between goes on
            time.sleep(timeout_ms / 1000)
            yield None

    def _listen(self, handle: object, listened: object) -> None:
        library = self._library
        wanted = library.nvmlEventTypeXidCriticalError | library.nvmlEventTypeDoubleBitEccError
        supported = wanted & library.nvmlDeviceGetSupportedEventTypes(handle)
        if supported:
            library.nvmlDeviceRegisterEvents(handle, supported, listened)


def _address(handle: Any) -> int:  # noqa: ANN401
    """Handles are pointers, which ctypes does not compare."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _field(library: Any, handle: object, name: str) -> int:  # noqa: ANN401
    """One value by nvmlDeviceGetFieldValues; it has a result code of its own: an old driver refuses just this one."""
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
    """How many links are up; a GPU has fewer than the most that any has, and refuses the rest."""
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


#: In this order: what says most comes first, in case a later call hangs.
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
