"""`trainbox run --kill` and `--freeze`: a person rehearses a fault on a script of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

pytest.importorskip("torch")

SCRIPT = """
import time, torch, trainbox
from trainbox.torch import session

with session(seed=1) as run:
    model = run.wrap(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = run.batches(64, batch_size=4)
    run.resume(every_seconds=0.1, model=model, optimizer=optimizer, batches=batches)
    for inputs in run.steps(batches.loader(torch.randn(64, 4))):
        time.sleep(0.1)
        run.backward(model(inputs).square().mean())
        run.update(optimizer)
    if run.rank == 0:
        trainbox.save("steps", str(run.step))
"""


def test_ranks_that_meet_faults_are_started_again_and_the_job_completes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [str(Path(sys.executable).with_name("trainbox")), "run", "train.py", "--out", "result"]
    faults = ["--kill", "1@4", "--freeze", "0@12", "--env", "TRAINBOX_HANG_SECONDS=2"]
    answer = subprocess.run(
        [*command, "--processes", "2", "--hp", "trainbox_launcher=torchrun", *faults],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    log = (tmp_path / "result" / "logs" / "algo-1.log").read_text()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"restart 1 of 3: rank 1 was killed by SIGKILL after step [4-7]\b", log), log
    assert re.search(r"restart 2 of 3: rank 0 .*step 1[2-5]\b", log), log
    assert len(re.findall(r"resuming from step \d+ ", log)) == 2, log
    assert json.loads((tmp_path / "result" / "job.json").read_text())["status"] == "Completed"
    assert (tmp_path / "result" / "model" / "steps").read_text() == "16"
