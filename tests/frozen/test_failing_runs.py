"""The failure files of real runs of `train` are those that were recorded; the rule for changes is in `recorded.py`."""

from pathlib import Path

import pytest

from tests.frozen.failures import FAILING_RUNS, failure_of_run
from tests.frozen.recorded import compare

pytestmark = pytest.mark.process


@pytest.mark.parametrize("name", FAILING_RUNS)
def test_the_failure_file_of_a_run_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    found = failure_of_run(FAILING_RUNS[name], tmp_path / "ml")
    compare(f"process-failures/{name}.json", found, what="process-failures")
