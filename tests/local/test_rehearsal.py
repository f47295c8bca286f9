"""`trainbox run --kill` and `--freeze`: a person rehearses a fault on a script of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainbox.errors import HyperparameterError, RehearsalError

pytestmark = pytest.mark.cluster

pytest.importorskip("torch")

SCRIPT = """
import torch, trainbox
from trainbox.torch import session

with session(seed=1) as run:
    model = run.wrap(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = run.batches(64, batch_size=4)
    run.resume(every_seconds=0.0, model=model, optimizer=optimizer, batches=batches)
    for inputs in run.steps(batches.loader(torch.randn(64, 4))):
        run.backward(model(inputs).square().mean())
        run.update(optimizer)
    if run.rank == 0:
        trainbox.save("steps", str(run.step))
"""


PLAIN = "print('no session')"


def rehearse(here: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (here / "train.py").write_text(script)
    command = [str(Path(sys.executable).with_name("trainbox")), "run", "train.py", "--out", "result", *arguments]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=300)


def test_ranks_that_meet_faults_are_started_again_and_the_job_completes(tmp_path: Path) -> None:
    """However fast its steps are: a rank waits after the step of its drill. Nobody has to name the launcher."""
    faults = ["--kill", "1@4", "--freeze", "0@12", "--env", "TRAINBOX_HANG_SECONDS=2"]
    answer = rehearse(tmp_path, SCRIPT, "--processes", "2", *faults)
    log = (tmp_path / "result" / "logs" / "algo-1.log").read_text()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (
        "launcher torchrun: train.py imports trainbox.torch, trainbox_drill and trainbox_hang_seconds are given" in log
    )
    assert "restart 1 of 3: rank 1 was killed by SIGKILL after step 4\n" in log
    assert re.search(r"restart 2 of 3: rank 0 .*after step 12\b", log), log
    assert len(re.findall(r"resuming from step \d+ ", log)) == 2, log
    assert json.loads((tmp_path / "result" / "job.json").read_text())["status"] == "Completed"
    assert (tmp_path / "result" / "model" / "steps").read_text() == "16"


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        pytest.param(
            *(SCRIPT, ["--processes", "2", "--kill", "1@17"], "'kill 1@17': rank 1 finished 16 steps in all"),
            id="a step beyond the end",
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(PLAIN, ["--freeze", "0@3"], "'freeze 0@3': rank 0 reported no step"), id="a script without a session"
        ),
    ],
)
def test_a_drill_that_did_not_happen_fails_the_job(
    tmp_path: Path, script: str, arguments: list[str], said: str
) -> None:
    answer = rehearse(tmp_path, script, *arguments)
    assert answer.returncode == RehearsalError.exit_code, answer.stdout + answer.stderr
    failure = (tmp_path / "result" / "output" / "failure").read_text()
    assert failure.startswith(f"ClientError: not rehearsed: {said}")


@pytest.mark.long
def test_all_hosts_fail_alike_for_a_drill_of_one_that_did_not_happen(tmp_path: Path) -> None:
    answer = rehearse(tmp_path, SCRIPT, "--hosts", "2", "--processes", "1", "--kill", "1@17", "--kill", "0@3")
    assert answer.returncode == RehearsalError.exit_code, answer.stdout + answer.stderr
    record = json.loads((tmp_path / "result" / "job.json").read_text())
    assert [host["exit_code"] for host in record["hosts"]] == [RehearsalError.exit_code] * 2
    log = "".join(path.read_text() for path in (tmp_path / "result" / "logs").glob("*.log"))
    assert "rank 0 was killed by SIGKILL after step 3" in log
    assert "rehearsing: kill 1@17" not in log


@pytest.mark.representative
@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (SCRIPT, ["--kill", "1@3"], "'kill 1@3' cannot happen: the job has rank 0 alone"),
        (SCRIPT, ["--kill", "0@3", "--hp", "trainbox_launcher=plain"], "trainbox_drill has no effect"),
        (SCRIPT, ["--env", "TRAINBOX_MAX_RESTARTS=5", "--hp", "trainbox_launcher=plain"], "no effect: the launcher is"),
    ],
)
def test_a_drill_that_cannot_happen_is_refused_before_the_script_runs(
    tmp_path: Path, script: str, arguments: list[str], said: str
) -> None:
    answer = rehearse(tmp_path, script, *arguments)
    assert answer.returncode == HyperparameterError.exit_code, answer.stdout + answer.stderr
    assert said in (tmp_path / "result" / "output" / "failure").read_text()
    assert "running" not in (tmp_path / "result" / "logs" / "algo-1.log").read_text()


@pytest.mark.long
def test_a_session_under_the_plain_launcher_says_in_one_line_what_it_lacks(tmp_path: Path) -> None:
    answer = rehearse(tmp_path, SCRIPT, "--hp", "trainbox_launcher=plain")
    log = (tmp_path / "result" / "logs" / "algo-1.log").read_text()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert log.count("trainbox: this script was not started by trainbox's launcher torchrun: no restart in place") == 1
