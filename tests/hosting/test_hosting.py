"""Models that are promised to the built-in's hosting say there what they say here: in XGBoost 3.0.5 and 1.7.6.

One process of each version loads all models as that hosting does: every regular file of the model's directory.
"""

import io
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xgboost as xgb

from tests.support.containers import unavailable
from tests.support.script_runs import SCRIPT, ScriptRuns, make_job
from trainbox.contract.model_card import read_card

pytestmark = pytest.mark.hosting

ROOT = Path(__file__).parents[2]
XGBOOST = SCRIPT.with_name("xgboost_train.py")
PEER = Path(__file__).with_name("peer.py")
NEWEST = ROOT / ".venv-py312" / "bin" / "python"
#: By the series that the images of the built-in have.
VERSIONS = {"3.0": "3.0.5", "1.7": "1.7.6"}

#: To be predicted from.
ROWS = "".join(
    f"{row / 10},{'nan' if row % 7 == 0 else (row * 7 % 50 - 25) / 10},{row * 13 % 40 / 10 - 2},{row % 3 - 1}\n"
    for row in range(-25, 25)
)
COMMON = {"num_round": "8", "max_depth": "3", "eta": "0.3", "nthread": "1", "seed": "3"}
CASES: Mapping[str, Mapping[str, str]] = {
    "binary": {"objective": "binary:logistic"},
    "regression": {"objective": "reg:squarederror"},
    "poisson": {"objective": "count:poisson"},
    "gamma": {"objective": "reg:gamma"},
    "logarithms": {"objective": "reg:squaredlogerror"},
    "ranking": {"objective": "rank:ndcg", "group_column": "1"},
    "pairwise": {"objective": "rank:pairwise", "group_column": "1"},
    "softprob": {"objective": "multi:softprob", "num_class": "3", "base_score": "0.5"},
    "softmax": {"objective": "multi:softmax", "num_class": "3", "base_score": "0.5"},
    "dart": {"objective": "binary:logistic", "booster": "dart", "rate_drop": "0.3"},
    "linear": {"objective": "reg:squarederror", "booster": "gblinear"},
    "early-stopped": {"objective": "binary:logistic", "num_round": "60", "early_stopping_rounds": "4", "eta": "1"},
    "forest": {"objective": "binary:logistic", "num_parallel_tree": "3", "subsample": "0.7", "colsample_bynode": "0.5"},
    "folds": {"objective": "binary:logistic", "_kfold": "3"},
}
#: Forests of XGBoost's kind, from the script that grows scikit-learn's.
GROWN = {"engine": "xgboost", "n-estimators": "5", "max-depth": "3", "n-jobs": "1"}


def write_rows(path: Path, case: str, *, seed: int) -> None:
    """Few positives, large counts, costs: labels far from what XGBoost begins with where nothing is said."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(400, 4)).round(3)
    score = features[:, 0] + random.normal(size=400) / 2
    labels = {
        "regression": 100 + score,
        "linear": 100 + score,
        "poisson": np.floor(30 * np.exp(score / 4)),
        "gamma": 500 * np.exp(score / 4),
        "logarithms": np.exp(score / 2),
        "ranking": np.digitize(score, [0.0, 1.0]),
        "pairwise": np.digitize(score, [0.0, 1.0]),
        "softprob": np.digitize(score, [-0.5, 1.5]),
        "softmax": np.digitize(score, [-0.5, 1.5]),
    }.get(case, score > 1.9)
    first = [list(map(str, np.asarray(labels, np.float64)))]
    if "group_column" in CASES.get(case, ()):
        first.append([str(row // 10) for row in range(400)])
    cells = np.where(random.random((400, 4)) < 0.02, "", features.astype(str))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(row) + "\n" for row in zip(*first, *cells.T, strict=True)))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The directory of each case's model; beside it lie rows to be predicted from."""
    made = {}
    scripts = {**dict.fromkeys(CASES, XGBOOST), "grown": SCRIPT}
    with ScriptRuns(pictures=False) as runs:
        for case, script in scripts.items():
            given = {**COMMON, **CASES[case]} if script == XGBOOST else GROWN
            root = make_job(
                tmp_path_factory.mktemp(case),
                given,
                channels=dict.fromkeys(("train", "validation"), "FullyReplicated"),
            )
            for seed, channel in enumerate(("train", "validation")):
                write_rows(root / "input/data" / channel / "rows.csv", case, seed=seed)
            done = runs.run(root, script=script)
            assert done.returncode == 0, f"{case}: {done.stderr}"
            assert "loads it without an error" not in done.stderr
            (root / "rows.csv").write_text(ROWS)
            made[case] = root / "model"
    return made


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Path, list[Any]]:
    """Models of the newest XGBoost, and what it says of the rows; none where there is no Python for it."""
    directory = tmp_path_factory.mktemp("newest")
    if not NEWEST.exists():
        return {}
    rows, program = directory / "rows.csv", Path(__file__).with_name("newest.py")
    rows.write_text(ROWS)
    command: list[str | Path] = [NEWEST, "-W", "ignore", program, directory, rows]
    ours = {**os.environ, "PYTHONPATH": str(ROOT / "container"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=ours, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = {Path(model): said for model, said in json.loads(done.stdout.splitlines()[-1]).items()}
    for model in told:
        (model.parent / "rows.csv").write_text(ROWS)
    return told


def ask(series: str, directories: list[Path]) -> Mapping[str, Any]:
    """What the hosting's own XGBoost says of the rows beside each model."""
    home = ROOT / f".venv-hosting-{series}"
    if not (home / ".ready").exists():
        unavailable(f"no XGBoost {VERSIONS[series]} in {home.name}: make venv-hosting")
    command: list[str | Path] = [home / "bin/python", "-W", "ignore", PEER, *directories]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.pop("xgboost") == VERSIONS[series]
    return found


def predict(model: Path, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the models say of some rows here, each as its file is."""
    boosters = [xgb.Booster(model_file=bytearray((model / name).read_bytes())) for name in files_of(model)]
    matrix = xgb.DMatrix(rows, nthread=1)
    said: npt.NDArray[np.float32] = np.mean([booster.predict(matrix) for booster in boosters], axis=0)
    return said


def files_of(model: Path) -> list[str]:
    return sorted(path.name for path in model.iterdir() if path.is_file())


# One test for both: with two, each of two workers would train all of it.
@pytest.mark.representative
def test_the_hosting_of_the_built_in_predicts_what_we_predict(
    jobs: Mapping[str, Path], newest: Mapping[Path, list[Any]]
) -> None:
    rows = np.genfromtxt(io.StringIO(ROWS), delimiter=",", dtype=np.float32)
    expected: dict[Path, Any] = {**{model: predict(model, rows) for model in jobs.values()}, **newest}
    for series, version in VERSIONS.items():
        found = ask(series, [*expected])
        for model, said in expected.items():
            answer, name = found[str(model)], f"{model.parent.name}, XGBoost {version}"
            assert answer["models"] == (3 if model == jobs["folds"] else 1), f"{name}: {answer['said']}"
            np.testing.assert_allclose(answer["said"], said, rtol=2e-6, atol=1e-7, err_msg=name)
            assert len(np.unique(said)) > 1, name


def test_the_card_lies_where_no_reader_of_models_looks_and_tells_what_the_models_say(jobs: Mapping[str, Path]) -> None:
    for case, model in jobs.items():
        count = 3 if case == "folds" else 0
        assert files_of(model) == ([f"xgboost-model-{number}" for number in range(count)] or ["xgboost-model"]), case
        card = read_card(model)
        assert sorted(card.files) == files_of(model)
        rows = [[sample.values.get(f"f{place}", np.nan) for place in range(4)] for sample in card.samples]
        expected = np.array([sample.prediction for sample in card.samples], np.float32)
        assert len(expected) == 5
        np.testing.assert_array_equal(predict(model, np.array(rows, np.float32)), expected, err_msg=case)
