"""The checks of GPUs over a recording of NVML, first what each reading means, then as the whole program."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.forks import content, fork, own_environment
from tests.support.gpu_hosts import needs_mounts, with_devices
from tests.support.process_hosts import Checked, Hosts
from tests.support.recordings import A100, RECORDED, play, real_host, recording, write
from trainbox.health.arithmetic import measure
from trainbox.health.checks import CHECKS
from trainbox.health.gpus import check_count, check_gpus, expected_gpus
from trainbox.health.nvml import GpuReading

#: Error numbers of nvml.h.
NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST, VERSION_MISMATCH = 4, 9, 13, 15, 18
UNKNOWN = 999
SLOWED = "hardware slowdown, hardware thermal"
LOST = "ecc_uncorrected: GPU is lost"


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], list[GpuReading]]:
    def reader(content: dict[str, Any]) -> list[GpuReading]:
        nvml = play(content, tmp_path, monkeypatch)
        return [nvml.read(index) for index in range(nvml.count())]

    return reader


def bad(gpus: list[GpuReading]) -> list[tuple[str, str, str, object]]:
    findings = check_gpus("algo-1", gpus)
    return [(one.check, one.device, one.status, one.value) for one in findings if one.status != "pass"]


def test_sound_gpus_pass_and_what_they_do_not_have_is_said(read: Callable[..., list[GpuReading]]) -> None:
    gpus = read(recording(2))
    assert bad(gpus) == []
    assert gpus[0] == GpuReading(
        index=0,
        name=A100["nvmlDeviceGetName"],
        uuid=A100["nvmlDeviceGetUUID"],
        recovery_action=0,
        ecc_uncorrected=0,
        remap_pending=False,
        remap_failed=False,
        throttle=1,
        pcie_width=16,
        pcie_width_max=16,
        nvlinks=12,
        nvlink_errors={"replay": 0, "recovery": 0, "crc_flit": 0, "crc_data": 0},
        processes=(),
        unread={"pages_pending": "Not Supported"},
    )
    (pages,) = [one for one in check_gpus("algo-1", gpus[:1]) if one.check == "nvml.retired_pages"]
    assert (pages.status, pages.value, pages.hint) == ("pass", None, "skipped: Not Supported")


@pytest.mark.parametrize(
    ("change", "expected_finding"),
    [
        ({"nvmlDeviceGetTotalEccErrors": 3}, ("nvml.ecc_uncorrected", "fail", 3)),
        ({"nvmlDeviceGetRemappedRows": [0, 1, 1, 0]}, ("nvml.row_remap_pending", "fail", "yes")),
        ({"nvmlDeviceGetRemappedRows": [0, 1, 0, 1]}, ("nvml.row_remap_failed", "fail", "yes")),
        ({"nvmlDeviceGetRetiredPagesPendingStatus": 1}, ("nvml.retired_pages", "fail", "yes")),
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x49}, ("nvml.throttle", "warn", SLOWED)),
        ({"nvmlDeviceGetCurrentClocksEventReasons": 0x80}, ("nvml.throttle", "warn", "power brake")),
        ({"nvmlDeviceGetCurrPcieLinkWidth": 8}, ("nvml.pcie_width", "warn", 8)),
        ({"nvmlDeviceGetNvLinkState": [1] * 11 + [0]}, ("nvml.nvlink", "warn", 11)),
        ({"nvmlDeviceGetComputeRunningProcesses": [[4711, 2**30]]}, ("nvml.processes", "warn", "1 with 1024 MiB")),
        ({"nvmlDeviceGetComputeRunningProcesses": [[4711, None]]}, ("nvml.processes", "warn", "1 with 0 MiB")),
        ({"nvmlDeviceGetTotalEccErrors": {"error": GPU_IS_LOST}}, ("nvml.answers", "fail", LOST)),
        (
            {"nvmlDeviceGetHandleByIndex": {"error": UNKNOWN}},
            ("nvml.answers", "fail", "nvmlDeviceGetHandleByIndex: Unknown Error"),
        ),
    ],
    ids=lambda value: value[0] + " " + value[1] if isinstance(value, tuple) else "",
)
def test_each_fault_of_a_gpu_is_named_and_no_other(
    read: Callable[..., list[GpuReading]], change: dict[str, Any], expected_finding: tuple[str, str, object]
) -> None:
    content = recording(4)
    content["gpus"][2] |= change
    check, status, value = expected_finding
    assert bad(read(content)) == [(check, "gpu2", status, value)]


@pytest.mark.parametrize(
    ("action", "words"), [(1, "GPU reset"), (2, "node reboot"), (4, "drain and reset"), (99, "action 99")]
)
def test_what_the_driver_asks_for_is_said(read: Callable[..., list[GpuReading]], action: int, words: str) -> None:
    content = recording(2)
    content["gpus"][1]["nvmlDeviceGetFieldValues"]["NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"] = action
    assert bad(read(content)) == [("nvml.recovery_action", "gpu1", "fail", words)]


def test_errors_of_links_are_added_up(read: Callable[..., list[GpuReading]]) -> None:
    content = recording(2)
    content["gpus"][0]["nvmlDeviceGetFieldValues"] |= {
        "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": 5,
        "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": 7,
    }
    assert bad(read(content)) == [("nvml.nvlink_errors", "gpu0", "warn", 12)]


def test_an_old_driver_is_no_fault(read: Callable[..., list[GpuReading]]) -> None:
    """Driver 470: no recovery action, no event reasons, nothing that nvml.h has got since."""
    content = recording(1)
    content["gpus"][0]["nvmlDeviceGetFieldValues"] = {}
    content["gpus"][0]["nvmlDeviceGetCurrentClocksEventReasons"] = {"error": FUNCTION_NOT_FOUND}
    content["gpus"][0]["nvmlDeviceGetComputeRunningProcesses"] = {"error": NO_PERMISSION}
    (gpu,) = read(content)
    assert bad([gpu]) == []
    assert gpu.unread == {
        "recovery_action": "Invalid Argument",
        "pages_pending": "Not Supported",
        "throttle": "Function Not Found",
        "nvlink_errors": "Invalid Argument",
        "processes": "Insufficient Permissions",
    }


def test_an_old_nvidia_ml_py_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12.560 has no recovery action."""
    nvml = play(recording(1), tmp_path, monkeypatch)
    monkeypatch.delattr(nvml._library, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")
    assert nvml.read(0).unread["recovery_action"].endswith("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")
    assert nvml.read(0).ecc_uncorrected == 0


def test_gpus_without_nvlink_are_sound(read: Callable[..., list[GpuReading]]) -> None:
    content = recording(4)
    for gpu in content["gpus"]:
        del gpu["nvmlDeviceGetNvLinkState"]
    assert bad(read(content)) == []


@pytest.mark.parametrize(
    ("instance_type", "count"),
    [("ml.p4d.24xlarge", 8), ("ml.p5.4xlarge", 1), ("ml.g5.12xlarge", 4), ("ml.g6.48xlarge", 8), ("ml.g4dn.xlarge", 1),
     ("ml.p3.8xlarge", 4), ("ml.m5.large", None), ("local", None)],
)  # fmt: skip
def test_the_gpus_of_an_instance_type_are_known(instance_type: str, count: int | None) -> None:
    assert expected_gpus(instance_type) == count


def test_a_gpu_too_few_is_a_fault() -> None:
    assert check_count("algo-1", 7, nodes=8, instance_type="ml.p4d.24xlarge").status == "fail"
    assert check_count("algo-1", 7, nodes=8, instance_type="local").status == "fail"
    assert check_count("algo-1", 7, nodes=7, instance_type="local").status == "pass"


def check(tmp_path: Path, content: dict[str, Any], *arguments: str) -> Checked:
    """The whole program on one host of eight GPUs."""
    with Hosts(tmp_path, 1, instance_type="ml.p4d.24xlarge") as cluster:
        (host,) = cluster.hosts
        cluster.start(host, *arguments, env=recorded(content, tmp_path))
        return cluster.finish()[host]


def recorded(content: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(RECORDED), "NVML_RECORDING": str(write(content, tmp_path))}


def short(checked: Checked) -> list[tuple[str, str, str, str]]:
    """Without the host."""
    return [(check, device, status, kind) for check, _, device, status, kind in checked.bad()]


def test_what_a_real_gpu_says_is_read_as_that_of_a_sound_one(read: Callable[..., list[GpuReading]]) -> None:
    (gpu,) = read(real_host())
    assert bad([gpu]) == []
    assert (gpu.name, gpu.recovery_action, gpu.ecc_uncorrected, gpu.broken) == ("NVIDIA H200", 0, 0, "")
    assert gpu.unread == dict.fromkeys(("pages_pending", "nvlinks", "nvlink_errors"), "Not Supported")


@pytest.mark.process
def test_a_sound_host_with_gpus_passes_every_check_of_them(tmp_path: Path) -> None:
    checked = check(tmp_path, recording())
    assert (checked.code, checked.bad()) == (0, [])
    asked = {name for name, row in CHECKS.items() if row.scope == "gpu"} - {"nvml.xid", "gpu.exact", "gpu.bandwidth"}
    assert {finding["check"] for finding in checked.findings if finding["check"].startswith("nvml.")} == asked
    assert len(checked.of("nvml.row_remap_failed")) == 8


@pytest.mark.process
def test_a_bad_gpu_of_one_host_ends_all_with_its_name(tmp_path: Path) -> None:
    content = recording()
    content["gpus"][3]["nvmlDeviceGetRemappedRows"] = [0, 2, 0, 1]
    with Hosts(tmp_path, 2, instance_type="ml.p4d.24xlarge") as two:
        first, second = two.hosts
        checked = two.run(env={first: recorded(recording(), tmp_path), second: recorded(content, tmp_path)})
    assert {one.code for one in checked.values()} == {78}
    assert checked[first].bad() == [("nvml.row_remap_failed", second, "gpu3", "fail", "hardware")]
    for one in checked.values():
        assert (one.failure or "").startswith(f"HARDWARE {second} gpu3 nvml.row_remap_failed: yes")


@pytest.mark.process
def test_a_gpu_that_hangs_half_way_is_named_and_the_others_are_still_judged(tmp_path: Path) -> None:
    content = recording()
    content["gpus"][1]["nvmlDeviceGetTotalEccErrors"] = 1
    content["gpus"][5]["nvmlDeviceGetRemappedRows"] = {"hang": True}
    checked = check(tmp_path, content, "--deadline", "3")
    assert short(checked) == [
        ("nvml.answers", "gpu5", "fail", "hardware"),
        ("nvml.ecc_uncorrected", "gpu1", "fail", "hardware"),
    ]
    (hung,) = [one for one in checked.of("nvml.answers") if one["status"] == "fail"]
    assert (hung["value"], hung["limit"], hung["hint"]) == ("did not finish", "3 s", "not finished after 3 s")
    assert checked.code == 78


@pytest.mark.process
@pytest.mark.parametrize(
    ("change", "found", "words"),
    [
        ({"nvmlInit": {"error": DRIVER_NOT_LOADED}}, ("nvml.library", "", "fail", "hardware"), "Driver Not Loaded"),
        ({"nvmlInit": {"error": VERSION_MISMATCH}}, ("nvml.library", "", "fail", "hardware"), "version mismatch"),
        ({"nvmlInit": {"hang": True}}, ("nvml.library", "", "fail", "hardware"), "not finished after 3 s"),
        ({"nvmlInit": {"crash": "planted"}}, ("nvml.library", "", "fail", "hardware"), "ZeroDivisionError: planted"),
        ({"nvmlDeviceGetCount": {"error": UNKNOWN}}, ("nvml.library", "", "fail", "hardware"), "Unknown"),
        ({"nvmlDeviceGetCount": 7}, ("nvml.count", "", "fail", "hardware"), "7"),
    ],
    ids=["not loaded", "mismatch", "hang", "crash", "count", "a GPU is gone"],
)
def test_nvml_that_fails_is_a_finding_of_its_own(
    tmp_path: Path, change: dict[str, Any], found: tuple[str, str, str, str], words: str
) -> None:
    checked = check(tmp_path, recording() | change, "--deadline", "3")
    assert short(checked) == [found]
    (finding,) = [one for one in checked.findings if one["status"] == "fail"]
    assert words in f"{finding['value']} {finding['hint']}"
    assert checked.code == 78


@pytest.mark.process
def test_without_nvidia_ml_py_only_a_warning_remains(tmp_path: Path) -> None:
    """A directory in front of it that has a module of the name, but none that is there."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/pynvml.py").write_text("raise ModuleNotFoundError(\"No module named 'pynvml'\")\n")
    with Hosts(tmp_path, 1, instance_type="ml.p4d.24xlarge") as cluster:
        (host,) = cluster.hosts
        cluster.start(host, env={"PYTHONPATH": str(tmp_path / "site")})
        checked = cluster.finish()[host]
    assert short(checked) == [("nvml.library", "", "warn", "hardware")]
    assert checked.of("nvml.library")[0]["hint"] == "pip install 'trainbox[gpu]'"
    assert checked.code == 0


@pytest.mark.process
def test_without_a_driver_the_real_library_is_a_finding(tmp_path: Path) -> None:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    with Hosts(tmp_path, 1, instance_type="ml.g5.xlarge") as cluster:
        (checked,) = cluster.run().values()
    assert short(checked) == [("nvml.library", "", "fail", "hardware")]
    assert checked.of("nvml.library")[0]["value"] == "NVML Shared Library Not Found"


@pytest.mark.long
@pytest.mark.process
def test_the_processor_computes_exactly_and_is_measured(tmp_path: Path) -> None:
    with Hosts(tmp_path, 1) as cluster:
        (checked,) = cluster.run("--full").values()
    assert (checked.code, checked.bad()) == (0, [])
    assert [(one["device"], one["value"]) for one in checked.of("gpu.exact")] == [("cpu", 0)]
    (speed,) = checked.of("gpu.bandwidth")
    assert speed["device"] == "cpu device"
    assert speed["value"] > 0


@pytest.mark.process
@needs_mounts
def test_a_torch_without_cuda_is_no_fault_of_the_gpu(tmp_path: Path) -> None:
    """A /dev of its own, with the node of one GPU in it."""
    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    content = recording(1)
    with Hosts(tmp_path, 1) as one:
        (host,) = one.hosts
        one.start(host, env=recorded(content, tmp_path), prefix=with_devices(tmp_path / "dev", 1))
        checked = one.finish()[host]
    assert short(checked) == [("gpu.exact", "gpu0", "warn", "configuration")]
    assert checked.of("gpu.exact")[0]["value"] == "Torch not compiled with CUDA enabled"
    assert checked.of("nvml.count")[0]["value"] == 1
    assert checked.code == 0


@pytest.mark.parametrize(
    ("said", "is_full"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA out of memory. Tried to allocate 16.00 MiB.", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: uncorrectable ECC error encountered", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_gpu_whose_memory_somebody_else_holds_is_told_from_a_broken_one(
    said: str, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a real one: tests/gpu."""

    def fail(_kind: str, _repeats: int) -> int:
        raise RuntimeError(said + "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.")

    monkeypatch.setattr("trainbox.health.arithmetic._compute", fail)
    found = measure("cpu", "fast")
    assert (found.unusable, found.failed) == ((said, "") if is_full else ("", said))


@pytest.mark.process
def test_one_wrong_bit_is_counted(tmp_path: Path) -> None:
    """Planted in the product itself: torch's own multiplication, off by one in one number of one repeat."""
    planted = """
import torch
from trainbox.health import arithmetic
original, calls = torch.Tensor.__matmul__, []
def wrong(left, right):
    product = original(left, right)
    calls.append(1)
    if len(calls) == 3:
        product[7, 7] += 1
    return product
torch.Tensor.__matmul__ = wrong
measured = arithmetic.measure("cpu", "fast")
print(measured.wrong, measured.repeats)
"""
    with (tmp_path / "said").open("w+b") as said:
        ended = fork(planted, argv=[""], environment=own_environment(), directory=tmp_path, stdout=said, stderr=said)
        assert (ended.wait(), content(said)) == (0, "1 20\n")
