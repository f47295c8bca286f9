"""`xgboost_train.py` on columns and labels of texts: XGBoost's own splits of categories, on one host and on two."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import xgboost as xgb

from tests.support.boosting_hosts import finish, make_trees, start
from tests.support.script_runs import Ended, make_job, run_script
from trainbox.contract.model_card import read_card

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "xgboost_train.py"
COLORS = ("amber", "blue", "green", "red", "violet", "white")
SPECIES = ("setosa", "versicolor", "virginica")
HYPERPARAMETERS = {
    "objective": "multi:softprob",
    "num_class": "3",
    "num_round": "6",
    "eval_metric": "mlogloss,accuracy",
    "max_depth": "3",
    "nthread": "1",
}
Row = tuple[str, str, float]


def make_rows(count: int, seed: int = 0, colors: tuple[str, ...] = COLORS) -> list[Row]:
    """Species that depend on the color, on a number and on chance."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        color, x = str(random.choice(colors)), round(float(random.normal()), 4)
        place = int(np.digitize(x + 2 * (len(color) % 3) - 2 + random.normal() / 2, [-1.0, 1.0]))
        rows.append((SPECIES[place], "" if random.random() < 0.05 else color, x))
    return rows


def as_csv(rows: list[Row]) -> bytes:
    return ("species,color,x\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows)).encode()


def as_parquet(rows: list[Row]) -> bytes:
    species, colors, numbers = zip(*rows, strict=True)
    texts = pa.array([color or None for color in colors]).dictionary_encode()
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"species": pa.array(species), "color": texts, "x": pa.array(numbers)}), sink)
    return bytes(sink.getvalue())


def make_tree(root: Path, files: Mapping[str, bytes], **hyperparameters: str) -> Path:
    """The tree of a job whose channels have these files, by `channel/name`."""
    return make_job(root, HYPERPARAMETERS | hyperparameters, files=files)


def run(root: Path) -> Ended:
    return run_script(SCRIPT, root)


def model_of(root: Path) -> bytes:
    return (root / "model" / "xgboost-model").read_bytes()


def plain_trees(rows: list[Row]) -> list[str]:
    """The trees of XGBoost's own training on the codes."""
    codes = [[COLORS.index(color) if color else np.nan, x] for _, color, x in rows]
    matrix = xgb.QuantileDMatrix(
        np.array(codes, np.float32),
        label=[SPECIES.index(species) for species, _, _ in rows],
        feature_types=["c", "q"],
        enable_categorical=True,
        nthread=1,
    )
    parameters = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, "nthread": 1}
    trees: list[str] = xgb.train(parameters, matrix, 6).get_dump(with_stats=True)
    return trees


def test_texts_of_csv_and_of_parquet_give_the_trees_of_xgboosts_own_categories(tmp_path: Path) -> None:
    rows, held_out = make_rows(400), make_rows(80, seed=1)
    csv = make_tree(tmp_path / "csv", {"train/a.csv": as_csv(rows), "validation/a.csv": as_csv(held_out)})
    done = run(csv)
    assert done.returncode == 0, done.stderr
    booster = xgb.Booster(model_file=bytearray(model_of(csv)))
    assert booster.get_dump(with_stats=True) == plain_trees(rows)
    card = read_card(csv / "model")
    assert card.features.types == {"color": "text"}
    assert card.categories == {"color": COLORS}
    assert card.classes == SPECIES
    for sample in card.samples:
        codes = np.array([[COLORS.index(str(sample.values["color"])), float(sample.values["x"])]], np.float32)
        said = booster.predict(xgb.DMatrix(codes, feature_types=["c", "q"], enable_categorical=True))
        np.testing.assert_allclose(said[0], np.array(sample.prediction, np.float32), rtol=1e-5)
    files = {"train/a.parquet": as_parquet(rows[:250]), "train/b.csv": as_csv(rows[250:])}
    parquet = make_tree(tmp_path / "parquet", files | {"validation/a.parquet": as_parquet(held_out)})
    assert run(parquet).returncode == 0
    assert model_of(parquet) == model_of(csv)
    disk = make_tree(tmp_path / "disk", {"train/a.csv": as_csv(rows)}, external_memory="on")
    assert run(disk).returncode == 0
    dumped = xgb.Booster(model_file=bytearray(model_of(disk))).get_dump(with_stats=True)
    assert dumped == plain_trees(rows)


REFUSED = {
    "a text that training has not seen": (
        {"validation/a.csv": b"species,color,x\nsetosa,puce,1\n"},
        {},
        "validation/a.csv:2: column 2 ('color'): 'puce' is not among the texts",
    ),
    "labels of texts and a number to predict": (
        {},
        {"objective": "reg:squarederror", "num_class": "", "eval_metric": "rmse"},
        "the labels are 3 different texts ('setosa', 'versicolor', 'virginica'), and objective reg:squarederror",
    ),
    "another number of classes": ({}, {"num_class": "4"}, "objective multi:softprob has 4 classes\n"),
    "trees without categories": ({}, {"tree_method": "exact"}, "tree_method=exact supports only numbers"),
}


@pytest.mark.parametrize(("files", "hyperparameters", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_learnt_from_texts_is_an_error(
    tmp_path: Path, files: dict[str, bytes], hyperparameters: dict[str, str], message: str
) -> None:
    root = make_tree(tmp_path, {"train/a.csv": as_csv(make_rows(60)), **files}, **hyperparameters)
    if not hyperparameters.get("num_class", "3"):
        given = json.loads((root / "input" / "config" / "hyperparameters.json").read_text())
        del given["num_class"]
        (root / "input" / "config" / "hyperparameters.json").write_text(json.dumps(given))
    done = run(root)
    assert done.returncode not in {0, 1}, done.stderr
    assert message in done.stderr


def test_a_text_that_training_has_not_seen_may_count_as_missing(tmp_path: Path) -> None:
    files = {
        "train/a.csv": as_csv(make_rows(60)),
        "validation/a.csv": b"species,color,x\nsetosa,puce,1\nsetosa,red,2\n",
    }
    done = run(make_tree(tmp_path, files, unseen="missing"))
    assert done.returncode == 0, done.stderr
    assert "validation:mlogloss" in done.stdout
    assert "needs trainbox's `serve`" in done.stderr


@pytest.mark.long
def test_a_job_that_goes_on_from_a_former_model_follows_its_codes(tmp_path: Path) -> None:
    first = make_tree(tmp_path / "first", {"train/a.csv": as_csv(make_rows(200))})
    assert run(first).returncode == 0
    files = {f"model/{path.relative_to(first / 'model')}": path.read_bytes() for path in (first / "model").rglob("*.*")}
    files["model/xgboost-model"] = model_of(first)
    some = [row for row in make_rows(200, seed=3) if row[1] in {"red", "white", "violet"}]
    again = make_tree(tmp_path / "again", files | {"train/a.csv": as_csv(some)})
    done = run(again)
    assert done.returncode == 0, done.stderr
    card = read_card(again / "model")
    assert card.categories == {"color": COLORS}
    assert card.iterations == 12
    more = make_tree(tmp_path / "more", files | {"train/a.csv": as_csv([*some, ("setosa", "puce", 1.0)])})
    refused = run(more)
    assert "'puce' is not among the texts" in refused.stderr


def test_numbers_that_are_named_are_categories(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2},{(94103, 10001, 60601)[i % 3]},{i / 7:.3f}\n" for i in range(90))
    binary = {"objective": "binary:logistic", "num_class": "", "eval_metric": "logloss", "categorical": "0"}
    root = make_tree(tmp_path, {"train/a.csv": rows.encode()}, **binary)
    path = root / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if value}))
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert xgb.Booster(model_file=bytearray(model_of(root))).feature_types == ["c", "q"]


def put_rows(directory: Path, host: str, content: bytes) -> None:
    for path in (directory / host / "input" / "data").glob("*/*"):
        path.unlink()
    (directory / host / "input" / "data" / "train" / "part.csv").write_bytes(content)


@pytest.mark.long
def test_two_hosts_code_texts_alike_and_give_the_model_of_one(tmp_path: Path) -> None:
    """Each has a text that the other has not; numbers are few, so that bins do not depend on where rows lie."""
    rows = [(species, color, float(round(x))) for species, color, x in make_rows(300)]
    first = [row for row in rows if row[1] in {"red", "blue", "violet", ""}]
    second = [row for row in rows if row not in first]
    alike = HYPERPARAMETERS | {"checkpoint_every": "50", "subsample": "1", "colsample_bynode": "1"}
    make_trees(tmp_path, **alike)  # type: ignore[arg-type]
    put_rows(tmp_path, "127.0.0.1", as_csv(first))
    put_rows(tmp_path, "127.0.0.2", as_csv(second))
    for host in ("127.0.0.1", "127.0.0.2"):
        config = tmp_path / host / "input" / "config" / "inputdataconfig.json"
        config.write_text(json.dumps({"train": json.loads(config.read_text())["train"]}))
    ended = finish(start(tmp_path))
    assert [code for code, _, _ in ended] == [0, 0], ended
    model = xgb.Booster(model_file=bytearray(model_of(tmp_path / "127.0.0.1")))
    alone = make_tree(tmp_path / "alone", {"train/a.csv": as_csv([*first, *second])})
    assert run(alone).returncode == 0
    expected = xgb.Booster(model_file=bytearray(model_of(alone)))
    codes = np.array([[COLORS.index(color) if color else np.nan, x] for _, color, x in rows], np.float32)
    matrix = xgb.DMatrix(codes, feature_types=["c", "q"], enable_categorical=True)
    np.testing.assert_allclose(model.predict(matrix), expected.predict(matrix), rtol=1e-4)


def test_hosts_that_disagree_on_what_a_column_is_are_named(tmp_path: Path) -> None:
    make_trees(tmp_path, **HYPERPARAMETERS)  # type: ignore[arg-type]
    put_rows(tmp_path, "127.0.0.1", as_csv(make_rows(50)))
    put_rows(tmp_path, "127.0.0.2", b"species,color,x\n" + b"setosa,7,1\nvirginica,8,2\n" * 20)
    ended = finish(start(tmp_path))
    message = "feature 'color' has numbers on 127.0.0.2, and texts such as 'amber' on 127.0.0.1"
    for code, _, said in ended:
        assert code not in {0, 1}
        assert message in said
