"""What a whole job unpickles, on all hosts and in all processes: Python itself tells, so nothing indirect is missed."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.support.addresses import addresses, free_port
from tests.support.trees import Tree

pytestmark = pytest.mark.process

#: Python runs it as each process begins: every class or function that a pickle names goes into a file.
HOOK = """
import os, sys
FILE = os.open(os.environ["UNPICKLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
def hear(event, arguments):
    if event == "pickle.find_class":
        os.write(FILE, f"{arguments[0]}.{arguments[1]} in {' '.join(sys.orig_argv[1:5])}\\n".encode())
sys.addaudithook(hear)
os.write(FILE, b"heard\\n")
"""
#: It saves, is killed on one host, resumes and ends.
SCRIPT = """
import os, signal
import torch
from torch.nn import functional
from trainbox.torch import session

INPUTS = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
with session(seed=1) as run:
    model = run.wrap(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)), sharded=SHARDED)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = run.batches(48, batch_size=8)
    run.resume(every_seconds=1000, model=model, optimizer=optimizer, batches=batches)
    for inputs, in run.steps(batches.loader(torch.utils.data.TensorDataset(INPUTS))):
        run.backward(functional.mse_loss(model(inputs), inputs[:, :2]))
        run.update(optimizer)
        if run.step == 2: run.save()
        if run.step == 4 and run.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
    print("ended", run.step, flush=True)
"""


#: test_pickle_names.py hears the same hook in jobs of one process, and test_strangers.py plants a pickle in the store.
@pytest.mark.long
@pytest.mark.parametrize("sharded", [True, False])
def test_hosts_that_meet_train_save_restart_and_resume_unpickle_nothing(tmp_path: Path, *, sharded: bool) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    hosts, events, port = addresses(2), tmp_path / "events", str(free_port())
    env = {"MASTER_PORT": port, "PYTHONPATH": str(tmp_path), "UNPICKLED": str(events)}
    with Tree(tmp_path / "one/ml") as one, Tree(tmp_path / "two/ml") as two:
        started = []
        for tree, host in ((one, hosts[0]), (two, hosts[1])):
            tree.hosts(*hosts, current=host).program(SCRIPT.replace("SHARDED", str(sharded)))
            started.append(tree.start({**env, "TRAINBOX_PREFLIGHT": "fast"}))
        runs = [tree.finish(process) for tree, process in zip((one, two), started, strict=True)]
    log = runs[0].log + runs[1].log
    assert [run.code for run in runs] == [0, 0], log
    assert [run.stdout.decode().splitlines()[-1] for run in runs] == ["ended 6"] * 2, log
    assert re.search("restart 1 of 3: rank 1 was killed by SIGKILL after step 4", log), log
    assert "resuming from step 2" in log
    heard = events.read_text().splitlines()
    assert heard.count("heard") >= 6, "supervisor, checks and agent of each host"
    assert sorted({line for line in heard if line != "heard"}) == []
