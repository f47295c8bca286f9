"""The session: ranks that start, agree, stop, fail and end together, and give the same bits after a restart."""

import json
import re
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.worlds import Ranks, finish
from trainbox.contract.cluster import progress
from trainbox.contract.cluster.ranks import Ranks as Place
from trainbox.errors import HyperparameterError
from trainbox.torch.steps.agreement import different
from trainbox.torch.world import choose_backend

pytestmark = pytest.mark.process

#: A small training whose every part must be saved for the weights to come out the same. Its network is larger than the
#: first bucket of DDP (1 MB), so that there are several.
PRELUDE = """
import hashlib, json, os, sys, time
import torch
from torch.nn import functional
from trainbox.torch import session

torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(192, 32), torch.randn(192, 4)
WAIT = float(os.environ.get("WAIT", "0"))

class Rows(torch.utils.data.Dataset):
    def __len__(self): return len(INPUTS)
    def __getitems__(self, indices): return INPUTS[indices], TARGETS[indices]

def net(width=int(os.environ.get("WIDTH", "64"))):
    hidden = [torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Dropout(0.2)] * 2
    return torch.nn.Sequential(torch.nn.Linear(32, width), *hidden, torch.nn.Linear(width, 4))

def digest(values):
    found = hashlib.sha256()
    for value in values:
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        found.update(value.detach().numpy().tobytes())
    return found.hexdigest()

def report(**values): print("REPORT", json.dumps(values), flush=True)
"""

TRAINING = """
with session(seed=3, check_every=5, precision=os.environ.get("PRECISION", "fp32")) as run:
    bare = net()
    model = run.wrap(bare, sharded="SHARDED" in os.environ)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = run.batches(len(INPUTS), batch_size=24)
    seen = {"losses": []}
    first = run.resume(model=model, optimizer=optimizer, batches=batches, seen=seen)
    loader = batches.loader(Rows(), collate=tuple)
    while batches.epoch < 4 and not run.stopped:
        for inputs, targets in run.steps(loader):
            with run.autocast():
                loss = functional.mse_loss(model(inputs + 0.01 * torch.randn_like(inputs)).float(), targets)
            run.backward(loss)
            run.update(optimizer, clip=1.0)
            seen["losses"].append(run.total(loss).item())
            print("STEP", run.step, flush=True)
            time.sleep(WAIT)
        if not run.stopped:
            batches.next_epoch()
    weights, buffers = digest(bare.parameters()), digest(bare.buffers())
report(first=first, step=run.step, stopped=run.stopped, digest=weights, buffers=buffers, losses=len(seen["losses"]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "training.py"
    path.write_text(PRELUDE + TRAINING)
    return path


def write(directory: Path, body: str) -> Path:
    path = directory / "script.py"
    path.write_text(PRELUDE + textwrap.dedent(body))
    return path


def reported(log: str) -> Any:
    found = re.findall(r"^REPORT (.*)$", log, re.MULTILINE)
    assert len(found) == 1, log
    return json.loads(found[0])


def interrupt(script: Path, root: Path, size: int, at: int, **environment: str) -> int:
    """Ask one rank to stop while it is at a step; gives the step at which all have left."""
    with Ranks([script], root=root, size=size, environment={"WAIT": "0.03", **environment}) as ranks:
        ranks.until(lambda: f"STEP {at}\n" in ranks.log(size - 1))
        ranks.signal(signal.SIGTERM, size - 1)
        codes = ranks.wait()
        logs = [ranks.log(rank) for rank in range(size)]
    assert codes == [0] * size, "\n".join(logs)
    steps = {reported(log)["step"] for log in logs}
    assert len(steps) == 1
    step: int = steps.pop()
    assert at < step < 32
    assert f"asked to stop: all ranks leave after step {step}; it is saved" in logs[0]
    assert all(reported(log)["stopped"] for log in logs)
    return step


def test_with_long_steps_too_a_stop_is_agreed_on_within_a_few(script: Path, tmp_path: Path) -> None:
    assert interrupt(script, tmp_path / "slow", 2, 3, WAIT="0.3") < 8


@pytest.mark.parametrize(
    ("size", "environment"),
    [
        (1, {}),
        pytest.param(2, {"PRECISION": "fp16"}, marks=pytest.mark.long),
        (2, {"SHARDED": "1"}),
        pytest.param(4, {"WIDTH": "512"}, marks=pytest.mark.long),
    ],
)
def test_stopped_and_resumed_gives_the_very_weights_of_a_run_that_went_through(
    size: int, environment: dict[str, str], script: Path, tmp_path: Path
) -> None:
    whole = [reported(log) for log in finish([script], root=tmp_path / "whole", size=size, **environment)]
    assert len({report["digest"] for report in whole}) == 1
    step = interrupt(script, tmp_path / "cut", size, 11, **environment)
    resumed = [reported(log) for log in finish([script], root=tmp_path / "cut", size=size, **environment)]
    assert all(report["first"] == step for report in resumed)
    assert {report["digest"] for report in resumed} == {whole[0]["digest"]}
    assert resumed[0]["buffers"] == whole[0]["buffers"]  # those of rank 0 are the model's
    assert all(report["losses"] == report["step"] == 32 for report in resumed)


def test_a_loss_that_is_not_finite_ends_all_ranks_with_the_name_of_the_one(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        with session() as run:
            model = run.wrap(net())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for inputs, targets in run.steps(run.batches(len(INPUTS), batch_size=8).loader(Rows(), collate=tuple)):
                loss = functional.mse_loss(model(inputs), targets)
                run.backward(loss * float("nan") if run.rank == 1 and run.step == 4 else loss)
                run.update(optimizer)
        """,
    )
    with Ranks([script], root=tmp_path / "root") as ranks:
        assert ranks.wait() == [11, 11]
        for rank in (0, 1):
            assert "TrainingError: the loss of rank 1 at step 5 is not a finite number" in ranks.log(rank)


def test_or_its_step_is_left_out_and_the_training_goes_on(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        with session(on_nan="continue") as run:
            bare = torch.nn.Linear(32, 4)
            model = run.wrap(bare)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            before = []
            for inputs, targets in run.steps(run.batches(len(INPUTS), batch_size=8).loader(Rows(), collate=tuple)):
                loss = functional.mse_loss(model(inputs), targets)
                run.backward(loss * float("nan") if run.rank == 1 and run.step == 4 else loss)
                before.append(digest(bare.parameters()))
                run.update(optimizer)
        report(same=before[4] == before[5], moved=before[5] != before[6], step=run.step)
        """,
    )
    logs = finish([script], root=tmp_path / "root")
    assert [reported(log) for log in logs] == [{"same": True, "moved": True, "step": 24}] * 2
    assert "the loss of rank 1 at step 5 is not a finite number: a step with such gradients changes nothing" in logs[0]


def test_ranks_that_no_longer_hold_the_same_parameters_are_named(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        with session(check_every=4) as run:
            bare = net()
            model = run.wrap(bare)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for inputs, targets in run.steps(run.batches(len(INPUTS), batch_size=12).loader(Rows(), collate=tuple)):
                run.backward(functional.mse_loss(model(inputs), targets))
                run.update(optimizer)
                if run.rank == 1 and run.step == 5:
                    with torch.no_grad():
                        bare[0].weight[3, 3] *= 1.0001
        """,
    )
    with Ranks([script], root=tmp_path / "root", size=3) as ranks:
        assert ranks.wait() == [11, 11, 11]
        assert "TrainingError: after step 8 the parameters of ranks 1 differ" in ranks.log(2)


def test_a_rank_that_raises_leaves_nobody_waiting(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        with session() as run:
            model = run.wrap(net())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for inputs, targets in run.steps(run.batches(len(INPUTS), batch_size=8).loader(Rows(), collate=tuple)):
                if run.rank == 1 and run.step == 3:
                    raise ValueError("bad sample")
                run.backward(functional.mse_loss(model(inputs), targets))
                run.update(optimizer)
        """,
    )
    with Ranks([script], root=tmp_path / "root") as ranks:
        codes = ranks.wait()
        assert codes[1] == 1
        assert codes[0] != 0
        assert "ValueError: bad sample" in ranks.log(1)
        assert "TrainingError" not in ranks.log(0)


#: The last loss of the same training done in several ways, and how many numbers of the model this rank holds.
WAYS = """
class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(3)])
        self.head = torch.nn.Linear(32, 4)

    def forward(self, values):
        for layer in self.layers: values = torch.relu(layer(values))
        return self.head(values)

def way(run, parts, sharded):
    torch.manual_seed(1)
    model = run.wrap(Plain(), sharded=sharded)
    held = sum(p.to_local().numel() if sharded else p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in run.steps(run.batches(len(INPUTS), batch_size=24).loader(Rows(), collate=tuple)):
        last = torch.zeros(())
        for inputs, targets in run.micro_batches(batch, parts):
            with run.autocast():
                loss = functional.mse_loss(model(inputs).float(), targets)
            run.backward(loss)
            last += loss.detach() * len(inputs)
        run.update(optimizer, clip=0.5)
    return run.total(last).item() / 24, held

with session(precision=os.environ["PRECISION"]) as run:
    report(whole=way(run, 1, False), pieces=way(run, 3, False), sharded=way(run, 2, True))
"""


def test_batches_in_pieces_and_sharded_parameters_give_the_gradients_of_the_whole(tmp_path: Path) -> None:
    script = write(tmp_path, WAYS)
    exact, rough = (reported(finish([script], root=tmp_path, PRECISION=name)[1]) for name in ("fp32", "bf16"))
    loss, held = exact["whole"]
    assert exact["pieces"] == [pytest.approx(loss, rel=1e-5), held]
    assert exact["sharded"] == [pytest.approx(loss, rel=1e-5), held / 2]
    for way in ("whole", "pieces", "sharded"):
        assert rough[way][0] == pytest.approx(loss, rel=2e-2)
        assert rough[way][0] != loss


def test_evaluation_counts_each_sample_once_with_the_buffers_of_rank_0_and_can_be_stopped(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        with session() as run:
            bare = torch.nn.Sequential(torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 4))
            model = run.wrap(bare)
            run.resume(model=model)
            bare[0].running_mean.fill_(run.rank)
            seen = torch.zeros(192)
            batches = run.batches(191, batch_size=6, tail="keep", shuffle=False)
            for indices in run.evaluation(batches.loader(torch.arange(191))):
                seen[indices] += 1
            mean = bare[0].running_mean.sum().item()
            counts = run.total(seen)
            print("EVALUATED", flush=True)
            evaluated = 0
            for indices in run.evaluation(batches.loader(torch.arange(191))):
                evaluated += 1
                time.sleep(0.05)
        report(counts=counts.tolist(), mean=mean, evaluated=evaluated, stopped=run.stopped)
        """,
    )
    with Ranks([script], root=tmp_path / "root") as ranks:
        ranks.until(lambda: "EVALUATED" in ranks.log(0))
        ranks.signal(signal.SIGTERM, 0)
        assert ranks.wait() == [0, 0], ranks.log(0) + ranks.log(1)
        reports = [reported(ranks.log(rank)) for rank in (0, 1)]
    assert reports[0] == reports[1]
    assert reports[0]["counts"] == [1.0] * 191 + [0.0]
    assert reports[0]["mean"] == 0.0
    assert reports[0]["stopped"]
    assert reports[0]["evaluated"] < 30
    assert [path.name for path in (tmp_path / "root/checkpoints").glob("step-*")] == ["step-00000000"]


@pytest.mark.long
def test_how_far_each_rank_is_can_be_read_beside_it(script: Path, tmp_path: Path) -> None:
    shared = tmp_path / "progress"
    progress.create(shared, 2)
    environment = {progress.PROGRESS_VARIABLE: str(shared), "WAIT": "0.03"}
    with Ranks([script], root=tmp_path / "root", environment=environment) as ranks:
        seen = set[progress.StepPhase]()

        def met() -> bool:
            slot = progress.read(shared)[1]
            seen.update({slot.phase} if slot.beat else ())
            return progress.StepPhase.START in seen

        ranks.until(met)
        # `resume` looks for a checkpoint before the first step.
        assert seen <= {progress.StepPhase.JOIN, progress.StepPhase.CHECKPOINT, progress.StepPhase.START}
        ranks.until(lambda: progress.read(shared)[1].step >= 5)
        middle = progress.read(shared)
        assert all(slot.phase in {progress.StepPhase.DATA, progress.StepPhase.COMPUTE} for slot in middle)
        assert ranks.wait() == [0, 0]
    for slot in progress.read(shared):
        assert (slot.phase, slot.step) == (progress.StepPhase.DONE, 32)
        assert 0.03 < slot.longest < 10
        assert slot.compute > slot.data >= 0


def test_a_loop_that_is_broken_off_has_counted_what_the_optimizer_did(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        with session() as run:
            model = run.wrap(torch.nn.Linear(32, 4))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            batches = run.batches(len(INPUTS), batch_size=8)
            loader = batches.loader(Rows(), collate=tuple)
            for limit in (3, 5):
                for inputs, targets in run.steps(loader):
                    if limit == 5 and run.step == 4: break  # before the update: does not count
                    run.backward(functional.mse_loss(model(inputs), targets))
                    run.update(optimizer)
                    if run.step == limit - 1: break
            report(step=run.step, consumed=batches.consumed)
        """,
    )
    assert reported(finish([script], root=tmp_path / "root", size=1)[0]) == {"step": 4, "consumed": 32}


def test_a_script_may_have_one_session_after_another(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        from torch.distributed import all_reduce
        for number in range(6):
            with session() as run:
                value = torch.tensor([float(run.rank + number)])
                all_reduce(value)
                if run.rank == number % 2:
                    time.sleep(0.05)  # the other begins its next session while this one is in the last
            report(value=value.item())
        """,
    )
    with Ranks([script], root=tmp_path / "root") as ranks:
        assert ranks.wait() == [0, 0]
        for rank in range(2):
            values = [
                json.loads(found)["value"] for found in re.findall(r"^REPORT (.*)$", ranks.log(rank), re.MULTILINE)
            ]
            assert values == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]


def test_data_that_differ_between_ranks_are_refused(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        """
        with session() as run:
            run.require_same("the rows", 7)
            run.require_same("the rows of channel train", 7 + run.rank)
        """,
    )
    with Ranks([script], root=tmp_path / "root") as ranks:
        assert ranks.wait() == [7, 7]
        assert "DataError: the rows of channel train differ between the ranks" in ranks.log(0)


# ---- what is decided before anything starts ----


def test_the_backend_fits_what_there_is() -> None:
    here = Place(1, 2, 1, 2)
    assert choose_backend(None, here, gpus=0, nccl=True).name == "gloo"
    chosen = choose_backend(None, here, gpus=2, nccl=True)
    assert (chosen.name, chosen.device) == ("nccl", torch.device("cuda", 1))
    assert choose_backend(None, here, gpus=2, nccl=False).name == "gloo"
    assert choose_backend("gloo", here, gpus=2, nccl=True).name == "gloo"


@pytest.mark.parametrize(
    ("asked", "gpus", "message"),
    [
        ("nccl", 0, "the backend nccl needs a GPU"),
        (None, 1, "rank 1 is number 1 on its host, which has 1 GPUs"),
        ("smddp", 2, "smddp needs a module that is not installed\n  hint: use nccl"),
    ],
)
def test_a_backend_without_what_it_needs_is_refused(asked: str | None, gpus: int, message: str) -> None:
    with pytest.raises(HyperparameterError) as caught:
        choose_backend(asked, Place(1, 2, 1, 2), gpus=gpus, nccl=True)
    assert message in str(caught.value)


def test_the_rank_that_differs_is_the_one_without_a_majority() -> None:
    assert different([5, 5, 5]) == ()
    assert different([5, 6, 5, 5]) == (1,)
    assert different([5, 6]) == (0, 1)
