"""The plans of many jobs are those that were recorded, to the byte of each argument and variable.

The rule for changes is in `recorded.py`; the jobs are in `jobs.py`.
"""

from pathlib import Path

import pytest

from tests.frozen.jobs import JOBS
from tests.frozen.plans import plan_of
from tests.frozen.recorded import compare, names


@pytest.mark.parametrize("name", JOBS)
def test_the_plan_of_a_job_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    compare(f"plans/{name}.json", plan_of(JOBS[name], tmp_path / "ml"), what="plans")


def test_there_is_a_job_for_every_recorded_plan() -> None:
    assert names("plans") == sorted(f"{name}.json" for name in JOBS)
