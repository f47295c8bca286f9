"""Rows of a model card are made up: of quantiles and codes, and none is a row of the data."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse

from trainbox.contract.model_card import ModelCard, features_of
from trainbox.model.samples import as_matrix, as_prediction, make_rows, sample_rows, thin_out

RANDOM = np.random.default_rng(4)
CODES = [0.0, 1.0, 2.0, 7.0]
NAN = np.nan


def draw(rows: int = 500) -> npt.NDArray[np.float32]:
    """Numbers, whole numbers, codes and flags, some of them missing."""
    columns = [
        RANDOM.normal(50, 20, rows).round(2),
        RANDOM.integers(18, 90, rows),
        RANDOM.choice(CODES, rows),
        RANDOM.integers(0, 2, rows),
    ]
    table = np.column_stack(columns).astype(np.float32)
    table[::9, 0] = NAN
    return table


def test_each_feature_lies_within_its_column_and_a_code_is_one_of_its_own() -> None:
    table = draw()
    made = make_rows(thin_out(table), codes={2}, zeros=False)
    assert [sorted(row) for row in made] == [[0, 1, 2, 3]] * 5
    dense = as_matrix(made, 4, absent=NAN, sparse=False)
    assert (np.nanmin(table, axis=0) <= dense.min(axis=0)).all()
    assert (np.nanmax(table, axis=0) >= dense.max(axis=0)).all()
    assert {row[2] for row in made} <= {*CODES}
    assert len({row[0] for row in made}) == 5


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["one", "rising", "whole", "measured", "many"])
def test_no_row_is_one_of_the_data(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = {
        "one": random.integers(0, 50, (60, 1)),
        "rising": np.arange(90)[:, None] * np.ones(3),  # the quantiles of all columns at once are a row
        "whole": random.integers(0, 5, (400, 3)),
        "many": np.arange(4000)[:, None] / 10,  # of which not all are looked at
        "measured": random.normal(5, 1, (150, 4)).round(1),
    }[kind].astype(np.float32)
    made = as_matrix(make_rows(thin_out(table), zeros=False), table.shape[1], absent=NAN, sparse=False)
    assert not (made[:, None] == table[None]).all(axis=2).any()


def test_a_value_is_the_shortest_of_its_precision() -> None:
    made = make_rows(np.array([[1, 0.1], [2, 0.7], [4, 0.7]], np.float32), zeros=False)
    assert 0.7 in {row[1] for row in made}
    assert all(repr(value) == str(np.float32(value)) for row in made for value in row.values())


def test_the_same_data_gives_the_same_rows() -> None:
    table = draw()
    assert make_rows(thin_out(table), zeros=False) == make_rows(thin_out(table.copy()), zeros=False)


def test_a_column_with_nothing_and_one_with_one_value_are_no_trouble() -> None:
    table = np.array([[NAN, 3, 1], [NAN, 3, 2]], np.float32)
    made = make_rows(table, zeros=False)
    assert [(sorted(row), row[1]) for row in made] == [([1, 2], 3.0)] * 5


def test_a_sparse_row_has_what_is_stored_or_zeros_where_they_are_meant() -> None:
    table = scipy.sparse.csr_matrix(np.array([[0, 0, 5.0], [1, 0, 5], [3, 0, 5], [0, 0, 5]], np.float32))
    missing, zeros = (make_rows(thin_out(table), zeros=each) for each in (False, True))
    assert [sorted(row) for row in missing] == [[0, 2]] * 5
    assert [sorted(row) for row in zeros] == [[0, 1, 2]] * 5
    assert min(row[0] for row in missing) >= 1
    matrix: Any = as_matrix(missing, 3, absent=NAN, sparse=True)
    assert matrix.shape == (5, 3)
    assert matrix.nnz == 10


def test_of_a_million_features_a_row_names_those_that_the_model_uses() -> None:
    width = 1_000_000
    places = RANDOM.integers(0, width, 20_000)
    table = scipy.sparse.csr_matrix(
        (np.ones(20_000, np.float32), places, np.arange(0, 20_001, 20)), shape=(1000, width)
    )
    used = sorted({*places[:7].tolist()})
    made = make_rows(thin_out(table), used=used, zeros=False)
    assert all({*row} <= {*used} for row in made)
    assert as_matrix(made, width, absent=NAN, sparse=True).shape == (5, width)


@pytest.mark.parametrize("shape", [(3, 4), (10_000_000, 2), (3, 2_000_000), (5000, 5000)])
def test_what_is_kept_beside_a_training_is_small(shape: tuple[int, int]) -> None:
    table = np.broadcast_to(np.float32(1), shape)
    thin = thin_out(table)
    assert thin.flags.owndata
    assert thin.shape[0] >= min(5, shape[0])
    assert thin.nbytes <= max(4_200_000, 5 * 4 * shape[1])


def test_a_category_of_text_is_its_text_and_an_answer_is_what_json_has() -> None:
    card = ModelCard(
        framework="xgboost",
        algorithm="xgboost",
        objective="multi:softprob",
        features=features_of(("age", "colour"), {"colour": "text"}),
        categories={"colour": ("blue", "red")},
    )
    made = make_rows(np.array([[30, 0], [40, 1]], np.float32), codes={1}, zeros=False)
    samples = sample_rows(made, np.full((5, 2), 0.5), card)
    assert {sample.values["colour"] for sample in samples} == {"blue", "red"}
    assert {sample.prediction for sample in samples} == {(0.5, 0.5)}
    answers = [np.float32(0.5), np.array([2.0]), np.str_("setosa"), np.int64(3), np.array([NAN, 1])]
    assert [as_prediction(said) for said in answers] == [0.5, 2.0, "setosa", 3.0, (None, 1.0)]
