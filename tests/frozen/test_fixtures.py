"""What an earlier version has written can still be used: its checkpoints resume, its models load and predict.

See `fixtures.py` for what they are. These tests are to hold in every later version; the fixtures stay as they are.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.frozen.digests import digest_of, require_recorded_versions, resumed_of, without_curves
from tests.frozen.fixtures import AT_QUANTILES, FIXTURES, about, has_same_versions, predict, with_a
from tests.frozen.recorded import read
from tests.frozen.trainings import AT_QUANTILES as AT_QUANTILES_JOB
from tests.frozen.trainings import TRAININGS, train
from tests.support.ubjson import without_base_score
from trainbox.contract.model_card import read_card

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


#: The first finds, reads and continues as that of one process does, and takes three times as long.
LONG = ("pytorch-sharded", "xgboost-cross-validation")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in with_a("checkpoint")]
)
def test_a_checkpoint_of_an_earlier_version_resumes_to_the_recorded_bytes(name: str, tmp_path: Path) -> None:
    job = TRAININGS[name]
    if not has_same_versions(name) and "torch" not in job.libraries:
        pytest.skip("trees are resumed by the very version of the library that has begun them")
    done = train(job, tmp_path, checkpoints=FIXTURES / name / "checkpoints")
    assert f"resuming from step {about(name)['step']} " in done.logs[0]
    record = require_recorded_versions(name, job)
    expected = read(resumed_of(name, job)) or read(record) or ""
    assert without_curves(digest_of(job, done)) == without_curves(expected)


def test_a_checkpoint_that_was_begun_with_quantiles_goes_on_with_them(tmp_path: Path) -> None:
    if not has_same_versions(AT_QUANTILES, job=AT_QUANTILES_JOB):
        pytest.skip("trees are resumed by the very version of the library that has begun them")
    fixture = FIXTURES / AT_QUANTILES
    done = train(AT_QUANTILES_JOB, tmp_path, checkpoints=fixture / "checkpoints")
    assert "resuming from step 4 " in done.logs[0]
    assert "bins stay at exact quantiles" in done.logs[0]
    models = [(root / "model/xgboost-model").read_bytes() for root in (fixture, *done.roots)]
    assert without_base_score(models[0]) == without_base_score(models[1])


@pytest.mark.parametrize("name", with_a("model"))
def test_a_model_of_an_earlier_version_loads_and_predicts_the_same(name: str) -> None:
    noted, model = about(name), FIXTURES / name / "model"
    if not has_same_versions(name) and name != "xgboost":
        pytest.skip("scikit-learn and PyTorch read no model that another version of them has written")
    found = predict(model)
    assert sorted(found) == sorted(noted["predictions"])
    for file, said in found.items():
        np.testing.assert_allclose(said, noted["predictions"][file], rtol=1e-5, atol=1e-6, err_msg=file)
    assert read_card(model).complete is True
