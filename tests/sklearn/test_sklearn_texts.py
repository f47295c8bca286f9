"""Codes of texts as columns of 0 and 1, and back."""

import msgspec
import numpy as np
import pytest

from trainbox.data import Coding, Table
from trainbox.errors import DataError
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.texts import collapse, encode, expand, expand_names

CODING = Coding({0: ("blue", "red"), 2: ("a", "b", "c")})
CODES = np.array([[1, 5, 0], [0, np.nan, 2], [np.nan, 7, np.nan]], np.float32)
WIDE = np.array([[0, 1, 5, 1, 0, 0], [1, 0, np.nan, 0, 0, 1], [0, 0, 7, 0, 0, 0]], np.float32)


def test_each_text_has_a_column_and_a_missing_one_has_none() -> None:
    np.testing.assert_array_equal(expand(CODES, CODING), WIDE)
    np.testing.assert_array_equal(collapse(WIDE, CODING, 3), CODES)
    assert expand_names(("color", "x", "kind"), CODING) == (
        *("color=blue", "color=red", "x"),
        *("kind=a", "kind=b", "kind=c"),
    )


def test_more_columns_than_the_memory_has_room_for_are_refused() -> None:
    table = Table(np.zeros(3, np.float32), CODES, ("color", "x", "kind"), (), coding=CODING)
    wide = EstimatorParams(encoding="onehot")
    np.testing.assert_array_equal(encode(table, wide, 1000).features, WIDE)
    assert encode(table, EstimatorParams(), 1000).features is CODES
    with pytest.raises(DataError, match=r"makes 6 columns of 3, .*\n.*encoding=ordinal"):
        encode(table, wide, 100)
    assert encode(msgspec.structs.replace(table, coding=Coding()), wide, 100).features is CODES
