"""Seeded trainings leave the bytes that were recorded; the rule for changes is in `recorded.py`.

What was tried, on an x86-64 processor with AVX-512 under much load: the same records came out of every run, of other
hash seeds, ports and addresses, too. Without the variables of `trainings.STEADY` XGBoost's bytes and the trees of a
forest are the same; the scores of a forest differ in their last bit (NumPy, the C library), and so do the coefficients
of an estimator (OpenBLAS) and all of PyTorch, for which ATEN_CPU_CAPABILITY and MKL_CBWR each matter. With two threads
all is the same but for the bundled networks of PyTorch. On one of AMD's without AVX-512, under load, every run has the
same records but for those of PyTorch, which has records of its own there (`digests.py`). Not tried: Intel's without
AVX-512, and any without AVX.
"""

from pathlib import Path

import pytest

from tests.frozen.digests import digest_of, require_recorded_versions
from tests.frozen.recorded import compare
from tests.frozen.trainings import TRAININGS, train

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


#: What these do others do, too: the fixtures that are resumed come to the same bytes, and XGBoost is on two hosts.
LONG = (
    "forest",
    "xgboost-on-two-hosts",
    "forest-on-two-hosts",
    "pytorch-images",
    "pytorch-sharded",
    "pytorch-table",
    "pytorch-table-on-two-hosts",
    "xgboost-cross-validation",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in TRAININGS]
)
def test_a_seeded_training_leaves_the_recorded_bytes(name: str, tmp_path: Path) -> None:
    job = TRAININGS[name]
    record = require_recorded_versions(name, job)
    compare(record, digest_of(job, train(job, tmp_path)), what="digests")
