"""What `serve` imports: it starts in a tenth of the time of others because it leaves out what it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest
import xgboost as xgb

from tests.support.boosters import train
from trainbox.xgboost.readers import for_every_reader

pytestmark = pytest.mark.process

#: Loads and answers one row as the loader does, then says which of these are there.
CODE = """\
import sys
from trainbox.contract.hosting import read_hosting
from trainbox.serving import loader
from trainbox.serving.responder import Request, load_responder
responder = load_responder(read_hosting(dict(item.split("=", 1) for item in sys.argv[1:])))
responder.check()
print(responder.answer(Request({"content-type": "text/csv"}, b"1,2,3,4")).body.decode().strip())
print(*sorted({"pandas", "pyarrow", "scipy", "sklearn", "torch", "xgboost"} & {*sys.modules}))
"""


def serve_with(root: Path, *variables: str) -> list[str]:
    (root / "model").mkdir()
    booster, _ = train("binary:logistic")
    (root / "model" / "xgboost-model").write_bytes(for_every_reader(bytes(booster.save_raw())))
    done = subprocess.run(
        [sys.executable, "-c", CODE, f"TRAINBOX_ROOT={root}", *variables],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_a_model_of_xgboost_answers_without_the_libraries_that_training_needs(tmp_path: Path) -> None:
    answer, loaded, _ = serve_with(tmp_path)
    row = xgb.DMatrix([[1, 2, 3, 4]], nthread=1)
    assert float(answer) == float(train("binary:logistic")[0].predict(row, validate_features=False)[0])
    assert loaded == ""


def test_a_batch_transform_job_has_arrow_before_its_workers_are_forked(tmp_path: Path) -> None:
    _, loaded, _ = serve_with(tmp_path, "SAGEMAKER_BATCH=true")
    assert loaded == "pyarrow"
