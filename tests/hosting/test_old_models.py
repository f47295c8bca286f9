"""What XGBoost 1.7.6 has saved in the binary format, or pickled, is served with the same bits."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support.containers import unavailable
from trainbox.xgboost.predictor import load_predictor

pytestmark = pytest.mark.hosting

PYTHON = Path(__file__).parents[2] / ".venv-hosting-1.7" / "bin" / "python"
WRITER = Path(__file__).with_name("old_models.py")


@pytest.mark.parametrize("form", ["model", "pkl"])
def test_models_of_an_old_xgboost_are_served_with_the_same_bits(form: str, tmp_path: Path) -> None:
    if not PYTHON.exists():
        unavailable("there is no .venv-hosting-1.7 (make venv-hosting)")
    subprocess.run([PYTHON, "-W", "ignore", WRITER, tmp_path], check=True)
    rows, models = np.load(tmp_path / "rows.npy"), sorted(tmp_path.glob(f"*.{form}"))
    assert len(models) == 36
    for model in models:
        ours = load_predictor(tmp_path, [model.name], None)
        expected = np.load(model.with_suffix(".npy"))
        assert ours.predict(rows).tobytes() == expected.tobytes(), model.name
        assert np.concatenate([ours.predict(row[None]) for row in rows]).tobytes() == expected.tobytes(), model.name
