"""The failure files of many kinds of end are those that were recorded, to the letter: rules match on them.

The rule for changes is in `recorded.py`; the kinds are in `failures.py`.
"""

from pathlib import Path

import pytest

from tests.frozen.failures import FAILING_RUNS, FAILURES, failure_of
from tests.frozen.recorded import compare, names


@pytest.mark.parametrize("name", FAILURES)
def test_the_failure_file_of_an_outcome_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    compare(f"failures/{name}.json", failure_of(FAILURES[name], tmp_path / "ml"), what="failures")


def test_there_is_a_case_for_every_recorded_failure() -> None:
    assert names("failures") == sorted(f"{name}.json" for name in FAILURES)
    assert names("process-failures") == sorted(f"{name}.json" for name in FAILING_RUNS)
