"""A stop of the shapes that training programs have, with real processes: who hears of it, and how the job ends."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trees import Run, Tree, is_alive
from tests.support.waiting import eventually
from trainbox.system.procfs import catches

pytestmark = pytest.mark.process

#: Saves when it is told to and says how often it was; waits until `go` is there, so that all that goes wrong has.
_TRAIN = """
    import os, signal, sys, time
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    open("pid.part", "w").write(str(os.getpid()))
    os.rename("pid.part", "pid")
    while not came:
        time.sleep(0.01)
    open("asked", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    print("saved", len(came), *sys.argv[1:], flush=True)
    sys.exit({code})
"""
#: No handler: SIGTERM ends it.
_NO_HANDLER = """
    import os, time
    open("pid.part", "w").write(str(os.getpid()))
    os.rename("pid.part", "pid")
    while True:
        time.sleep(0.01)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        yield built


def write(tree: Tree, shell: str = "", *, wrapper: str = "", train: str = _TRAIN, code: int = 0) -> dict[str, str]:
    """The program of a job: a shell script, or a wrapper in Python, which starts `train.py`."""
    tree.program(textwrap.dedent(train).replace("{code}", str(code)))
    if wrapper:
        tree.program(textwrap.dedent(wrapper), "wrapper.py")
        tree.program(textwrap.dedent(wrapper), "run.py")
    if shell:
        tree.program(f"#!/bin/bash\n{textwrap.dedent(shell).replace('python', sys.executable)}\n", "run.sh", mode=0o755)
    return {"SAGEMAKER_PROGRAM": "run.sh" if shell else "run.py" if wrapper else "train.py"}


def start(tree: Tree, env: dict[str, str]) -> "tuple[subprocess.Popen[bytes], int]":
    """Start the job; also the process id of `train.py`, which has its handlers by then."""
    process = tree.start(env)
    eventually((tree.code / "pid").exists, "train.py", ended=lambda: process.poll() is not None)
    return process, int((tree.code / "pid").read_text())


def stop(tree: Tree, env: dict[str, str]) -> Run:
    """Stop the job once `train.py` runs, and let that save once it has heard of it."""
    process, _ = start(tree, env)
    process.terminate()
    eventually((tree.code / "asked").exists, "train.py to hear of it", ended=lambda: process.poll() is not None)
    (tree.code / "go").touch()
    return tree.finish(process)


_SUBPROCESS = """
    import subprocess, sys
    code = subprocess.run([sys.executable, "train.py", *sys.argv[1:]]).returncode
    print("a later line", flush=True)
    sys.exit(code)
"""
_IGNORES = f"""
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
{textwrap.indent(textwrap.dedent(_SUBPROCESS.replace('print("a later line", flush=True)', "")), "    ")}
"""


@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.parametrize(
    ("shell", "wrapper"),
    [
        ('python train.py "$@"\necho a later line', ""),
        ('python train.py "$@" | tee log\necho a later line', ""),
        ('bash -c "python train.py; echo a later line"\necho a later line', ""),
        ('python train.py "$@" & wait $!\necho a later line', ""),
        ("setsid python train.py\necho a later line", ""),
        ("(setsid python train.py &)\ntail -f /dev/null", ""),
        ("", _SUBPROCESS),
        ("", _IGNORES),
    ],
    ids=["shell", "tee", "two shells", "in the background", "session", "orphan", "wrapper", "ignoring wrapper"],
)
def test_a_program_below_others_hears_once_and_says_how_the_job_ends(
    tree: Tree, shell: str, wrapper: str, code: int
) -> None:
    env = write(tree, shell, wrapper=wrapper, code=code)
    tree.hyperparameters(rate="0.1")
    run = stop(tree, env)
    assert run.code == code, run.log
    assert re.fullmatch(r"saved 1( --rate 0\.1)?\n", run.stdout.decode()), run.log
    assert (run.failure is None) == (code == 0)
    assert "stopped by SIGTERM" in run.log


def test_the_reason_is_that_of_the_program_below_the_shell(tree: Tree) -> None:
    env = write(tree, "python train.py | tee log", train=_TRAIN.replace("sys.exit({code})", "raise ValueError('disk')"))
    run = stop(tree, env)
    assert run.code == 1
    assert str(run.failure).startswith("ValueError: disk\nat train.py:"), run.failure


def test_what_passes_on_the_output_has_a_moment_for_its_end(tree: Tree) -> None:
    """`tee` and the like leave by themselves; a signal would lose what they hold."""
    slow = 'python train.py | (while read -r line; do sleep 0.2; echo "$line"; done)'
    run = stop(tree, write(tree, slow, train=_TRAIN.replace('print("saved"', 'print("one\\ntwo\\nsaved"')))
    assert run.code == 0
    assert run.stdout == b"one\ntwo\nsaved 1\n"


def test_a_wrapper_between_passes_on_how_its_program_ended(tree: Tree) -> None:
    run = stop(tree, write(tree, "python wrapper.py\necho a line of the shell", wrapper=_SUBPROCESS, code=7))
    assert run.code == 7, run.log
    assert "a line of the shell" not in run.stdout.decode()


@pytest.mark.parametrize("shell", ["", "python train.py | tee log", "trap 'exit 143' TERM\npython train.py"])
def test_a_program_without_a_handler_ends_the_job_at_once(tree: Tree, shell: str) -> None:
    env = write(tree, shell, train=_NO_HANDLER)
    process, pid = start(tree, {**env, "TRAINBOX_GRACE_SECONDS": "3600"})
    process.terminate()
    run = tree.finish(process)
    assert run.code == 143, run.log
    assert str(run.failure).startswith("stopped"), run.failure
    assert not is_alive(pid)


def test_the_trap_of_a_shell_still_runs(tree: Tree) -> None:
    env = write(tree, "trap 'echo saved by the shell; exit 0' TERM\npython train.py", train=_NO_HANDLER)
    process, _ = start(tree, {**env, "TRAINBOX_GRACE_SECONDS": "3600"})
    process.terminate()
    run = tree.finish(process)
    assert (run.code, run.stdout) == (0, b"saved by the shell\n"), run.log


def test_a_program_that_does_not_leave_is_killed_with_all_when_the_grace_is_over(tree: Tree) -> None:
    env = write(tree, "python train.py | tee log")
    process, pid = start(tree, {**env, "TRAINBOX_GRACE_SECONDS": "0.5"})
    process.terminate()
    run = tree.finish(process)
    assert run.code == 137
    assert str(run.failure).startswith("stopped: the script did not leave in time after SIGTERM and was killed\n")
    assert not is_alive(pid)


def test_a_program_that_is_frozen_below_a_shell_hears_too(tree: Tree) -> None:
    env = write(tree, "python train.py | tee log")
    process, pid = start(tree, env)
    os.kill(pid, signal.SIGSTOP)
    process.terminate()
    eventually((tree.code / "asked").exists, "it to go on")
    (tree.code / "go").touch()
    run = tree.finish(process)
    assert (run.code, run.stdout) == (0, b"saved 1\n"), run.log


def test_a_program_that_is_still_starting_beside_one_that_saves_hears_later_and_may_save_too(tree: Tree) -> None:
    late = _TRAIN.replace('"pid', '"late').replace('"asked"', '"late.asked"').replace("import os", "import os;", 1)
    begins = "    import os, time\n    while not os.path.exists('asked'): time.sleep(0.01)\n"
    tree.program(textwrap.dedent(begins + late.replace("import os;,", "import os,").replace("{code}", "0")), "late.py")
    env = write(tree, "python late.py & python train.py")
    process, _ = start(tree, env)
    process.terminate()
    eventually((tree.code / "late").exists, "the other to come so far")
    (tree.code / "go").touch()
    run = tree.finish(process)
    assert run.code == 0, run.log
    assert run.stdout == b"saved 1\n" * 2


def test_a_stop_while_programs_start_one_after_the_other_leaves_nothing_and_runs_no_later_line(tree: Tree) -> None:
    shell = "echo $$ > part; mv part pid\nwhile /bin/true; do /bin/true; done\necho a later line"
    env = write(tree, shell)
    process, _ = start(tree, env)
    process.terminate()
    run = tree.finish(process)
    assert (run.code, run.stdout) == (143, b""), run.log


_LOADER = """
    import os, signal, sys, time
    import torch
    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        came = []
        if {handler}:
            signal.signal(signal.SIGTERM, lambda *_: came.append(1))
        loader = iter(DataLoader(range(10**9), num_workers=2, multiprocessing_context="{context}"))
        next(loader)
        open("pid.part", "w").write(str(os.getpid()))
        os.rename("pid.part", "pid")
        while not came:
            next(loader)
        open("asked", "w").close()
        for _ in range(100):
            next(loader)
        del loader
        print("saved", len(came), flush=True)
"""


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "shell",
    [pytest.param("", id="script", marks=pytest.mark.long), pytest.param("python train.py | tee log", id="shell")],
)
def test_data_loader_workers_live_until_the_script_has_saved(tree: Tree, shell: str, context: str) -> None:
    env = write(tree, shell, train=_LOADER.replace("{handler}", "True").replace("{context}", context))
    run = stop(tree, env)
    assert (run.code, run.stdout) == (0, b"saved 1\n"), run.log
    assert "killed by signal" not in run.log


@pytest.mark.long
def test_data_loader_workers_of_a_script_without_a_handler_do_not_pass_for_one_that_has_saved(tree: Tree) -> None:
    env = write(tree, train=_LOADER.replace("{handler}", "False").replace("{context}", "fork"))
    process, pid = start(tree, env)
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert any(catches(child, signal.SIGTERM) for child in children)
    process.terminate()
    run = tree.finish(process)
    assert run.code == 143, run.log
    assert "it had no handler for it, or not yet" in str(run.failure)
