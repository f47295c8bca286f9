"""What `trainbox run … --dry-run` prints is what was recorded; the rule for changes is in `recorded.py`."""

from pathlib import Path

import pytest

from tests.frozen.dry_runs import DRY_RUNS, dry_run
from tests.frozen.recorded import compare, names

# To find a free port it opens a socket.
pytestmark = pytest.mark.process


@pytest.mark.parametrize("name", DRY_RUNS)
def test_the_text_of_a_dry_run_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    compare(f"dry-runs/{name}.txt", dry_run(DRY_RUNS[name], tmp_path), what="dry-runs")


def test_there_is_a_command_for_every_recorded_dry_run() -> None:
    assert names("dry-runs") == sorted(f"{name}.txt" for name in DRY_RUNS)
