"""Seeded trainings leave the bytes that were recorded; the rule for changes is in `recorded.py`.

Tried when this was written, on an x86-64 processor with AVX-512: TRIED
"""

from pathlib import Path

import pytest

from frozen.digests import digest_of, require_recorded_versions
from frozen.recorded import compare
from frozen.trainings import TRAININGS, train

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_seeded_training_leaves_the_recorded_bytes(name: str, tmp_path: Path) -> None:
    job = TRAININGS[name]
    record = require_recorded_versions(name, job)
    compare(record, digest_of(job, train(job, tmp_path)), what="digests")
