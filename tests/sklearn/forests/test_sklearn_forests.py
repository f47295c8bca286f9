"""Trees in groups, on threads and on hosts are the trees of one plain fit, number by number."""

import inspect
import math
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.sparse

from tests.support.growth import anatomy, make_data
from trainbox.data import Table, default_names
from trainbox.errors import DataError, HyperparameterError
from trainbox.sklearn.data import EstimatorData
from trainbox.sklearn.forests.growing import check_rows, groups_left, grow, order_by_columns, slices
from trainbox.sklearn.forests.parts import ForestPart, assemble_forest, forest_class, read_part
from trainbox.sklearn.params import OURS, EstimatorParams, constructor_arguments
from trainbox.sklearn.rows import by_columns

FORESTS = {
    "a forest": {},
    "extra trees": {"algorithm": "extra_trees", "bootstrap": True, "max_depth": None},
    "weights of classes": {"class_weight": {"0": 1.0, "1": 4.0}, "criterion": "entropy"},
    "balanced for each tree": {"class_weight": "balanced_subsample", "max_features": 2},
    "few rows for each tree": {"max_samples": 0.3, "class_weight": "balanced", "min_samples_leaf": 0.02},
    "every row for each tree": {"bootstrap": False, "max_features": 0.5, "max_leaf_nodes": 9},
    "pruned": {"ccp_alpha": 0.01, "min_impurity_decrease": 0.001, "min_weight_fraction_leaf": 0.01},
    "monotonic": {"monotonic_cst": (1, 0, -1, 0), "min_samples_split": 0.05},
    "a number": {"task": "regression"},
    "a number, absolutely": {"task": "regression", "criterion": "absolute_error", "max_samples": 100},
    "a number by extra trees": {"task": "regression", "algorithm": "extra_trees"},
}


#: The kernel may give one to each column.
LARGE_PAGE = 2 << 20


def plain_fit(params: EstimatorParams, data: EstimatorData, trees: int = 9) -> Any:
    """What scikit-learn grows in one go."""
    labels = data.train.labels.astype(int) if params.task == "classification" else data.train.labels
    forest = forest_class(params)(n_estimators=trees, random_state=params.seed, **constructor_arguments(params))
    return forest.fit(data.train.features, labels, sample_weight=data.train.weights)


def grow_in_groups(params: EstimatorParams, data: EstimatorData, *groups: range) -> list[ForestPart]:
    with grow(params, data, groups) as growing:
        return list(growing)


@pytest.mark.parametrize("given", FORESTS.values(), ids=FORESTS.keys())
def test_trees_in_groups_on_threads_are_those_of_one_plain_fit(given: dict[str, Any]) -> None:
    params = EstimatorParams(**({"max_depth": 6, "seed": 7, "n_jobs": 3} | given))
    data = make_data("regression" if params.task == "regression" else "two")
    expected = plain_fit(params, data)
    parts = grow_in_groups(params, order_by_columns(data), range(2), range(2, 3), range(3, 9))
    assert anatomy(assemble_forest(parts, params).estimators_) == anatomy(expected.estimators_)


def test_trees_of_any_numbers_are_those_of_one_plain_fit() -> None:
    params, data = EstimatorParams(n_jobs=1), make_data("three")
    part = grow_in_groups(params, data, range(5, 8))[0]
    assert anatomy(part.trees) == anatomy(plain_fit(params, data).estimators_[5:8])


def test_rows_with_weights_and_missing_values_give_the_trees_of_one_plain_fit() -> None:
    data = make_data(weights=np.random.default_rng(1).integers(0, 3, 300).astype(np.float32))
    data.train.features[::7, 1] = np.nan
    params = EstimatorParams(n_jobs=2, oob_score=True)
    check_rows(params, data)
    parts = grow_in_groups(params, data, range(4), range(4, 9))
    assert anatomy(assemble_forest(parts, params).estimators_) == anatomy(plain_fit(params, data).estimators_)


def test_rows_are_laid_out_by_columns_in_the_memory_that_they_have() -> None:
    rows, width = 2_000_001, 12
    table = Table(np.zeros(rows, np.float32), np.empty((rows, width), np.float32), default_names(width), ())
    table.features[:] = np.arange(width) + np.arange(rows)[:, None] % 1000 * 16
    expected, size = table.features[::997].copy(), table.features.nbytes
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew: proc_pid_clear_refs(5)
    before = _memory("VmHWM")
    laid = by_columns(table)
    assert _memory("VmHWM") - before < width * LARGE_PAGE + 0.1 * size < 0.5 * size
    assert laid.features.flags.f_contiguous
    assert np.array_equal(laid.features[::997], expected)


def _memory(name: str) -> int:
    """Bytes, as /proc/self/status has them."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def test_sparse_rows_give_the_trees_of_one_plain_fit() -> None:
    data = make_data()
    features = np.where(np.abs(data.train.features) < 0.5, 0, data.train.features)
    sparse = msgspec.structs.replace(data.train, features=scipy.sparse.csr_matrix(features))
    data = msgspec.structs.replace(data, train=sparse)
    params = EstimatorParams(n_jobs=2)
    parts = grow_in_groups(params, data, range(4), range(4, 9))
    assert anatomy(assemble_forest(parts, params).estimators_) == anatomy(plain_fit(params, data).estimators_)


def test_the_forest_put_together_is_one_that_scikit_learn_could_have_left() -> None:
    params, data = EstimatorParams(n_jobs=1, max_depth=5), make_data("three")
    forest = assemble_forest(grow_in_groups(params, data, range(4), range(4, 9)), params)
    expected = plain_fit(params, data)
    assert forest.get_params() == expected.get_params()
    assert vars(forest).keys() == vars(expected).keys()
    assert (forest.predict_proba(data.train.features) == expected.predict_proba(data.train.features)).all()
    assert forest.feature_importances_.tolist() == expected.feature_importances_.tolist()


def test_neither_the_model_nor_a_checkpoint_holds_anything_of_the_rows() -> None:
    data = make_data(weights=np.random.default_rng(1).random(300).astype(np.float32))
    params = EstimatorParams(n_jobs=1, class_weight="balanced")
    part = grow_in_groups(params, data, range(3))[0]

    def arrays(value: Any, depth: int = 0) -> list[Any]:
        if isinstance(value, np.ndarray):
            return [value]
        inner = vars(value).values() if hasattr(value, "__dict__") else value if isinstance(value, list | tuple) else ()
        return [array for one in inner for array in arrays(one, depth + 1)] if depth < 4 else []

    assert arrays(part.forest)
    assert not [array for array in arrays(part.forest) if len(array) >= 300]
    restored = read_part(part.content, 0, 3, params, features=4, source="a checkpoint")
    assert not [array for array in arrays(restored.forest) if len(array) >= 300]


def test_each_parameter_of_scikit_learns_constructors_can_be_given() -> None:
    for params in (
        EstimatorParams(criterion="gini", max_features="all"),
        EstimatorParams(task="regression", criterion="poisson"),
    ):
        for algorithm in ("forest", "extra_trees"):
            chosen = msgspec.structs.replace(params, algorithm=algorithm, class_weight=None, max_features="all")
            known = set(inspect.signature(forest_class(chosen)).parameters)
            # Scores of rows that a tree has not seen are counted as the trees come in.
            mine = {*constructor_arguments(chosen), "n_estimators", "oob_score"}
            assert known - mine == set(OURS)
            assert mine - known == set()


@pytest.mark.parametrize(
    ("shares", "trees", "expected"),
    [
        ([1], 12, [range(12)]),
        ([1, 1, 1], 10, [range(3), range(3, 6), range(6, 10)]),
        ([1] * 4, 2, [range(0), range(1), range(1, 1), range(1, 2)]),
        ([300, 0, 100], 8, [range(6), range(6, 6), range(6, 8)]),
    ],
)
def test_trees_are_shared_out_by_their_numbers(shares: list[int], trees: int, expected: list[range]) -> None:
    found = slices(shares, trees)
    assert [list(one) for one in found] == [list(one) for one in expected]
    assert [number for one in found for number in one] == list(range(trees))


def test_groups_end_at_multiples_of_their_size() -> None:
    assert groups_left(range(12), [], 5) == [range(5), range(5, 10), range(10, 12)]
    assert groups_left(range(6, 12), [], 4) == [range(6, 8), range(8, 12)]
    seven: Any = msgspec.structs.replace(ForestPart(0, 7, None, b""))
    assert groups_left(range(12), [seven], 3) == [range(7, 9), range(9, 12)]
    assert groups_left(range(7), [seven], 3) == []
    assert groups_left(range(3, 3), [], 3) == []


def test_trees_of_other_numbers_are_not_taken_for_those_asked_for() -> None:
    params, data = EstimatorParams(n_jobs=1), make_data()
    content = grow_in_groups(params, data, range(3, 6))[0].content
    for first, last, seed in ((3, 7, 42), (0, 3, 42), (3, 6, 1)):
        with pytest.raises(DataError, match=f"its trees are not those from {first} to {last - 1}"):
            read_part(content, first, last, EstimatorParams(seed=seed), features=4, source="x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"monotonic_cst": (1, 0)}, r"'monotonic_cst' has 2 entries; there are 4 features"),
        ({"max_features": 5}, r"'max_features' is 5, of 4 features"),
        ({"max_samples": 301}, r"'max_samples' is 301, of 300 rows"),
    ],
)
def test_what_does_not_fit_the_rows_is_found_before_the_first_tree(given: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperparameterError, match=message):
        check_rows(EstimatorParams(**given), make_data())


def test_missing_values_among_sparse_rows_are_refused() -> None:
    data = make_data("regression")
    data.train.features[3, 0] = math.nan
    params = EstimatorParams(task="regression", criterion="absolute_error")
    check_rows(params, data)
    sparse = msgspec.structs.replace(data.train, features=scipy.sparse.csr_matrix(data.train.features))
    with pytest.raises(DataError, match="1 value is missing, and a RandomForestRegressor cannot be grown from sparse"):
        check_rows(params, msgspec.structs.replace(data, train=sparse))


def test_what_scikit_learn_itself_refuses_is_an_error_of_the_hyperparameters() -> None:
    params = EstimatorParams(monotonic_cst=(1, 0, 0, 0), n_jobs=1)
    with pytest.raises(HyperparameterError, match=r"scikit-learn rejects the forest: .*[Mm]onoton"):
        grow_in_groups(params, make_data("three"), range(2))


def test_a_host_without_a_row_of_a_class_grows_trees_that_know_it() -> None:
    data = make_data("three")
    kept = data.train.labels != 1
    table = msgspec.structs.replace(
        data.train, labels=data.train.labels[kept], features=data.train.features[kept], weights=None
    )
    part = grow_in_groups(EstimatorParams(n_jobs=1), msgspec.structs.replace(data, train=table), range(4))[0]
    assert part.forest.classes_.tolist() == [0, 1, 2]
    for tree in part.trees:
        votes = tree.predict_proba(table.features)
        assert votes.shape == (kept.sum(), 3)
        assert (votes[:, 1] == 0).all()
    accuracy = (part.forest.predict(table.features) == table.labels).mean()
    assert accuracy > 0.8


def test_what_is_not_grown_when_the_block_ends_is_dropped() -> None:
    groups = [range(place, place + 1) for place in range(500)]
    with grow(EstimatorParams(n_jobs=2), make_data(), groups) as growing:
        assert next(growing).first == 0
    with pytest.raises(CancelledError):
        list(growing)
    with grow(EstimatorParams(n_jobs=2), make_data(), groups):
        pass  # asked to stop before the first one
