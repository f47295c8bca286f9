"""What differs between the ranks is kept for each of them: after a restart every rank goes on with its own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.worlds import Ranks, finish

pytestmark = pytest.mark.process

#: Each rank draws from a stream of its own, and keeps its own losses. RESHARDS: the stream says how to be dealt out.
SCRIPT = """
import hashlib, json, os
import torch
from trainbox.torch import session

STOP, STEPS = int(os.environ.get("STOP", "0")), 12

class Stream:
    def __init__(self, rank):
        self.generator, self.taken = torch.Generator().manual_seed(rank), 0

    def __iter__(self):
        while True:
            self.taken += 1
            yield torch.randn(4, 8, generator=self.generator)

    def state_dict(self):
        return {"generator": self.generator.get_state(), "taken": self.taken}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.taken = state["taken"]

class Dealt(Stream):
    def reshard_state(self, states, rank, world_size):
        return {"generator": states[rank % len(states)]["generator"], "taken": sum(each["taken"] for each in states)}

with session(seed=5, check_every=4) as run:
    bare = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    model = run.wrap(bare, sharded="SHARDED" in os.environ)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    stream = (Dealt if "RESHARDS" in os.environ else Stream)(run.rank)
    seen, same = {"losses": []}, {"steps": 0}
    first = run.resume(model=model, optimizer=optimizer, stream=stream, seen=seen, same=same)
    print("RESUMED", json.dumps({"taken": stream.taken, "first": first}), flush=True)
    for batch in run.steps(stream):
        loss = model(batch).square().mean()
        run.backward(loss)
        run.update(optimizer)
        seen["losses"].append(loss.item())
        same["steps"] += 1
        if run.step + 1 in (STOP, STEPS):
            break
    if STOP:
        run.save()
    values = [value.full_tensor() if hasattr(value, "full_tensor") else value for value in bare.parameters()]
digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in values)).hexdigest()
print("REPORT", json.dumps({"digest": digest, "step": run.step, "taken": stream.taken, "losses": seen["losses"]}))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "streams.py"
    path.write_text(SCRIPT)
    return path


def told(log: str, what: str = "REPORT") -> Any:
    (found,) = re.findall(rf"^{what} (.*)$", log, re.MULTILINE)
    return json.loads(found)


@pytest.mark.parametrize(
    "environment", [pytest.param({}, id="DDP"), pytest.param({"SHARDED": "1"}, id="FSDP2", marks=pytest.mark.long)]
)
def test_a_part_that_differs_comes_back_to_its_rank(environment: dict[str, str], script: Path, tmp_path: Path) -> None:
    whole = [told(log) for log in finish([script], root=tmp_path / "whole", size=2, **environment)]
    assert whole[0]["losses"] != whole[1]["losses"]
    stopped = finish([script], root=tmp_path / "cut", size=2, STOP="5", **environment)
    assert all(told(log)["step"] == 5 for log in stopped)
    for name in ("stream", "seen"):
        line = f"trainbox: the part '{name}' differs between the ranks: the checkpoint has the state of each rank"
        assert stopped[0].count(line) == 1
        assert line not in stopped[1]
    assert "the part 'same'" not in stopped[0]
    assert "the part 'optimizer'" not in stopped[0]
    assert [told(log) for log in finish([script], root=tmp_path / "cut", size=2, **environment)] == whole


def test_on_another_number_of_ranks_it_is_refused_unless_the_part_can_be_dealt_out(
    script: Path, tmp_path: Path
) -> None:
    finish([script], root=tmp_path / "cut", STOP="5")
    with Ranks([script], root=tmp_path / "cut", size=1) as ranks:
        assert ranks.wait() == [8]
        assert "the part 'stream' of the checkpoint has a state for each of 2 ranks, and now there are 1" in ranks.log(
            0
        )
        assert "give the part a method `reshard_state`" in ranks.log(0)


def test_a_part_that_can_be_dealt_out_gets_the_states_of_all_ranks(tmp_path: Path) -> None:
    script = tmp_path / "dealt.py"
    script.write_text(SCRIPT.replace("seen=seen, ", ""))
    left = [told(log) for log in finish([script], root=tmp_path / "cut", STOP="5", RESHARDS="1")]
    resumed = finish([script], root=tmp_path / "cut", size=1, RESHARDS="1", STOP="7")
    assert told(resumed[0], "RESUMED") == {"first": left[0]["step"], "taken": 2 * left[0]["taken"]}
    again = finish([script], root=tmp_path / "cut", size=2, RESHARDS="1")
    assert [told(log, "RESUMED")["taken"] for log in again] == [told(resumed[0])["taken"]] * 2
