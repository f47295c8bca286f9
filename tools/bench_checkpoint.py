"""How long a training stands still for a checkpoint: torch.save, DCP's async_save and ours, side by side, in medians.

.venv/bin/python tools/bench_checkpoint.py --runs 5 --million 200
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_saver

import torch
from trainbox.checkpointing import Checkpoints
from trainbox.torch.saver import Saver

Save = Callable[[Path], tuple[float, float]]


def state_of(million: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model of so many million parameters, and its Adam after a step."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False) for _ in range(million)))
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

    def save(directory: Path) -> tuple[float, float]:
        if not savers:
            savers.append(Saver(Checkpoints(directory.parent / "ours", keep=1), {"m": model, "o": optimizer}))
            savers[0].due()
            savers[0].save(0, wait=True)
        savers[0].save(1)
        while not savers[0].last or savers[0].last.step != 1:
            savers[0].due()
            time.sleep(0.01)
        last, savers[0].last = savers[0].last, None
        return last.stall, last.durable

    return save


def tree_memory() -> int:
    """Bytes of this process and its children, shared pages counted once (PSS)."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if entry.name == str(os.getpid()) or parent == os.getpid():
                total += 1024 * int((entry / "smaps_rollup").read_text().split("Pss:")[1].split()[0])
        except (OSError, ValueError, IndexError):
            continue
    return total


WAYS = {"torch.save": with_torch, "dcp.async_save": with_dcp, "trainbox": with_trainbox}


def measure(way: str, million: int, runs: int, directory: Path) -> None:
    """One way in a process of its own."""
    model, optimizer = state_of(million)
    size = sum(p.numel() for p in model.parameters()) * 4 * 3
    before = tree_memory()
    save = WAYS[way](model, optimizer)
    results, peak = [], [before]
    for run in range(runs):
        target = directory / f"{way}-{run}"
        target.mkdir()
        peak.append(tree_memory())
        results.append(save(target))
        peak.append(tree_memory())
        shutil.rmtree(target, ignore_errors=True)
    grown = (max(peak) - before) / size
    print(json.dumps({"way": way, "size": size, "runs": results, "extra": grown}))


def main() -> None:
    """Measure all three in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--million", type=int, default=200)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.million, arguments.runs, arguments.directory)
        return
    for way in WAYS:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # a disk: /tmp may be memory
            options = ["--way", way, "--million", str(arguments.million), "--runs", str(arguments.runs)]
            answer = subprocess.run(
                [sys.executable, __file__, *options, "--directory", name], stdout=subprocess.PIPE, check=True, text=True
            )
        result = json.loads(answer.stdout.splitlines()[-1])
        stall, durable = (statistics.median(column) for column in zip(*result["runs"], strict=True))
        print(f"{way:<16} stall {stall:6.2f} s   durable {durable:6.2f} s   extra memory {result['extra']:.2f} x state")


if __name__ == "__main__":
    main()
