"""What comes from S3 or from another host is a forest, or nothing; and a tree that leads nowhere is found out."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn import ensemble
from sklearn.linear_model import LogisticRegression
from sklearn.tree._tree import Tree

from tests.support.growth import anatomy, draw_rows
from trainbox.errors import DataError
from trainbox.sklearn.forests.packing import Forest, pack, unpack

REPOSITORY = Path(__file__).resolve().parents[3]
KINDS = (
    ensemble.RandomForestClassifier,
    ensemble.RandomForestRegressor,
    ensemble.ExtraTreesClassifier,
    ensemble.ExtraTreesRegressor,
)


def fit(kind: type[Forest] = ensemble.RandomForestClassifier, **arguments: Any) -> Forest:
    features, labels = draw_rows("three")
    fitted: Forest = kind(n_estimators=3, max_depth=4, random_state=1, **arguments).fit(features, labels)
    return fitted


def read(content: bytes, kind: type[Forest] = ensemble.RandomForestClassifier, features: int = 4) -> Forest:
    return unpack(content, kind, features=features, source="the checkpoint")


@pytest.mark.parametrize("kind", KINDS)
def test_a_forest_comes_back_as_it_was(kind: type[Forest]) -> None:
    forest = fit(kind, max_features=0.5, min_samples_leaf=0.01, monotonic_cst=None, max_samples=None, n_jobs=-1)
    found = read(pack(forest), kind)
    assert anatomy(found.estimators_) == anatomy(forest.estimators_)
    assert found.get_params() == forest.get_params()


@pytest.mark.parametrize("weights", ["balanced", {0: 1.0, 1: 2.0, 2: 3.5}])
def test_weights_of_classes_come_back_too(weights: object) -> None:
    assert read(pack(fit(class_weight=weights))).class_weight == weights


class Stranger:
    """Of a type that no forest is made of."""

    def __init__(self) -> None:
        self.value = 1


STRANGERS: dict[str, Callable[[], object]] = {
    "a class of one's own": Stranger,
    "a function": lambda: np.array,
    "another estimator of scikit-learn": LogisticRegression,
    "a random state": lambda: np.random.RandomState(1),
    "a bound method": lambda: LogisticRegression().fit,
    "a set": lambda: {1, 2},
    "bytes": lambda: b"abc",
}


@pytest.mark.parametrize("make", STRANGERS.values(), ids=STRANGERS.keys())
def test_an_object_of_any_other_type_within_the_forest_is_refused(make: Callable[[], object]) -> None:
    forest = fit()
    forest.stranger = make()
    content = skops.io.dumps(forest)
    with pytest.raises(
        DataError, match="the checkpoint cannot be used: it contains types that do not belong to a forest: "
    ):
        read(content)


def test_another_model_is_refused_and_so_is_another_kind_of_forest() -> None:
    features, labels = draw_rows("two")
    with pytest.raises(DataError, match="do not belong to a forest: ObjectNode sklearn"):
        read(skops.io.dumps(LogisticRegression().fit(features, labels)))
    with pytest.raises(DataError, match="holds a RandomForestRegressor, expected a RandomForestClassifier"):
        read(pack(fit(ensemble.RandomForestRegressor)))
    with pytest.raises(DataError, match="holds a list, expected"):
        read(skops.io.dumps([1, 2, 3]))


def test_a_pickle_is_not_even_looked_into() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("it was unpickled",)

    with pytest.raises(DataError, match="BadZipFile"):
        read(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="cannot be used"):
        read(b"")


def test_damaged_bytes_are_refused() -> None:
    content = pack(fit())
    for place in range(0, len(content), len(content) // 40):
        torn = content[:place]
        with pytest.raises(DataError, match="the checkpoint cannot be used"):
            read(torn)


def forge(change: Callable[[Any], None]) -> bytes:
    """A forest in whose second tree the nodes were changed."""
    forest = fit()
    tree = forest.estimators_[1]
    state = tree.tree_.__getstate__()
    state["nodes"] = state["nodes"].copy()
    change(state["nodes"])
    forged = Tree(4, np.array([3], dtype=np.intp), 1)
    forged.__setstate__(state)
    tree.tree_ = forged
    return pack(forest)


def put(field: str, value: int) -> Callable[[Any], None]:
    def change(nodes: Any) -> None:
        nodes[field][0] = value

    return change


FORGERIES = {
    "a child behind the last node": put("left_child", 10**6),
    "a child before the first node": put("right_child", -7),
    "a child that is its own parent": put("left_child", 0),
    "a feature that there is not": put("feature", 4),
    "a feature below the first": put("feature", -3),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_tree_that_leads_out_of_itself_is_refused(change: Callable[[Any], None]) -> None:
    with pytest.raises(DataError, match="tree 1 has a child or feature index out of range"):
        read(forge(change))


def test_a_tree_that_claims_to_have_another_number_of_nodes_is_refused() -> None:
    content = io.BytesIO(pack(fit()))
    with zipfile.ZipFile(content) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(files["schema.json"])
    tree = description["content"]["content"]["estimators_"]["content"][0]["content"]["content"]["tree_"]
    count = tree["content"]["content"]["node_count"]
    count |= {"content": str(-int(count["content"])), "__id__": 10**9}
    files["schema.json"] = json.dumps(description).encode()
    forged = io.BytesIO()
    with zipfile.ZipFile(forged, "w") as archive:
        for name, file in files.items():
            archive.writestr(name, file)
    with pytest.raises(DataError, match="tree 0 has a child or feature index out of range"):
        read(forged.getvalue())


def test_trees_that_know_other_features_are_refused() -> None:
    with pytest.raises(DataError, match="tree 0 has a child or feature index out of range"):
        read(pack(fit()), features=3)
