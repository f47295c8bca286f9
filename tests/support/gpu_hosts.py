"""Hosts with GPUs where there are none: nodes in a /dev of their own, and NVML from a recording that may change."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.recordings import RECORDED, recording, write
from tests.support.trees import Run, Tree

#: A tmpfs with the nodes that programs need, and those of GPUs, becomes /dev in a mount namespace of its own.
_DEV = """
mount -t tmpfs tmpfs "$1"
mkdir "$1/shm"
mount --bind /dev/shm "$1/shm"
for node in null zero random urandom; do touch "$1/$node"; mount --bind "/dev/$node" "$1/$node"; done
for gpu in $(seq "$2"); do touch "$1/nvidia$((gpu - 1))"; done
mount --rbind "$1" /dev
shift 2
exec "$@"
"""
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs mount namespaces",
)
#: For the beginning of a script: `report(…)` has NVML say something else from then on, the others wait for the watch.
SCRIPT = """
import fcntl, json, os, pathlib, time
from trainbox.diagnostics.monitor_protocol import look
def await_watch(scratch=None):
    while not scratch or not (scratch / "look").exists():
        scratch = scratch or next(pathlib.Path("/dev/shm").glob(f"trainbox-scratch-{os.getppid()}-*"), None)
        time.sleep(0.01)
    while look(scratch, seconds=30).silence: time.sleep(0.01)  # between bind and listen it refuses
def await_silence(scratch):
    while look(scratch, seconds=0.5).silence != "no answer within 0.5 s": time.sleep(0.01)
def await_end(scratch):
    while not (scratch / "findings.jsonl").exists() or (scratch / "look").exists(): time.sleep(0.01)
def report(gpu=None, event=None, **calls):
    path = os.environ["NVML_RECORDING"]
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(path) as file: recorded = json.load(file)
        if event: recorded.setdefault("events", []).append(event)
        if gpu is None: recorded |= calls
        else: recorded["gpus"][gpu] |= calls
        with open(path + ".new", "w") as file: json.dump(recorded, file)
        os.replace(path + ".new", path)
"""


def with_devices(directory: Path, gpus: int) -> list[str]:
    """What to put before a command so that it sees these GPUs.

    Args:
        directory: An empty one.
        gpus: How many.
    """
    directory.mkdir(parents=True)
    return ["unshare", "-m", "sh", "-ec", _DEV, "sh", str(directory), str(gpus)]


class GpuHost:
    """A host of a job."""

    def __init__(self, directory: Path, *, gpus: int = 2, content: dict[str, Any] | None = None) -> None:
        self.tree = Tree(directory / "ml")
        self.recording = write(content or recording(gpus), directory)
        self.prefix = with_devices(directory / "dev", gpus)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tree.__exit__()

    def start(self, **env: str) -> "subprocess.Popen[bytes]":
        """Start `train`."""
        told = {
            "PYTHONPATH": str(RECORDED),
            "NVML_RECORDING": str(self.recording),
            "TRAINBOX_BACKEND": "gloo",
            "TRAINBOX_PREFLIGHT": "off",
        }
        return self.tree.start({**told, **env}, prefix=self.prefix)

    def run(self, **env: str) -> Run:
        """Run `train` to its end."""
        return self.tree.finish(self.start(**env))


def found(run: Run) -> list[tuple[str, str, str]]:
    """What the watch has printed: device, status and value."""
    lines = [json.loads(line) for line in run.stdout.decode().splitlines() if line.startswith('{"check":')]
    return [(line["device"], line["status"], str(line["value"])) for line in lines]
