"""A stop of the bundled tree scripts at every moment: while they import, meet, read, train and save."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.addresses import free_port
from tests.support.trees import Run, Tree, is_alive
from tests.support.waiting import LIMIT, eventually
from trainbox.contract.model_card import CARD_FILE

SCRIPTS = {"xgboost": "xgboost_train.py", "random_forest": "random_forest_train.py"}
HYPERPARAMETERS: dict[str, dict[str, object]] = {
    "xgboost": {
        "num_round": 100_000,
        "objective": "reg:squarederror",
        "checkpoint_every": 5,
        "nthread": 1,
        "max_depth": 2,
    },
    "random_forest": {"n_estimators": 100_000, "task": "regression", "checkpoint_every": 5, "n_jobs": 1},
}
ROWS = "".join(f"{number % 7},{number % 11},{number % 5}\n" for number in range(200))
#: Both hear a stop, and end, by the same code around their work.
EITHER = ["xgboost", pytest.param("random_forest", marks=pytest.mark.long)]
LEFT = "there is nothing to save; a resumed job starts from its last checkpoint"
pytestmark = pytest.mark.process


Process = subprocess.Popen[bytes]


def start(tree: Tree, **env: str) -> Process:
    """The bundled script that the hyperparameters name."""
    return tree.start({"SAGEMAKER_PROGRAM": "", **env})


def at_work(predicate: Callable[[], bool], process: Process) -> None:
    """Wait for something that must come while a job runs."""
    eventually(
        predicate,
        "what the job is to do",
        logs=lambda: repr(process.communicate(timeout=LIMIT)),
        ended=lambda: process.poll() is not None,
    )


def build(
    root: Path, script: str, *, hosts: tuple[str, ...] = ("algo-1",), current: str = "", pipe: bool = False
) -> Tree:
    """The tree of one host; with a pipe that nobody writes into, it waits for its rows."""
    tree = Tree(root).hosts(*hosts, current=current or hosts[0]).channel("train", {} if pipe else {"a.csv": ROWS})
    tree.hyperparameters(trainbox_script=script, **HYPERPARAMETERS[script])
    tree.write("input/config/checkpointconfig.json", '{"LocalPath": "/opt/ml/checkpoints"}')
    if pipe:
        channels = {"train": {"TrainingInputMode": "Pipe", "ContentType": "text/csv"}}
        tree.write("input/config/inputdataconfig.json", json.dumps(channels))
        os.mkfifo(root / "input/data/train_0")
    return tree


@contextmanager
def reading(tree: Tree, process: Process) -> Iterator[None]:
    """Comes back when the script has opened its pipe, and never writes into it."""
    pipes: list[int] = []

    def is_open() -> bool:
        with suppress(OSError):  # ENXIO: nobody reads
            pipes.append(os.open(tree.root / "input/data/train_0", os.O_WRONLY | os.O_NONBLOCK))
        return bool(pipes)

    at_work(is_open, process)
    yield
    os.close(pipes[0])


def kinds_of_output(tree: Tree) -> set[str]:
    return {found.suffix for found in (tree.output / "data").rglob("*") if found.is_file()}


def left_in_order(ended: Run) -> None:
    assert ended.code == 0, ended.log
    assert ended.failure is None
    assert "exit code 0" in ended.log
    assert "Traceback" not in ended.log
    assert "had left behind" not in ended.log


#: Runs the script, and stops the job while it imports the library that takes longest.
STOPPED_WHILE_IMPORTING = """
import os, runpy, signal, sys
class Stop:
    def find_spec(self, name, path, target=None):
        if name == {library!r} and not asked:
            asked.append(name)
            os.kill(os.getppid(), signal.SIGTERM)
            while not signal.getsignal(signal.SIGTERM).requested: pass
asked = []
sys.meta_path.insert(0, Stop())
sys.argv[0] = {script!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "library"),
    [("xgboost", "xgboost"), pytest.param("random_forest", "sklearn.ensemble", marks=pytest.mark.long)],
)
def test_a_stop_while_a_script_imports_its_library_is_heard(tmp_path: Path, script: str, library: str) -> None:
    path = Path(__file__).parents[2] / "train_scripts" / SCRIPTS[script]
    with build(tmp_path / "root", script) as tree:
        tree.hyperparameters(**HYPERPARAMETERS[script])
        tree.program(STOPPED_WHILE_IMPORTING.format(script=str(path), library=library))
        ended = tree.run()
    left_in_order(ended)
    assert f": stopped by SIGTERM before meeting the other hosts: {LEFT}\n" in ended.log


@pytest.mark.parametrize("script", EITHER)
def test_a_stop_while_rows_are_read_is_heard(tmp_path: Path, script: str) -> None:
    with build(tmp_path / "root", script, pipe=True) as tree:
        process = start(tree)
        with reading(tree, process):
            process.send_signal(signal.SIGTERM)
            ended = tree.finish(process)
    left_in_order(ended)
    assert f": stopped by SIGTERM while reading the rows: {LEFT}\n" in ended.log


@pytest.mark.parametrize("script", EITHER)
def test_a_stop_while_a_member_waits_for_the_others_is_heard(tmp_path: Path, script: str) -> None:
    hosts, port = ("127.0.0.1", "127.0.0.2"), free_port()
    with build(tmp_path / "root", script, hosts=hosts) as tree:
        process = start(tree, MASTER_PORT=str(port))

        def listens() -> bool:
            with socket.socket() as caller:
                return caller.connect_ex((hosts[0], port)) == 0

        at_work(listens, process)
        process.send_signal(signal.SIGTERM)
        ended = tree.finish(process)
    left_in_order(ended)
    assert f": stopped by SIGTERM while meeting the other hosts: {LEFT}\n" in ended.log


@pytest.mark.parametrize("script", EITHER)
def test_a_stop_while_a_script_trains_leaves_a_checkpoint_and_the_model(tmp_path: Path, script: str) -> None:
    with build(tmp_path / "root", script) as tree:
        process = start(tree)
        at_work(lambda: any((tree.root / "checkpoints").glob("step-*/MANIFEST.json")), process)
        process.send_signal(signal.SIGTERM)
        ended = tree.finish(process)
        assert (tree.model / CARD_FILE).exists()
        assert any((tree.root / "checkpoints").glob("step-*/MANIFEST.json"))
        assert kinds_of_output(tree) == {".json"}, "no time for pictures"
    left_in_order(ended)
    assert "asked to stop" in ended.log


@pytest.mark.parametrize("script", EITHER)
def test_a_stop_while_a_script_saves_changes_nothing(tmp_path: Path, script: str) -> None:
    short = HYPERPARAMETERS[script] | {"xgboost": {"num_round": 5}, "random_forest": {"n_estimators": 5}}[script]
    with build(tmp_path / "root", script) as tree:
        tree.hyperparameters(trainbox_script=script, **short)
        process = start(tree)
        at_work(lambda: any(tree.model.glob("*")), process)
        process.send_signal(signal.SIGTERM)
        ended = tree.finish(process)
        names = {path.name for path in tree.model.iterdir()}
    left_in_order(ended)
    assert names >= {"trainbox", {"xgboost": "xgboost-model", "random_forest": "model.joblib"}[script]}


@pytest.mark.parametrize("script", EITHER)
@pytest.mark.parametrize(
    ("first", "late"),
    [
        pytest.param(0, True, id="the leader first, both"),
        pytest.param(1, False, id="another first, one alone"),
        pytest.param(1, True, id="another first, both", marks=pytest.mark.long),
        pytest.param(0, False, id="the leader first, one alone", marks=pytest.mark.long),
    ],
)
def test_of_hosts_stopped_one_after_the_other_the_second_says_that_it_was_stopped(
    tmp_path: Path, script: str, first: int, late: bool
) -> None:
    """The first reads; the other waits for it, and is stopped when that has told it and left, or never."""
    hosts, port = ("127.0.0.1", "127.0.0.2"), {"MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        trees = [
            stack.enter_context(build(tmp_path / host, script, hosts=hosts, current=host, pipe=host == hosts[first]))
            for host in hosts
        ]
        processes = [start(tree, **port) for tree in trees]
        with reading(trees[first], processes[first]):
            processes[first].send_signal(signal.SIGTERM)
            ended = trees[first].finish(processes[first])
        if late and is_alive(processes[1 - first].pid):
            processes[1 - first].send_signal(signal.SIGTERM)
        other = trees[1 - first].finish(processes[1 - first])
    left_in_order(ended)
    assert f": stopped by SIGTERM while reading the rows: {LEFT}\n" in ended.log
    assert "PeerError" not in other.log
    assert f"{hosts[first]} was stopped by SIGTERM while reading the rows" in other.log
    assert other.code in {0, 143}
    if other.code:
        assert other.failure is not None
        assert "stopped" in other.failure


@pytest.mark.parametrize("script", EITHER)
def test_a_host_that_saves_because_another_is_stopped_draws_no_pictures(tmp_path: Path, script: str) -> None:
    hosts, port = ("127.0.0.1", "127.0.0.2"), {"MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        trees = [stack.enter_context(build(tmp_path / host, script, hosts=hosts, current=host)) for host in hosts]
        processes = [start(tree, **port) for tree in trees]
        saved = trees[0].root / "checkpoints"
        at_work(lambda: any(saved.rglob("step-*/MANIFEST.json")), processes[0])
        processes[1].send_signal(signal.SIGTERM)
        ended = trees[0].finish(processes[0])
        assert (trees[0].model / CARD_FILE).exists(), ended.log
        assert kinds_of_output(trees[0]) == {".json"}
    left_in_order(ended)


@pytest.mark.parametrize("script", EITHER)
def test_a_broken_matplotlib_costs_a_job_its_pictures_alone(tmp_path: Path, script: str) -> None:
    short = HYPERPARAMETERS[script] | {"xgboost": {"num_round": 10}, "random_forest": {"n_estimators": 10}}[script]
    broken = tmp_path / "site" / "matplotlib" / "__init__.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("raise RuntimeError('built for another NumPy')\n")
    with build(tmp_path / "root", script) as tree:
        tree.hyperparameters(trainbox_script=script, **short)
        ended = tree.finish(start(tree, PYTHONPATH=str(tmp_path / "site")))
        assert (tree.model / CARD_FILE).exists()
        assert kinds_of_output(tree) == {".json"}
    left_in_order(ended)
    assert ended.log.count("WARNING: no pictures: RuntimeError: built for another NumPy\n") == 1
