"""Recordings of NVML for tests: what the calls return for sound GPUs of some kind, to be changed in one place each.

Those of the A100 are what NVIDIA's documentation gives for a sound device, under the names and in the units of nvml.h
as nvidia-ml-py 13.615 passes them on; `recorded/h200.json` is what a real one said (`tests/gpu/record_nvml.py`).
`recorded/pynvml.py` plays them.
"""

import copy
import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from trainbox.health.nvml import Nvml

RECORDED = Path(__file__).parent / "recorded"

#: Source of each name: nvidia-ml-py 13.615, pynvml.py; of each unit: NVML API reference (nvml.h).
A100: dict[str, Any] = {
    "nvmlDeviceGetName": "NVIDIA A100-SXM4-40GB",  # a string
    "nvmlDeviceGetUUID": "GPU-5e5e2a3b-0000-0000-0000-000000000000",  # "GPU-" and a UUID
    "nvmlDeviceGetTotalEccErrors": 0,  # a count; NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC
    "nvmlDeviceGetRemappedRows": [0, 0, 0, 0],  # corrected, uncorrected, is pending, has failed
    # nvmlDeviceGetRetiredPagesPendingStatus: not supported from Ampere on, which remaps rows instead
    "nvmlDeviceGetCurrentClocksEventReasons": 0x1,  # a mask; nvmlClocksEventReasonGpuIdle
    "nvmlDeviceGetCurrPcieLinkWidth": 16,  # lanes
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetNvLinkState": [1] * 12,  # nvmlEnableState_t by link: an A100 has 12
    "nvmlDeviceGetFieldValues": {
        "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION": 0,  # NVML_GPU_RECOVERY_ACTION_NONE
        "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": 0,  # counts, for all links together
        "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": 0,
        "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": 0,
        "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": 0,
    },
    "nvmlDeviceGetComputeRunningProcesses": [],  # pid, bytes
    "nvmlDeviceGetSupportedEventTypes": 0x1F,  # a mask of nvmlEventType*
}


def recording(count: int = 8) -> dict[str, Any]:
    """A sound host."""
    # A string; nvidia-ml-py of the branch 570 and later knows the recovery action.
    return {"nvmlSystemGetDriverVersion": "570.172.08", "gpus": [copy.deepcopy(A100) for _ in range(count)]}


def real_host() -> dict[str, Any]:
    """A virtual machine with one H200, without NVLink, as its driver 580.159 described it."""
    recorded: dict[str, Any] = json.loads((RECORDED / "h200.json").read_text())
    return recorded


def play(content: dict[str, Any], directory: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """NVML in this process, as the checks see it."""
    monkeypatch.setenv("NVML_RECORDING", str(write(content, directory)))
    spec = importlib.util.spec_from_file_location(f"pynvml_{uuid.uuid4().hex}", RECORDED / "pynvml.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Nvml(module)


def write(content: dict[str, Any], directory: Path) -> Path:
    """The recording as a file, for the variable NVML_RECORDING of another process."""
    path = directory / f"nvml-{uuid.uuid4().hex}.json"
    path.write_text(json.dumps(content))
    return path
