"""What is saved is what a restarted training goes on with, to the bit, whoever is killed and whatever the disk does."""

import base64
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.forged_checkpoints import NAME, forge_index, forge_item, seal_anew
from tests.support.trees import is_alive
from tests.support.waiting import eventually
from trainbox.checkpoint.store import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.system.procfs import process_state
from trainbox.torch.checkpoints.run_info import STALLS, RunInfo, SaveSchedule
from trainbox.torch.checkpoints.saver import Saver
from trainbox.torch.checkpoints.writer import STATE, shard_name

pytestmark = pytest.mark.process

SECONDS = 240
KEY = bytes(range(32))


class Training:
    """A small model with everything that has a state."""

    def __init__(self, directory: Path, seed: int, **options: Any) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what is tested
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
        self.progress: dict[str, Any] = {"best": float("inf"), "history": []}
        parts = {name: part for name, part in vars(self).items() if name != "parts"}
        self.saver = Saver(Checkpoints(directory), parts, RunInfo(**options))

    def step(self) -> None:
        noise = torch.from_numpy(np.random.randn(4, 8)).float() * random.random()  # noqa: NPY002
        loss = self.model(torch.randn(4, 8) + noise).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.ema.update_parameters(self.model)
        self.progress["best"] = min(self.progress["best"], loss.item())
        self.progress["history"].append(loss.item())

    def state(self) -> str:
        """Every bit of it, the generators' next numbers included."""
        tensors = [*self.model.state_dict().values(), *self.ema.state_dict().values()]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        return repr(
            (
                [tensor.flatten().tolist() for tensor in tensors],
                self.optimizer.param_groups[0]["lr"],
                self.scheduler.state_dict(),
                self.scaler.state_dict(),
                self.progress,
                torch.get_rng_state().tolist(),
                random.getstate(),
                np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
            )
        )


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    made: list[Training] = []

    def make(seed: int = 0, directory: Path = tmp_path, **options: Any) -> Training:
        made.append(Training(directory, seed, **options))
        return made[-1]

    yield make
    for one in made:
        one.saver.close()


def writer_of(saver: Saver) -> int:
    process_id = saver._writer.process_id
    assert process_id is not None
    return process_id


def newest(directory: Path) -> int:
    found = Checkpoints(directory).find().chosen
    return 0 if found is None else found.step


# --- exactly what was there ---------------------------------------------------------------------------------------


def test_a_resumed_training_goes_on_as_if_nothing_had_happened(training: Callable[..., Training]) -> None:
    one = training(1)
    assert one.saver.resume() == 0
    for _ in range(5):
        one.step()
    one.saver.save(5)
    for _ in range(5):  # while it is written
        one.step()
    one.saver.close()
    other = training(2)
    assert other.saver.resume() == 5
    for _ in range(5):
        other.step()
    assert other.state() == one.state()


def test_saving_changes_nothing_of_the_training(training: Callable[..., Training], tmp_path: Path) -> None:
    one, other = training(1), training(1, tmp_path / "other")
    states = []
    for saved, run in ((True, one), (False, other)):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        for step in range(1, 4):
            run.step()
            if saved:
                run.saver.save(step)
        states.append(run.state())
    assert states[0] == states[1]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, while it loads its compiler
def test_parts_are_seen_through_their_wrappers(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    compiled = torch.compile(model)
    saver = Saver(Checkpoints(tmp_path), {"model": compiled})
    saver.save(1, wait=True)
    saver.close()
    other = torch.nn.Linear(2, 2)
    assert Saver(Checkpoints(tmp_path), {"model": other}).resume() == 1
    assert torch.equal(other.weight, model.weight)


def test_the_state_may_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress: dict[str, Any] = {"seen": torch.zeros(10)}
    saver = Saver(Checkpoints(tmp_path), {"progress": progress})
    saver.save(1, wait=True)
    progress["seen"] = torch.arange(3_000_000)
    saver.save(2, wait=True)
    saver.close()
    assert "has grown to" in capsys.readouterr().err
    back: dict[str, Any] = {}
    assert Saver(Checkpoints(tmp_path), {"progress": back}).resume() == 2
    assert torch.equal(back["seen"], progress["seen"])


# --- the schedule -------------------------------------------------------------------------------------------------


def test_stalls_stretch_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    schedule = SaveSchedule(0.05)
    assert not schedule.due()
    time.sleep(0.06)
    assert schedule.due()
    schedule.saved(0.2 * STALLS)
    time.sleep(0.06)
    assert not schedule.due()
    time.sleep(0.15)
    assert schedule.due()
    assert capsys.readouterr().err == "", "what stretches by less than a second is not worth a line"
    schedule.saved(20 * STALLS)
    assert not schedule.due()
    assert "the next one follows after 20 s" in capsys.readouterr().err


def test_none_is_due_while_one_is_written(training: Callable[..., Training]) -> None:
    one = training(1, interval_seconds=0.0)
    one.step()
    assert one.saver.due()
    os.kill(writer_of(one.saver), signal.SIGSTOP)
    one.saver.save(1)
    assert not one.saver.due()
    os.kill(writer_of(one.saver), signal.SIGCONT)
    eventually(one.saver.due, "the checkpoint is never done")
    assert one.saver.last is not None
    assert (one.saver.last.step, one.saver.last.durable >= one.saver.last.stall > 0) == (1, True)


# --- those that must not be loaded --------------------------------------------------------------------------------


def resaved(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The newest checkpoint once more, valid, with another document."""
    found = Checkpoints(path).find().chosen
    assert found is not None
    document = json.loads((found.path / STATE).read_text())
    change(document)
    with Checkpoints(path).writing(found.step + 1) as aside:
        (aside / STATE).write_text(json.dumps(document))
        (aside / shard_name(0)).write_bytes((found.path / shard_name(0)).read_bytes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(codec=99), "state format 99"),
        (lambda document: document.update(trainbox="7.3.0"), "written by trainbox 7.3.0"),
        (lambda document: document.update(byteorder="big"), "big-endian machine"),
        (lambda document: document.pop("parts"), "cannot be read: Object missing required field `parts`"),
        (lambda document: document["parts"].pop("scheduler"), "scheduler: absent in the checkpoint, CosineAnnealingLR"),
        (lambda document: document["parts"]["optimizer"].update(kind="SGD"), "optimizer: SGD in the checkpoint, AdamW"),
    ],
)
def test_a_checkpoint_of_another_version_or_training_is_refused(
    training: Callable[..., Training], tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    training(1).saver.save(1, wait=True)
    resaved(tmp_path, change)
    with pytest.raises(CheckpointError, match=r".*") as refused:
        training(2).saver.resume()
    assert said in refused.value.message
    assert (refused.value.exit_code, bool(refused.value.hint or "missing" in said)) == (8, True)


def test_a_checkpoint_of_another_model_shows_the_differences(tmp_path: Path) -> None:
    saver = Saver(Checkpoints(tmp_path), {"model": torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))})
    saver.save(1, wait=True)
    saver.close()
    other = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 3, bias=False).half())
    with pytest.raises(CheckpointError) as refused:
        Saver(Checkpoints(tmp_path), {"model": other}).resume()
    assert "model: 1.weight: float32 [2, 16] in the checkpoint, float16 [3, 16] now" in refused.value.message
    assert "1.bias: float32 [2] in the checkpoint, absent now" in refused.value.message


def test_other_hyperparameters_are_refused_and_shown(training: Callable[..., Training]) -> None:
    training(1, identity={"layers": (1, 2), "dropout": 0.1}).saver.save(1, wait=True)
    assert training(1, identity={"layers": [1, 2], "dropout": 0.1}).saver.resume() == 1
    with pytest.raises(CheckpointError, match=r"dropout: 0.1 in the checkpoint, 0.2 now; width: 'absent' in the"):
        training(1, identity={"layers": (1, 2), "dropout": 0.2, "width": 7}).saver.resume()


def test_a_checkpoint_of_something_else_is_refused(training: Callable[..., Training], tmp_path: Path) -> None:
    with Checkpoints(tmp_path).writing(1) as path:
        (path / "model.ubj").write_bytes(b"trees")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint of trainbox.torch"):
        training(1).saver.resume()


def test_a_state_that_cannot_be_saved_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"progress\['seen'\] is of type builtins.set"):
        Saver(Checkpoints(tmp_path), {"progress": {"seen": {1, 2}}})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "a flipped bit in the tensors": lambda new, _: flip(new / shard_name(0)),
    "a flipped bit in the tree": lambda new, _: flip(new / STATE),
    "a flipped bit in the manifest": lambda new, _: flip(new / "MANIFEST.json"),
    "truncated tensors": lambda new, _: os.truncate(new / shard_name(0), 100),
    "a torn manifest": lambda new, _: os.truncate(new / "MANIFEST.json", 100),
    "no manifest": lambda new, _: (new / "MANIFEST.json").unlink(),
    "missing tensors": lambda new, _: (new / shard_name(0)).unlink(),
    "missing tree": lambda new, _: (new / STATE).unlink(),
    "tensors of another step": lambda new, old: (new / shard_name(0)).write_bytes((old / shard_name(0)).read_bytes()),
    "tree of another step": lambda new, old: (new / STATE).write_bytes((old / STATE).read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_any_damage_the_previous_one_is_used(
    training: Callable[..., Training], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = training(1)
    one.step()
    one.saver.save(1, wait=True)
    good = one.state()
    one.step()
    one.saver.save(2, wait=True)
    DAMAGES[damage](tmp_path / "step-00000002", tmp_path / "step-00000001")
    other = training(2)
    assert other.saver.resume() == 1
    assert other.state() == good
    assert f"rejected the checkpoint {tmp_path / 'step-00000002'}" in capsys.readouterr().err


# --- killed -------------------------------------------------------------------------------------------------------


def test_a_writer_that_is_killed_is_replaced_and_nothing_is_lost(
    training: Callable[..., Training], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = training(1, interval_seconds=0.0)
    one.saver.due()
    for step in range(1, 6):
        one.step()
        os.kill(writer_of(one.saver), signal.SIGSTOP)  # so that it dies with the state in its hands
        one.saver.save(step)
        os.kill(writer_of(one.saver), signal.SIGKILL)
        one.saver.save(step + 100, wait=True)
        assert newest(tmp_path) == step + 100
        assert (tmp_path / f"step-{step + 100:08d}").is_dir()
        said = capsys.readouterr().err
        assert f"the writer of checkpoints has ended (exit code -9): another one writes step {step}" in said
        assert f"checkpoint of step {step}:" in said
    os.kill(writer_of(one.saver), signal.SIGKILL)  # while it has nothing to do
    one.saver.save(200, wait=True)
    assert newest(tmp_path) == 200


def test_a_writer_that_is_frozen_is_replaced_and_its_checkpoint_is_written(
    training: Callable[..., Training], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = training(1, interval_seconds=0.0, hang_seconds=0.5)
    one.saver.due()
    one.step()
    frozen = writer_of(one.saver)
    os.kill(frozen, signal.SIGSTOP)
    one.saver.save(1, wait=True)
    assert newest(tmp_path) == 1
    said = capsys.readouterr().err
    assert re.search(
        rf"the writer of checkpoints has ended \(process {frozen} was stopped for [\d.]+ s and was ended\): another one"
        " writes step 1\n",
        said,
    ), said


def test_a_frozen_writer_with_nothing_to_write_is_not_waited_for_at_the_end(
    training: Callable[..., Training], capsys: pytest.CaptureFixture[str]
) -> None:
    one = training(1, interval_seconds=0.0)
    one.saver.due()
    frozen = writer_of(one.saver)
    os.kill(frozen, signal.SIGSTOP)
    eventually(lambda: process_state(frozen) == "T", "a writer that is stopped")
    one.saver.close()
    assert "left running" not in capsys.readouterr().err
    assert not Path(f"/proc/{frozen}").exists()


KILLED = """
import os, random, signal, sys, time, torch
from pathlib import Path
from trainbox.checkpoint.store import Checkpoints
from trainbox.torch.checkpoints.saver import Saver
from trainbox.torch.checkpoints.writer import is_idle

directory = Path(sys.argv[1])

def train(begun):
    state = {"step": 0, "tensor": torch.zeros(2_000_000)}
    saver = Saver(Checkpoints(directory, keep=2), {"state": state})
    first = saver.resume()
    assert state["tensor"].eq(first).all() and state["step"] == first
    for step in range(first + 1, 10_000):
        state["step"] = step
        state["tensor"].fill_(step)
        saver.save(step)
        os.write(begun, b"%d\\n" % step)

moments = random.Random(1)
for _ in range(20):
    source, begun = os.pipe()
    rank = os.fork()
    if rank == 0:
        train(begun)
    os.close(begun)
    pipe = os.fdopen(source)
    last = pipe.readline()
    assert last, "the state of the checkpoint was not whole"
    time.sleep(moments.uniform(0, 0.2))
    os.kill(rank, signal.SIGKILL)
    last = int([last, *pipe][-1])
    os.wait()
    # What was handed over and not yet begun by the writer is not waited for: it comes all the same.
    end = time.monotonic() + 60
    found = None
    while found is None or found.step < last:
        assert time.monotonic() < end, (found, last)
        time.sleep(0.01)
        if any(int(path.name[5:]) >= last for path in directory.glob("step-*")):  # to verify them takes its time
            found = Checkpoints(directory).find().chosen
    assert found.step in (last, last + 1), (found, last)
print(last)
"""


def test_a_rank_killed_at_any_moment_leaves_the_last_checkpoint_that_it_handed_over(tmp_path: Path) -> None:
    ranks = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, check=False, timeout=300
    )
    assert ranks.returncode == 0, ranks.stderr
    assert int(ranks.stdout) >= 20


ORPHAN = """
import os, signal, sys, torch
from pathlib import Path
from trainbox.checkpoint.store import Checkpoints
from trainbox.torch.checkpoints.saver import Saver

saver = Saver(Checkpoints(Path(sys.argv[1])), {"state": {"tensor": torch.arange(1_000_000)}})
saver.due()
writer = saver._writer.process_id
os.kill(writer, signal.SIGSTOP)
saver.save(7)
print(writer, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_writer_outlives_the_rank_and_finishes_what_it_was_given(tmp_path: Path) -> None:
    rank = subprocess.run(
        [sys.executable, "-c", ORPHAN, tmp_path], stdout=subprocess.PIPE, text=True, check=False, timeout=SECONDS
    )
    assert rank.returncode == -signal.SIGKILL
    writer = int(rank.stdout)
    assert newest(tmp_path) == 0
    os.kill(writer, signal.SIGCONT)
    eventually(lambda: newest(tmp_path) == 7, "the writer did not finish")
    state: dict[str, Any] = {}
    assert Saver(Checkpoints(tmp_path), {"state": state}).resume() == 7
    assert torch.equal(state["tensor"], torch.arange(1_000_000))
    eventually(lambda: not is_alive(writer), "the writer stays for ever")


# --- the disk -----------------------------------------------------------------------------------------------------

FULL = """
import json, subprocess, sys, torch
from pathlib import Path
from trainbox.checkpoint.store import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.saver import Saver

directory = Path(sys.argv[1])
directory.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", directory], check=True)
state = {"tensor": torch.zeros(1_000_000)}
saver = Saver(Checkpoints(directory), {"state": state})
saver.save(1, wait=True)
(directory / "filler").write_bytes(bytes(3 << 20))
saver.save(2)
state["tensor"] += 1  # the training goes on
try:
    saver.save(3, wait=True)
except CheckpointError as error:
    print(json.dumps([error.message, error.hint]))
assert sorted(path.name for path in directory.iterdir()) == ["filler", "step-00000001"]
(directory / "filler").unlink()
saver.save(4, wait=True)
print(Checkpoints(directory).find().chosen.step)
saver.close()
"""


@functools.cache
def may_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_disk_costs_one_checkpoint_loudly_and_not_the_training(tmp_path: Path) -> None:
    if not may_mount():
        pytest.skip("only the administrator may mount a small disk")
    rank = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FULL, tmp_path / "disk"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert rank.returncode == 0, rank.stderr
    failure, last = rank.stdout.splitlines()
    message, hint = json.loads(failure)
    assert "the checkpoint of step 3 cannot be written to" in message
    assert "No space left on device" in message
    assert "take a larger volume" in hint
    assert "the checkpoint of step 2 cannot be written to" in rank.stderr
    assert "the training goes on, earlier checkpoints stay" in rank.stderr
    assert last == "4"


# --- several ranks ------------------------------------------------------------------------------------------------

# Ranks are forked from a process that has imported all: on a busy machine the imports take longer than the tests.
RANKS = """
import gc; gc.disable()  # none of what is imported is garbage, and what is made here is little
import json, os, sys, traceback, torch
import torch._dynamo
import torch.distributed as dist
from pathlib import Path
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from trainbox.checkpoint.store import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints import saver as saver_module
from trainbox.torch.checkpoints.sharded import saver as sharded_module
from trainbox.torch.checkpoints.run_info import RunInfo
from trainbox.torch.checkpoints.saver import Saver
from trainbox.torch.checkpoints.sharded.saver import ShardedSaver

heard = []
sys.addaudithook(lambda event, about: heard.append(".".join(about)) if event == "pickle.find_class" else None)

DAMAGES = {"vanish": os.unlink, "shrink": lambda path: os.truncate(path, 10)}

def spoil(module, damages):
    # Rank 0 damages files of a checkpoint that has been verified and whose document has been read: once.
    check = module.check_manifest
    def check_and_spoil(*arguments):
        check(*arguments)
        while damages:
            how, path = damages.pop()
            DAMAGES[how](path)
    module.check_manifest = check_and_spoil

def train(directory, kind, damages, rank, size, met, last, host):
    directory = directory.replace("HOST", host)
    if rank == 0 and damages:
        spoil({"ddp": saver_module, "sharded": sharded_module}[kind], damages)
    # A file outlives rank 0, and no other process takes it, as either may happen to a port.
    dist.init_process_group("gloo", init_method=f"file://{met}", rank=rank, world_size=size)
    torch.manual_seed(rank)  # dropout differs by rank
    model = torch.nn.Sequential(torch.nn.Linear(6, 33), torch.nn.Dropout(0.2), torch.nn.Linear(33, 5))
    progress = {"steps": 0}
    kind, _, key = kind.partition(" with a ")
    store = Checkpoints(Path(directory), keys=[bytes(range(32))] if key else [])
    if kind == "sharded":
        for parameter in model.parameters():
            dist.broadcast(parameter.data, 0)
        fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (size,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        parts = {"progress": progress}
        saver = ShardedSaver(store, model, optimizer, parts, RunInfo(rank, size, host=host))
    else:
        model = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        parts = {"model": model, "optimizer": optimizer, "progress": progress}
        saver = Saver(store, parts, RunInfo(rank, size))

    def digest():
        state = [*model.state_dict().values(), *(value for s in optimizer.state.values() for value in s.values())]
        state = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in state]
        return torch.hash_tensor(torch.cat([x.flatten().double() for x in state])).item()

    try:
        first = saver.resume()
    except CheckpointError as error:
        dist.barrier()
        return {"refused": error.message}
    began, known = digest() if first else None, dict(progress)
    for step in range(first + 1, last + 1):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        loss = model(torch.randn(4, 6, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        progress["steps"] = step
    saver.save(last, wait=True)
    told = {"first": first, "began": began, "ended": digest(), "progress": known, "next": torch.rand(1).item()}
    told["pickled"] = heard
    saver.close()
    dist.barrier()
    kept.append(dist.group.WORLD._get_backend(torch.device("cpu")))  # see trainbox.torch.world
    dist.destroy_process_group()
    return told

kept = []
for line in sys.stdin:
    *job, size, met, last, hosts = json.loads(line)
    pipes = [os.pipe() for _ in range(size)]
    for rank, (_, out) in enumerate(pipes):
        if os.fork() == 0:
            try:
                told = train(*job, rank, size, met, last, f"algo-{rank * hosts // size + 1}")
            except BaseException:
                told = {"failed": traceback.format_exc()}
            os.write(out, json.dumps(told).encode())
            os._exit(0)
    for _, out in pipes:
        os.close(out)
    told = [open(source).read() for source, _ in pipes]
    for _ in pipes:
        os.wait()
    print("[" + ",".join(one or "null" for one in told) + "]", flush=True)
"""


Run = Callable[..., list[dict[str, Any]]]
#: See `written`.
Written = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a training in several processes: what each of them tells, and what they said together.

    HOST in the directory stands for the name of each host: then the hosts have disks of their own.
    """
    own = tmp_path_factory.mktemp("ranks")
    errors = own / "stderr"
    attempts = itertools.count()
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", RANKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        ) as server,
    ):

        def start(
            directory: Path, kind: str, size: int, last: int, hosts: int = 1, *damages: tuple[str, Path]
        ) -> list[dict[str, Any]]:
            assert server.stdin is not None
            assert server.stdout is not None
            before = errors.stat().st_size
            job = [directory, kind, damages, size, own / f"met-{next(attempts)}", last, hosts]
            server.stdin.write(json.dumps(job, default=str).encode() + b"\n")
            server.stdin.flush()
            told = json.loads(server.stdout.readline())
            said = errors.read_bytes()[before:].decode()
            assert all(one is not None and "failed" not in one for one in told), (told, said)
            return [{**one, "said": said} for one in told]

        try:
            yield start
        finally:
            server.kill()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Written:
    """Copy what a training left that was run some steps far, and some further; gives its digest after the first.

    Each is run once for all tests, which then spoil their copies. HOST at the end of a directory is as above.
    """

    @functools.cache
    def train(own_disks: bool, kind: str, size: int, hosts: int, steps: tuple[int, ...]) -> tuple[Path, str]:
        directory = tmp_path_factory.mktemp("written")
        place = directory / "HOST" if own_disks else directory
        told = [run(place, kind, size, last, hosts) for last in steps]
        return directory, told[0][0]["ended"]

    def copy(directory: Path, kind: str, size: int, hosts: int, *steps: int) -> str:
        own_disks = directory.name == "HOST"
        source, digest = train(own_disks, kind, size, hosts, steps)
        shutil.copytree(source, directory.parent if own_disks else directory, dirs_exist_ok=True)
        return digest

    return copy


def test_two_ranks_resume_from_one_checkpoint_with_generators_of_their_own(tmp_path: Path, run: Run) -> None:
    straight = run(tmp_path / "straight", "ddp", 2, 6)
    run(tmp_path / "broken", "ddp", 2, 3)
    resumed = run(tmp_path / "broken", "ddp", 2, 6)
    assert [one["first"] for one in resumed] == [3, 3]
    assert [one["ended"] for one in resumed] == [one["ended"] for one in straight]
    assert [one["next"] for one in resumed] == [one["next"] for one in straight]
    assert resumed[0]["next"] != resumed[1]["next"]
    assert resumed[1]["progress"] == {"steps": 3}
    # The newest is damaged: both ranks go back to the one before. Then another number of ranks.
    flip(tmp_path / "broken" / "step-00000006" / shard_name(0))
    again = run(tmp_path / "broken", "ddp", 2, 7)
    assert [one["first"] for one in again] == [3, 3]
    (alone,) = run(tmp_path / "broken", "ddp", 1, 8)
    assert (alone["first"], alone["began"]) == (7, again[0]["ended"])
    assert "the checkpoint is from 2 ranks, now there are 1: random generators are seeded anew" in alone["said"]


def test_a_checkpoint_that_does_not_fit_is_refused_by_every_rank(tmp_path: Path, run: Run) -> None:
    with Checkpoints(tmp_path).writing(1) as path:
        (path / "model.ubj").write_bytes(b"trees")
    refused = run(tmp_path, "ddp", 2, 1)
    assert all("is not a checkpoint of trainbox.torch" in one["refused"] for one in refused)


def test_a_sharded_state_is_cut_anew_for_any_number_of_ranks_and_hosts(tmp_path: Path, run: Run) -> None:
    ended = None
    for size, hosts, last in ((2, 1, 2), (1, 1, 4), (2, 2, 6), (2, 2, 8), (1, 1, 9)):
        told = run(tmp_path, "sharded", size, last, hosts)
        assert {one["began"] for one in told} == {ended}
        ended = told[0]["ended"]
        assert all(one["progress"] == {"steps": one["first"]} for one in told)
        assert all(one["pickled"] == [] for one in told), told  # saving and resuming alike
    for host in ("algo-1", "algo-2"):
        assert (tmp_path / host / "step-00000008" / "MANIFEST.json").exists()
    names = [path.name for host in ("algo-1", "algo-2") for path in (tmp_path / host / "step-00000008").glob("*.dist*")]
    assert len(names) == len(set(names))


def test_a_sharded_checkpoint_of_which_one_host_is_damaged_is_not_used(tmp_path: Path, run: Run) -> None:
    first = run(tmp_path, "sharded", 2, 1, 2)
    run(tmp_path, "sharded", 2, 2, 2)
    flip(next((tmp_path / "algo-2" / "step-00000002").glob("*.distcp")))
    told = run(tmp_path, "sharded", 2, 3, 2)
    assert {(one["first"], one["began"]) for one in told} == {(1, first[0]["ended"])}
    assert "rejected the checkpoint of step 2" in told[0]["said"]


# --- what vanishes while it is read -------------------------------------------------------------------------------

#: Of one host: a file that rank 0 reads for all; of several: one that a rank reads itself, and one that another lacks.
VICTIMS = {"ddp": shard_name(0), "sharded": "__1_0.distcp"}


@pytest.mark.parametrize("how", ["vanish", "shrink"])
@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_what_can_no_longer_be_read_gives_way_to_the_checkpoint_before_on_every_rank(
    tmp_path: Path, run: Run, written: Written, kind: str, how: str
) -> None:
    first = written(tmp_path, kind, 2, 1, 1, 2)
    told = run(tmp_path, kind, 2, 3, 1, (how, tmp_path / "step-00000002" / VICTIMS[kind]))
    assert {(one["first"], one["began"]) for one in told} == {(1, first)}
    assert re.search(r"the checkpoint .*(can no longer be read|cannot be loaded)", told[0]["said"])
    assert "resuming from step 1 " in told[0]["said"]


@pytest.mark.parametrize("how", ["vanish", "shrink"])
@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_without_a_checkpoint_before_it_every_rank_fails_at_once_and_says_which_cannot_read(
    tmp_path: Path, run: Run, written: Written, kind: str, how: str
) -> None:
    written(tmp_path, kind, 2, 1, 1, 2)
    shutil.rmtree(tmp_path / "step-00000001")
    refused = run(tmp_path, kind, 2, 3, 1, (how, tmp_path / "step-00000002" / VICTIMS[kind]))
    assert {one["refused"].removeprefix("rank 0: ") for one in refused} == {refused[0]["refused"]}
    assert re.search(r"the checkpoint .*(can no longer be read|cannot be loaded)", refused[0]["refused"])


# --- hosts with disks of their own --------------------------------------------------------------------------------


def test_hosts_that_start_again_in_place_go_on_from_what_each_has_written(tmp_path: Path, run: Run) -> None:
    straight = run(tmp_path / "straight", "sharded", 4, 6, 2)
    disks = tmp_path / "HOST"
    run(disks, "sharded", 4, 3, 2)
    assert {path.name for path in (tmp_path / "algo-2").iterdir()} == {"algo-2"}
    resumed = run(disks, "sharded", 4, 6, 2)
    assert [one["first"] for one in resumed] == [3] * 4
    assert [(one["ended"], one["next"]) for one in resumed] == [(one["ended"], one["next"]) for one in straight]
    assert "resuming from step 3 (the shards of algo-1, algo-2)" in resumed[0]["said"]
    assert "rank 2 has fetched " in resumed[0]["said"]  # at least what DCP says about the files


@pytest.mark.parametrize(("size", "hosts"), [(4, 2), (2, 2), (3, 3), (6, 3), (1, 1)])
def test_what_a_host_lacks_comes_from_one_that_has_it(
    tmp_path: Path, run: Run, written: Written, size: int, hosts: int
) -> None:
    ended = written(tmp_path / "HOST", "sharded", 4, 2, 2)
    if hosts == 1:  # a job that starts anew gets all from S3
        (tmp_path / "algo-2/algo-2").rename(tmp_path / "algo-1/algo-2")
    elif size == 4:  # each finds what the other has written
        (tmp_path / "algo-1").rename(tmp_path / "aside")
        (tmp_path / "algo-2").rename(tmp_path / "algo-1")
        (tmp_path / "aside").rename(tmp_path / "algo-2")
    told = run(tmp_path / "HOST", "sharded", size, 3, hosts)
    assert {(one["first"], one["began"]) for one in told} == {(2, ended)}
    assert all(one["progress"] == {"steps": 2} for one in told)
    assert ("has fetched" in told[0]["said"]) == (hosts > 1)
    assert not list(tmp_path.rglob("algo-1/algo-2/step-00000003"))


def test_a_part_that_no_host_has_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, run: Run, written: Written
) -> None:
    first = written(tmp_path / "HOST", "sharded", 2, 2, 1, 2)
    (tmp_path / "algo-2/algo-2").rename(tmp_path / "algo-1/algo-2")
    shutil.rmtree(tmp_path / "algo-1/algo-2/step-00000002")
    (told,) = run(tmp_path / "HOST", "sharded", 1, 3)
    assert (told["first"], told["began"]) == (1, first)
    assert "rejected the checkpoint of step 2: no host has a valid shard of algo-2" in told["said"]
    shutil.rmtree(tmp_path / "algo-1/algo-2")
    shutil.rmtree(tmp_path / "algo-1/step-00000003")
    (told,) = run(tmp_path / "HOST", "sharded", 1, 3)
    assert told["first"] == 0
    assert f"no valid checkpoint in {tmp_path}/algo-1 (2 rejected): starting fresh" in told["said"]


@pytest.mark.parametrize("how", ["vanish", "shrink"])
def test_what_its_holder_can_no_longer_send_gives_way_to_the_checkpoint_before(
    tmp_path: Path, run: Run, written: Written, how: str
) -> None:
    first = written(tmp_path / "HOST", "sharded", 2, 2, 1, 2)
    lost = tmp_path / "algo-2/algo-2/step-00000002/__1_0.distcp"
    told = run(tmp_path / "HOST", "sharded", 3, 3, 3, (how, lost))
    assert {(one["first"], one["began"]) for one in told} == {(1, first)}
    assert re.search(r"host algo-2 can no longer read __1_0.distcp, which host algo-[13] lacks", told[0]["said"])
    assert "resuming from step 1 (the shards of algo-1, algo-2)" in told[0]["said"]


# --- what is forged -----------------------------------------------------------------------------------------------

FORGERIES = {
    "the index": forge_index,
    "a number beside the tensors": forge_item,
    "a tensor of one rank": functools.partial(forge_item, name="model.0.weight"),
    "a number, as torch wrote it before 2020": functools.partial(forge_item, archive=False),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_sharded_checkpoint_that_asks_for_code_ends_the_job_on_every_rank_and_runs_nothing(
    forge: Callable[[Path, Path], None], tmp_path: Path, run: Run, written: Written
) -> None:
    written(tmp_path, "sharded", 2, 1, 1, 2)
    forge(tmp_path / "step-00000002", tmp_path / "ran")
    told = run(tmp_path, "sharded", 2, 3)
    assert not (tmp_path / "ran").exists()
    # Though step 1 is valid: who forges one could choose which checkpoint takes its place.
    assert all(NAME in one["refused"] and "nothing of it has run" in one["refused"] for one in told), told
    shutil.rmtree(tmp_path / "step-00000002")
    assert [one["first"] for one in run(tmp_path, "sharded", 2, 3)] == [1, 1]


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_with_a_key_every_rank_refuses_what_another_has_sealed(
    tmp_path: Path, run: Run, written: Written, kind: str
) -> None:
    written(tmp_path, kind, 2, 1, 1, 2)
    told = run(tmp_path, f"{kind} with a key", 2, 3)
    why = "step-00000002 is whole, but not genuine: the seal of TRAINBOX_CHECKPOINT_KEY is missing"
    assert all(why in one["refused"] for one in told), told
    shutil.rmtree(tmp_path)
    ended = run(tmp_path, f"{kind} with a key", 2, 3)[0]["ended"]
    told = run(tmp_path, f"{kind} with a key", 2, 4)
    assert {(one["first"], one["began"]) for one in told} == {(3, ended)}


def test_every_host_refuses_a_part_that_another_host_has_not_sealed(tmp_path: Path, run: Run) -> None:
    disks = tmp_path / "HOST"
    run(disks, "sharded with a key", 4, 2, 2)
    forged = tmp_path / "algo-2/algo-2/step-00000002"
    seal_anew(forged)
    told = run(disks, "sharded with a key", 4, 3, 2)
    assert all(f"{forged} is whole, but not genuine" in one["refused"] for one in told), told


def test_the_process_that_writes_seals_and_shows_the_key_to_nobody(tmp_path: Path) -> None:
    saver = Saver(Checkpoints(tmp_path, keys=(KEY,)), {"progress": {"step": 1}})
    saver.save(1)
    writer = saver._writer.process_id
    shown = [Path(f"/proc/{writer}/{name}").read_bytes() for name in ("cmdline", "environ")]
    saver.save(2, wait=True)
    saver.close()
    assert all(form not in text for text in shown for form in (KEY, KEY.hex().encode(), base64.b64encode(KEY)))
    assert Saver(Checkpoints(tmp_path, keys=(KEY,)), {"progress": {}}).resume() == 2
    with pytest.raises(CheckpointError, match="not genuine"):
        Saver(Checkpoints(tmp_path, keys=(bytes(32),)), {"progress": {}}).resume()
