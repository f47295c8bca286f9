"""Bins at exact quantiles: as full as each other, whatever the values, and those that XGBoost then has."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xgboost as xgb
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainbox.xgboost.rows.cuts import exact_cuts

Floats = npt.NDArray[np.float32]
ROWS = 20_000
RANDOM = np.random.default_rng(5)
COLUMNS: dict[str, npt.NDArray[Any]] = {
    "smooth": RANDOM.normal(size=ROWS),
    "mostly 0, then amounts": np.where(RANDOM.random(ROWS) < 0.95, 0.0, RANDOM.exponential(size=ROWS)),
    "mostly one value in the middle": np.where(RANDOM.random(ROWS) < 0.9, 0.5, RANDOM.normal(size=ROWS)),
    "few values": RANDOM.integers(0, 7, ROWS),
    "as many values as bins": RANDOM.integers(0, 64, ROWS),
    "a value more": RANDOM.integers(0, 65, ROWS),
    "two values more": RANDOM.integers(0, 66, ROWS),
    "mostly the greatest": np.where(RANDOM.random(ROWS) < 0.8, 9.0, RANDOM.normal(size=ROWS)),
    "one value": np.full(ROWS, -3.0),
    "half missing": np.where(RANDOM.random(ROWS) < 0.5, np.nan, RANDOM.normal(size=ROWS)),
    "all missing": np.full(ROWS, np.nan),
    "a long tail": RANDOM.zipf(1.4, ROWS).clip(max=1e6),
    "negative and far from 0": RANDOM.lognormal(3, 2, ROWS) - 1e6,
}
BINS = 64


def cuts_of(column: npt.NDArray[Any], bins: int = BINS) -> Floats:
    """Those of one column, without what is filled up."""
    found = exact_cuts(column.astype(np.float32).reshape(-1, 1), bins, threads=1)[:, 0]
    return found[~np.isnan(found)]


def check(values: Floats, cuts: Floats, bins: int) -> None:
    """What has to hold of any column."""
    there = values[~np.isnan(values)]
    assert len(cuts) <= bins + 1
    assert (np.diff(cuts) > 0).all()
    assert np.isin(cuts, there).all()
    if not len(there):
        assert not len(cuts)
        return
    assert (cuts[0], cuts[-1]) == (there.min(), there.max())
    distinct = np.unique(there)
    if len(distinct) <= bins + 1:
        assert cuts.tolist() == distinct.tolist()
        return
    # A bin with a few times its share of the rows, and some for the whole numbers, holds a single value.
    place = np.searchsorted(cuts[1:] if len(cuts) <= bins else cuts[1:-1], there, "right")
    for bin_, rows in enumerate(np.bincount(place)):
        assert rows <= 4 * len(there) / bins + 1 or len(np.unique(there[place == bin_])) == 1


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS.keys())
def test_bins_are_as_full_as_each_other(column: Floats) -> None:
    values = column.astype(np.float32)
    check(values, cuts_of(values), BINS)


@settings(max_examples=300, deadline=None)
@example(np.array([-5, -4, -3, -2, -1, 1, *[0] * 25], np.float32), 5)
@given(
    arrays.arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32, allow_infinity=False)),
    st.integers(2, 40),
)
def test_any_column_is_cut_soundly(column: Floats, bins: int) -> None:
    check(column, cuts_of(column, bins), bins)


def test_values_that_are_rare_share_the_bins_that_a_frequent_one_leaves() -> None:
    column = COLUMNS["mostly 0, then amounts"]
    cuts = cuts_of(column)
    assert len(cuts) == BINS + 1
    amounts = column[column > 0]
    rows = np.histogram(amounts, cuts[1:])[0]
    assert rows.max() < 1.2 * rows.mean()


@pytest.mark.parametrize("name", ["mostly 0, then amounts", "mostly one value in the middle", "mostly the greatest"])
def test_a_frequent_value_has_a_bin_to_itself(name: str) -> None:
    column = COLUMNS[name].astype(np.float32).reshape(-1, 1)
    cuts = exact_cuts(column, BINS, threads=1)
    matrix = xgb.QuantileDMatrix(column, ref=xgb.QuantileDMatrix(cuts, max_bin=BINS), max_bin=BINS)
    begins = matrix.get_quantile_cut()[1]
    place = np.searchsorted(begins, column[:, 0], "right")
    assert len(np.unique(column[place == np.bincount(place).argmax()])) == 1


def test_rows_stay_as_they_are_in_either_order() -> None:
    rows = np.stack([*COLUMNS.values()], axis=1).astype(np.float32)
    for given_ in (rows.copy(order="C"), rows.copy(order="F")):
        before = given_.copy()
        one, two = exact_cuts(given_, BINS, threads=1), exact_cuts(given_, BINS, threads=2)
        assert np.array_equal(given_, before, equal_nan=True)
        assert np.array_equal(one, two, equal_nan=True)
        assert np.array_equal(one, exact_cuts(rows, BINS, threads=1), equal_nan=True)


def test_xgboost_has_those_cuts_and_predicts_the_same_from_values_and_from_bins() -> None:
    rows = np.stack([*COLUMNS.values()], axis=1).astype(np.float32)
    labels = (rows[:, 0] + np.nan_to_num(rows[:, 8]) > 0).astype(np.float32)
    cuts = exact_cuts(rows, BINS, threads=2)
    matrix = xgb.QuantileDMatrix(rows, labels, ref=xgb.QuantileDMatrix(cuts, max_bin=BINS), max_bin=BINS)
    starts, values = matrix.get_quantile_cut()
    for place, name in enumerate(COLUMNS):
        mine = cuts[:, place][~np.isnan(cuts[:, place])]
        found = values[starts[place] : starts[place + 1]]  # the first is below all values, the last above
        assert found[1:-1].tolist() == mine[1:].tolist()[: BINS - 1], name
        assert not len(mine) or found[-1] > mine[-1]
    booster = xgb.train({"objective": "binary:logistic", "max_bin": BINS}, matrix, 10)
    assert booster.predict(matrix).tobytes() == booster.predict(xgb.DMatrix(rows)).tobytes()
