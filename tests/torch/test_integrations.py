"""Transformers, Lightning and Accelerate on tiny models: killed, frozen, stopped and resumed, with real ranks."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.forged_checkpoints import NAME, Payload, saved, seal_anew
from tests.support.runs import COMMAND, in_log
from tests.support.snippets import example
from tests.support.waiting import LIMIT, eventually
from tests.support.worlds import Ranks, finish
from trainbox.checkpoint.store import Checkpoint, examine

pytestmark = pytest.mark.process

#: Two epochs of eight steps on two ranks. WAIT makes steps longer.
COMMON = """
import json, logging, os, signal, tempfile, time, warnings
import torch
from pathlib import Path
from torch.nn import functional

warnings.simplefilter("ignore")
WAIT = float(os.environ.get("WAIT", "0"))

def report(**values):
    os.write(1, f"REPORT {json.dumps(values)}\\n".encode())  # whole: some processes have one pipe

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 32
    def __getitem__(self, index):
        time.sleep(WAIT / 2)
        return (torch.full((4,), float(index)), torch.ones(1))
"""
PREPARE = {
    "transformers": """
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

class Sentences(Rows):
    def __getitem__(self, index):
        ids = super().__getitem__(index)[0].long()
        return {"input_ids": ids, "labels": ids}

torch.manual_seed(0)
size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **size))
dataset = Sentences()
arguments = TrainingArguments(
    output_dir=os.environ.get("TRAINBOX_ROOT", "/opt/ml") + "/output/data/trainer",
    per_device_train_batch_size=2, num_train_epochs=2, save_steps=3, logging_steps=1, report_to=[], use_cpu=True,
    disable_tqdm=True,
)
""",
    "lightning": """
import pytorch_lightning
from pytorch_lightning import LightningModule

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        loss = functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters())
        schedule = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

def Trainer(**options):
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return pytorch_lightning.Trainer(accelerator="cpu", log_every_n_steps=1, **quiet, **options)

torch.manual_seed(0)
model, loader = Net(), torch.utils.data.DataLoader(Rows(), batch_size=2)
""",
    "accelerate": """
from accelerate import Accelerator

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters())
loader = torch.utils.data.DataLoader(Rows(), batch_size=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
""",
}
REPORT = {
    "transformers": """
rank, state = arguments.process_index, trainer.optimizer.state_dict()["state"]
step, epoch, stopped = trainer.state.global_step, trainer.state.epoch, callback.stopped
scheduled = trainer.lr_scheduler.last_epoch
""",
    "lightning": """
rank, state = trainer.global_rank, trainer.optimizers[0].state_dict()["state"]
step, epoch, stopped = trainer.global_step, trainer.current_epoch, callback.stopped
scheduled = trainer.lr_scheduler_configs[0].scheduler.last_epoch
""",
    "accelerate": """
rank, state = accelerator.process_index, optimizer.optimizer.state_dict()["state"]
step, epoch, stopped, scheduled = loop.step, loop.epoch, loop.stopped, loop.step
if accelerator.num_processes > 1:
    accelerator.end_training()
""",
}
END = 'report(rank=rank, step=step, epoch=epoch, updates=int(state[0]["step"]), scheduled=scheduled, stopped=stopped)\n'
LIBRARIES = tuple(PREPARE)
STEPS = 16
#: What each rank has reached in the end.
WHOLE = {"step": STEPS, "epoch": 2, "updates": STEPS, "scheduled": STEPS, "stopped": False}


def documented(library: str) -> str:
    """The example of the documentation, saving more often."""
    text = example("pytorch.md", f"trainbox.torch.{library}")
    text = text.replace("LightningCallback()", "LightningCallback(every_steps=3)")
    return text.replace("AccelerateLoop(accelerator)", "AccelerateLoop(accelerator, every_steps=3)")


def write(directory: Path, library: str) -> Path:
    path = directory / "train.py"
    path.write_text(COMMON + PREPARE[library] + documented(library) + REPORT[library] + END)
    return path


def reports(log: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in re.findall(r"REPORT (.*)$", log, re.MULTILINE)]
    return sorted(found, key=lambda one: int(one["rank"]))


def command(directory: Path, *more: str) -> list[str]:
    processes = [] if "--processes" in more else ["--processes", "2"]
    ours = ["train.py", "--out", str(directory / "out"), *processes, "--env", "HF_HUB_OFFLINE=1"]
    return [*COMMAND, *ours, *more]


def run(directory: Path, *more: str) -> str:
    """Run a job to its good end; gives its log."""
    answer = subprocess.run(
        command(directory, *more), cwd=directory, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    log = (directory / "out" / "logs" / "algo-1.log").read_text()
    assert answer.returncode == 0, answer.stdout + answer.stderr + log
    return log


def rehearse(directory: Path, library: str, *drills: str) -> str:
    write(directory, library)
    log = run(directory, *drills, "--env", "WAIT=0.1")
    assert reports(log) == [{"rank": rank, **WHOLE} for rank in range(2)], log
    assert re.search(r"restart 1 of 3: rank 1 was killed by SIGKILL after step 7\n", log), log
    (first, *_) = re.findall(r"resuming from step (\d+)", log)
    assert first == "6"
    assert re.search(rf"^\[metrics\] step={STEPS - 1} (.* )?loss=", log, re.MULTILINE), log
    assert "its write did not finish" not in log
    return log


@pytest.mark.long
def test_a_loop_of_accelerate_that_is_killed_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    rehearse(tmp_path, "accelerate", "--kill", "1@7")


@pytest.mark.long
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_rank_that_is_killed_and_one_that_is_frozen_are_named_and_replaced(library: str, tmp_path: Path) -> None:
    drills = ["--kill", "1@7", "--freeze", "0@13", "--env", "TRAINBOX_HANG_SECONDS=3"]
    log = rehearse(tmp_path, library, *drills)
    assert re.search(r"restart 2 of 3: rank 0 made no progress for [\d.]+ s in \w+ after step 13 ", log), log


def stop(directory: Path, *more: str) -> int:
    """Stop a job within its epochs; gives the step after which all ranks have left."""
    slow = command(directory, *more, "--env", "WAIT=0.5")
    with subprocess.Popen(slow, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        third = in_log(directory / "out", "[metrics] step=3 ")
        eventually(third, "the third step", ended=lambda: process.poll() is not None)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT)
    log = (directory / "out" / "logs" / "algo-1.log").read_text()
    (step,) = map(int, re.findall(r"asked to stop: all ranks leave after step (\d+); it is saved", log))
    assert 3 <= step < STEPS
    assert {(one["step"], one["updates"], one["stopped"]) for one in reports(log)} == {(step, step, True)}, log
    return step


@pytest.mark.long
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_job_that_is_stopped_saves_and_its_next_attempt_goes_on_there(library: str, tmp_path: Path) -> None:
    write(tmp_path, library)
    step = stop(tmp_path)
    log = run(tmp_path, "--resume")
    assert f"resuming from step {step}\n" in log
    assert reports(log) == [{"rank": rank, **WHOLE} for rank in range(2)], log


@pytest.mark.long
def test_processes_that_lightning_starts_itself_stop_together_and_go_on(tmp_path: Path) -> None:
    script = write(tmp_path, "lightning")
    script.write_text(script.read_text().replace("**processes()", "devices=2, strategy='ddp'"))
    alone = ["--processes", "1", "--hp", "trainbox_launcher=plain"]
    step = stop(tmp_path, *alone)
    log = run(tmp_path, *alone, "--resume")
    assert log.count(f"resuming from step {step} ") == 2  # each process looks for itself
    assert reports(log)[0] == {"rank": 0, **WHOLE}, log  # Lightning's first process does not wait for the other's end


@pytest.mark.long
@pytest.mark.parametrize("library", LIBRARIES)
def test_hosts_train_together_and_go_on_from_one_checkpoint(library: str, tmp_path: Path) -> None:
    write(tmp_path, library)
    log = run(tmp_path, "--hosts", "2", "--processes", "1", "--kill", "1@7")
    other = (tmp_path / "out" / "logs" / "algo-2.log").read_text()
    assert reports(log) + reports(other) == [{"rank": rank, **WHOLE} for rank in range(2)], log
    assert "restart 1 of 3: rank 1 was killed by SIGKILL after step 7\n" in log
    assert re.findall(r"resuming from step (\d+)", log) == ["6"]


#: In one process, because it takes seconds to import the library: stopped in a step, and resumed, again and again.
AGAIN = """
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trainbox import toolkit

class Stop:
    def __call__(self, *_):
        self.at -= 1
        if self.at == 0: os.kill(os.getpid(), signal.SIGTERM)

stop = Stop()
register_optimizer_step_pre_hook(stop)

def attempt(root, at):
    os.environ["TRAINBOX_ROOT"] = root
    toolkit.current_job.cache_clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the flag of the attempt before
    stop.at = at
    exec(EXAMPLE, globals())

for at in map(int, os.environ["STOPS"].split()):
    root = tempfile.mkdtemp(dir=os.environ["WORK"])
    attempt(root, at)
    attempt(root, 0)
"""


@pytest.mark.parametrize("library", [pytest.param("transformers", marks=pytest.mark.long), "lightning"])
def test_stopped_within_an_epoch_and_at_its_end_a_training_ends_as_one_that_went_through(
    library: str, tmp_path: Path
) -> None:
    stop_and_resume(library, tmp_path, [7, 8])


@pytest.mark.long
@pytest.mark.parametrize("library", LIBRARIES)
def test_wherever_a_training_is_stopped_it_ends_as_one_that_went_through(library: str, tmp_path: Path) -> None:
    stop_and_resume(library, tmp_path, range(1, STEPS))


def stop_and_resume(library: str, directory: Path, stops: Iterable[int]) -> None:
    text = PREPARE[library] + documented(library) + REPORT[library] + END
    text = text.replace("save_steps=3", 'save_strategy="epoch"')  # which saves again after a stop at the end of one
    script = directory / "script.py"
    script.write_text(COMMON.replace("return 32", "return 16") + f"EXAMPLE = {text!r}\n" + AGAIN)
    settings = {"WORK": str(directory), "HF_HUB_OFFLINE": "1", "STOPS": " ".join(map(str, stops))}
    (log,) = finish([script], root=directory / "ml", size=1, **settings)
    found = reports(log)
    assert [one["step"] for one in found] == [step for stop in stops for step in (stop, STEPS)], log
    assert [one["stopped"] for one in found] == [one["step"] < STEPS for one in found]
    assert all({**one, "rank": 0} == {"rank": 0, **WHOLE} for one in found[1::2]), found
    published = [examine(path) for path in directory.glob("*/checkpoints/step-*")]
    assert published
    assert all(isinstance(one, Checkpoint) for one in published), published
    # What is published is not written to again, as it would be in a file that two of them share.
    inodes = [file.stat().st_ino for file in directory.glob("*/checkpoints/step-*/*") if file.is_file()]
    assert len(set(inodes)) == len(inodes)


# --- forged checkpoints -------------------------------------------------------------------------------------------

#: Of each library the files that it reads with `torch.load`.
PICKLES = [
    ("accelerate", "custom_checkpoint_0.pkl"),
    ("accelerate", "optimizer.bin"),
    ("lightning", "lightning.ckpt"),
    ("transformers", "optimizer.pt"),
    ("transformers", "scheduler.pt"),
    ("transformers", "rng_state.pth"),
]


@pytest.mark.long
@pytest.mark.parametrize(("library", "file"), PICKLES)
def test_a_file_of_a_library_that_asks_for_code_ends_the_job_and_runs_nothing(
    library: str, file: str, tmp_path: Path
) -> None:
    script, settings = write(tmp_path, library), {"HF_HUB_OFFLINE": "1"}
    finish([script], root=tmp_path / "ml", size=1, **settings)
    *_, newest, done = sorted((tmp_path / "ml" / "checkpoints").glob("step-*"))
    shutil.rmtree(done)  # after the last step there is nothing to draw, and generators are not read
    assert (newest / file).exists()
    (newest / file).write_bytes(saved(Payload(tmp_path / "ran")))
    seal_anew(newest)
    with Ranks([script], root=tmp_path / "ml", size=1, environment=settings) as ranks:
        (code,) = ranks.wait()
        log = ranks.log(0)
    assert not (tmp_path / "ran").exists()
    assert code != 0, log
    assert NAME in log
    if file.startswith("custom_checkpoint"):
        assert f"{newest}/{file} asks for '{NAME}', which no checkpoint needs" in log
    key = {"TRAINBOX_CHECKPOINT_KEY": "00" * 32}
    with Ranks([script], root=tmp_path / "ml", size=1, environment={**settings, **key}) as ranks:
        assert ranks.wait() == [8]
        assert f"{newest} is whole, but not genuine" in ranks.log(0)
