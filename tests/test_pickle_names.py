"""Which classes pickles make in whole jobs: an audit hook in every process hears of each, and each has a reason.

A search for `pickle` in the sources does not see those of libraries. `weights_only=True` and readers of records are not
heard here: they make nothing by name.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.frozen.trainings import SCRIPTS, draw_rows
from tests.support.runs import COMMAND
from tests.support.waiting import LIMIT

pytestmark = pytest.mark.process

#: Runs first in every Python of a job: what a pickle makes goes to a file, with the program that reads it.
HOOK = """
import os, sys
def hear(event, arguments, os=os, place=os.environ["PICKLE_NAMES"], argv=" ".join(sys.orig_argv[1:4])):
    if event == "pickle.find_class":
        file = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, f"{arguments[0]}.{arguments[1]} in {argv[:200]!r}\\n".encode())
        os.close(file)
sys.addaudithook(hear)
"""
_LOADER = "from a worker of the data loader, a child of the rank, through pipes and sockets that multiprocessing guards"
#: Names that pickles of honest jobs ask for, and why that is no way in. Nothing here comes from a disk or a network.
ALLOWED: dict[str, str] = {
    "multiprocessing.resource_sharer.DupFd": _LOADER,
    "torch.Size": _LOADER,
    "torch.Tensor": _LOADER,
    "torch.float32": _LOADER,
    "torch.int64": _LOADER,
    "torch.multiprocessing.reductions.rebuild_storage_fd": _LOADER,
    "torch.multiprocessing.reductions.rebuild_tensor": _LOADER,
    "torch.multiprocessing.reductions.rebuild_typed_storage": _LOADER,
    "torch.storage.UntypedStorage": _LOADER,
    "torch.utils.data._utils.worker._ResumeIteration": _LOADER,
}
#: Of a model that a script for scikit-learn has just pickled, and reads once more for its sample rows, from memory.
MODEL_PREFIXES = ("joblib.numpy_pickle.", "numpy.", "scipy.", "sklearn.")

OWN = """
import trainbox
store = trainbox.checkpoints()
found = store.latest()
first = found.step + 1 if found else 1
with store.writing(first, info={"first": first}) as directory:
    (directory / "weights").write_bytes(b"weights")
trainbox.log(first, {trainbox.Metric("loss", "minimize"): 0.5})
trainbox.save("model", "weights")
"""
FORKS = """
import multiprocessing, pickle
def read():
    pickle.loads(b"cfractions\\nFraction\\n.")
if __name__ == "__main__":
    for way in ("fork", "spawn"):
        child = multiprocessing.get_context(way).Process(target=read)
        child.start()
        child.join()
"""
_ROWS = ["--channel", "train=train", "--channel", "validation=validation"]
_TREES = ["--hp", "num_round=6", "--hp", "checkpoint_every=2", "--hp", "objective=binary:logistic"]
_FOREST = ["--hp", "n-estimators=4", "--hp", "checkpoint-every=2"]
_TABLE = ["--hp", "epochs=2", "--hp", "batch-size=60", "--hp", "checkpoint-seconds=0"]
#: What `trainbox run` is asked for; each is run once more with `--resume`. Only the first does not take long.
JOBS: dict[str, Sequence[str]] = {
    "a script of one's own": ["own.py"],
    "preflight of two hosts": ["own.py", "--hosts", "2", "--preflight", "fast"],
    "xgboost": ["xgboost", *_ROWS, *_TREES],
    "xgboost on two hosts": ["xgboost", *_ROWS, *_TREES, "--hosts", "2"],
    "cross-validation": ["xgboost", *_ROWS, *_TREES, "--hp", "_kfold=3"],
    "forest": ["random_forest", *_ROWS, *_FOREST],
    "forest on two hosts": ["random_forest", *_ROWS, *_FOREST, "--hosts", "2"],
    "an estimator": ["random_forest", *_ROWS, "--hp", "estimator=sklearn.linear_model.LogisticRegression"],
    "pytorch": ["pytorch", *_ROWS, *_TABLE, "--processes", "2", "--kill", "1@3", "--hp", "workers=1"],
    "pytorch on two hosts": ["pytorch", *_ROWS, *_TABLE, "--hosts", "2"],
    "sharded": [str(SCRIPTS / "sharded_train.py"), "--processes", "2", "--kill", "1@3"],
}


def hear(directory: Path, *commands: Sequence[str]) -> set[str]:
    """Run jobs with the hook; gives the names, each with the program in which a pickle has asked for it."""
    site, heard = directory / "site", directory / "heard"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HOOK)
    (directory / "own.py").write_text(OWN)
    for seed, name in enumerate(("train", "validation")):
        (directory / name).mkdir()
        (directory / name / "rows.csv").write_text("".join(f"{row}\n" for row in draw_rows(seed)))
    env = {**os.environ, "PYTHONPATH": str(site), "PICKLE_NAMES": str(heard), "HF_HUB_OFFLINE": "1"}
    heard.touch()
    for command in commands:
        answer = subprocess.run(
            command, cwd=directory, env=env, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
    return set(heard.read_text().splitlines())


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(asked, id=name, marks=[pytest.mark.long] if number else [])
        for number, (name, asked) in enumerate(JOBS.items())
    ],
)
def test_a_job_and_one_that_resumes_make_nothing_of_pickles_but_what_is_known(
    asked: Sequence[str], tmp_path: Path
) -> None:
    job = [*COMMAND, *asked, "--out", "out"]
    heard = hear(tmp_path, job, [*job, "--resume"])
    own = MODEL_PREFIXES if "random_forest" in asked else ()
    assert [line for line in sorted(heard) if line.partition(" ")[0] not in ALLOWED and not line.startswith(own)] == []


@pytest.mark.long
def test_the_other_commands_make_nothing_of_pickles(tmp_path: Path) -> None:
    trainbox = COMMAND[:-1]
    metrics = ["metrics", "xgboost", "--hp", "num_round=1", "--hp", "objective=binary:logistic"]
    asked = [["--help"], ["describe", "pytorch"], metrics, ["run", "own.py", "--dry-run"], ["health", "--help"]]
    assert hear(tmp_path, *([*trainbox, *command] for command in asked)) == set()


def test_the_hook_hears_of_a_pickle_in_any_process_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(FORKS)
    heard = hear(tmp_path, [*COMMAND, "script.py", "--out", "out"])
    assert sum(line.startswith("fractions.Fraction in ") for line in heard) == 2
