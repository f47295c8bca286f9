"""Scripts on hosts of one job, started by `train` as the plain launcher does it: real process groups under gloo."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.support.addresses import addresses, free_port
from tests.support.trees import Run, Tree
from tests.support.worlds import finish
from trainbox.contract.cluster.ranks import Ranks
from trainbox.contract.cluster.world import GROUPS
from trainbox.torch.world import _serve_ranks

pytestmark = pytest.mark.cluster

#: A script as many are written: it knows torch.distributed and its variables, and nothing of trainbox.
PUBLIC = """
import os, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo", init_method="env://")
rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
total = torch.tensor([10.0 ** rank])
dist.all_reduce(total)
print("ended", rank, local_rank, int(total), flush=True)
dist.destroy_process_group()
"""
#: The same, with its rank from SageMaker's own variables, as scripts do that are older than torchrun.
BY_HOSTS = PUBLIC.replace(
    'init_method="env://")',
    'rank=hosts.index(os.environ["SM_CURRENT_HOST"]), world_size=len(hosts))',
).replace("dist.init_process", 'import json\nhosts = json.loads(os.environ["SM_HOSTS"])\ndist.init_process')

SESSION = """
import hashlib
import torch
from torch.nn import functional
import trainbox
from trainbox.torch import session

torch.set_num_threads(1)
torch.manual_seed(0)
INPUTS = torch.randn(48, 8)
with session(seed=1) as run:
    model = run.wrap(torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = run.batches(48, batch_size=12)
    run.resume(model=model, optimizer=optimizer, batches=batches)
    for inputs, in run.steps(batches.loader(torch.utils.data.TensorDataset(INPUTS))):
        run.backward(functional.mse_loss(model(inputs), inputs[:, :2]))
        run.update(optimizer)
    weights = [parameter.detach().numpy().tobytes() for parameter in model.parameters()]
    run.print(f"WEIGHTS {run.world_size} {run.step} {hashlib.sha256(b''.join(weights)).hexdigest()}")
"""


class Job:
    """Hosts of one job on this machine, each with a tree of its own."""

    def __init__(self, root: Path, hosts: int) -> None:
        self.stack = ExitStack()
        self.names = addresses(hosts)
        self.port = str(free_port())
        self.trees = [self.stack.enter_context(Tree(root / name / "ml")) for name in self.names]

    def run(
        self, program: str, name: str = "train.py", *, groups: Mapping[str, list[str]] | None = None, **asked: object
    ) -> list[Run]:
        """Start the program on all hosts, and wait."""
        named = [{"instance_group_name": group, "hosts": hosts} for group, hosts in (groups or {}).items()]
        for host, tree in zip(self.names, self.trees, strict=True):
            resources = {"hosts": self.names, "current_host": host, "network_interface_name": "lo"}
            tree.write("input/config/resourceconfig.json", json.dumps({**resources, "instance_groups": named}))
            tree.hyperparameters(**asked).program(program, name)
        started = [tree.start({"MASTER_PORT": self.port, "SAGEMAKER_PROGRAM": name}) for tree in self.trees]
        return [tree.finish(process) for tree, process in zip(self.trees, started, strict=True)]


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    made: list[Job] = []
    yield made
    for job in made:
        job.stack.close()


def completed(runs: list[Run]) -> list[str]:
    assert [run.code for run in runs] == [0] * len(runs), "\n".join(run.log for run in runs)
    return [line for run in runs for line in sorted(run.stdout.decode().splitlines())]


@pytest.mark.parametrize(
    ("program", "hosts", "processes"),
    [
        pytest.param(PUBLIC, 2, 1, id="2x1", marks=pytest.mark.long),
        pytest.param(PUBLIC, 1, 2, id="1x2", marks=pytest.mark.long),
        pytest.param(PUBLIC, 2, 2, id="2x2", marks=pytest.mark.long),
        pytest.param(BY_HOSTS, 2, 1, id="rank from SM_HOSTS", marks=pytest.mark.long),
    ],
)
def test_a_public_script_finds_its_process_group(
    tmp_path: Path, jobs: list[Job], program: str, hosts: int, processes: int
) -> None:
    jobs.append(Job(tmp_path, hosts))
    lines = completed(jobs[0].run(program, trainbox_launcher="plain", processes_per_host=processes))
    world = hosts * processes
    assert lines == [f"ended {rank} {rank % processes} {'1' * world}" for rank in range(world)]


def test_a_session_on_two_hosts_trains_the_model_of_two_processes_on_one(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(Job(tmp_path / "job", 2))
    runs = jobs[0].run(SESSION, trainbox_launcher="plain")
    completed(runs)
    (found,) = re.findall("WEIGHTS .*", "".join(run.log for run in runs))
    (tmp_path / "alone.py").write_text(SESSION)
    logs = finish([tmp_path / "alone.py"], root=tmp_path / "root")
    assert re.findall("WEIGHTS .*", "".join(logs)) == [found]
    assert found.startswith("WEIGHTS 2 4 ")


@pytest.mark.long
def test_a_session_whose_launcher_knows_of_one_host_alone_is_refused_on_all(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(Job(tmp_path, 2))
    # What `torchrun --standalone` does to the variables of its ranks.
    script = f"export GROUP_WORLD_SIZE=1 WORLD_SIZE=1 RANK=0\nexec {sys.executable} ../session.py\n"
    for tree in jobs[0].trees:
        tree.write("session.py", SESSION)
    for run in jobs[0].run(script, "run.sh", trainbox_launcher="plain"):
        assert run.code == 2, run.log
        assert "rank 0 of 1 would train without other hosts of this job, which has 2" in str(run.failure)
        assert "--nnodes=2 --node-rank=$NODE_RANK" in str(run.failure)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["plain", "torchrun"])
def test_the_hosts_of_a_group_train_and_the_others_run_beside_them(
    tmp_path: Path, jobs: list[Job], launcher: str
) -> None:
    job = Job(tmp_path, 3)
    jobs.append(job)
    groups = {"reader": job.names[:1], "trainer": job.names[1:]}
    program = f"import os\nif 'RANK' not in os.environ: raise SystemExit(print('reads'))\n{PUBLIC}"
    asked = {GROUPS: '["trainer"]'}
    runs = job.run(program, trainbox_launcher=launcher, groups=groups, **asked)
    assert completed(runs) == ["reads", "ended 0 0 11", "ended 1 0 11"]
    assert f"names {job.names[1]}, {job.names[2]}: on this host the script is started once" in runs[0].log


def test_ranks_that_are_told_of_an_address_of_another_host_listen_on_all_and_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A service that passes connections on to the host of rank 0, as Kubernetes has them."""
    env = {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": str(free_port())}
    assert _serve_ranks(Ranks(0, 2, 0, 2), env) is None
    assert "WARNING: MASTER_ADDR=192.0.2.1 is no address of this host" in capsys.readouterr().err
    for rank, more in ((1, {}), (0, {"TORCHELASTIC_USE_AGENT_STORE": "True"})):
        assert _serve_ranks(Ranks(rank, 2, rank, 2), {**env, **more}) is None
    assert capsys.readouterr().err == ""
