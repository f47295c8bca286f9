"""Equal models are equal bytes: however many groups, threads, attempts or hosts their trees grew in."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from sklearn import ensemble
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from tests.support.growth import draw_rows, make_data
from trainbox.sklearn.forests.growing import grow, order_by_columns
from trainbox.sklearn.forests.packing import pack
from trainbox.sklearn.forests.parts import ForestPart, assemble_forest, read_part
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.repeatable import clear_padding, rewrite

FORESTS: dict[str, dict[str, Any]] = {
    "classes": {"task": "classification"},
    "words and weights": {"criterion": "entropy", "max_features": "log2", "class_weight": "balanced_subsample"},
    "weights of classes": {"class_weight": {"0": 1.0, "1": 2.0}},
    "monotonic": {"monotonic_cst": (1, 0, -1, 0)},
    "extra trees": {"algorithm": "extra_trees"},
    "a number": {"task": "regression", "criterion": "absolute_error", "max_features": 0.5},
}


def grow_in_groups(params: EstimatorParams, task: str, sizes: Sequence[int]) -> list[ForestPart]:
    borders = list(itertools.accumulate(sizes, initial=0))
    with grow(params, order_by_columns(make_data(task)), list(map(range, borders, borders[1:]))) as growing:
        return list(growing)


def saved(model: Any) -> tuple[bytes, bytes]:
    """The bytes as a pickle, and as skops."""
    pickled = io.BytesIO()
    joblib.dump(model, pickled)
    return pickled.getvalue(), rewrite(skops.io.dumps(model), level=1)


@pytest.mark.parametrize("given", FORESTS.values(), ids=FORESTS.keys())
def test_a_forest_is_the_same_bytes_wherever_its_trees_have_grown(given: dict[str, Any]) -> None:
    params = EstimatorParams(**({"max_depth": 5, "n_jobs": 1, "seed": 3} | given))
    task = "regression" if params.task == "regression" else "two"
    expected = saved(assemble_forest(grow_in_groups(params, task, [9]), params))
    assert saved(assemble_forest(grow_in_groups(params, task, [4, 5]), params)) == expected
    parts = grow_in_groups(params, task, [2, 2, 5])
    for restored in ([0], [1, 2], [0, 1, 2]):  # resumed, or grown on another host
        mixed = [
            read_part(part.content, part.first, part.last, params, features=4, source="here")
            if number in restored
            else part
            for number, part in enumerate(parts)
        ]
        assert saved(assemble_forest(mixed, params)) == expected


def test_threads_and_verbosity_of_an_earlier_attempt_leave_no_trace() -> None:
    before, now = EstimatorParams(n_jobs=2, verbose=1), EstimatorParams(n_jobs=1)
    assert saved(assemble_forest(grow_in_groups(before, "two", [4]), now)) == saved(
        assemble_forest(grow_in_groups(now, "two", [4]), now)
    )


def fill_padding(forest: Any) -> list[Any]:
    """Write something between the fields of every node; gives views of those bytes."""
    found = []
    for tree in forest.estimators_:
        nodes = tree.tree_.__getstate__()["nodes"]
        unused = np.ones(nodes.dtype.itemsize, bool)
        for kind, offset, *_ in nodes.dtype.fields.values():
            unused[offset : offset + kind.itemsize] = False
        content = nodes.view(np.uint8).reshape(len(nodes), -1)
        content[:, unused] = 0xA5
        found.append((content, unused))
    return found


@pytest.mark.parametrize("restore", [False, True], ids=["in memory", "from an older checkpoint"])
def test_what_lay_in_memory_between_the_fields_of_a_node_is_not_saved(restore: bool) -> None:
    params = EstimatorParams(max_depth=5, n_jobs=1)
    (part,) = grow_in_groups(params, "two", [3])
    expected = saved(part.forest)
    places = fill_padding(part.forest)
    assert any(unused.any() for _, unused in places)
    assert saved(part.forest) != expected
    if restore:
        content = skops.io.dumps(part.forest)
        assert saved(read_part(content, 0, 3, params, features=4, source="here").forest)[1] == expected[1]
    clear_padding(part.forest)
    assert saved(part.forest) == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: ensemble.GradientBoostingClassifier(n_estimators=3, random_state=0),
        lambda: ensemble.BaggingClassifier(n_estimators=3, random_state=0),
        lambda: ensemble.IsolationForest(n_estimators=3, random_state=0),
        lambda: KNeighborsClassifier(algorithm="kd_tree"),
    ],
    ids=["gradient boosting", "bagging", "isolation", "neighbours"],
)
def test_another_estimator_fitted_twice_is_the_same_bytes(make: Any) -> None:
    features, labels = draw_rows("three")
    kept, found = [], []
    for noise in (0, 255):
        kept.append(np.full(2_000_000, noise, np.uint8))  # what memory holds that is asked for next
        kept.clear()
        model = make().fit(features, labels)
        clear_padding(model)
        found.append(saved(model))
    assert found[0] == found[1]


def test_what_is_rewritten_loads_as_the_same_model_and_says_no_time() -> None:
    (part,) = grow_in_groups(EstimatorParams(max_depth=5, n_jobs=1), "two", [3])
    content = pack(part.forest)
    assert content == part.content
    found = skops.io.loads(content, trusted=["sklearn.tree._tree.Tree"])
    assert found.get_params() == part.forest.get_params()
    features, _ = draw_rows("two")
    assert (found.predict_proba(features) == part.forest.predict_proba(features)).all()


def test_a_dict_of_the_model_may_have_keys_of_the_description() -> None:
    model = LogisticRegression().fit(*draw_rows("two"))
    model.notes_ = {"file": "a.csv", "__id__": 7, "__loader__": "mine", "content": {"file": 1.5}}
    found = skops.io.loads(rewrite(skops.io.dumps(model), level=1))
    assert found.notes_ == model.notes_
