"""Training, checkpoints and clocks of PyTorch on a real GPU."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.digits import write_digits
from tests.support.trees import Tree
from tests.support.waiting import eventually
from trainbox.metrics import parse_line
from trainbox.torch.checkpoints import rng_state
from trainbox.torch.checkpoints.codec import decode, empty, encode, flat, restride
from trainbox.torch.checkpoints.snapshot import SnapshotBuffer
from trainbox.torch.parallel.stopwatch import Stopwatch
from trainbox.torch.steps.losses import LossWatch

#: Longer than any test needs.
SECONDS = 90
SCRIPT = Path(__file__).parents[2] / "train_scripts" / "pytorch_train.py"
GPU = torch.device("cuda", 0)
MIB = 1 << 20


@pytest.fixture
def digits(tmp_path: Path) -> list[str]:
    """1,797 images of handwritten digits, as flags."""
    return [*write_digits(tmp_path), "--batch-size", "64", "--learning-rate", "0.01", "--augment", "1"]


def start(flags: list[str], root: Path, **variables: str) -> "subprocess.Popen[str]":
    """The script alone, as one types it."""
    environment = {**os.environ, "TRAINBOX_ROOT": str(root), **variables}
    root.mkdir(exist_ok=True)
    with (root / "log").open("a") as log:
        return subprocess.Popen([sys.executable, SCRIPT, *flags], env=environment, stdout=log, stderr=log, text=True)


def finish(flags: list[str], root: Path) -> str:
    """Run it to its good end; gives all that was logged there so far."""
    code = start(flags, root).wait(SECONDS)
    log = (root / "log").read_text()
    assert code == 0, log
    return log


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_in_every_precision_and_the_model_runs_on_a_processor(
    precision: str, digits: list[str], tmp_path: Path
) -> None:
    log = finish([*digits, "--epochs", "8", "--precision", precision], tmp_path / "root")
    samples = [sample for line in log.splitlines() if (sample := parse_line(line)) is not None]
    program: Any = torch.export.load(tmp_path / "root/model/model.pt2").module()

    assert f"one rank on cuda ({torch.cuda.device_count()} GPUs on this host), {precision}" in log
    assert samples[-1].values["validation:accuracy"] > 0.93
    assert program(torch.zeros(1, 1, 8, 8)).device.type == "cpu"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stopped_or_killed_and_resumed_it_leaves_the_same_model(
    how: signal.Signals, precision: str, digits: list[str], tmp_path: Path
) -> None:
    flags = [*digits, "--epochs", "6", "--precision", precision, "--checkpoint-seconds", "0.05"]
    finish(flags, tmp_path / "whole")
    process = start(flags, tmp_path / "cut")
    log = tmp_path / "cut/log"
    eventually(lambda: "[metrics] step=2" in log.read_text() or process.poll() is not None, "an epoch")
    process.send_signal(how)
    assert process.wait(SECONDS) == (0 if how == signal.SIGTERM else -signal.SIGKILL), log.read_text()
    again = finish(flags, tmp_path / "cut")
    found = re.search(r"resuming from step (\d+)", again)
    models = [torch.load(tmp_path / root / "model/model.pt", weights_only=True) for root in ("whole", "cut")]

    assert found is not None, again
    assert int(found[1]) > 0
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.usefixtures("digits")
def test_the_launcher_forks_a_rank_that_has_the_gpu(tmp_path: Path) -> None:
    with Tree(tmp_path / "ml") as tree:
        tree.hosts("algo-1").hyperparameters(trainbox_launcher="torchrun", trainbox_script="pytorch", epochs=1)
        for name in ("train", "validation"):
            tree.channel(name, {"digits.npz": (tmp_path / name / "digits.npz").read_bytes()})
        run = tree.finish(tree.start({"SAGEMAKER_PROGRAM": ""}))
    assert run.code == 0, run.log
    assert "one rank on cuda" in run.log + run.stdout.decode()


def test_too_large_a_tensor_is_told_with_what_helps(tmp_path: Path) -> None:
    with Tree(tmp_path / "ml") as tree:
        tree.hosts("algo-1").program("import torch; torch.empty(1 << 46, dtype=torch.uint8, device='cuda')")
        run = tree.run()
    assert run.code != 0
    assert "CUDA out of memory" in (run.failure or "")
    assert "lower the batch size, or use an instance with more GPU memory" in run.log


def test_a_state_on_the_gpu_comes_back_to_the_bit_through_pinned_memory() -> None:
    torch.manual_seed(0)
    base = torch.randn(300, 70, device=GPU)
    state = {
        "plain": torch.randn(5 * MIB, device=GPU),
        "turned": base.t(),
        "every third": base[::3],
        "images": torch.randn(4, 3, 8, 8, device=GPU).to(memory_format=torch.channels_last),
        "conjugate": torch.randn(50, dtype=torch.complex64, device=GPU).conj(),
        "half": base.to(torch.bfloat16),
        "truths": base > 0,
        "none": torch.empty(0, 3, device=GPU),
        "one": torch.tensor(7, device=GPU),
        "in memory": torch.arange(100),
    }
    encoded = encode(state, "state")
    buffer = SnapshotBuffer(encoded.end, pinned=True)
    try:
        for _ in range(2):  # what is copied into memory that is used again
            assert buffer._pinned
            buffer.copy(encoded.tensors, encoded.table)
            tensors = []
            for entry in encoded.table:
                tensor = empty(entry)
                flat(tensor).copy_(buffer.bytes[entry.offset : entry.offset + entry.size])
                tensors.append(restride(tensor, entry))
            back = decode(encoded.tree, tensors)
            same = {name: torch.equal(back[name], value.cpu()) for name, value in state.items()}
            assert same == dict.fromkeys(state, True)
            state["plain"].add_(1)
    finally:
        buffer.close()


def test_a_copy_waits_for_what_the_gpu_still_computes() -> None:
    value = torch.zeros(8 * MIB, device=GPU)
    encoded = encode({"value": value}, "state")
    buffer = SnapshotBuffer(encoded.end, pinned=True)
    try:
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]  # some 0.1 s
        value.fill_(3)
        buffer.copy(encoded.tensors, encoded.table)
        value.fill_(4)
        copied = buffer.bytes[: value.nbytes].view(torch.float32)
        assert bool((copied == 3).all())
    finally:
        buffer.close()


def test_generators_of_the_gpu_go_on_where_they_were() -> None:
    torch.rand(3, device=GPU)
    states = rng_state.capture()
    expected = torch.rand(1000, device=GPU)
    rng_state.reseed(1, 2)
    assert not torch.equal(torch.rand(1000, device=GPU), expected)
    rng_state.restore(states)
    assert torch.equal(torch.rand(1000, device=GPU), expected)


def test_a_loss_that_is_not_finite_is_found_a_step_later_at_its_own_step() -> None:
    watch = LossWatch(GPU, 0)
    found = []
    for step in range(1, 5):
        watch.see(torch.tensor(float("nan") if step == 2 else 1.0, device=GPU))
        found.append(watch.find(step))
    assert [None if place is None else place.step for place in found] == [None, None, 2, None]


def test_a_step_is_measured_on_the_gpu_without_its_waits() -> None:
    watch = Stopwatch(GPU, runs=True)

    def seconds(act: Any) -> float:
        torch.cuda.synchronize()
        began = time.monotonic()
        act()
        torch.cuda.synchronize()
        return time.monotonic() - began

    def sleep() -> None:
        torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]

    def step() -> list[float]:
        watch.begin()
        sleep()
        for _ in range(4):
            watch.wait(sleep)
        watch.backward(torch.ones(3, requires_grad=True, device=GPU).sum())
        return watch.end()

    seconds(step)  # what runs for the first time waits until it is loaded
    slept = seconds(sleep)
    told = [len(step()) for _ in range(4)]
    torch.cuda.synchronize()
    watch.begin()
    after = watch.end()
    assert told[1:] == [0, 0, 0]  # the GPU is behind with the last, which is measured
    assert after == [pytest.approx(slept, rel=0.5)] * 4


def test_a_rank_without_a_gpu_of_its_own_is_refused_with_what_to_ask_for(digits: list[str], tmp_path: Path) -> None:
    gpus = torch.cuda.device_count()
    place = {"RANK": gpus, "LOCAL_RANK": gpus, "WORLD_SIZE": gpus + 1, "LOCAL_WORLD_SIZE": gpus + 1}
    process = start(digits, tmp_path / "root", **{name: str(value) for name, value in place.items()})
    code, log = process.wait(SECONDS), (tmp_path / "root/log").read_text()
    assert code == 6, log
    assert f"processes_per_host of at most {gpus}" in log
