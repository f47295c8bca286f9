"""The checks of health on a real GPU: a sound one passes them all, and a full one is not called broken."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.support.trees import Tree
from trainbox.health.arithmetic import Measured, measure
from trainbox.health.nvml import open_gpus
from trainbox.system.machine import read_machine

HEALTH = [sys.executable, "-m", "trainbox", "health"]
GPUS = torch.cuda.device_count()


def checked(*flags: str) -> list[dict[str, Any]]:
    """The findings of `trainbox health`, which must find this host fit for a job."""
    answer = subprocess.run([*HEALTH, "--json", *flags], capture_output=True, text=True, check=False, timeout=110)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


@contextmanager
def memory_held(bytes_left: int) -> Iterator[None]:
    """In this block another process holds the GPU's memory but for a little."""
    program = f"""
import torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - {bytes_left}, dtype=torch.uint8, device="cuda")
print("held", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.kill()


def test_gpus_are_counted_by_their_nodes_as_torch_and_nvml_count_them() -> None:
    assert read_machine().gpus == open_gpus().count() == GPUS > 0


def test_a_sound_gpu_passes_every_check_of_the_hardware() -> None:
    found = checked("--full")
    hardware = [one for one in found if one["class"] == "hardware"]
    exact = [one for one in found if one["check"] == "gpu.exact"]

    assert {one["check"] for one in hardware} >= {"nvml.count", "nvml.answers", "nvml.ecc_uncorrected", "gpu.exact"}
    assert [one for one in hardware if one["status"] == "fail"] == []
    assert [(one["device"], one["value"]) for one in exact] == [(f"gpu{index}", 0) for index in range(GPUS)]


def test_nvml_answers_every_call_that_a_check_needs() -> None:
    nvml = open_gpus()
    reading = nvml.read(0)

    assert not reading.broken
    assert reading.name == torch.cuda.get_device_name(0)
    assert (reading.uuid or "").startswith("GPU-")
    assert reading.recovery_action == 0
    assert not any("nvidia-ml-py" in why for why in reading.unread.values()), reading.unread
    assert nvml.driver().split(".")[0].isdecimal()


def test_nobody_hears_anything_of_a_sound_gpu() -> None:
    events = open_gpus().events(50)
    assert [next(events) for _ in range(3)] == [None, None, None]


def test_bandwidths_are_those_of_a_gpu() -> None:
    found = measure("cuda", "fast")
    assert (found.wrong, found.unusable, found.failed) == (0, "", "")
    assert found.bandwidths["device"] > found.bandwidths["from device"] > 1


def test_a_gpu_whose_memory_is_full_is_not_called_broken() -> None:
    with memory_held(64 << 20):
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "trainbox.health.arithmetic", "cuda", "fast"],
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        found = Measured(**json.loads(answer.stdout)["measured"])
        assert found.unusable, answer
        assert not found.failed
        warned = {one["check"]: one["class"] for one in checked("--fast") if one["status"] == "warn"}
        assert warned["gpu.exact"] == warned["nvml.processes"] == "configuration"


def test_the_ranks_of_a_host_sum_up_exactly_through_nccl() -> None:
    """In a program of its own, as in a job: this one has a context of CUDA, which does not survive a fork."""
    program = """
from trainbox.health.probe_protocol import Order
from trainbox.health.collective_ranks import _reserve, run_groups
import msgspec, sys
gpus = int(sys.argv[1])
port = _reserve()
order = Order(0, gpus, 0, gpus, "127.0.0.1", port.getsockname()[1], "nccl", 60.0, 64 << 20)
port.close()
print(msgspec.json.encode(run_groups([order])).decode())
"""
    answer = subprocess.run([sys.executable, "-c", program, str(GPUS)], capture_output=True, check=False, timeout=100)
    assert answer.returncode == 0, answer
    ((found),) = json.loads(answer.stdout.splitlines()[-1])

    assert [rank.get("wrong", 0) for rank in found["ranks"]] == [0] * GPUS, answer
    assert all(rank["latency"] > 0 and not rank["waited"] and not rank["broken"] for rank in found["ranks"]), answer


def test_a_watch_on_a_sound_gpu_reports_nothing_and_ends_when_asked(tmp_path: Path) -> None:
    watch = subprocess.Popen(
        [*HEALTH, "--watch", "--into", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until = time.monotonic() + 60
    while not (tmp_path / "look").exists() and time.monotonic() < until and watch.poll() is None:
        time.sleep(0.05)
    assert watch.poll() is None, watch.communicate()
    time.sleep(1)
    watch.send_signal(signal.SIGTERM)
    said, _ = watch.communicate(timeout=20)

    assert watch.returncode in {0, -signal.SIGTERM}, said
    assert not (tmp_path / "findings.jsonl").exists() or not (tmp_path / "findings.jsonl").read_bytes()


def test_a_job_on_a_gpu_is_checked_before_it_starts_without_being_asked(tmp_path: Path) -> None:
    with Tree(tmp_path / "ml") as tree:
        tree.hosts("algo-1").program("import torch; print('on', torch.ones(2, device='cuda').sum().item())")
        run = tree.run(TRAINBOX_PREFLIGHT="auto")
    assert run.code == 0, run.log
    assert "checking the health of this job's hosts (fast;" in run.log
    assert b"on 2.0" in run.stdout
    assert any((tmp_path / "ml/output/data/health").iterdir())
