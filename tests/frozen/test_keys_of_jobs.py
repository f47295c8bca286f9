"""With a key every kind of job seals its checkpoints, resumes from them, and refuses those that are not sealed."""

from pathlib import Path

import pytest

from tests.frozen.fixtures import FIXTURES, with_a
from tests.frozen.trainings import STEADY, TRAININGS, train
from trainbox.checkpoint.manifest import MANIFEST, read_sealed, require_genuine
from trainbox.contract.credentials.checkpoint_keys import CHECKPOINT_KEY

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

KEY = bytes(range(32, 64))
SEALED = {**STEADY, CHECKPOINT_KEY: KEY.hex()}
#: All look for a checkpoint alike.
_FIRST = "xgboost"


@pytest.mark.parametrize(
    "name", [name if name == _FIRST else pytest.param(name, marks=pytest.mark.long) for name in with_a("checkpoint")]
)
def test_a_checkpoint_that_nobody_has_sealed_ends_a_job_with_a_key(name: str, tmp_path: Path) -> None:
    missing = r"whole, but not genuine: the seal of TRAINBOX_CHECKPOINT_KEY is missing"
    with pytest.raises(AssertionError, match=missing):
        train(TRAININGS[name], tmp_path, checkpoints=FIXTURES / name / "checkpoints", steady=SEALED)


@pytest.mark.long
@pytest.mark.parametrize("name", [*with_a("checkpoint"), "forest-on-two-hosts", "xgboost-on-two-hosts"])
def test_a_job_with_a_key_resumes_what_it_has_sealed(name: str, tmp_path: Path) -> None:
    job = TRAININGS[name]
    done = train(job, tmp_path / "first", steady=SEALED)
    sealed = [path.parent for root in done.roots for path in (root / "checkpoints").rglob(MANIFEST)]
    assert sealed
    for path in sealed:
        require_genuine(path, read_sealed(path), [KEY])
    assert KEY.hex() not in "".join(done.logs)
    if name == "forest-on-two-hosts":
        return  # directories have the names of hosts, which are others here each time
    again = train(job, tmp_path / "second", checkpoints=done.roots[0] / "checkpoints", steady=SEALED)
    assert "resuming from step " in again.logs[0]
    assert KEY.hex() not in "".join(again.logs)
