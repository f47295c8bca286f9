"""What the public scripts train is found, loaded, and predicts what its card noted when it was saved."""

from pathlib import Path

import numpy as np
import pytest

from tests.frozen.trainings import TRAININGS, Training, draw_rows, train
from trainbox.contract.hosting import read_hosting
from trainbox.serving.models.find import find_model, list_model, load
from trainbox.serving.models.self_test import self_test

pytestmark = pytest.mark.process

_XGBOOST = TRAININGS["xgboost"]
JOBS: dict[str, Training] = {
    **{name: TRAININGS[name] for name in ("xgboost", "xgboost-cross-validation", "forest", "estimator")},
    **{name: TRAININGS[name] for name in ("pytorch-table", "pytorch-images")},
    "early-stopped": Training(
        script="xgboost",
        hyperparameters={**_XGBOOST.hyperparameters, "num_round": "40", "early_stopping_rounds": "2", "eta": "1"},
        libraries=_XGBOOST.libraries,
    ),
    "forest of xgboost": Training(
        script="random_forest",
        hyperparameters={"n-estimators": "4", "max-depth": "3", "engine": "xgboost", "n-jobs": "1"},
        libraries=_XGBOOST.libraries,
    ),
    "histograms": Training(
        script="random_forest",
        hyperparameters={"estimator": "sklearn.ensemble.HistGradientBoostingClassifier"},
        libraries=TRAININGS["forest"].libraries,
    ),
}
#: One in CI; trees are compared to the bit, and the others within rounding, by `self_test`.
QUICK = "xgboost"
TREES = frozenset({"xgboost", "early-stopped", "xgboost-cross-validation", "forest", "forest of xgboost", "histograms"})


@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.long) for name in JOBS]
)
def test_a_trained_model_is_served_with_the_predictions_of_its_card(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `load` sets it
    (root,) = train(JOBS[name], tmp_path, steady={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}).roots
    hosting = read_hosting({"TRAINBOX_ROOT": str(root), "TRAINBOX_SERVE_CODE": "never"})
    ours = load(find_model(hosting, list_model(hosting)))
    assert len(ours.card.samples) == 5
    assert self_test(ours) is None
    if name in TREES:
        assert ours.is_rowwise
        assert "last bits" not in capfd.readouterr().err
    if len(ours.card.shape) < 2:
        rows = np.array([line.split(",")[1:] for line in draw_rows(1, 8)], np.float32)
        assert len(ours.predict(rows)) == 8
