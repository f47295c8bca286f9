"""`trainbox run --kill` and `--freeze`: a person rehearses a fault on a script of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (["--kill", "1@12"], r"restart 1 of 3: rank 1 was killed by SIGKILL after step 1[2-5]\b"),
        (["--freeze", "0@12", "--env", "TRAINBOX_HANG_SECONDS=2"], r"restart 1 of 3: rank 0 .*step 1[2-5]\b"),
    ],
)
def test_a_rank_that_meets_a_fault_is_started_again_and_the_job_completes(
    fault: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [
        str(Path(sys.executable).with_name("trainbox")),
        "run",
        "train.py",
        "--out",
        "result",
        "--processes",
        "2",
    ]
    answer = subprocess.run(
        [*command, "--hp", "trainbox_launcher=torchrun", *fault],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    log = (tmp_path / "result" / "logs" / "algo-1.log").read_text()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(said, log), log
    assert re.search(r"resuming from step \d+ ", log), log
    assert json.loads((tmp_path / "result" / "job.json").read_text())["status"] == "Completed"
    assert (tmp_path / "result" / "model" / "steps").read_text() == "16"
