"""The model card: what it holds comes back as it was, and the descriptions of earlier versions are read as cards."""

import json
from pathlib import Path

import msgspec
import pytest

from tests.frozen.fixtures import FIXTURES
from trainbox.contract.model_card import (
    CARD_FILE,
    Features,
    ModelCard,
    SampleRow,
    encode_card,
    features_of,
    read_card,
)
from trainbox.errors import DataError

CARD = ModelCard(
    framework="xgboost",
    algorithm="xgboost",
    objective="multi:softprob",
    features=features_of(("age", "colour"), {"colour": "text"}),
    classes=("setosa", "versicolor", 7),
    categories={"colour": ("blue", "green", "red")},
    missing=("", "NA"),
    delimiter=";",
    iterations=12,
    best_iteration=11,
    metrics={"validation:mlogloss": 0.25},
    versions={"xgboost": "3.2.0"},
    files={"xgboost-model": "00" * 32},
    samples=(SampleRow({"age": 31.5, "colour": "red"}, (0.25, 0.5, 0.25)), SampleRow({}, 3.0)),
)


def place(directory: Path, content: bytes, name: str = CARD_FILE) -> Path:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)
    return directory


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_card(place(tmp_path, encode_card(CARD))) == CARD


def test_the_code_of_a_text_is_its_place(tmp_path: Path) -> None:
    written = json.loads(encode_card(CARD))
    assert written["categories"]["colour"][2] == "red"
    assert read_card(place(tmp_path, encode_card(CARD))).categories["colour"].index("green") == 1


def test_names_that_no_file_has_given_are_not_written() -> None:
    assert features_of(("f0", "f1", "f2")) == Features(3)
    assert features_of(("f0", "f2")).names == ("f0", "f2")
    assert features_of(("f0", "f1")).listed() == ("f0", "f1")
    wide = msgspec.structs.replace(
        CARD, features=features_of(tuple(f"f{place}" for place in range(100_000))), categories={}, samples=()
    )
    assert len(encode_card(wide)) < 2000


def test_the_card_goes_before_what_earlier_versions_left(tmp_path: Path) -> None:
    place(tmp_path, (FIXTURES / "forest/model/model.json").read_bytes(), "model.json")
    assert read_card(tmp_path).algorithm == "RandomForestClassifier"
    assert read_card(place(tmp_path, encode_card(CARD))) == CARD


@pytest.mark.parametrize(
    ("name", "framework", "objective", "classes", "iterations"),
    [
        ("xgboost", "xgboost", "binary:logistic", (0, 1), 12),
        ("forest", "scikit-learn", "classification", (0, 1), 8),
        ("estimator", "scikit-learn", "classification", (0, 1), None),
        ("pytorch-table", "pytorch", "classification", ("0", "1"), 4),
    ],
)
def test_the_descriptions_of_commit_9841551_are_read_as_cards(
    name: str, framework: str, objective: str, classes: tuple[int | str, ...], iterations: int | None
) -> None:
    card = read_card(FIXTURES / name / "model")
    assert (card.framework, card.objective, card.classes, card.iterations) == (
        framework,
        objective,
        classes,
        iterations,
    )
    assert card.complete
    assert card.features.listed() == ("f0", "f1", "f2", "f3")
    assert card.versions["trainbox"] == "0.1.0"
    assert card.metrics
    assert card.trusted == (("sklearn.tree._tree.Tree",) if name == "forest" else ())


def test_the_means_and_deviations_of_an_earlier_cross_validation_are_told_apart(tmp_path: Path) -> None:
    old = {
        "algorithm": "xgboost",
        "complete": True,
        "versions": {"xgboost": "3.2.0"},
        "hyperparameters": {"objective": "reg:squarederror", "missing": ["", "?"]},
        "metrics": {"validation:rmse": {"mean": 2.0, "std": None}},
        "folds": [{"validation:rmse": 2.0}],
        "features": ["a"],
    }
    card = read_card(place(tmp_path, json.dumps(old).encode(), "model.json"))
    assert (card.metrics, card.deviations) == ({"validation:rmse": 2.0}, {"validation:rmse": None})
    assert (card.folds, card.missing, card.classes) == (({"validation:rmse": 2.0},), ("", "?"), ())


def test_a_directory_without_a_card_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no trainbox/model\.json"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"framework": "catboost"}',
        encode_card(CARD).replace(b'"count": 2', b'"count": 3'),
        encode_card(CARD).replace(b'"colour": "text"', b'"shape": "text"'),
    ],
)
def test_what_is_no_card_is_refused_with_its_place(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trainbox/model\.json is no model card"):
        read_card(place(tmp_path, content))


def test_no_link_leads_out_of_the_model(tmp_path: Path) -> None:
    place(tmp_path / "elsewhere", encode_card(CARD))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/trainbox").symlink_to(tmp_path / "elsewhere/trainbox")
    with pytest.raises(DataError):
        read_card(tmp_path / "model")
    (tmp_path / "model/trainbox").unlink()
    (tmp_path / "model/trainbox").mkdir()
    (tmp_path / "model/trainbox/model.json").symlink_to(tmp_path / "elsewhere/trainbox/model.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_card(tmp_path / "model")
