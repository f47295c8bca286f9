"""The watch over the GPUs of a host, over a recording of NVML; and how it tells others what it finds."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.recordings import play, recording
from tests.support.timeline import Timeline
from trainbox.diagnostics.finding import Finding
from trainbox.diagnostics.monitor_protocol import MonitorServer, look
from trainbox.health.checks import found
from trainbox.health.gpus import HARDWARE_XIDS, PROGRAM_XIDS, classify_event, find_newly_bad
from trainbox.health.nvml import Event
from trainbox.health.sidecar import GpuMonitor, GpuUpdate

ECC = found("nvml.ecc_uncorrected", "algo-1", False, 3, device="gpu1", limit=0)
GPU_IS_LOST = 15  # nvml.h


class Host:
    """A watch, and the recording that its NVML reads at every call."""

    def __init__(self, content: dict[str, Any], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nvml = play(content, directory, monkeypatch)
        (self._file,) = directory.glob("nvml-*.json")
        self.content = content
        self.time = Timeline()
        self.monitor = GpuMonitor("algo-1", nvml, clock=self.time.clock)

    def change(self, **calls: Any) -> None:
        """The second GPU says something else from now on."""
        self.content["gpus"][1] |= calls
        self._file.write_text(json.dumps(self.content))

    def read(self) -> list[tuple[str, str, object]]:
        return [(one.check, one.device, one.value) for one in self.monitor.read()]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Host]:
    return lambda content: Host(content, tmp_path, monkeypatch)


def short(findings: tuple[Finding, ...]) -> list[tuple[str, str, str, object]]:
    return [(one.device, one.status, one.kind, one.value) for one in findings]


def test_xids_are_sorted_into_hardware_and_programs(host: Callable[[dict[str, Any]], Host]) -> None:
    content = recording(4)
    content["events"] = [
        [3, "nvmlEventTypeXidCriticalError", 79],
        [1, "nvmlEventTypeXidCriticalError", 31],
        [0, "nvmlEventTypeDoubleBitEccError", 0],
        [2, "nvmlEventTypeXidCriticalError", 4711],
    ]
    updates = host(content).monitor.updates(wait_ms=1)
    assert [short(next(updates).findings) for _ in range(5)] == [
        [("gpu3", "fail", "hardware", "Xid 79: the GPU has fallen off the bus")],
        [("gpu1", "warn", "transient", "Xid 31: GPU memory page fault")],
        [("gpu0", "fail", "hardware", "double-bit ECC error")],
        [("gpu2", "warn", "transient", "Xid 4711")],
        [],
    ]
    assert not HARDWARE_XIDS.keys() & PROGRAM_XIDS.keys()


def test_an_event_of_a_gpu_that_nvml_does_not_name_is_one_of_the_host() -> None:
    assert classify_event("algo-1", Event(None, 79)).place == "algo-1 - nvml.xid"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nvmlDeviceGetTotalEccErrors": 3}, ("nvml.ecc_uncorrected", "gpu1", 3)),
        ({"nvmlDeviceGetRemappedRows": [0, 1, 1, 0]}, ("nvml.row_remap_pending", "gpu1", "yes")),
        ({"nvmlDeviceGetRemappedRows": [0, 1, 0, 1]}, ("nvml.row_remap_failed", "gpu1", "yes")),
        ({"nvmlDeviceGetRetiredPagesPendingStatus": 1}, ("nvml.retired_pages", "gpu1", "yes")),
        (
            {"nvmlDeviceGetFieldValues": {"NVML_FI_DEV_GET_GPU_RECOVERY_ACTION": 2}},
            ("nvml.recovery_action", "gpu1", "node reboot"),
        ),
        (
            {"nvmlDeviceGetTotalEccErrors": {"error": GPU_IS_LOST}},
            ("nvml.answers", "gpu1", "ecc_uncorrected: GPU is lost"),
        ),
    ],
    ids=["ecc", "pending", "failed", "pages", "action", "lost"],
)
def test_what_has_become_bad_is_found_once(
    host: Callable[[dict[str, Any]], Host], change: dict[str, Any], expected: tuple[str, str, object]
) -> None:
    watched = host(recording(3))
    assert watched.read() == []
    watched.change(**change)
    assert watched.read() == [expected]
    assert watched.read() == []


def test_what_only_makes_a_job_slow_is_none_of_it(host: Callable[[dict[str, Any]], Host]) -> None:
    watched = host(recording(2))
    watched.change(
        nvmlDeviceGetCurrentClocksEventReasons=0x48,
        nvmlDeviceGetCurrPcieLinkWidth=8,
        nvmlDeviceGetComputeRunningProcesses=[[4711, 2**30]],
    )
    assert watched.read() == []


def test_what_was_bad_before_is_found_where_it_has_grown(host: Callable[[dict[str, Any]], Host]) -> None:
    content = recording(2)
    content["gpus"][1] |= {"nvmlDeviceGetTotalEccErrors": 3, "nvmlDeviceGetRemappedRows": [0, 1, 1, 0]}
    watched = host(content)
    assert watched.read() == []
    watched.change(nvmlDeviceGetTotalEccErrors=4)
    assert watched.read() == [("nvml.ecc_uncorrected", "gpu1", 4)]


def test_only_news_is_news() -> None:
    place = ("nvml.ecc_uncorrected", "gpu1")
    assert find_newly_bad([ECC], {}, set()) == (ECC,)
    assert find_newly_bad([ECC], {}, {place}) == ()
    assert find_newly_bad([ECC], {place: 3}, set()) == ()
    assert find_newly_bad([ECC], {place: 2}, set()) == (ECC,)
    assert find_newly_bad([ECC], {place: "unknown"}, set()) == ()


def test_the_gpus_are_read_now_and_then_and_after_each_event(host: Callable[[dict[str, Any]], Host]) -> None:
    watched = host(recording(2))
    updates = watched.monitor.updates(wait_ms=1, seconds=1000)
    assert next(updates) == GpuUpdate()
    watched.change(nvmlDeviceGetRemappedRows=[0, 1, 0, 1])
    assert next(updates) == GpuUpdate()
    watched.content["events"] = [[0, "nvmlEventTypeXidCriticalError", 63]]
    watched.change()
    assert [one.check for one in next(updates).findings] == ["nvml.xid"]
    assert [one.check for one in next(updates).findings] == ["nvml.row_remap_failed"]
    often = watched.monitor.updates(wait_ms=1, seconds=0)
    watched.change(nvmlDeviceGetTotalEccErrors=1)
    assert [one.check for _ in range(3) for one in next(often).findings] == ["nvml.xid", "nvml.ecc_uncorrected"]


@pytest.mark.parametrize("seconds", [0.5, 10.0, 3600.0])
def test_unasked_the_gpus_are_read_every_so_many_seconds(
    host: Callable[[dict[str, Any]], Host], seconds: float
) -> None:
    watched = host(recording(2))
    updates = watched.monitor.updates(wait_ms=1, seconds=seconds)
    assert next(updates) == GpuUpdate()
    for change in ({"nvmlDeviceGetTotalEccErrors": 1}, {"nvmlDeviceGetRemappedRows": [0, 1, 0, 1]}):
        watched.change(**change)
        watched.time.sleep(seconds - 0.125)
        assert next(updates) == GpuUpdate()
        watched.time.sleep(0.125)
        assert len(next(updates).findings) == 1


def test_an_answer_comes_behind_the_events_that_were_there_when_it_was_asked_for(
    host: Callable[[dict[str, Any]], Host],
) -> None:
    watched = host(recording(2))
    updates = watched.monitor.updates(is_asked=lambda: True, wait_ms=1, seconds=1000)
    assert next(updates) == GpuUpdate()
    watched.content["events"] = [[0, "nvmlEventTypeXidCriticalError", 79], [1, "nvmlEventTypeXidCriticalError", 79]]
    watched.change()
    assert [(len(update.findings), update.answers) for update in (next(updates), next(updates), next(updates))] == [
        (1, False),
        (1, False),
        (0, True),
    ]


def test_a_driver_that_reports_no_more_events_is_read_all_the_same(
    host: Callable[[dict[str, Any]], Host], capsys: pytest.CaptureFixture[str]
) -> None:
    content = recording(2)
    content["nvmlEventSetWait"] = {"error": GPU_IS_LOST}
    content["gpus"][0]["nvmlDeviceGetSupportedEventTypes"] = {"error": 3}
    watched = host(content)
    updates = watched.monitor.updates(wait_ms=1, seconds=0)
    watched.change(nvmlDeviceGetTotalEccErrors=1)
    assert [one.check for _ in range(5) for one in next(updates).findings] == ["nvml.ecc_uncorrected"]
    said = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["Not Supported", "GPU is lost"]


# -- the server --------------------------------------------------------------------------------------------------------


def test_without_a_watch_a_look_finds_nothing_at_once(tmp_path: Path) -> None:
    seen = look(tmp_path, seconds=1000)
    assert (seen.findings, seen.silence) == ((), "")


def test_who_asks_is_answered_once_all_is_told(tmp_path: Path) -> None:
    with MonitorServer(tmp_path) as server:

        def answer() -> None:
            while not server.is_asked():
                pass
            server.tell(ECC)
            server.answer()

        watching = threading.Thread(target=answer)
        watching.start()
        seen = look(tmp_path, seconds=60)
        watching.join()
        assert (seen.findings, seen.silence) == ((ECC,), "")
        assert not server.is_asked()
    assert look(tmp_path).findings == (ECC,)  # also when it has ended


def test_a_watch_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with MonitorServer(tmp_path) as server:
        server.tell(ECC)
        seen = look(tmp_path, seconds=0.01)
        assert (seen.findings, seen.silence) == ((ECC,), "no answer within 0.01 s")
        assert server.is_asked()
        server.answer()  # to nobody: that does no harm


def test_a_watch_that_ends_instead_of_answering_is_said(tmp_path: Path) -> None:
    server = MonitorServer(tmp_path)

    def end() -> None:
        while not server.is_asked():
            pass
        server.__exit__()

    watching = threading.Thread(target=end)
    watching.start()
    assert look(tmp_path, seconds=60).silence == "it has ended"
    watching.join()


def test_a_watch_that_was_killed_is_said(tmp_path: Path) -> None:
    server = MonitorServer(tmp_path)
    server._listener.close()
    assert look(tmp_path).silence == "Connection refused"
    server.__exit__()
