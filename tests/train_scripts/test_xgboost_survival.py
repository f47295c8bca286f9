"""`xgboost_train.py` on times that are known in part: bounds that are missing or infinite, in memory or on the disk."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from tests.support.script_runs import make_job, run_script
from tests.support.shared_data import shared

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "xgboost_train.py"
AFT = {
    "objective": "survival:aft",
    "label_columns": "2",
    "num_round": "10",
    "eval_metric": "interval-regression-accuracy,aft-nloglik",
    "max_depth": "3",
    "nthread": "1",
}


def train(root: Path, hyperparameters: Mapping[str, str], channels: Mapping[str, str]) -> xgb.Booster:
    files = {f"{name}/a.csv": content for name, content in channels.items()}
    done = run_script(SCRIPT, make_job(root, hyperparameters, files=files))
    assert done.returncode == 0, done.stderr
    return xgb.Booster(model_file=bytearray((root / "model" / "xgboost-model").read_bytes()))


def plain(rows: list[list[float]]) -> list[str]:
    """The trees of XGBoost's own training, of rows that begin with both bounds."""
    table = np.array(rows, np.float32)
    matrix = xgb.QuantileDMatrix(table[:, 2:], nthread=1)
    matrix.set_info(label_lower_bound=table[:, 0], label_upper_bound=table[:, 1])
    booster = xgb.train({"objective": "survival:aft", "max_depth": 3, "nthread": 1}, matrix, 10)
    trees: list[str] = booster.get_dump(with_stats=True)
    return trees


def write_rows(rows: list[list[float]], infinite: str) -> str:
    lines = [",".join(infinite if math.isinf(cell) else repr(cell) for cell in row) for row in rows]
    return "lo,hi,x,z\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(("infinite", "place"), [("inf", "off"), ("", "on")])
def test_rows_that_are_censored_give_the_trees_of_plain_xgboost(tmp_path: Path, infinite: str, place: str) -> None:
    random = np.random.default_rng(0)
    rows: list[list[float]] = []
    for x, z in random.normal(size=(300, 2)).round(3).tolist():
        time = round(math.exp(x) + 0.01, 3)
        rows.append([time, math.inf if z > 0.5 else time, x, z])
    content = write_rows(rows, infinite)
    booster = train(tmp_path, AFT | {"external_memory": place}, {"train": content, "validation": content})
    assert booster.get_dump(with_stats=True) == plain(rows)


def test_xgboosts_own_survival_table_is_trained_on(tmp_path: Path) -> None:
    content = shared("xgboost-demo/veterans_lung_cancer.csv").read_text()
    rows = [[float(cell) for cell in row] for row in list(csv.reader(content.splitlines()))[1:]]
    assert any(math.isinf(row[1]) for row in rows)
    booster = train(tmp_path, AFT, {"train": content})
    assert booster.get_dump(with_stats=True) == plain(rows)
