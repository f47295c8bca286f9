"""Where a loader stands is in the checkpoint; where it cannot be, one warning says so at the first step."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from tests.support.worlds import finish
from trainbox.torch import Batches
from trainbox.torch.steps.loader_positions import lost

pytestmark = pytest.mark.process

#: Dropout draws from the generators that a loader would draw its seeds from, too. KIND says which loader.
SCRIPT = """
import hashlib, json, os, warnings
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler
from trainbox.torch import session

warnings.simplefilter("ignore")
STOP, KIND, EPOCHS = int(os.environ.get("STOP", "0")), os.environ["KIND"], 3
torch.manual_seed(7)
ROWS = TensorDataset(torch.randn(40, 8), torch.randn(40, 1))

class Duck:
    # A loader of another library: shuffled with a seed that it draws when it begins.
    def __init__(self):
        self.state = None
    def __iter__(self):
        drawn = int(torch.randint(1 << 30, ()))
        state, self.state = self.state or {"seed": drawn, "given": 0}, None
        self.live = state
        order = torch.randperm(40, generator=torch.Generator().manual_seed(state["seed"]))
        while state["given"] + 4 <= 40:
            state["given"] += 4
            yield ROWS[order[state["given"] - 4 : state["given"]]]
    def state_dict(self):
        return dict(self.live)
    def load_state_dict(self, state):
        self.state = dict(state)

def loader():
    if KIND == "duck":
        return Duck()
    if KIND == "weighted":
        return DataLoader(ROWS, batch_size=4, sampler=WeightedRandomSampler(torch.ones(40), 40))
    from torchdata.stateful_dataloader import StatefulDataLoader
    return StatefulDataLoader(ROWS, batch_size=4, shuffle=True, num_workers=int(KIND[-1]))

with session(seed=3) as run:
    bare = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    model = run.wrap(bare)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    progress = {"epoch": 0}
    torch.manual_seed(run.rank)
    mine = loader()
    named = {"mine": mine} if "NAMED" in os.environ else {}
    run.resume(model=model, optimizer=optimizer, progress=progress, **named)
    accumulate = int(os.environ.get("ACCUMULATE", "1"))
    while progress["epoch"] < EPOCHS and not (STOP and run.step == STOP):
        for inputs, targets in run.steps(mine, accumulate=accumulate):
            run.backward((model(inputs) - targets).square().mean())
            if run.update(optimizer) and run.step + 1 == STOP:
                break
        else:
            progress["epoch"] += 1
    if STOP:
        run.save()
state = [*bare.parameters(), torch.get_rng_state()]
digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in state)).hexdigest()
print("REPORT", json.dumps({"digest": digest, "step": run.step, "rank": run.rank}))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "places.py"
    path.write_text(SCRIPT)
    return path


def reports(logs: list[str]) -> list[Any]:
    found = [re.findall(r"^REPORT (.*)$", log, re.MULTILINE) for log in logs]
    return [json.loads(each[0]) for each in found]


@pytest.mark.parametrize(
    ("environment", "steps"),
    [
        pytest.param({"KIND": "duck"}, 30, marks=pytest.mark.long),
        pytest.param({"KIND": "torchdata-0"}, 30, marks=pytest.mark.long),
        ({"KIND": "torchdata-0", "NAMED": "1"}, 30),
        pytest.param({"KIND": "torchdata-2"}, 30, marks=pytest.mark.long),
        pytest.param({"KIND": "duck", "ACCUMULATE": "3"}, 9, marks=pytest.mark.long),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_loader_with_a_state_goes_on_where_it_stood(
    environment: dict[str, str], steps: int, script: Path, tmp_path: Path
) -> None:
    if "torchdata" in environment["KIND"]:
        pytest.importorskip("torchdata")
    whole = finish([script], root=tmp_path / "whole", size=2, **environment)
    for stop in (steps // 3 + 1, 2 * steps // 3):  # within an epoch, and with the last step of one
        finish([script], root=tmp_path / "cut", size=2, STOP=str(stop), **environment)
    resumed = finish([script], root=tmp_path / "cut", size=2, **environment)
    assert f"resuming from step {2 * steps // 3} " in resumed[0]
    assert reports(resumed) == reports(whole)
    assert reports(whole)[0]["step"] == steps
    assert "WARNING" not in "".join(whole + resumed)
    if "ACCUMULATE" in environment:
        assert "the loader's last 1 batches fill no step of 3: they are left out" in whole[0]


def test_what_will_not_be_exact_is_said_once_at_the_first_step(script: Path, tmp_path: Path) -> None:
    logs = finish([script], root=tmp_path / "root", KIND="weighted")
    (line,) = re.findall(r"^.*WARNING: a resumed job will not be exact.*$", "".join(logs), re.MULTILINE)
    assert "the order of WeightedRandomSampler and the place in it are not in the checkpoint" in line
    assert "use run.batches(…).loader, or a loader with state_dict, as torchdata's StatefulDataLoader" in line


GATHERED = """
import torch
from trainbox.torch import session

with session() as run:
    model = run.wrap(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = run.batches(32, batch_size=2)
    run.resume(model=model, optimizer=optimizer, batches=batches)
    for number, rows in enumerate(run.steps(batches.loader(torch.randn(32, 4)))):
        run.backward(model(rows).mean())
        if number % 4 == 3:
            run.update(optimizer)
"""


def test_gradients_that_outlive_a_step_are_warned_of(tmp_path: Path) -> None:
    script = tmp_path / "gathered.py"
    script.write_text(GATHERED)
    for log in finish([script], root=tmp_path / "root", size=1):
        assert log.count("gradients are gathered over several steps") == 1
    script.write_text(GATHERED.replace("if number % 4 == 3:", "if True:"))
    assert "WARNING" not in finish([script], root=tmp_path / "other", size=1)[0]


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


class Duck:
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, _state: object) -> None:
        pass


ROWS = TensorDataset(torch.zeros(8, 1))
BATCHES = Batches(8, batch_size=2)


@pytest.mark.parametrize(
    ("loader", "parts", "what"),
    [
        (DataLoader(Endless()), {}, "the place in Endless (an IterableDataset)"),
        (DataLoader(ROWS, batch_sampler=[[0], [1]]), {}, "the order of list and the place in it"),
        (DataLoader(ROWS, shuffle=True), {}, "the order of RandomSampler and the place in it"),
        (DataLoader(ROWS, sampler=WeightedRandomSampler([1.0] * 8, 8)), {}, "the order of WeightedRandomSampler"),
        ((row for row in (1, 2)), {}, "the place in generator"),
        (BATCHES.loader(ROWS), {}, "name them in run.resume(…, batches=batches)"),
        (BATCHES.loader(ROWS), {"batches": BATCHES}, ""),
        (itertools.repeat(1), {}, ""),
        (Duck(), {}, ""),
    ],
)
def test_the_warning_names_what_is_lost(loader: object, parts: dict[str, object], what: str) -> None:
    found = lost(loader, parts)
    assert (what in found) if what else not found
