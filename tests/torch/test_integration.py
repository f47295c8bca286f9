"""What integrations share, with real ranks and no library: what is published on which host, what is found again."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trees import is_alive
from tests.support.worlds import Ranks, finish
from trainbox.checkpoint.store import Checkpoint, examine, step_directories
from trainbox.errors import CheckpointError
from trainbox.torch.checkpoints.library_checkpoints import check_names, prepare
from trainbox.torch.integration import metric_values

#: Each rank is a host with a directory of its own: what it writes itself, and what rank 0 writes for all.
SCRIPT = """
import json, os, signal, sys
rank = int(os.environ["RANK"])
os.environ |= {"TRAINBOX_ROOT": os.environ["ROOTS"].split(":")[rank], "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
import torch.distributed as dist
from trainbox.torch.checkpoints import library_checkpoints
from trainbox.torch.integration import Integration

library_checkpoints.MESSAGE_BYTES = 1000
if os.environ.get("LIES") == str(rank):
    library_checkpoints._list = lambda made: {"../../outside": 6}
run = Integration(every_seconds=1000.0, keep=3)
found = run.newest()
if "ALONE" not in os.environ:
    dist.init_process_group("gloo")
run.begin(int(os.environ.get(f"FROM{rank}") or (json.loads((found / "rank-0").read_text()) if found else 0)), 0)

def write(directory):
    (directory / f"rank-{rank}").write_text(str(run.step))
    if os.environ.get("DIES") == f"{rank}@{run.step}":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        (directory / "parts").mkdir()
        (directory / "parts" / "model").write_bytes(b"x" * 2500)
        (directory / "empty").touch()

for step in range(run.step + 1, int(os.environ.get("STEPS", "6")) + 1):
    run.begin_step()
    if os.environ.get("STOPS") == f"{rank}@{step}":
        os.kill(os.getpid(), signal.SIGTERM)
    dist.barrier()
    agreed = run.end_step(step)
    if agreed.save or step % 2 == 0:
        run.save(write)
    if agreed.stop:
        break
run.end()
print("REPORT", json.dumps({"found": found and found.name, "step": run.step, "stopped": run.stopped}), flush=True)
dist.destroy_process_group()
"""


def hosts(directory: Path) -> tuple[Path, Path]:
    first, second = directory / "first", directory / "second"
    return first, second


def command(directory: Path, *roots: Path, **environment: str) -> dict[str, str]:
    (directory / "script.py").write_text(SCRIPT)
    return {"ROOTS": ":".join(map(str, roots)), **environment}


def attempt(directory: Path, *roots: Path, **environment: str) -> list[dict[str, Any]]:
    """Run two ranks to their good end; gives what each has reported."""
    told = command(directory, *roots, **environment)
    return [reported(log) for log in finish([directory / "script.py"], root=directory, size=2, **told)]


def reported(log: str) -> dict[str, Any]:
    (found,) = re.findall(r"^REPORT (.*)$", log, re.MULTILINE)
    answer: dict[str, Any] = json.loads(found)
    return answer


def files(root: Path) -> dict[str, set[str]]:
    """The names in each checkpoint of a host, all of which are valid."""
    found = step_directories(root / "checkpoints")
    assert all(isinstance(examine(path), Checkpoint) for path in found)
    return {path.name: {file.name for file in path.rglob("*") if file.is_file()} for path in found}


WHOLE = {"MANIFEST.json", "rank-0", "rank-1", "model", "empty"}


@pytest.mark.process
def test_each_host_gets_the_files_of_all_and_all_go_on_from_what_every_host_has(tmp_path: Path) -> None:
    first, second = hosts(tmp_path)
    assert attempt(tmp_path, first, second) == [{"found": None, "step": 6, "stopped": False}] * 2
    assert files(first) == files(second) == dict.fromkeys(["step-00000002", "step-00000004", "step-00000006"], WHOLE)
    assert not list(tmp_path.rglob(".tmp-*"))
    (second / "checkpoints" / "step-00000006" / "rank-0").write_text("9")  # another digest
    resumed = attempt(tmp_path, first, second, STEPS="7")
    assert resumed == [{"found": "step-00000004", "step": 7, "stopped": False}] * 2
    shutil.rmtree(second)  # a host that was replaced, and has no checkpoint at all
    assert [one["found"] for one in attempt(tmp_path, first, second)] == [None, None]


@pytest.mark.process
def test_hosts_that_share_the_directory_publish_once(tmp_path: Path) -> None:
    first, second = hosts(tmp_path)
    first.mkdir()
    second.symlink_to(first)
    attempt(tmp_path, first, second)
    assert files(first) == dict.fromkeys(["step-00000002", "step-00000004", "step-00000006"], WHOLE)


@pytest.mark.process
def test_a_stop_that_one_rank_has_heard_of_is_that_of_all_after_one_step_and_saved(tmp_path: Path) -> None:
    first, second = hosts(tmp_path)
    told = attempt(tmp_path, first, second, STOPS="1@3", STEPS="1000")
    assert told[0] == told[1]
    assert told[0]["stopped"]
    step = told[0]["step"]
    assert 3 <= step < 1000
    assert [one["found"] for one in attempt(tmp_path, first, second, STEPS=str(step))] == [f"step-{step:08d}"] * 2


@pytest.mark.process
@pytest.mark.parametrize("rank", [0, 1])
def test_of_a_checkpoint_whose_writer_is_killed_nothing_is_found(rank: int, tmp_path: Path) -> None:
    first, second = hosts(tmp_path)
    told = command(tmp_path, first, second, DIES=f"{rank}@4")
    with Ranks([tmp_path / "script.py"], root=tmp_path, environment=told) as ranks:
        ranks.until(lambda: not is_alive(ranks.pids[rank]))
    assert set(files(first)) == set(files(second)) == {"step-00000002"}
    assert [one["found"] for one in attempt(tmp_path, first, second)] == ["step-00000002"] * 2
    assert not list(tmp_path.rglob(".tmp-*"))  # what the killed one has left is removed


@pytest.mark.process
def test_ranks_that_have_resumed_from_different_steps_do_not_train_together(tmp_path: Path) -> None:
    first, second = hosts(tmp_path)
    told = command(tmp_path, first, second, FROM0="3", FROM1="5")
    with Ranks([tmp_path / "script.py"], root=tmp_path, environment=told) as ranks:
        assert 0 not in ranks.wait()
        assert "CheckpointError: the ranks have resumed from different steps: 3, 5" in ranks.log(0)


@pytest.mark.process
def test_a_library_that_does_not_know_of_the_other_ranks_does_not_train_alone(tmp_path: Path) -> None:
    first, second = hosts(tmp_path)
    told = command(tmp_path, first, second, ALONE="1")
    with Ranks([tmp_path / "script.py"], root=tmp_path, environment=told) as ranks:
        assert 0 not in ranks.wait()
        assert "ContractError: the loop has 1 process(es), but the job at least 2: each would train" in ranks.log(1)


@pytest.mark.process
def test_a_rank_that_names_a_file_outside_the_checkpoint_writes_nothing_on_another_host(tmp_path: Path) -> None:
    first, second = hosts(tmp_path)
    second.mkdir()
    (second / "outside").write_text("forged")
    with Ranks(
        [tmp_path / "script.py"], root=tmp_path, environment=command(tmp_path, first, second, LIES="1")
    ) as ranks:
        assert 0 not in ranks.wait()
        assert "CheckpointError: rank 1 names '../../outside', which is not a path inside a checkpoint" in ranks.log(0)
    assert not (first / "outside").exists()


@pytest.mark.parametrize("name", ["../a", "/etc/cron.d/a", "a/../../b", "a\0", "a" * 300, ""])
def test_a_name_that_leads_out_of_a_checkpoint_is_refused(name: str) -> None:
    check_names(0, {"model/part.bin": 1})
    with pytest.raises(CheckpointError, match="which is not a path inside a checkpoint"):
        check_names(3, {"model.bin": 1, name: 1})


def test_what_another_host_sends_goes_through_no_link_and_over_no_file(tmp_path: Path) -> None:
    made, outside = tmp_path / "made", tmp_path / "outside"
    for path in (made / "inner", outside):
        path.mkdir(parents=True)
    (made / "link").symlink_to(outside)
    (made / "dangling").symlink_to(outside / "new")
    (made / "file").touch()
    prepare(made, "new/parts/a")
    assert (made / "new" / "parts").is_dir()
    for name in ("link/a", "link/deep/a", "dangling", "file", "inner"):
        with pytest.raises(CheckpointError, match="no file from another host is written there"):
            prepare(made, name)
    assert not list(outside.iterdir())


def test_values_of_a_library_become_a_metric_line_whatever_they_are_called() -> None:
    values = {
        "eval_loss": torch.tensor(0.5),
        "train/acc top-1": 1,
        "é": 2.0,
        "learning_rate": math.inf,
        "done": True,
        "table": [1, 2],
        "vector": torch.ones(2),
    }
    found = {metric.name: value for metric, value in metric_values(values).items()}
    assert found == {"eval_loss": 0.5, "train/acc_top-1": 1.0, "_": 2.0, "learning_rate": math.inf}
