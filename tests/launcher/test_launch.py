"""The launcher `torchrun`: real ranks under gloo through `train`, killed, failing, stopped and restarted."""

import contextlib
import os
import re
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.addresses import free_port
from tests.support.secret_service import PASSWORD, serving
from tests.support.trees import Run, Tree, is_alive
from tests.support.waiting import eventually

pytestmark = pytest.mark.cluster

pytest.importorskip("torch")

#: A script as it is written for torchrun, and for nothing of ours.
TORCHRUN_SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    optimizer.zero_grad()
    model(torch.full((2, 4), float(dist.get_rank()))).sum().backward()
    optimizer.step()
weights = [torch.zeros(4) for _ in range(dist.get_world_size())]
dist.all_gather(weights, model.module.weight.detach().flatten())
assert all(torch.equal(one, weights[0]) for one in weights)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
print("ended", *(f"{name}={os.environ[name]}" for name in names), sys.argv[1:], __name__)
dist.barrier()
dist.destroy_process_group()
"""

#: Ranks that add up numbers, and a place for something to happen to them.
SCRIPT = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from pathlib import Path
from trainbox.contract.cluster.progress import PROGRESS_VARIABLE, RankProgress, StepPhase

rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
progress = RankProgress(Path(os.environ[PROGRESS_VARIABLE]), int(os.environ["LOCAL_RANK"]))
dist.init_process_group("gloo")

def happens(step):
    {what}

for step in range(1, 21):
    happens(step)
    total = torch.ones(1)
    dist.all_reduce(total)
    progress.mark(step, StepPhase.COMPUTE)
print("ended", rank, attempt, int(total), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def script(what: str) -> str:
    return SCRIPT.replace("{what}", textwrap.indent(textwrap.dedent(what), "    ").strip())


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        yield built.hosts("localhost").hyperparameters(processes_per_host=2, trainbox_launcher="torchrun")


def ended(run: Run) -> list[str]:
    return sorted(line for line in run.stdout.decode().splitlines() if line.startswith("ended"))


# -- one host ----------------------------------------------------------------------------------------------------------


def test_a_script_written_for_torchrun_runs_as_it_is(tree: Tree) -> None:
    tree.hyperparameters(processes_per_host=2, trainbox_launcher="torchrun", eta=0.1).program(TORCHRUN_SCRIPT)
    run = tree.run()
    assert run.code == 0, run.log
    assert ended(run) == [
        f"ended RANK={rank} LOCAL_RANK={rank} WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 GROUP_RANK=0 NODE_RANK=0"
        " ['--eta', '0.1'] __main__"
        for rank in range(2)
    ]
    assert run.failure is None


def test_ranks_have_their_secrets_and_no_list_of_processes_shows_them(tree: Tree) -> None:
    settings = {"processes_per_host": "2", "trainbox_launcher": "torchrun"}
    given = {"api_token": "of-the-request", "password": "{{resolve:secretsmanager:db:SecretString:password}}"}
    tree.hyperparameters_from({**settings, **given})
    tree.program(
        f"""
import os, sys, msgspec, trainbox
from pathlib import Path

class Params(msgspec.Struct):
    api_token: str
    password: str

assert trainbox.hyperparameters(Params) == Params("of-the-request", {PASSWORD!r})
assert sys.argv == ["train.py", "--api_token", "of-the-request", "--password", {PASSWORD!r}]
for pid in (os.getpid(), os.getppid()):
    shown = Path("/proc", str(pid), "cmdline").read_text()
    assert "trainbox.launcher" in shown
    assert "of-the-request" not in shown and {PASSWORD!r} not in shown, shown
print("ended", os.environ["RANK"])
"""
    )
    with serving() as service:
        run = tree.run(**service.env)
    assert run.code == 0, run.log
    assert ended(run) == ["ended 0", "ended 1"]
    assert len(service.asked) == 1, "the host asks, not each of its ranks"


def test_a_killed_rank_is_started_again_with_all_others_until_that_has_been_tried_often_enough(tree: Tree) -> None:
    tree.program(
        script(
            """
            if step == 1: print("ended", rank, attempt, flush=True)
            if rank == attempt % 2 and step == 3: os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    run = tree.run(TRAINBOX_MAX_RESTARTS="5")
    assert ended(run) == [f"ended {rank} {attempt}" for rank in range(2) for attempt in range(6)]
    reasons = re.findall(r"trainbox: restart (\d) of 5: rank (\d) was killed by SIGKILL after step [12]\n", run.log)
    assert reasons == [(str(number), str((number - 1) % 2)) for number in range(1, 6)], run.log
    assert run.code == 137
    assert str(run.failure).startswith("killed by SIGKILL")
    assert "(exit code 137, rank 1)" in str(run.failure)
    assert run.log.count("trainbox: restart ") == 5
    assert "no restart: 5 restart(s) within ten minutes did not help" in run.log


@pytest.mark.long
def test_the_same_exception_at_the_same_step_is_not_tried_a_third_time(tree: Tree) -> None:
    tree.program(script("if rank == 1 and step == 7: raise ValueError('seven')"))
    run = tree.run()
    assert run.code == 1
    assert run.log.count("trainbox: restart ") == 1
    assert "restart 1 of 3: rank 1 failed after step 6: ValueError: seven" in run.log
    assert str(run.failure).startswith("ValueError: seven\nat train.py:13 in happens (exit code 1, rank 1)")


@pytest.mark.long
def test_an_error_of_ours_keeps_its_code_and_is_not_tried_again(tree: Tree) -> None:
    run = tree.program(script("if rank == 1: import trainbox; trainbox.channel('validation')")).run()
    assert run.code == 7, run.log
    assert str(run.failure).startswith("ClientError: DataError: the job has no channel"), run.failure
    assert "trainbox: restart" not in run.log


def test_the_reason_is_the_cause_and_not_the_loudest_consequence(tree: Tree) -> None:
    """Rank 0 loses its connection at once; rank 1 takes its time to leave with the error that was first."""
    tree.program(
        script(
            """
            if rank == 1 and step == 4:
                import atexit
                atexit.register(time.sleep, 0.5)
                dist.destroy_process_group()
                raise KeyError('first')
            """
        )
    )
    run = tree.run(TRAINBOX_MAX_RESTARTS="0")
    assert run.code == 1
    assert str(run.failure).startswith("KeyError: 'first'")
    assert "rank 1" in str(run.failure)


@pytest.mark.long
def test_a_traceback_looks_as_python_prints_it(tree: Tree) -> None:
    tree.program("import os\ndef fail(): raise ValueError('x')\nif os.environ['RANK'] == '1': fail()\n")
    run = tree.run(TRAINBOX_MAX_RESTARTS="0", NCCL_SOCKET_IFNAME="nosuch0")
    assert "nosuch0" not in run.log, "a hint that belongs to errors of the network alone"
    trace = run.log[run.log.index("Traceback") : run.log.index("trainbox: no restart")]
    code = tree.code / "train.py"
    assert re.sub(r"\s*\^+\n", "\n", trace) == (
        "Traceback (most recent call last):\n"
        f'  File "{code}", line 3, in <module>\n'
        "    if os.environ['RANK'] == '1': fail()\n"
        f'  File "{code}", line 2, in fail\n'
        "    def fail(): raise ValueError('x')\n"
        "ValueError: x\n"
    )


def test_a_rank_is_the_process_that_python_would_have_made(tree: Tree) -> None:
    tree.write("code/beside.py", "word = 'beside'\n")
    tree.program(
        textwrap.dedent(
            """
            import atexit, multiprocessing, os, pickle, random, sys
            import numpy, beside

            class Thing:
                pass

            def work(number):
                return number + 1

            if __name__ == "__main__":
                atexit.register(print, "at exit", os.environ["RANK"])
                assert sys.argv == ["train.py"], sys.argv
                assert sys.path[0] == os.path.dirname(os.path.abspath(__file__)), sys.path
                assert sys.stdin.read() == ""
                assert os.getsid(0) == os.getpid()
                assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
                assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
                for method in ("fork", "spawn"):
                    with multiprocessing.get_context(method).Pool(1) as pool:
                        assert pool.map(work, [1]) == [2]
                print("random", random.random(), numpy.random.rand())
                print("unbuffered", end="")
                os.write(1, b" in order\\n")
            """
        )
    )
    run = tree.run()
    assert run.code == 0, run.log
    lines = run.stdout.decode().splitlines()
    assert sorted(line for line in lines if "exit" in line) == ["at exit 0", "at exit 1"]
    assert lines.count("unbuffered in order") == 2
    drawn = [line for line in lines if line.startswith("random")]
    assert len(drawn) == len({number for line in drawn for number in line.split()[1:]}) / 2 == 2


@pytest.mark.long
def test_data_loaders_have_workers_and_a_killed_rank_takes_its_own_along(tree: Tree) -> None:
    tree.program(
        textwrap.dedent(
            """
            import os, signal
            import torch
            from torch.utils.data import DataLoader, Dataset

            class Numbers(Dataset):
                def __len__(self): return 8
                def __getitem__(self, index): return torch.tensor([index, os.getpid()])

            def load(method):
                loader = iter(DataLoader(Numbers(), batch_size=4, num_workers=1, multiprocessing_context=method))
                batches = [next(loader)]
                print("worker", int(batches[0][0, 1]), flush=True)
                if attempt == "0" and method == "fork":
                    if rank == "1": os.kill(os.getpid(), signal.SIGKILL)
                    signal.pause()
                return sum(int(batch[:, 0].sum()) for batch in [*batches, *loader])

            if __name__ == "__main__":
                rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
                print("ended", rank, [load(method) for method in ("fork", "spawn")])
            """
        )
    )
    run = tree.run()
    assert run.code == 0, run.log
    assert ended(run) == ["ended 0 [28, 28]", "ended 1 [28, 28]"]
    workers = re.findall(r"worker (\d+)", run.stdout.decode())
    assert len(workers) in {5, 6}  # rank 0 may not have come to its first batch
    assert not any(is_alive(int(pid)) for pid in workers)
    assert "left behind" not in run.log


@pytest.mark.long
def test_a_module_of_a_package_runs_as_a_module(tree: Tree) -> None:
    tree.write("code/setup.py", "from setuptools import setup; setup(name='mine', packages=['mine'])")
    tree.write("code/mine/__init__.py", "").write(
        "code/mine/train.py", "import os; print('ended', __name__, __package__)"
    )
    run = tree.run(SAGEMAKER_PROGRAM="mine/train.py", PIP_NO_BUILD_ISOLATION="1", PIP_TARGET=str(tree.root / "lib"))
    assert run.code == 0, run.log
    assert ended(run) == ["ended __main__ mine"] * 2


# -- stopping ----------------------------------------------------------------------------------------------------------


def started(tree: Tree, process: "subprocess.Popen[bytes]", ranks: int = 2) -> list[int]:
    """The process ids of the ranks, once all have written them."""
    eventually(lambda: len(list(tree.root.glob("pid-*"))) == ranks or process.poll() is not None, "ranks")
    assert process.poll() is None, process.communicate()[1]
    return [int(path.read_text()) for path in sorted(tree.root.glob("pid-*"))]


WAITING = """
import os, signal, sys, time
from pathlib import Path
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
here = Path(os.environ["TRAINBOX_ROOT"], "pid-" + os.environ["RANK"])
part = here.with_name("." + here.name)
part.write_text(str(os.getpid())); part.replace(here)
while not came: time.sleep(0.01)
time.sleep(0.3)
print("ended", os.environ["RANK"], len(came), flush=True)
"""


@pytest.mark.representative
def test_sigterm_reaches_every_rank_once_and_a_good_end_is_a_success(tree: Tree) -> None:
    process = tree.program(WAITING).start()
    pids = started(tree, process)
    process.send_signal(signal.SIGTERM)
    run = tree.finish(process)
    assert run.code == 0, run.log
    assert ended(run) == ["ended 0 1", "ended 1 1"]
    assert not any(map(is_alive, pids))


@pytest.mark.long
def test_nothing_starts_again_after_sigterm(tree: Tree) -> None:
    process = tree.program(WAITING.replace("time.sleep(0.3)", "raise ValueError('while stopping')")).start()
    started(tree, process)
    process.send_signal(signal.SIGTERM)
    run = tree.finish(process)
    assert run.code == 1
    assert str(run.failure).startswith("ValueError: while stopping")
    assert "trainbox: restart" not in run.log


def test_ranks_without_a_handler_end_the_job_with_143(tree: Tree) -> None:
    process = tree.program(WAITING.replace("signal.signal(", "(lambda *_: 0)(")).start()
    started(tree, process)
    process.send_signal(signal.SIGTERM)
    run = tree.finish(process)
    assert run.code == 143
    assert str(run.failure).startswith("stopped")


@pytest.mark.parametrize("victim", ["the agent", "the server"])
def test_no_rank_outlives_those_that_watch_it(tree: Tree, victim: str) -> None:
    process = tree.program(WAITING).start()
    pids = started(tree, process)
    server = parent(pids[0])
    agent = parent(server)
    os.kill({"the agent": agent, "the server": server}[victim], signal.SIGKILL)
    run = tree.finish(process)
    eventually(lambda: not any(map(is_alive, [*pids, server, agent])), "all to end")
    assert run.code == 137
    who = {"the agent": "the agent, which", "the server": f"the fork server (process {server}), which"}[victim]
    assert str(run.failure).startswith(
        f"AlgorithmError: {who} starts the ranks, was killed by SIGKILL; its ranks ended"
    )
    assert "hint: nothing here sent it: often the kernel, for memory" in str(run.failure)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


# -- several hosts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Tree, Tree]]:
    """Two hosts that live on this machine, by addresses that any machine has."""
    names = ("127.0.0.1", "127.0.0.2")
    with Tree(tmp_path / "one/ml") as one, Tree(tmp_path / "two/ml") as two:
        for tree, name in ((one, names[0]), (two, names[1])):
            tree.hosts(*names, current=name).hyperparameters(processes_per_host=2, trainbox_launcher="torchrun")
        yield one, two


def start_both(pair: tuple[Tree, Tree], program: str, **env: str) -> "list[subprocess.Popen[bytes]]":
    port = str(free_port())
    return [tree.program(program).start({"MASTER_PORT": port, **env}) for tree in pair]


def run_both(pair: tuple[Tree, Tree], program: str, **env: str) -> list[Run]:
    return [tree.finish(process) for tree, process in zip(pair, start_both(pair, program, **env), strict=True)]


@pytest.mark.representative
def test_two_hosts_train_together_and_a_rank_killed_on_one_restarts_both(pair: tuple[Tree, Tree]) -> None:
    once = 'dist.get_rank() == step == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"'
    loop = "for step in range(5):\n"
    one, two = run_both(pair, TORCHRUN_SCRIPT.replace(loop, f"{loop}    if {once}: os.kill(os.getpid(), 9)\n"))
    assert (one.code, two.code) == (0, 0), one.log + two.log
    assert [re.search(r"RANK=(\d)", line)[1] for run in (one, two) for line in ended(run)] == list("0123")  # type: ignore[index]
    assert all("WORLD_SIZE=4 LOCAL_WORLD_SIZE=2" in line for line in ended(one))
    for run in (one, two):
        assert run.log.count("trainbox: restart 1 of 3: rank 3 was killed by SIGKILL") == 1


def test_the_host_whose_rank_failed_says_why_and_the_other_says_peer(pair: tuple[Tree, Tree]) -> None:
    one, two = run_both(pair, script("if rank == 2 and step == 6: import nothing_of_the_kind"))
    assert (one.code, two.code) == (1, 1), one.log + two.log
    assert str(two.failure).startswith("ModuleNotFoundError: No module named 'nothing_of_the_kind'\nat train.py:13")
    assert "rank 2, 127.0.0.2" in str(two.failure)
    assert str(one.failure).startswith("PEER 127.0.0.2: rank 2: ModuleNotFoundError: No module named")


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.long)])
def test_every_host_soon_ends_when_one_is_lost_and_names_it(pair: tuple[Tree, Tree], lost: int) -> None:
    here = "Path(os.environ['TRAINBOX_ROOT'], f'pid-{rank}')"
    program = script(f"if step == 2: {here}.write_text(str(os.getpid()))\ntime.sleep(0.5)")
    processes = start_both(pair, program.replace("range(1, 21)", "range(1, 2000)"))
    eventually(lambda: len([*pair[0].root.glob("pid-*"), *pair[1].root.glob("pid-*")]) == 4, "the ranks to run")
    pids = [int(path.read_text()) for tree in pair for path in tree.root.glob("pid-*")]
    processes[lost].kill()  # its agent and its ranks die with it
    run = pair[1 - lost].finish(processes[1 - lost])
    assert run.code == 5, run.log
    name = ("127.0.0.1", "127.0.0.2")[lost]
    assert str(run.failure).startswith(f"PEER {name}: lost host {name}"), run.failure
    assert not any(map(is_alive, pids))


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_falls_silent_is_lost_too(pair: tuple[Tree, Tree], lost: int) -> None:
    processes = start_both(pair, script("print('at', step, flush=True)\ntime.sleep(0.5)").replace("21)", "2000)"))
    eventually(lambda: len(descendants(processes[lost].pid)) >= 4, "the ranks to run")
    frozen = [processes[lost].pid, *descendants(processes[lost].pid)]
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        run = pair[1 - lost].finish(processes[1 - lost])
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        thawed = pair[lost].finish(processes[lost])
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert run.code == 5, run.log
    name = ("127.0.0.1", "127.0.0.2")[lost]
    assert str(run.failure).startswith(f"PEER {name}: lost host {name}"), run.failure
    # It was not the other one that fell silent, as it seems from here.
    assert re.match(r"this host did not run for \d+ s ", str(thawed.failure)), thawed.log
    assert not re.search(r"\bPEER\b", thawed.log)


@pytest.mark.long
@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs user namespaces",
)
def test_a_host_whose_file_system_is_read_only_says_what_to_mount_and_the_other_repeats_it(
    pair: tuple[Tree, Tree],
) -> None:
    pair[1].output.mkdir()
    read_only = 'for m in / /tmp /var/tmp; do mount -o remount,ro,bind "$m" 2>&-; done; exec "$@"'
    writable = f'mount --bind "$0/output" "$0/output"; {read_only}'
    prefix = ["unshare", "-rm", "sh", "-c", writable, str(pair[1].root)]
    port = str(free_port())
    one = pair[0].program(TORCHRUN_SCRIPT).start({"MASTER_PORT": port})
    two = pair[1].program(TORCHRUN_SCRIPT).start({"MASTER_PORT": port}, prefix=prefix)
    runs = pair[0].finish(one), pair[1].finish(two)
    log = runs[0].log + runs[1].log
    assert [run.code for run in runs] == [3, 3], log
    cause = "ClientError: no directory for temporary files can be written"
    assert str(runs[1].failure).startswith(cause), log
    assert "docker run --tmpfs /tmp" in str(runs[1].failure)
    assert str(runs[0].failure).startswith(f"PEER 127.0.0.2: {cause}"), log
    assert "Traceback" not in log


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += parents.get(parent, [])
    return found[1:]


#: As people write it for torchrun: one rank saves when it is asked to stop, the others just end.
SAVING = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from pathlib import Path
root, rank = Path(os.environ["TRAINBOX_ROOT"]), int(os.environ["RANK"])
def save(*_):
    print("saving", flush=True)
    time.sleep(6)
    (root / "saved").write_text("all of it")
    sys.exit(0)
if rank == SAVER: signal.signal(signal.SIGTERM, save)
dist.init_process_group("gloo")
(root / f"pid-{rank}").write_text(str(os.getpid()))
while True: time.sleep(0.01)
"""


#: The first host's rank or the second's, alone or beside one that ends at once, asked before the other host or after.
@pytest.mark.long
@pytest.mark.parametrize(("saver", "per_host", "first"), [(0, 1, 1), (0, 2, 0), (2, 2, 0), (2, 2, 1)])
def test_a_rank_that_saves_when_it_is_asked_to_stop_has_the_grace_wherever_the_others_end(
    pair: tuple[Tree, Tree], saver: int, per_host: int, first: int
) -> None:
    for tree in pair:
        tree.hyperparameters(processes_per_host=per_host, trainbox_launcher="torchrun")
    processes = start_both(pair, SAVING.replace("SAVER", str(saver)), TRAINBOX_GRACE_SECONDS="30")
    eventually(
        lambda: (
            len([*pair[0].root.glob("pid-*"), *pair[1].root.glob("pid-*")]) == 2 * per_host
            or any(process.poll() is not None for process in processes)
        ),
        "the ranks to run",
    )
    ranks = {int(path.name[4:]): int(path.read_text()) for path in pair[first].root.glob("pid-*")}
    processes[first].send_signal(signal.SIGTERM)
    eventually(lambda: not any(is_alive(pid) for rank, pid in ranks.items() if rank != saver), "the others to end")
    processes[1 - first].send_signal(signal.SIGTERM)
    runs = [tree.finish(process) for tree, process in zip(pair, processes, strict=True)]
    log = runs[0].log + runs[1].log
    assert (pair[saver // per_host].root / "saved").exists(), log
    # A stop of one host is a stop of all: nobody is a peer that has failed.
    assert [run.code for run in runs] == [143, 143], log
    for run in runs:
        assert re.match(
            r"stopped by SIGTERM: rank \d ended at once: it had no handler for it, or not yet\n", str(run.failure)
        )
    assert not re.search(r"\bPEER\b", log)
    assert "trainbox: restart" not in log
    assert "lost host" not in log


#: Rank 1 is still importing, say, and has no handler yet; rank 0 has one, and waits for it.
EARLY = """
import os, sys, time
from pathlib import Path
import trainbox
from trainbox.torch import session
root, rank = Path(os.environ["TRAINBOX_ROOT"]), int(os.environ["RANK"])
if rank == 0: trainbox.stop_requested()
(root / f"pid-{rank}").write_text(str(os.getpid()))
if rank == 1: time.sleep(3600)
with session() as run: pass
"""


def test_a_stop_before_all_ranks_have_met_is_not_waited_out(tree: Tree) -> None:
    process = tree.program(EARLY).start({"TRAINBOX_GRACE_SECONDS": "10000"})  # nobody waits for four fifths of it
    eventually(lambda: len([*tree.root.glob("pid-*")]) == 2, "the ranks to run")
    process.terminate()
    run = tree.finish(process)
    assert run.code == 143, run.log
    assert str(run.failure).startswith("stopped by SIGTERM: rank 1 ended at once: it had no handler for it, or not yet")
    assert "with trainbox.torch a stop is heard from session() on" in str(run.failure)


@pytest.mark.long
def test_a_rank_killed_by_another_when_a_stop_has_come_is_told_from_one_without_a_handler(tree: Tree) -> None:
    handles = "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    ready = "Path(os.environ['TRAINBOX_ROOT'], f\"pid-{os.environ['RANK']}\").touch()"
    program = f"import os, signal, time\nfrom pathlib import Path\n{handles}\n{ready}\nwhile True: time.sleep(0.05)"
    process = tree.program(program).start()
    eventually(lambda: len([*tree.root.glob("pid-*")]) == 2, "the ranks to run")
    process.terminate()
    run = tree.finish(process)
    assert run.code == 137, run.log
    assert str(run.failure).startswith("stopped: SIGTERM had come when SIGKILL ended the script\n")


def test_a_stop_after_the_ranks_have_ended_changes_nothing_and_leaves_nothing(tree: Tree) -> None:
    """From the end of the agent until the supervisor has reported and tidied up: it has thousands of files to do."""
    tree.hyperparameters(processes_per_host=1, trainbox_launcher="torchrun", trainbox_max_restarts=0)
    tree.program(
        """
        import os, sys
        from pathlib import Path
        from trainbox.contract.cluster.progress import PROGRESS_VARIABLE
        scratch = Path(os.environ[PROGRESS_VARIABLE]).parent
        for number in range(10_000): (scratch / str(number)).touch()
        Path(os.environ["TRAINBOX_ROOT"], "scratch").write_text(str(scratch))
        sys.exit("the data is wrong")
    """.replace("\n        ", "\n")
    )
    process = tree.start()
    eventually((tree.root / "scratch").exists, "the rank", ended=lambda: process.poll() is not None)
    agents = descendants(process.pid)
    eventually(lambda: not any(map(is_alive, agents)), "the end of agent and ranks")
    while process.poll() is None:
        process.terminate()
    run = tree.finish(process)
    assert run.code == 1, run.log
    assert str(run.failure).startswith("the data is wrong\n"), run.failure
    assert not Path((tree.root / "scratch").read_text()).exists()


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: SigCgt of proc(5)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return bool(caught and int(caught[1], 16) >> (number - 1) & 1)
    return False


@pytest.mark.long
def test_a_stop_while_the_agent_of_a_completed_job_leaves_is_no_failure(tree: Tree) -> None:
    """Python takes its handlers away before it lets go of its modules, which with torch takes a moment."""
    go = tree.root / "go"
    tree.program(f"import os, time\nopen('pid', 'w').close()\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")
    process = tree.start()
    eventually((tree.code / "pid").exists, "a rank", ended=lambda: process.poll() is not None)
    agent = next(pid for pid in descendants(process.pid) if parent(pid) == process.pid)
    assert catches(agent, signal.SIGTERM)
    go.touch()
    while catches(agent, signal.SIGTERM):
        pass
    process.terminate()
    run = tree.finish(process)
    assert (run.code, run.failure) == (0, None), run.log


@pytest.mark.long
def test_a_host_that_never_comes_is_the_one_that_is_named(pair: tuple[Tree, Tree]) -> None:
    for tree, name in zip(pair, ("127.0.0.1", "127.0.0.2"), strict=True):
        tree.hosts("127.0.0.1", "127.0.0.2", "127.0.0.3", current=name)
    for run in run_both(pair, TORCHRUN_SCRIPT, TRAINBOX_START_SECONDS="8"):
        assert run.code == 5, run.log
        assert str(run.failure).startswith("PEER 127.0.0.3: lost host 127.0.0.3:"), run.failure


_SLOW_IMPORT = """
import os, sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.distributed" and "trainbox.launcher" in " ".join(sys.orig_argv):
            sys.meta_path.remove(self)
            open(os.environ["IMPORTS"], "w").close()
            while not os.path.exists(os.environ["IMPORTS"] + ".go"):
                time.sleep(0.01)
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.long
@pytest.mark.parametrize("host", [0, 1])
def test_a_stop_of_one_host_while_its_agent_imports_torch_is_heard_by_the_others(
    pair: tuple[Tree, Tree], host: int
) -> None:
    tree, other = pair[host], pair[1 - host]
    port = str(free_port())
    imports = tree.write("slow/sitecustomize.py", _SLOW_IMPORT).root / "imports"
    slow = {"PYTHONPATH": str(tree.root / "slow"), "IMPORTS": str(imports), "MASTER_PORT": port}
    stopped = tree.program(TORCHRUN_SCRIPT).start(slow)
    waits = other.program(TORCHRUN_SCRIPT).start({"MASTER_PORT": port})
    eventually(imports.exists, "the agent to import torch", ended=lambda: stopped.poll() is not None)
    stopped.terminate()
    eventually(lambda: len(descendants(waits.pid)) == 2, "the other agent", ended=lambda: waits.poll() is not None)
    imports.with_name("imports.go").touch()
    for run in (tree.finish(stopped), other.finish(waits)):
        assert run.code == 143, run.log
        assert "stopped by SIGTERM before the ranks were started" in str(run.failure)


_LEAVES_WITH_OTHERS = """
import os, signal, time
from pathlib import Path
stop = Path(os.environ["MEETING"], "stop")
signal.signal(signal.SIGTERM, lambda *_: stop.touch())
Path(os.environ["MEETING"], "pid-" + os.environ["RANK"]).touch()
while not stop.exists(): time.sleep(0.01)
"""


def test_a_stop_of_one_host_is_the_end_of_the_others_too_and_they_have_its_exit_code(
    pair: tuple[Tree, Tree], tmp_path: Path
) -> None:
    processes = start_both(pair, _LEAVES_WITH_OTHERS, MEETING=str(tmp_path), TRAINBOX_STOP_EXIT_CODE="75")
    eventually(
        lambda: len(list(tmp_path.glob("pid-*"))) == 4,
        "the ranks",
        ended=lambda: any(process.poll() is not None for process in processes),
    )
    processes[1].terminate()
    for tree, process in zip(pair, processes, strict=True):
        run = tree.finish(process)
        assert (run.code, run.failure) == (75, None), run.log
        assert "stopped by SIGTERM" in run.log
