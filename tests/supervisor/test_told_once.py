"""A failure is told once: in the log by the script or by the supervisor, and to who runs it here in one place."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trees import Tree

pytestmark = pytest.mark.process

BAD = "import trainbox\ndef main():\n    trainbox.channel('trian')\nmain()\n"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as made:
        yield made


def test_an_error_of_ours_is_in_the_log_once_and_whole_in_the_failure_file(tree: Tree) -> None:
    tree.program(BAD)
    run = tree.run()
    assert run.code == 7
    cause = "ClientError: DataError: the job has no channel 'trian'; its channels: none"
    hint = "hint: add it to the request (InputDataConfig), or run with --channel trian=DIRECTORY"
    assert run.failure == f"{cause}\nat train.py:3 in main (exit code 7)\n{hint}"
    assert run.log.count("the job has no channel") == 1
    assert f"trainbox: FAILED: {cause}\ntrainbox: {hint}\ntrainbox: at train.py:3 in main\n" in run.log
    assert "Traceback" not in run.log


def test_an_error_of_ours_of_a_rank_is_in_the_failure_file_whole(tree: Tree) -> None:
    tree.program(BAD)
    tree.hyperparameters(processes_per_host=2, trainbox_launcher="plain")
    run = tree.run()
    assert run.code == 7
    assert str(run.failure).startswith("ClientError: DataError: the job has no channel 'trian'")
    assert "\nhint: add it to the request" in str(run.failure)
    assert "Traceback" not in run.log


def test_words_of_the_script_behind_an_error_of_ours_do_not_hide_it(tree: Tree) -> None:
    tree.program("import atexit, sys\natexit.register(lambda: print('bye', file=sys.stderr))\n" + BAD)
    run = tree.run()
    assert str(run.failure).startswith("ClientError: DataError: the job has no channel 'trian'")


def test_trainbox_run_tells_the_reason_once_and_under_one_class(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(BAD)
    command = [sys.executable, "-m", "trainbox", "run", "t.py", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 7
    shown = done.stdout + done.stderr
    assert shown.count("the job has no channel") == 1
    assert "Traceback" not in shown
    assert "--resume" not in shown, "there is no checkpoint"
    assert "docker run" not in shown
    assert "--docker --out" in shown
    reason = json.loads((tmp_path / "out/job.json").read_text())["failure_reason"]
    assert reason.startswith("ClientError: DataError: the job has no channel")
    assert "AlgorithmError" not in reason + shown


def test_an_exception_of_the_script_is_told_with_its_traceback_and_once_below_it(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("def main():\n    raise ValueError('no rows')\nmain()\n")
    command = [sys.executable, "-m", "trainbox", "run", "t.py", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    shown = done.stdout + done.stderr
    assert (done.returncode, shown.count("no rows")) == (1, 3), "its line, the exception, and FAILED"
    reason = json.loads((tmp_path / "out/job.json").read_text())["failure_reason"]
    assert reason.startswith("AlgorithmError: ValueError: no rows\nat t.py:2 in main (exit code 1)")
