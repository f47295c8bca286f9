"""What somebody can do who is none of the job's hosts: the attacks themselves, against jobs that run."""

import base64
import contextlib
import datetime as dt
import json
import os
import pickle
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

pytest.importorskip("torch")

from torch._C._distributed_c10d import TCPStore

from tests.support.addresses import addresses, free_port
from tests.support.listening import Listener, listeners
from tests.support.trees import Run, Tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.cluster

#: Ranks that wait in the middle of the job, the first time.
SCRIPT = """
import os, time
import torch
import torch.distributed as dist
from pathlib import Path

dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
root, rank = Path(os.environ["TRAINBOX_ROOT"]), os.environ["RANK"]
part = root / f".pid-{rank}"
part.write_text(str(os.getpid())); part.rename(root / f"pid-{rank}")
while os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and not (root / "go").exists(): time.sleep(0.01)
dist.all_reduce(torch.ones(1))
print("ended", rank, flush=True)
dist.destroy_process_group()
"""
_TIMEOUT = dt.timedelta(seconds=20)


class Payload:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.mark), "w")


class Job:
    """Hosts of a job on this machine, whose ranks wait."""

    def __init__(self, directory: Path, hosts: int) -> None:
        self.hosts = addresses(hosts) if hosts > 1 else ["localhost"]
        self.port = free_port()
        self.stack = contextlib.ExitStack()
        self.trees = [self.stack.enter_context(Tree(directory / host / "ml")) for host in self.hosts]
        self.processes: list[subprocess.Popen[bytes]] = []
        for tree, host in zip(self.trees, self.hosts, strict=True):
            tree.hosts(*self.hosts, current=host).program(SCRIPT)
            tree.hyperparameters(processes_per_host=2 // hosts, trainbox_launcher="torchrun")
            self.processes.append(tree.start({"MASTER_PORT": str(self.port), "TRAINING_JOB_NAME": "known"}))

    def __enter__(self) -> Self:
        def ended() -> bool:
            return any(process.poll() is not None for process in self.processes)

        eventually(lambda: len(self.pids()) == 2, "the ranks to run", ended=ended)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def pids(self) -> list[int]:
        """Of the ranks that wait."""
        return [int(path.read_text()) for tree in self.trees for path in sorted(tree.root.glob("pid-*"))]

    def finish(self) -> list[Run]:
        return [tree.finish(process) for tree, process in zip(self.trees, self.processes, strict=True)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path, 2) as job:
        yield job


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path, 1) as job:
        yield job


def test_a_pickle_in_the_store_is_never_loaded_and_the_job_completes(pair: Job, tmp_path: Path) -> None:
    """Elastic's own rendezvous would load it at the next meeting at the latest, on every host."""
    stranger = TCPStore(pair.hosts[0], pair.port, is_master=False, timeout=_TIMEOUT)
    honest = {key: stranger.get(key) for key in stranger.list_keys()}
    payload = base64.b64encode(pickle.dumps(Payload(tmp_path / "ran"))).decode()
    for key in {"torch.rendezvous.known", *(key for key in honest if "torch.rendezvous" in key)}:
        stranger.set(key, payload)
    os.kill(pair.pids()[1], signal.SIGKILL)
    runs = pair.finish()
    assert not (tmp_path / "ran").exists(), "a stranger's code has run"
    assert [run.code for run in runs] == [0, 0], runs[0].log + runs[1].log
    assert "restart 1 of 3: rank 1 was killed by SIGKILL" in runs[0].log
    assert sorted(line for run in runs for line in run.stdout.decode().splitlines()) == ["ended 0", "ended 1"]
    for value in honest.values():
        json.loads(value)  # that is all there was


@pytest.mark.long
@pytest.mark.parametrize("key", ["trainbox/ended", "trainbox/attempt 0/alarm"])
def test_what_no_host_has_written_is_named_and_runs_nothing(pair: Job, tmp_path: Path, key: str) -> None:
    stranger = TCPStore(pair.hosts[0], pair.port, is_master=False, timeout=_TIMEOUT)
    payload = pickle.dumps(Payload(tmp_path / "ran"), protocol=0).decode()
    stranger.set(key, payload)
    runs = pair.finish()
    assert not (tmp_path / "ran").exists(), "a stranger's code has run"
    assert [run.code for run in runs] == [5, 5], runs[0].log + runs[1].log
    for run in runs:
        assert "Traceback" not in run.log
        assert re.search(
            rf"the store of {pair.hosts[0]} holds a value for '{key.rpartition('/')[2]}' that no host of this job has"
            " written",
            str(run.failure),
        ), run.failure


def test_nobody_at_another_address_reaches_a_job_of_one_host(alone: Job) -> None:
    """Whoever reached its store could end it with one word, or tell its ranks to send their gradients elsewhere."""
    found = listeners(alone.processes[0].pid)
    assert {one.program for one in found} == {"agent", "rank"}
    (elsewhere,) = addresses(1)
    assert [one for one in sorted(found) if not is_refused(elsewhere, one)] == []
    (alone.trees[0].root / "go").touch()
    (run,) = alone.finish()
    assert run.code == 0, run.log


def is_refused(address: str, listener: Listener) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((address, listener.port), timeout=10):
        return False
    return True
