"""`random_forest_train.py` on columns and labels of texts: codes, a column for each text, and on two hosts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from tests.support.script_runs import SCRIPT, Ended, make_job, run_script
from trainbox.contract.model_card import read_card

pytestmark = pytest.mark.process

COLORS = ("blue", "green", "red")
SPECIES = ("setosa", "virginica")
HYPERPARAMETERS = {"n-estimators": "4", "checkpoint-every": "4", "max-depth": "3", "n-jobs": "1"}
Row = tuple[str, str, float]


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Species that depend on the color and on a number."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        color, x = str(random.choice(COLORS)), round(float(random.normal()), 4)
        rows.append((SPECIES[int(x + (2 if color == "green" else -1) > 0)], color, x))
    return rows


def as_csv(rows: list[Row]) -> str:
    return "species,color,x\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows)


def run(root: Path, files: Mapping[str, str], **hyperparameters: str) -> Ended:
    given = HYPERPARAMETERS | {name.replace("_", "-"): value for name, value in hyperparameters.items()}
    return run_script(SCRIPT, make_job(root, given, files=files))


def inputs_of(rows: list[Row], encoding: str) -> list[list[float]]:
    if encoding == "ordinal":
        return [[float(COLORS.index(color)), x] for _, color, x in rows]
    return [[*(float(color == each) for each in COLORS), x] for _, color, x in rows]


@pytest.mark.parametrize("encoding", ["ordinal", "onehot"])
def test_texts_are_coded_in_one_column_or_in_one_for_each(tmp_path: Path, encoding: str) -> None:
    rows, held_out = make_rows(300), make_rows(60, seed=1)
    files = {"train/a.csv": as_csv(rows), "validation/a.csv": as_csv(held_out)}
    done = run(tmp_path, files, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert "needs trainbox's `serve`" in done.stderr
    card = read_card(tmp_path / "model")
    assert card.categories == {"color": COLORS}
    assert card.features.names == ("color", "x")
    assert card.classes == SPECIES
    forest: Any = joblib.load(tmp_path / "model" / "model.joblib")
    said = forest.predict(np.array(inputs_of(held_out, encoding), np.float32))
    assert (said == [SPECIES.index(species) for species, _, _ in held_out]).mean() > 0.9
    made = [("", str(sample.values["color"]), float(sample.values["x"])) for sample in card.samples]
    shares = forest.predict_proba(np.array(inputs_of(made, encoding), np.float32))
    np.testing.assert_allclose(shares, np.array([sample.prediction for sample in card.samples]))


def test_engine_xgboost_splits_categories(tmp_path: Path) -> None:
    done = run(tmp_path, {"train/a.csv": as_csv(make_rows(200))}, engine="xgboost")
    assert done.returncode == 0, done.stderr
    card = read_card(tmp_path / "model")
    assert (card.categories, card.classes) == ({"color": COLORS}, SPECIES)


REFUSED = {
    "an unseen text": ({"validation/a.csv": "species,color,x\nsetosa,puce,1\n"}, {}, "'puce' is not among the texts"),
    "numbers from texts": (
        {},
        {"task": "regression"},
        "the labels are texts ('setosa', 'virginica'), and task=regression",
    ),
}


@pytest.mark.parametrize(("files", "hyperparameters", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_learnt_from_texts_is_an_error(
    tmp_path: Path, files: dict[str, str], hyperparameters: dict[str, str], message: str
) -> None:
    done = run(tmp_path, {"train/a.csv": as_csv(make_rows(30)), **files}, **hyperparameters)
    assert done.returncode not in {0, 1}
    assert message in done.stderr
