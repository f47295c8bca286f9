"""Models of several libraries in one endpoint of many models."""

from pathlib import Path

import joblib
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor

from tests.serving.test_many_models import ONE, grown, place, predicted
from tests.serving.test_serve_models import ROWS, as_csv
from tests.support.many_models import ManyModels

pytestmark = pytest.mark.process


@pytest.mark.long
def test_models_of_all_libraries_answer_beside_each_other_in_workers_of_two_threads(
    tmp_path: Path,
) -> None:
    """Each library brings a team of OpenMP of its own: none of them may be there before a fork."""
    booster, labels = grown(20), (ROWS[:, 0] > ROWS[:, 1]).astype(int)
    place(tmp_path, "booster", booster)
    forest = RandomForestRegressor(20, random_state=0).fit(ROWS[:500], labels[:500])
    network = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)).eval()
    for name in ("forest", "network"):
        (tmp_path / "models" / name / "model").mkdir(parents=True)
    joblib.dump(forest, tmp_path / "models" / "forest" / "model" / "model.joblib")
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(network), str(tmp_path / "models" / "network" / "model" / "model.pt"))
    rows = ROWS[:64]
    expected = {
        "booster": predicted(booster, rows),
        "forest": forest.predict(rows).tolist(),
        "network": network(torch.from_numpy(rows))[:, 0].tolist(),
    }
    with ManyModels(tmp_path, {**ONE, "OMP_NUM_THREADS": "2"}) as server:
        for name in ("network", "booster", "forest"):
            assert server.load(name).status == 200, server.log
            for loaded in server.names:
                answered = server.invoke_model(loaded, as_csv(rows), {"accept": "text/csv"})
                found = list(map(float, answered.body.split()))
                # Threads of this process may sum a network's products in another order.
                assert found == (pytest.approx(expected[loaded]) if loaded == "network" else expected[loaded]), loaded
