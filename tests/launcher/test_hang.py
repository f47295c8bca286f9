"""A rank that stands still is found, named, shown and replaced: real ranks, frozen by SIGSTOP or asleep for ever."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.addresses import free_port
from tests.support.trees import Run, Tree
from tests.support.waiting import eventually
from tests.support.worlds import Ranks
from trainbox.contract.cluster import progress
from trainbox.contract.job import read_job
from trainbox.launcher import hang_rules
from trainbox.launcher.hang_detector import HangDetector
from trainbox.system.procfs import process_state

pytestmark = pytest.mark.cluster

pytest.importorskip("torch")

#: Ranks that say how far they are, as a session does; one of them may stop at a step.
SCRIPT = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from pathlib import Path
from trainbox.contract.cluster.progress import PROGRESS_VARIABLE, RankProgress, StepPhase

rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
progress = RankProgress(Path(os.environ[PROGRESS_VARIABLE]), int(os.environ["LOCAL_RANK"]))
progress.mark(0, StepPhase.START)
dist.init_process_group("gloo")

def stand_still():
    time.sleep(1000)

for step in range(1, 31):
    progress.mark(step - 1, StepPhase.DATA)
    {what}
    progress.mark(step - 1, StepPhase.COMPUTE)
    total = torch.ones(1)
    dist.all_reduce(total)
    progress.mark(step, StepPhase.DATA)
print("ended", rank, attempt, flush=True)
progress.mark(30, StepPhase.DONE)
dist.barrier()
dist.destroy_process_group()
"""
LIMIT = 2.0


def script(what: str) -> str:
    return SCRIPT.replace("{what}", what)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        built.hosts("localhost").hyperparameters(
            processes_per_host=2, trainbox_launcher="torchrun", trainbox_hang_seconds=LIMIT
        )
        yield built


def ended(run: Run) -> list[str]:
    return sorted(line for line in run.stdout.decode().splitlines() if line.startswith("ended"))


@pytest.mark.representative
def test_a_frozen_rank_is_named_killed_and_replaced_and_rehearsed_faults_strike_once(tree: Tree) -> None:
    run = tree.program(script("time.sleep(0.1)")).run(TRAINBOX_DRILL="kill 1@4, freeze 0@8")
    assert run.code == 0, run.log
    assert ended(run) == ["ended 0 2", "ended 1 2"]
    assert re.findall(r"trainbox: rehearsing: (.*)", run.log) == ["kill 1@4", "freeze 0@8"]
    assert re.search(r"restart 1 of 3: rank 1 was killed by SIGKILL after step \d+\n", run.log)
    (line,) = re.findall(r"trainbox: restart 2 of 3: (.*)", run.log)
    waited = re.fullmatch(
        r"rank 0 made no progress for ([\d.]+) s in (DATA|COMPUTE) after step \d+ \(its process is stopped\)", line
    )
    assert waited, line
    assert float(waited[1]) >= LIMIT
    stacks = tree.output / "data/hang"
    assert "no stacks: the process is in state T" in (stacks / "rank-0.txt").read_text()
    assert "all_reduce" in (stacks / "rank-1.txt").read_text()


@pytest.mark.long
def test_saving_and_evaluating_may_take_longer_than_a_step_and_who_never_returns_shows_where_it_is(tree: Tree) -> None:
    mark = "progress.mark(3, StepPhase({}))"
    longer = f"if step == 3: {mark.format('3 + rank')}; time.sleep({LIMIT} + 1); {mark.format(2)}"
    never = "if rank == 1 and step == 5: stand_still()"
    run = tree.program(script(f"{longer}\n    {never}")).run(TRAINBOX_MAX_RESTARTS="0")
    assert run.code == 137
    assert re.match(r"rank 1 made no progress for [\d.]+ s in DATA after step 4\b", str(run.failure)), run.failure
    assert f"hint: the stacks of all ranks are in {tree.output / 'data/hang'}" in str(run.failure)
    assert re.search(r'File ".*/train.py", line \d+ in stand_still', (tree.output / "data/hang/rank-1.txt").read_text())


def test_a_frozen_rank_hears_that_the_job_is_stopped_and_can_save(tree: Tree, tmp_path: Path) -> None:
    note, saved = tmp_path / "pid", tmp_path / "saved"
    saves = f"signal.signal(signal.SIGTERM, lambda *_: os._exit(Path({str(saved)!r}).write_text('') or 0))"
    still = f"{saves}; Path({str(note)!r}).write_text(str(os.getpid())); os.kill(os.getpid(), signal.SIGSTOP)"
    tree.program(script(f"if (rank, step) == (1, 5): {still}")).hyperparameters(
        processes_per_host=2, trainbox_launcher="torchrun", trainbox_hang_seconds=60
    )
    process = tree.start()
    eventually(lambda: note.exists() and process_state(int(note.read_text() or 0)) == "T", "a rank that is stopped")
    process.terminate()
    assert tree.finish(process).code == 143
    assert saved.exists()


@pytest.mark.long
def test_the_host_of_a_frozen_rank_is_found_among_several(tmp_path: Path) -> None:
    names = ("127.0.0.1", "127.0.0.2")
    still = "if (rank, attempt, step) == (1, 0, 9): os.kill(os.getpid(), signal.SIGSTOP)"
    with Tree(tmp_path / "one/ml") as one, Tree(tmp_path / "two/ml") as two:
        processes = []
        port = str(free_port())
        for tree, name in ((one, names[0]), (two, names[1])):
            tree.hosts(*names, current=name).hyperparameters(
                processes_per_host=1, trainbox_launcher="torchrun", trainbox_hang_seconds=LIMIT
            )
            processes.append(tree.program(script(still)).start({"MASTER_PORT": port}))
        runs = [tree.finish(process) for tree, process in zip((one, two), processes, strict=True)]
    assert [run.code for run in runs] == [0, 0], runs[0].log + runs[1].log
    for run in runs:
        assert re.search(r"restart 1 of 3: rank 1 made no progress for .* \(its process is stopped\)\n", run.log)
    assert "all_reduce" in (tmp_path / "one/ml/output/data/hang/rank-0.txt").read_text()
    assert "in state T" in (tmp_path / "two/ml/output/data/hang/rank-1.txt").read_text()


# -- slow ranks --------------------------------------------------------------------------------------------------------

#: DDP makes rank 0, which is fast, wait for rank 1 before each forward pass (batch norm has buffers) and after each
#: backward pass: what each of them takes by itself has to be told from that.
SLOW = """
import time
import torch
from trainbox.torch import session

SECONDS = 0.05

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 100_000
    def __getitems__(self, indices):
        time.sleep(SECONDS * (run.rank == SLOW_IN_DATA))
        return torch.ones(len(indices), 32)

with session() as run:
    layers = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 4))
    model = run.wrap(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in run.steps(run.batches(100_000, batch_size=16).loader(Rows(), collate=torch.Tensor)):
        # Of the other rank, too, so long that what the machine does beside it is little of it.
        time.sleep(SECONDS * (1 + 2 * (run.rank == SLOW_IN_COMPUTE)))
        run.backward(model(batch).square().mean())
        run.update(optimizer)
"""


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize(("phase", "said"), [("data", "waits for data"), ("compute", "computes")])
def test_of_ranks_that_wait_for_each_other_the_slow_one_is_named_and_what_it_is_slow_in(
    phase: str, said: str, slow: int, tmp_path: Path
) -> None:
    program = tmp_path / "slow.py"
    place = {"SLOW_IN_DATA": "-1", "SLOW_IN_COMPUTE": "-1", f"SLOW_IN_{phase.upper()}": str(slow)}
    program.write_text("".join(f"{name} = {value}\n" for name, value in place.items()) + SLOW)
    shared, lines = tmp_path / "progress", list[str]()
    progress.create(shared, 2)
    job = read_job(tmp_path / "ml", {})
    with Ranks([program], root=tmp_path / "ml", environment={progress.PROGRESS_VARIABLE: str(shared)}) as ranks:
        watch = HangDetector(job, alone(), processes(ranks.pids), lines.append, window_seconds=0.5)
        watch.begin({0: 0, 1: 1}, shared)
        ranks.until(lambda: all(slot.step >= 10 for slot in progress.read(shared)))

        windows = set()

        def look() -> int:
            assert watch.find_hanging() is None
            windows.add(watch._window_at)
            return len(windows)

        ranks.until(lambda: look() > 0 and bool(lines))
        said_after = len(windows)
        ranks.until(lambda: look() > said_after + 3 * hang_rules.SLOW_WINDOWS)  # nothing else is said of anybody
    assert len(lines) == 1, lines
    found = re.fullmatch(
        rf"WARNING: rank {slow} on here is slow: it {said} ([\d.]+) s in a step, the fastest ([\d.]+) s", lines[0]
    )
    assert found, lines
    assert float(found[1]) >= float(found[2]) + 0.02


def alone() -> Any:
    """The coordination of one host."""
    return SimpleNamespace(host="here", hosts=("here",))


def processes(pids: list[int]) -> Any:
    """The ranks as the agent knows them."""
    return SimpleNamespace(alive=[0, 1], all={local: SimpleNamespace(pid=pid) for local, pid in enumerate(pids)})
