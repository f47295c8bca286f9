"""`trainbox run` takes the key of checkpoints from its shell, and nothing that it shows or keeps has it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.runs import COMMAND, record
from tests.support.waiting import LIMIT
from trainbox.contract.credentials.checkpoint_keys import CHECKPOINT_KEY

pytestmark = pytest.mark.process

KEY, OTHER = "a1" * 32, "b2" * 32
#: Saves one more step at each start; says whether any process of the machine shows the key among its arguments.
SCRIPT = f"""
import os, pathlib, trainbox
store = trainbox.checkpoints()
found = store.latest()
with store.writing(found.step + 1 if found else 1) as directory:
    (directory / "weights").write_bytes(b"weights")
shown = 0
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
        shown += os.environ["{CHECKPOINT_KEY}"].partition(",")[0].encode() in path.read_bytes()
    except OSError:
        continue
print("shown by", shown, "processes")
raise SystemExit(3)
"""


def run(directory: Path, key: str, *more: str) -> tuple[int, str]:
    answer = subprocess.run(
        [*COMMAND, "train.py", "--out", "out", *more],
        cwd=directory,
        env={**os.environ, CHECKPOINT_KEY: key},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    return answer.returncode, answer.stdout + answer.stderr


def test_a_key_of_the_shell_seals_is_shown_nowhere_and_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    said = [run(tmp_path, KEY, "--dry-run")]
    assert said[0][0] == 0, said
    assert f"{CHECKPOINT_KEY}=***" in said[0][1]
    said.append(run(tmp_path, KEY))
    said.append(run(tmp_path, f"{OTHER},{KEY}", "--resume"))
    assert [code for code, _ in said[1:]] == [3, 3], said
    log = (tmp_path / "out" / "logs" / "algo-1.log").read_text()
    assert "shown by 0 processes" in log
    assert "resuming from step 1 " in log
    said.append(run(tmp_path, KEY, "--resume"))
    assert said[-1][0] == 8, said
    assert "whole, but not genuine" in record(tmp_path / "out")["failure_reason"]
    kept = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [text for text in [*kept, *(text.encode() for _, text in said)] if KEY.encode() in text]


def test_a_key_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    code, said = run(tmp_path, "correct-horse-battery")
    assert code != 0
    assert f"the variable {CHECKPOINT_KEY}: the key is not 32 bytes in hexadecimal digits or base64" in said
    assert "correct-horse" not in said
