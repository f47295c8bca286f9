"""Threads of XGBoost do not spin while they wait: beside other work that takes many times as long as what they do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "xgboost_train.py"
#: `OMP_DISPLAY_ENV` has OpenMP say what it has understood when it is loaded.
ASK = """
import os, runpy, sys
script, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print(f"policy: {os.environ['OMP_WAIT_POLICY']}")
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "passive"), pytest.param({"OMP_WAIT_POLICY": "active"}, "active", marks=pytest.mark.long)],
)
def test_threads_sleep_while_they_wait_unless_something_else_is_said(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/rows.csv").write_text("".join(f"{row % 2},{row}\n" for row in range(20)))
    flags = ["--num_round", "1", "--nthread", "1", "--channel", f"train={tmp_path}/train"]
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    shown = {**kept, **given, "OMP_DISPLAY_ENV": "true", "TRAINBOX_ROOT": f"{tmp_path}/root"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, SCRIPT, *flags], env=shown, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"policy: {expected}" in done.stdout
    assert f"OMP_WAIT_POLICY = '{expected.upper()}'" in done.stderr
