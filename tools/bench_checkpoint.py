"""How long a training stands still for a checkpoint: torch.save, DCP's async_save and ours, in turns, in medians.

    python -m tools.bench_checkpoint --runs 5 --million 200 [--device cuda]

Each way has a process of its own with the same state, and saves when it is its turn. Memory is what the kernel has
recorded as the most of each save, of that process and its children, beyond the state itself.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_saver

from tools.bench import emit, verdict
from trainbox.checkpoint.store import Checkpoints
from trainbox.torch.checkpoints.saver import Saver

TARGET_STALL = 0.10
TARGET_MEMORY = 1.1
BYTES_OF_A_PARAMETER = 4 * 3  # itself, and what Adam keeps of it

Save = Callable[[Path], tuple[float, float]]


def state_of(million: int, device: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model of so many million parameters, and its Adam after a step."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False, device=device) for _ in range(million)))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def with_torch(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Save:
    """The incumbent: everything waits."""

    def save(directory: Path) -> tuple[float, float]:
        began = time.monotonic()
        with (directory / "state.pt").open("wb") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            stall = time.monotonic() - began
            os.fsync(file.fileno())
        return stall, time.monotonic() - began

    return save


def with_dcp(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Save:
    """The other incumbent."""

    def save(directory: Path) -> tuple[float, float]:
        began = time.monotonic()
        state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        future: Any = state_dict_saver.async_save(state, checkpoint_id=directory / "dcp", no_dist=True)
        stall = time.monotonic() - began
        future.result()
        return stall, time.monotonic() - began

    return save


def with_trainbox(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Save:
    """Ours; the memory is made beforehand, as in a training."""
    savers: list[Saver] = []
    steps = itertools.count()

    def save(directory: Path) -> tuple[float, float]:
        if not savers:
            savers.append(Saver(Checkpoints(directory.parent / "ours", keep=1), {"m": model, "o": optimizer}))
            savers[0].due()
        savers[0].save(next(steps), wait=True)
        last = savers[0].last
        return (last.stall, last.durable) if last else (0.0, 0.0)

    return save


WAYS = {"torch.save": with_torch, "dcp.async_save": with_dcp, "trainbox": with_trainbox}


def forget_peak() -> None:
    """Let the kernel record anew how much memory each of these processes has had: proc_pid_clear_refs(5)."""
    for pid in family():
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """Bytes of this process and its children since then, each at its largest."""
    statuses = (Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in family())
    return 1024 * sum(int(status.split("VmHWM:")[1].split()[0]) for status in statuses)


def family() -> list[int]:
    """This process and its children."""
    children = (path.read_text(encoding="ascii").split() for path in Path("/proc/self/task").glob("*/children"))
    return [os.getpid(), *(int(pid) for of_thread in children for pid in of_thread)]


def serve(way: str, million: int, device: str) -> None:
    """One way: for each line, which names a directory that is there, save and answer how it went."""
    model, optimizer = state_of(million, device)
    forget_peak()
    before = peak()
    save = WAYS[way](model, optimizer)
    for line in sys.stdin:
        forget_peak()
        stall, durable = save(Path(line.strip()))
        print(json.dumps([stall, durable, peak() - before]), flush=True)


def measure(million: int, runs: int, device: str, directory: Path) -> dict[str, list[list[float]]]:
    """Stall, seconds until durable, and bytes, of each save by each way."""
    seen: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with ExitStack() as running:
        ends = {}
        for way in WAYS:
            command = (sys.executable, "-m", "tools.bench_checkpoint", "--way", way)
            flags = ("--million", str(million), "--device", device)
            process = running.enter_context(
                subprocess.Popen((*command, *flags), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            if process.stdin and process.stdout:
                ends[way] = process.stdin, process.stdout
        for run in range(runs + 1):
            for way, (order, answer) in ends.items():
                target = directory / f"{way}-{run}"
                target.mkdir()
                os.sync()  # nobody pays for what another has left to the disk
                print(target, file=order, flush=True)
                result = json.loads(answer.readline())
                if run:  # the first of each makes what it needs
                    seen[way].append(result)
                shutil.rmtree(target)
        for order, _ in ends.values():
            order.close()
    return seen


def main() -> None:
    """Measure all three in turns and print a table."""
    parser = argparse.ArgumentParser(description="Measure checkpoints beside torch.save and DCP.")
    parser.add_argument("--runs", type=int, default=5, help="saves by each way (5)")
    parser.add_argument("--million", type=int, default=200, help="parameters, each of 12 bytes with Adam's (200)")
    parser.add_argument("--device", default="cpu", help="where the state is: cpu or cuda (cpu)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        serve(options.way, options.million, options.device)
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # a disk: /tmp may be memory
        seen = measure(options.million, options.runs, options.device, Path(name))
    size = 1_000_000 * options.million * BYTES_OF_A_PARAMETER
    middle = {way: [statistics.median(column) for column in zip(*seen[way], strict=True)] for way in WAYS}
    stall, durable, _ = middle["torch.save"]
    emit(f"A checkpoint of {size / (1 << 30):.2f} GiB (median of {options.runs}); the ratios are to torch.save")
    for way, (stalled, until_durable, extra) in middle.items():
        emit(
            f"  {way:16}stall {stalled:6.2f} s {stalled / stall:6.2f}   durable {until_durable:6.2f} s"
            f" {until_durable / durable:5.2f}   extra memory {extra / size:5.2f} x state"
        )
    ours, _, extra = middle["trainbox"]
    emit(f"  target: stall at most {TARGET_STALL:.2f} of torch.save's: {verdict(reached=ours <= TARGET_STALL * stall)}")
    emit(f"  target: stall below that of dcp.async_save: {verdict(reached=ours < middle['dcp.async_save'][0])}")
    emit(f"  target: extra memory at most {TARGET_MEMORY} x state: {verdict(reached=extra <= TARGET_MEMORY * size)}")


if __name__ == "__main__":
    main()
