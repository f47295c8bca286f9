"""Shards, pipes, groups and a former model in containers: the same as in processes."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import IMAGE
from tests.support.runs import COMMAND
from tests.support.waiting import LIMIT

pytestmark = pytest.mark.docker

LOOK = """
import json, os
from pathlib import Path
data = Path("/opt/ml/input/data")
found = {path.relative_to(data).as_posix(): path.read_text() for path in sorted(data.rglob("*")) if path.is_file()}
stem = os.environ.get("SM_CHANNEL_STREAM")
piped = [open(f"{stem}_{epoch}").read() for epoch in range(2)] if stem else []
try:
    (data / "train" / "a.csv").write_text("changed")
except OSError as error:
    found["error"] = error.strerror
group = os.environ["SM_CURRENT_INSTANCE_GROUP"]
about = {"found": found, "piped": piped, "group": group}
Path(os.environ["SM_MODEL_DIR"], os.environ["SM_CURRENT_HOST"] + ".json").write_text(json.dumps(about))
"""


@pytest.fixture
def here(engine: Any, tmp_path: Path) -> Path:
    assert engine
    (tmp_path / "data").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "data" / f"{name}.csv").write_text(f"{name}\n")
    (tmp_path / "look.py").write_text(LOOK)
    return tmp_path


def run(here: Path, *arguments: str) -> str:
    command = [*COMMAND, *arguments, f"--docker={IMAGE}"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_hosts_in_containers_get_their_shards_and_pipes(here: Path) -> None:
    run(
        here,
        *("look.py", "--hosts", "workers=2,evaluators=1", "--out", "out"),
        *("--channel", "train=data,sharded,groups=workers", "--channel", "stream=data,pipe,groups=evaluators"),
    )
    first, second, third = (
        json.loads((here / "out" / "model" / f"algo-{number}.json").read_text()) for number in (1, 2, 3)
    )
    assert first["found"] == {"train/a.csv": "a\n", "train/c.csv": "c\n", "error": "Read-only file system"}
    assert [name for name in second["found"] if name.startswith("train/")] == ["train/b.csv"]
    assert third["piped"] == ["a\nb\nc\n"] * 2
    assert third["group"] == "evaluators"
    assert (here / "data" / "a.csv").read_text() == "a\n"


def test_xgboost_in_a_container_boosts_on(here: Path) -> None:
    (here / "rows").mkdir()
    with (here / "rows" / "a.csv").open("w") as file:
        csv.writer(file).writerows([[n % 2, n % 2 + n % 5 / 10, n % 7] for n in range(200)])
    train = ("xgboost", "--channel", "train=rows", "--hp", "objective=binary:logistic", "--hp", "num_round=2")
    run(here, *train, "--out", "first")
    said = run(here, *train, "--channel", "model=first/model.tar.gz", "--out", "second")
    assert "channel model: 2 rounds; 2 more are trained on top of them" in said
