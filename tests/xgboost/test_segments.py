"""A model does not show where its training was interrupted, with any XGBoost that is here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import segments

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
#: Python 3.12 with XGBoost 3.4, which has another random generator; `make venv-py312` makes it where it can.
NEWEST = ROOT / ".venv-py312" / "bin" / "python"
PYTHONS = {"here": Path(sys.executable), "newest": NEWEST}


@pytest.mark.long
@pytest.mark.parametrize("python", PYTHONS.values(), ids=PYTHONS.keys())
def test_stopped_at_four_rounds_training_comes_to_the_same_bytes(python: Path) -> None:
    if not python.exists():
        pytest.skip("there is no Python 3.12 here: make venv-py312")
    answer = subprocess.run(
        [python, segments.__file__],
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT / "container")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["same"] == dict.fromkeys(segments.CASES, True)
