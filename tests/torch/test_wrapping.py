"""The options of DDP that a script gives to `wrap`, and what is said about parameters that the loss does not use."""

import textwrap
from pathlib import Path

import pytest

from tests.support.worlds import Ranks, finish
from trainbox.errors import HyperparameterError
from trainbox.torch.parallel.wrapping import check_options, rounds_anew

pytestmark = pytest.mark.process

#: A head that the loss does not use, on two ranks.
UNUSED = """
import os
import torch
from trainbox.torch import session

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 1)

    def forward(self, values):
        return self.body(values)

with session() as run:
    bare = Net()
    model = run.wrap(bare, **({"find_unused_parameters": True} if "FIND" in os.environ else {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in run.steps([torch.ones(2, 4)] * 3):
        run.backward(model(batch).mean())
        run.update(optimizer)
print("STEPS", run.step, model.find_unused_parameters)
"""


def test_the_hint_behind_torchs_text_names_the_option_and_the_parameters(tmp_path: Path) -> None:
    script = tmp_path / "unused.py"
    script.write_text(textwrap.dedent(UNUSED))
    with Ranks([script], root=tmp_path / "root") as ranks:
        codes = ranks.wait()
        assert 11 in codes, ranks.log(0)
        log = ranks.log(codes.index(11))
    assert "TrainingError: Expected to have finished reduction in the prior iteration" in log
    assert (
        "hint: run.wrap(model, find_unused_parameters=True), or let the loss of every rank use head.weight, head.bias"
        in log
    )
    for log in finish([script], root=tmp_path / "found", FIND="1"):
        assert "STEPS 3 True" in log


@pytest.mark.parametrize(
    ("options", "sharded", "message"),
    [
        (
            {"find_unused_parameter": True},
            False,
            "no option 'find_unused_parameter' - did you mean 'find_unused_parameters'?",
        ),
        ({"device_ids": [0]}, False, "'device_ids' is set by the session"),
        (
            {"static_graph": True},
            True,
            "'static_graph' is an option of DistributedDataParallel, and sharded=True uses FSDP2",
        ),
    ],
)
def test_an_option_that_cannot_be_had_is_refused(options: dict[str, object], sharded: bool, message: str) -> None:
    with pytest.raises(HyperparameterError) as caught:
        check_options(options, sharded=sharded)
    assert message in str(caught.value)


def test_options_of_ddp_are_taken_and_a_static_graph_rounds_anew_from_three_ranks_on() -> None:
    check_options({"gradient_as_bucket_view": False, "static_graph": True, "bucket_cap_mb": 1}, sharded=False)
    assert not rounds_anew({"static_graph": True}, 2)
    assert rounds_anew({"static_graph": True}, 3)
    assert not rounds_anew({"find_unused_parameters": True}, 3)
