"""Every kind of process that the launcher starts is killed, frozen for ever and asked to stop, at every stage of a job.

Each time the job ends (or completes), says what was hit and nothing else, leaves no process behind and keeps the last
whole checkpoint. What is hit is tied to what the ranks have written, not to seconds.
"""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from tests.support.addresses import free_port
from tests.support.trees import Run, Tree, is_alive

pytest.importorskip("torch")

from tests.support.waiting import eventually
from trainbox.checkpoint.store import Checkpoints
from trainbox.system.procfs import process_state

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

#: A session that saves at every fifth step, and waits for the file `go` at the stage that the test names.
SCRIPT = """
import os, time
from pathlib import Path
root, rank = Path(os.environ["TRAINBOX_ROOT"]), int(os.environ["RANK"])

def reached(stage):
    (root / f"{stage}-{rank}").touch()
    while stage == STAGE and not (root / "go").exists() and not trainbox.stop_requested():
        time.sleep(0.01)

(root / f"start-{rank}").touch()
while STAGE == "start" and not (root / "go").exists(): time.sleep(0.01)
import torch, trainbox
from trainbox.torch import session
if rank: reached("join")
with session() as run:
    model = run.wrap(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = run.batches(80, batch_size=4)
    run.resume(every_seconds=1000, model=model, optimizer=optimizer, batches=batches)
    for inputs in run.steps(batches.loader(torch.randn(80, 4))):
        run.backward(model(inputs).square().mean())
        run.update(optimizer)
        if run.step % 5 == 0:
            if run.step == 10 and rank == 0: reached("saving")
            run.save()
            if rank == 0: (root / f"saved-{run.step}").touch()
        if run.step == 7: reached("training")
print("ended", rank, run.step, flush=True)
"""
HOSTS = ("127.0.0.1", "127.0.0.2")
LIMIT = 8.0
#: Longer than any of it takes.
SECONDS = 120.0
KILL, STOP, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM


class Case(msgspec.Struct, frozen=True):
    """What is hit, by what, when."""

    victim: str
    number: signal.Signals
    stage: str
    hosts: int = 1
    #: The host whose process is hit.
    where: int = 0

    def __str__(self) -> str:
        return f"{self.victim}-{self.number.name}-{self.stage}-{self.where + 1}of{self.hosts}"


def cases() -> Iterator[Case]:
    for hosts, where in ((1, 0), (2, 0), (2, 1)):
        for stage in ("start", "join", "training", "saving"):
            for number in (KILL, STOP, TERM):
                for victim in ("supervisor", "agent", "server", "writer"):
                    # Only the first rank of all has a writer, once it has trained; nobody is there to thaw process 1.
                    has_writer = where == 0 and stage in {"training", "saving"}
                    if (victim != "writer" or has_writer) and (victim, number) != ("supervisor", STOP):
                        yield Case(victim, number, stage, hosts, where)


#: What is frozen: test_launch.py kills, and every test of a stop sends SIGTERM. The rest are other moments and hosts.
DEFAULT = {
    Case("agent", STOP, "training"),
    Case("writer", STOP, "saving"),
}


PARAMETERS = [pytest.param(case, id=str(case), marks=() if case in DEFAULT else pytest.mark.long) for case in cases()]


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_process_that_is_hit_is_named_and_nothing_is_lost_or_left(case: Case, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        trees = [stack.enter_context(Tree(tmp_path / str(number) / "ml")) for number in range(case.hosts)]
        runs, saved = hit(case, trees)
    hit_one = runs[case.where]
    log = "".join(run.log for run in runs)
    expect(case, hit_one)
    for run in runs:
        if run is not hit_one:
            expect_of_peer(case, run, hit_one)
    assert not re.search(r"a defect of trainbox|does not handle|made no progress", log), log
    if case.victim == "supervisor":  # nobody is there to end them: they find out by themselves
        eventually(lambda: orphans(trees) == [], "the end of processes that are left")
    assert orphans(trees) == []
    newest = Checkpoints(trees[0].root / "checkpoints").latest()
    assert (newest.step if newest else 0) >= saved, log


def hit(case: Case, trees: Sequence[Tree]) -> tuple[list[Run], int]:
    """Run the job and hit the process; how the hosts have ended, and the last step that was saved before."""
    names = HOSTS[: case.hosts] if case.hosts > 1 else ("localhost",)
    port = str(free_port())
    processes = []
    for tree, name in zip(trees, names, strict=True):
        tree.hosts(*names, current=name).hyperparameters(
            processes_per_host=3 - case.hosts,
            trainbox_launcher="torchrun",
            trainbox_hang_seconds=LIMIT,
            trainbox_grace_seconds=10_000,  # it is never waited out
        )
        tree.program(SCRIPT.replace("STAGE", repr(case.stage)))
        processes.append(tree.start({"MASTER_PORT": port}))
    root = trees[0].root
    place = {"saving": 0, "join": case.hosts - 1, "start": case.where, "training": case.where}[case.stage]
    mark = {"join": "join-1", "saving": "saving-0"}.get(case.stage, f"{case.stage}-{case.where}")
    stage = trees[place].root / mark
    eventually(lambda: stage.exists() or any(one.poll() is not None for one in processes), "the stage")
    saved = max((int(path.name.partition("-")[2]) for path in root.glob("saved-*")), default=0)
    pid = find(case.victim, processes[case.where].pid)
    os.kill(pid, case.number)
    if case.number == STOP:
        eventually(lambda: process_state(pid) in "TXZ", "a process that is stopped")
    if (
        case.victim not in {"agent", "supervisor"} or case.number == TERM
    ):  # else the ranks of the others would be through
        for tree in trees:
            (tree.root / "go").touch()
    eventually(lambda: all(one.poll() is not None for one in processes), "the end")
    return [tree.finish(process) for tree, process in zip(trees, processes, strict=True)], saved


def expect(case: Case, run: Run) -> None:
    """How the host ends whose process was hit."""
    if case.victim == "writer" or (case.victim == "server" and case.number == TERM):
        assert run.code == 0, run.log
        if case.number != TERM:
            how = r"process \d+ was stopped for [\d.]+ s and was ended" if case.number == STOP else "exit code -9"
            assert re.search(rf"the writer of checkpoints has ended \({how}\)", run.log), run.log
        return
    if case.victim == "supervisor" and case.number == KILL:
        assert run.code == -KILL
        return
    if case.number == TERM:  # it is passed on to the ranks
        assert run.code in ({0} if case.stage in {"training", "saving"} else {0, 143}), run.log
        assert run.code == 0 or str(run.failure).startswith("stopped by SIGTERM"), run.failure
        return
    who = {"agent": "the agent, which", "server": r"the fork server \(process \d+\), which"}[case.victim]
    how = r"was stopped (?:\(SIGSTOP\) )?for [\d.]+ s and was ended" if case.number == STOP else "was killed by SIGKILL"
    assert run.code == 137, run.log
    assert re.match(rf"AlgorithmError: {who} starts the ranks, {how}; its ranks ended with it\n", str(run.failure))


def expect_of_peer(case: Case, run: Run, hit_one: Run) -> None:
    """How another host ends."""
    if hit_one.code in {0, 143}:
        assert run.code == hit_one.code, run.log
        return
    name = HOSTS[case.where]
    assert run.code == (137 if case.victim == "server" else 5), run.log
    if case.victim == "server":
        assert str(run.failure).startswith(f"PEER {name}: {str(hit_one.failure).splitlines()[0]}"), run.failure
    else:  # it could say nothing any more
        assert str(run.failure).startswith(f"PEER {name}: lost host {name}: no sign of life from its agent"), (
            run.failure
        )


def find(victim: str, supervisor: int) -> int:
    """The process id of one of the processes of a host."""
    if victim == "supervisor":
        return supervisor
    agent = next(pid for pid in children(supervisor) if "trainbox.launcher" in command(pid))
    if victim == "agent":
        return agent
    server = next(iter(children(agent)))
    if victim == "server":
        return server
    found: list[int] = []

    def look() -> bool:
        below = [pid for rank in children(server) for pid in children(rank)]
        found[:] = [pid for pid in below if "trainbox.torch.checkpoints.writer" in command(pid)]
        return bool(found)

    eventually(look, "the writer of checkpoints")
    return found[0]


def children(pid: int) -> list[int]:
    return [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]


def command(pid: int) -> str:
    return read(f"/proc/{pid}/cmdline").replace("\0", " ")


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def orphans(trees: Sequence[Tree]) -> list[str]:
    """Processes of these jobs that are still there."""
    marks = [f"TRAINBOX_ROOT={tree.root}\0" for tree in trees]
    ours: Callable[[Path], bool] = lambda path: any(mark in read(str(path / "environ")) for mark in marks)  # noqa: E731
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*") if ours(path)]
    return [command(pid) for pid in pids if is_alive(pid)]
