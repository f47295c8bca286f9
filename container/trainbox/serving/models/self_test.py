"""The rows of a model card, answered before the first request: what is loaded must predict what training noted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainbox.contract.hosting import Predictor
from trainbox.contract.model_card import ModelCard, Prediction
from trainbox.errors import DataError
from trainbox.log_lines import emit
from trainbox.model.samples import MOST_FEATURES, Matrix, Row, as_matrix

_MOST_CELLS = 10_000_000
#: Another processor or version of a library rounds the last bits in another way; a wrong model differs by more.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5
_OF_A_TABLE = 1


def self_test(predictor: Predictor) -> DataError | None:
    """Answer the sample rows of the card, or one row of missing values where it has none.

    Differences in the last bits are one line in the log: exponentials differ between processors.

    Returns:
        Why the model must not answer; None where it predicts what its card says.
    """
    card = predictor.card
    if not card.samples:
        return None
    answers = np.asarray(predictor.predict(sample_matrix(card)))
    noted = [_numbers(sample.prediction) for sample in card.samples]
    found = np.asarray(answers, np.float64).reshape(len(noted), -1)
    if any(len(row) != found.shape[1] for row in noted):
        return DataError(
            f"the model predicts {found.shape[1]:,} numbers for a row, and its card has {len(noted[0]):,}", hint=_HINT
        )
    expected = np.array(noted, np.float64)
    if answers.dtype == np.float32:
        expected = expected.astype(np.float32).astype(np.float64)
    same = (found == expected) | (np.isnan(expected) & ~np.isfinite(found))
    if same.all():
        return None
    close = same | np.isclose(found, expected, rtol=_RELATIVE, atol=_ABSOLUTE)
    row, column = map(int, np.argwhere(~close if not close.all() else ~same)[0])
    ours, theirs = float(found[row, column]), float(expected[row, column])
    told = f"sample row {row + 1}: the model predicts {ours!r}, and its card {theirs!r}"
    if not close.all():
        return DataError(told, hint=_HINT)
    emit(f"{told}; the last bits depend on the processor and the version of the library")
    return None


_HINT = "the files of model.tar.gz belong to different models, or another version of the library has written them"


def _numbers(prediction: Prediction) -> Sequence[float]:
    if isinstance(prediction, str):
        return [np.nan]
    numbers = prediction if isinstance(prediction, tuple) else (prediction,)
    return [np.nan if number is None else number for number in numbers]


def sample_matrix(card: ModelCard) -> "Matrix | npt.NDArray[Any]":
    """Return the sample rows of a card as its model takes them: (n, features), or (n, channels, height, width).

    Args:
        card: One with sample rows.
    """
    features = card.features
    made: list[Row] = []
    is_image = len(card.shape) > _OF_A_TABLE
    for sample in card.samples:
        row: Row = {}
        for name, value in sample.values.items():
            place = int(name.removeprefix("f")) if is_image else features.place(name)
            if place is None:
                raise DataError(f"a sample row of the model card has {name!r}, which is no feature", hint=_HINT)
            row[place] = float(card.categories[name].index(value)) if isinstance(value, str) else value
        made.append(row)
    if is_image:
        pixels: Any = as_matrix(made, card.shape[0], absent=np.nan, sparse=False)
        return np.ascontiguousarray(np.broadcast_to(pixels[:, :, None, None], (len(made), *card.shape)))
    absent = np.nan if card.absent == "missing" else 0.0
    is_sparse = features.count > MOST_FEATURES and (
        card.framework == "xgboost" or features.count * len(made) > _MOST_CELLS
    )
    return as_matrix(made, features.count, absent=absent, sparse=is_sparse)
