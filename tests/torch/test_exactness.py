"""A job that is killed, stopped or robbed of its newest checkpoint ends with the weights of one that went through."""

import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from os import kill
from pathlib import Path

import pytest

from tests.support.addresses import free_port
from tests.support.trees import Run, Tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.kills

pytest.importorskip("torch")

#: Everything that exact resume has to bring back shapes these weights: moments, the schedule, running means of batch
#: norm, dropout, noise from three generators, the order of the samples, an average of the weights, a state that each
#: rank has of its own.
SCRIPT = """
import copy, hashlib, os, random, sys, time
import numpy, torch
from torch.nn import functional
from trainbox.torch import session

torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(192, 32), torch.randn(192, 4)
WIDTH, WAIT = int(os.environ["WIDTH"]), float(os.environ["WAIT"])

class Rows(torch.utils.data.Dataset):
    def __len__(self): return len(INPUTS)
    def __getitems__(self, indices): return INPUTS[indices], TARGETS[indices]

def net():
    hidden = [torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH), torch.nn.ReLU(), torch.nn.Dropout(0.2)] * 2
    return torch.nn.Sequential(torch.nn.Linear(32, WIDTH), *hidden, torch.nn.Linear(WIDTH, 4))

with session(seed=3) as run:
    bare = net()
    average = copy.deepcopy(bare)
    model = run.wrap(bare)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 32)
    batches = run.batches(len(INPUTS), batch_size=24)
    felt = {"losses": 0.0}  # by this rank alone
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, batches=batches, average=average, felt=felt)
    run.resume(every_seconds=0.0, **parts)
    print(f"PID {run.rank} {os.getpid()} from {run.step}", flush=True)
    while batches.epoch < 4 and not run.stopped:
        for inputs, targets in run.steps(batches.loader(Rows(), collate=tuple)):
            noise = random.random() + numpy.random.rand() + 0.01 * felt["losses"]
            loss = functional.mse_loss(model(inputs + 0.01 * noise * torch.randn_like(inputs)), targets)
            run.backward(loss)
            run.update(optimizer)
            schedule.step()
            felt["losses"] += loss.item()
            with torch.no_grad():
                for mean, now in zip(average.parameters(), bare.parameters()):
                    mean.lerp_(now, 0.1)
            print(f"STEP {run.step + 1} {run.rank}", flush=True)
            time.sleep(WAIT)
        if not run.stopped:
            batches.next_epoch()
if run.rank == 0 and not run.stopped:
    state = [*bare.state_dict().values(), *average.parameters()]
    digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in state)).hexdigest()
    print(f"DIGEST {run.step} {digest}", flush=True)
"""
#: The same with a loader of another library, which shuffles with a seed that it draws when it begins.
OWN_LOADER = SCRIPT.replace(
    "with session(",
    """
class Shuffled:
    state = None
    def __iter__(self):
        drawn = int(torch.randint(1 << 30, ()))
        self.live, self.state = self.state or {"seed": drawn, "given": 0}, None
        order = torch.randperm(192, generator=torch.Generator().manual_seed(self.live["seed"]))
        while self.live["given"] < 192:
            self.live["given"] += 24
            mine = order[self.live["given"] - 24 : self.live["given"]]
            yield INPUTS[mine], TARGETS[mine]
    def state_dict(self): return dict(self.live)
    def load_state_dict(self, state): self.state = dict(state)

own = Shuffled()
with session(""",
).replace("batches.loader(Rows(), collate=tuple)", "own")
STEPS = 32
#: Ranks, and a width with which DDP has several buckets where there are more ranks than two.
SHAPES = {2: "64", 4: "512"}
#: Where the kills of one job fall, one in each: the last leaves some steps to be trained after it.
SPANS = (range(2, 8), range(8, 13), range(13, 18), range(18, 23), range(23, STEPS - 4))


def has_come(log: str, rank: int, step: int, attempt: int) -> bool:
    """Whether a rank that has been started so many times before has come to a step, or beyond."""
    *before, last = re.split(rf"^PID {rank} ", log, flags=re.MULTILINE)
    steps = re.findall(rf"^STEP (\d+) {rank}$", last, re.MULTILINE)
    return len(before) == attempt + 1 and any(int(each) >= step for each in steps)


class Job:
    """A job of one host, whose log is a file that can be read while it runs."""

    def __init__(self, root: Path, ranks: int, program: str = SCRIPT) -> None:
        self.ranks = ranks
        self.tree = Tree(root / "ml").hosts("localhost").program(program)
        self.tree.hyperparameters(processes_per_host=ranks, trainbox_launcher="torchrun")
        self.tree.write("input/config/checkpointconfig.json", json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
        self.checkpoints = self.tree.root / "checkpoints"
        self._log = root / "log"

    def start(self, wait: float) -> "subprocess.Popen[bytes]":
        env = {"WIDTH": SHAPES[self.ranks], "WAIT": str(wait), "TRAINBOX_MAX_RESTARTS": "5", "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            return self.tree.start(env, stdout=log.fileno())

    def run(self, wait: float = 0.0) -> Run:
        return self.tree.finish(self.start(wait))

    def log(self) -> str:
        return self._log.read_text()

    def digest(self) -> str:
        (found,) = re.findall(rf"DIGEST {STEPS} (\w+)", self.log())
        return str(found)

    def processes(self) -> dict[int, int]:
        """The process of each rank, by the newest that has said so."""
        return {int(rank): int(pid) for rank, pid in re.findall(r"PID (\d+) (\d+) ", self.log())}

    def await_step(self, step: int, rank: int, *, attempt: int) -> None:
        """Until a rank that has been started so many times before has come to a step, or beyond."""
        eventually(lambda: has_come(self.log(), rank, step, attempt), f"step {step} of attempt {attempt}")

    def being_written(self) -> set[str]:
        return {path.name for path in self.checkpoints.glob(f".tmp-step-{'?' * 8}-*")}


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(ranks: int, program: str = SCRIPT) -> Job:
        jobs.append(Job(tmp_path / f"job-{len(jobs)}", ranks, program))
        return jobs[-1]

    yield make
    for made in jobs:
        made.tree.__exit__()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """The digest of a job of so many ranks that nothing happened to."""
    found: dict[int, str] = {}

    def of(ranks: int) -> str:
        if ranks not in found:
            whole = Job(tmp_path_factory.mktemp("whole"), ranks)
            run = whole.run()
            assert run.code == 0, run.log
            found[ranks] = whole.digest()
        return found[ranks]

    return of


@pytest.mark.parametrize(
    ("ranks", "seeds"),
    [
        pytest.param(2, range(3), marks=pytest.mark.representative),
        pytest.param(2, range(5), marks=pytest.mark.long),
        *(pytest.param(2, range(first, first + 5), marks=pytest.mark.long) for first in (5, 10, 15)),
        pytest.param(4, range(5), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_killed_at_any_moment_it_comes_to_the_same_weights(
    ranks: int, seeds: range, job: Callable[..., Job], expected: Callable[[int], str]
) -> None:
    """Each seed is a rank killed at a moment of its own; those of one job follow one another, each a restart."""
    killed = job(ranks)
    process = killed.start(wait=0.03)
    for number, (seed, span) in enumerate(zip(seeds, SPANS[: len(seeds)], strict=True)):
        chance = random.Random(seed)
        step, victim = chance.choice(span), chance.randrange(ranks)
        killed.await_step(step, victim, attempt=number)
        time.sleep(chance.random() * 0.05)
        kill(killed.processes()[victim], signal.SIGKILL)
    run = killed.tree.finish(process)
    assert run.code == 0, run.log
    assert run.log.count("was killed by SIGKILL") == len(seeds), run.log
    assert killed.digest() == expected(ranks), run.log


def test_killed_while_a_checkpoint_is_written_it_comes_to_the_same_weights(
    job: Callable[..., Job], expected: Callable[[int], str]
) -> None:
    killed = job(2)
    process = killed.start(wait=0.5)  # seconds a step: of each other step the ranks learn that a save is due
    for number in range(3):
        killed.await_step(1, 0, attempt=number)
        # Of the writes that come now, the first, then the second, then the third.
        before, met = killed.being_written(), set[str]()

        def is_written(number: int = number, before: set[str] = before, met: set[str] = met) -> bool:
            met.update(killed.being_written() - before)
            return len(met) > number

        eventually(is_written, "a checkpoint that is being written")
        kill(killed.processes()[0], signal.SIGKILL)
    run = killed.tree.finish(process)
    assert run.code == 0, run.log
    assert run.log.count("rank 0 was killed by SIGKILL") == 3, run.log
    assert killed.digest() == expected(2), run.log


@pytest.mark.long
def test_a_loader_with_a_state_of_its_own_goes_on_where_it_stood_after_kills(job: Callable[..., Job]) -> None:
    whole, killed = job(2, OWN_LOADER), job(2, OWN_LOADER)
    assert whole.run().code == 0, whole.log()
    process = killed.start(wait=0.03)
    for number, (step, victim) in enumerate(((6, 1), (19, 0))):
        killed.await_step(step, victim, attempt=number)
        kill(killed.processes()[victim], signal.SIGKILL)
    run = killed.tree.finish(process)
    assert run.code == 0, run.log
    assert run.log.count("was killed by SIGKILL") == 2, run.log
    assert killed.digest() == whole.digest(), run.log


#: Attempts of one job, each of which resumes what the one before left: at which step it is ended, by a signal to the
#: job as a whole, and what is then done to its newest checkpoint. After these, one goes through.
ATTEMPTS = (
    ((2, signal.SIGTERM, ""), (9, signal.SIGTERM, "flip"), (16, signal.SIGKILL, ""), (23, signal.SIGTERM, "truncate")),
    ((5, signal.SIGTERM, "remove"), (12, signal.SIGTERM, ""), (19, signal.SIGTERM, "tear")),
)


@pytest.mark.timeout(240)
@pytest.mark.long
@pytest.mark.parametrize("attempts", ATTEMPTS, ids=["flip, truncate", "remove, tear"])
def test_stopped_and_robbed_of_its_newest_checkpoint_it_comes_to_the_same_weights(
    attempts: tuple[tuple[int, signal.Signals, str], ...], job: Callable[..., Job], expected: Callable[[int], str]
) -> None:
    ended = job(2)
    says, spoiled = "no checkpoint in ", ended.tree.root / "none"
    for number, (step, how, damage) in enumerate(attempts):
        process = ended.start(wait=0.03)
        ended.await_step(step, 0, attempt=number)
        process.send_signal(how)
        run = ended.tree.finish(process)
        assert re.search(says, run.log), run.log
        shutil.rmtree(spoiled, ignore_errors=True)  # or it would still be the one before, where steps are few
        if how == signal.SIGKILL:  # its ranks have died with it
            says = r"resuming from step [1-9]\d* "
            continue
        assert run.code == 0, run.log
        assert run.failure is None
        (left,) = re.findall(r"all ranks leave after step (\d+); it is saved", run.log)
        assert step <= int(left) < STEPS
        newest, before = sorted(ended.checkpoints.glob("step-*"), reverse=True)[:2]
        assert newest.name == f"step-{int(left):08d}"
        says = f"resuming from step {left} "
        if damage:
            spoil(newest, damage)
            spoiled = newest
            says = f"rejected the checkpoint {newest}(?s:.*)resuming from step {int(before.name[5:13])} "
    run = ended.run()
    assert run.code == 0, run.log
    assert re.search(says, run.log), run.log
    assert ended.digest() == expected(2)


def spoil(checkpoint: Path, damage: str) -> None:
    manifest = checkpoint / "MANIFEST.json"
    data = max((path for path in checkpoint.iterdir() if path != manifest), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        data.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:-40])


# -- a sharded state on two hosts --------------------------------------------------------------------------------------

SHARDED = """
import hashlib, os, time
import torch
from torch.nn import functional
from trainbox.torch import session

torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(192, 32), torch.randn(192, 4)

class Rows(torch.utils.data.Dataset):
    def __len__(self): return len(INPUTS)
    def __getitems__(self, indices): return INPUTS[indices], TARGETS[indices]

def net():
    hidden = [torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Dropout(0.2)] * 2
    return torch.nn.Sequential(torch.nn.Linear(32, 512), *hidden, torch.nn.Linear(512, 4))

with session(seed=3) as run:
    model = run.wrap(net(), sharded=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = run.batches(len(INPUTS), batch_size=24)
    run.resume(every_seconds=0.0, model=model, optimizer=optimizer, batches=batches)
    print(f"PID {run.rank} {os.getpid()} from {run.step}", flush=True)
    while batches.epoch < 2 and not run.stopped:
        for inputs, targets in run.steps(batches.loader(Rows(), collate=tuple)):
            run.backward(functional.mse_loss(model(inputs), targets))
            run.update(optimizer)
            print(f"STEP {run.step + 1} {run.rank}", flush=True)
            time.sleep(float(os.environ["WAIT"]))
        if not run.stopped:
            batches.next_epoch()
    state = [value.full_tensor() for value in model.parameters()]
digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in state)).hexdigest()
print(f"DIGEST {run.step} {digest}", flush=True)
"""
HOSTS = ("127.0.0.1", "127.0.0.2")
STATE_BYTES = 12 * (2 * 512 * 512)


class Pair:
    """A job of two hosts, whose disks are their own."""

    def __init__(self, root: Path) -> None:
        self.trees = [Tree(root / name / "ml").hosts(*HOSTS, current=name).program(SHARDED) for name in HOSTS]
        self.logs = [root / name / "log" for name in HOSTS]
        for tree in self.trees:
            tree.hyperparameters(processes_per_host=1, trainbox_launcher="torchrun")
            tree.write("input/config/checkpointconfig.json", json.dumps({"LocalPath": "/opt/ml/checkpoints"}))

    def start(self, wait: float) -> "list[subprocess.Popen[bytes]]":
        port = str(free_port())
        processes = []
        for tree, path in zip(self.trees, self.logs, strict=True):
            with path.open("ab") as log:
                env = {"MASTER_PORT": port, "WAIT": str(wait), "OMP_NUM_THREADS": "1"}
                processes.append(tree.start(env, stdout=log.fileno(), stderr=log.fileno()))
        return processes

    def finish(self, processes: "list[subprocess.Popen[bytes]]") -> str:
        """The digest of both."""
        codes = [tree.finish(process).code for tree, process in zip(self.trees, processes, strict=True)]
        assert codes == [0, 0], self.log(0) + self.log(1)
        (digest,) = {found for host in (0, 1) for found in re.findall(r"DIGEST 16 (\w+)", self.log(host))}
        return str(digest)

    def wait(self, rank: int, step: int, *, attempt: int) -> None:
        """Until a rank, one of each host, that has been started so many times before has come to a step."""
        eventually(
            lambda: has_come(self.log(rank), rank, step, attempt),
            f"step {step} of rank {rank}, attempt {attempt}",
            logs=lambda: self.log(0) + self.log(1),
        )

    def log(self, host: int) -> str:
        return self.logs[host].read_text(errors="replace")

    def __exit__(self, *_: object) -> None:
        for tree in self.trees:
            tree.__exit__()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.__exit__()


@pytest.fixture(scope="module")
def expected_of_two_hosts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a job that nothing happened to."""
    whole = Pair(tmp_path_factory.mktemp("whole"))
    try:
        return whole.finish(whole.start(wait=0.0))
    finally:
        whole.__exit__()


@pytest.mark.long
def test_a_sharded_job_on_hosts_with_disks_of_their_own_comes_to_the_same_weights_after_a_kill(
    pair: Pair, expected_of_two_hosts: str
) -> None:
    """Of a rank of the first host, then of the second."""
    processes = pair.start(wait=0.1)
    for victim, step in ((0, 4), (1, 9)):
        pair.wait(victim, step, attempt=victim)
        kill(int(re.findall(rf"PID {victim} (\d+) ", pair.log(victim))[-1]), signal.SIGKILL)
    assert pair.finish(processes) == expected_of_two_hosts
    for victim in (0, 1):
        assert f"restart {victim + 1} of 3: rank {victim} was killed by SIGKILL" in pair.log(0)
    steps = re.findall(r"resuming from step (\d+) \(the shards of 127.0.0.1, 127.0.0.2\)", pair.log(0))
    assert len(steps) == 2
    assert int(steps[1]) > int(steps[0]) >= 1
    # What a rank has written itself it does not get from another: here that is all but how the files are laid out.
    got = re.findall(r"rank \d has fetched ([\d,]+) bytes", pair.log(0) + pair.log(1))
    assert 0 < sum(int(size.replace(",", "")) for size in got) < STATE_BYTES // 10
