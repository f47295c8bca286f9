"""Ranks with different numbers of batches: named at once, or the loop ends with the first or the last of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trees import Tree
from tests.support.worlds import Ranks, finish

pytestmark = pytest.mark.process

#: Rank 0 has 10 batches an epoch, rank 1 has 7, as where files are of different lengths; COUNTS says otherwise.
SCRIPT = """
import hashlib, json, os
import torch
from torch.utils.data import DataLoader, IterableDataset
from trainbox.torch import session

COUNTS = json.loads(os.environ.get("COUNTS", "[10, 7]"))

class Shard(IterableDataset):
    def __init__(self, rank):
        self.rank = rank
    def __iter__(self):
        for number in range(4 * COUNTS[self.rank]):
            yield torch.full((8,), 0.01 * number + self.rank)

with session(seed=3, check_every=4) as run:
    bare = torch.nn.Linear(8, 1)
    first = [number for value in bare.parameters() for number in value.flatten().tolist()]
    model = run.wrap(bare) if "ALONE" not in os.environ else bare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    idle = []
    for epoch in range(2):
        for batch in run.steps(DataLoader(Shard(run.rank), batch_size=4), uneven=os.environ.get("UNEVEN", "error")):
            run.backward((model(batch) - 1).square().mean())
            run.update(optimizer)
            idle.append(run.idle)
        print("EPOCH", epoch, run.step, flush=True)
weights = [number for value in bare.parameters() for number in value.flatten().tolist()]
digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in bare.parameters())).hexdigest()
print("REPORT", json.dumps({"step": run.step, "idle": sum(idle), "digest": digest, "first": first, "weights": weights}))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "uneven.py"
    path.write_text(SCRIPT)
    return path


def reports(logs: list[str]) -> list[Any]:
    return [json.loads(re.findall(r"^REPORT (.*)$", log, re.MULTILINE)[0]) for log in logs]


@pytest.mark.parametrize(
    ("counts", "short", "environment"),
    [
        pytest.param([10, 7], 1, {}, id="shorter"),
        pytest.param([0, 3], 0, {}, id="none at all", marks=pytest.mark.long),
        pytest.param([7, 10], 0, {"ALONE": "1"}, id="without a collective in the step", marks=pytest.mark.long),
    ],
)
def test_a_rank_without_a_batch_is_named_while_another_continues(
    counts: list[int], short: int, environment: dict[str, str], script: Path, tmp_path: Path
) -> None:
    with Ranks([script], root=tmp_path / "root", environment={"COUNTS": json.dumps(counts), **environment}) as ranks:
        assert ranks.wait()[short] == 11
        said = f"TrainingError: rank {short} has no batch left while rank {1 - short} continues"
        assert said in ranks.log(short)
        assert "hint: give all ranks the same number of batches, or let run.steps(loader, uneven='drop')" in ranks.log(
            short
        )


@pytest.mark.long
def test_the_launcher_says_so_too_and_does_not_start_again(tmp_path: Path) -> None:
    with Tree(tmp_path / "ml").hosts("localhost").program(SCRIPT) as tree:
        tree.hyperparameters(processes_per_host=2, trainbox_launcher="torchrun")
        run = tree.finish(tree.start())
    assert run.code == 11, run.log
    assert "rank 1 has no batch left while rank 0 continues" in str(run.failure)
    assert "trainbox: restart" not in run.log


def test_ranks_that_end_together_are_not_disturbed(script: Path, tmp_path: Path) -> None:
    for report in reports(finish([script], root=tmp_path / "root", COUNTS="[5, 5]")):
        assert (report["step"], report["idle"]) == (10, 0)


def test_the_loop_can_end_with_the_first_rank(script: Path, tmp_path: Path) -> None:
    found = reports(finish([script], root=tmp_path / "root", UNEVEN="drop"))
    assert [(report["step"], report["idle"]) for report in found] == [(14, 0)] * 2
    even = reports(finish([script], root=tmp_path / "even", COUNTS="[7, 7]"))
    assert [report["digest"] for report in found] == [report["digest"] for report in even]


def test_or_with_the_last_while_the_others_count_nothing(script: Path, tmp_path: Path) -> None:
    found = reports(finish([script], root=tmp_path / "root", UNEVEN="join"))
    assert [(report["step"], report["idle"]) for report in found] == [(20, 0), (20, 6)]
    assert found[0]["digest"] == found[1]["digest"]
    assert found[0]["weights"] == pytest.approx(by_hand(found[0]["first"]), rel=1e-4)


def by_hand(weights: list[float]) -> list[float]:
    """Each step takes the mean over the batches of those ranks that have one."""
    model = torch.nn.Linear(8, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights[:8]]))
        model.bias.copy_(torch.tensor(weights[8:]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for number in [*range(10), *range(10)]:
        ranks = [rank for rank, count in enumerate((10, 7)) if number < count]
        batches = [
            torch.stack([torch.full((8,), 0.01 * i + rank) for i in range(4 * number, 4 * number + 4)])
            for rank in ranks
        ]
        optimizer.zero_grad()
        torch.stack([(model(batch) - 1).square().mean() for batch in batches]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return flat(model)


def flat(model: torch.nn.Module) -> list[float]:
    return [number for value in model.parameters() for number in value.flatten().tolist()]


def test_join_is_refused_with_a_model_that_is_spread(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SCRIPT.replace("run.wrap(bare)", "run.wrap(bare, sharded=True)"))
    with Ranks([script], root=tmp_path / "root", environment={"UNEVEN": "join"}) as ranks:
        assert ranks.wait() == [6, 6], ranks.log(0)
        assert "HyperparameterError: uneven='join' is not supported with sharded=True" in ranks.log(0)
