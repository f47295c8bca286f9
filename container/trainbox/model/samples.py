"""Rows made up from the quantiles and categories of columns: what a model card shows, in place of rows of the data."""

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from trainbox.contract.model_card import ModelCard, Prediction, SampleRow
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import scipy.sparse
else:
    scipy = lazy_module("scipy")

Floats: TypeAlias = npt.NDArray[np.float32]
#: n x features; of a sparse one what is not stored is absent.
Matrix: TypeAlias = "Floats | scipy.sparse.csr_matrix"
#: What a made-up row has, by the place of the feature.
Row: TypeAlias = dict[int, float]

_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
_COUNT = len(_LEVELS)
#: The most features that a row names: of more only those that the model uses.
MOST_FEATURES = 1_000
_MOST_ROWS, _MOST_CELLS = 1_000, 1_000_000
#: Of the way between two values: where rows were left out, the middle may be a value of the data again.
_SHARE = 0.381966


def thin_out(rows: Matrix) -> Matrix:
    """Return a copy of some rows, at equal distances: enough for quantiles, few enough to keep beside a training."""
    matrix: Any = rows
    count, cells = matrix.shape[0], matrix.nnz if scipy.sparse.issparse(rows) else matrix.size
    most = max(_COUNT, min(_MOST_ROWS, _MOST_CELLS * count // max(1, cells)))
    step = max(1, -(-count // most))
    thin: Matrix = rows[::step].copy()
    return thin


def make_rows(
    rows: Matrix, *, codes: AbstractSet[int] = frozenset(), used: Sequence[int] = (), zeros: bool
) -> list[Row]:
    """Make up rows: each feature has a quantile of its own column, or one of its codes.

    A row takes another quantile from each column, and of the column with the most values one that lies between two of
    them: no row is one of the data.

    Args:
        rows: Some of the data.
        codes: The features whose numbers are codes.
        used: The features that the model uses; asked only where there are more than `MOST_FEATURES`.
        zeros: Whether what a sparse row does not store is 0, and not missing.
    """
    features = rows.shape[1]
    places = range(features) if features <= MOST_FEATURES else sorted(used)[:MOST_FEATURES]
    found = _columns(rows, places, zeros=zeros)
    distinct = {place: np.unique(values) for place, values in found.items()}
    counts = {place: len(values) for place, values in distinct.items() if place not in codes}
    widest = max(counts, key=counts.__getitem__, default=None)
    made: list[Row] = [{} for _ in range(_COUNT)]
    for number, (place, values) in enumerate(found.items()):
        if place in codes:
            picks = distinct[place][(np.array(_LEVELS) * len(distinct[place])).astype(int)]
        else:
            picks = np.quantile(values, _LEVELS)
        if place == widest:
            picks = _between(distinct[place], picks)
        for row, cells in enumerate(made):
            # The shortest number of those that single precision takes for the same.
            cells[place] = float(str(np.float32(picks[(row + number) % _COUNT])))
    return made


def _columns(rows: Matrix, places: Sequence[int], *, zeros: bool) -> dict[int, Floats]:
    """Return what there is in each column, without missing values; columns with nothing are left out."""
    if not scipy.sparse.issparse(rows):
        found = {place: np.asarray(rows[:, place], np.float64) for place in places}
    else:
        columns: Any = scipy.sparse.csc_matrix(rows)
        found = {}
        for place in places:
            stored = columns.data[columns.indptr[place] : columns.indptr[place + 1]].astype(np.float64)
            rest = rows.shape[0] - len(stored) if zeros else 0
            found[place] = np.concatenate([stored, np.zeros(rest)])
    there: dict[int, Any] = {place: values[~np.isnan(values)] for place, values in found.items()}
    return {place: values for place, values in there.items() if len(values)}


def _between(distinct: npt.NDArray[Any], picks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return for each value one between the two neighbours that it lies at or between."""
    if len(distinct) == 1:
        return picks
    above = np.searchsorted(distinct, picks).clip(1, len(distinct) - 1)
    below = distinct[above - 1]
    found: npt.NDArray[Any] = below + _SHARE * (distinct[above] - below)
    return found


def as_matrix(made: Sequence[Row], features: int, *, absent: float, sparse: bool) -> Matrix:
    """Return the rows as a model takes them.

    Args:
        made: The rows, by the place of a feature.
        features: How many there are.
        absent: What a feature is that a row does not name; a sparse matrix leaves it out.
        sparse: Whether the matrix is sparse.
    """
    if sparse:
        cells = [(row, place, value) for row, cells in enumerate(made) for place, value in cells.items()]
        numbers, places, values = zip(*cells, strict=True) if cells else ((), (), ())
        shape = (len(made), features)
        return scipy.sparse.csr_matrix((np.array(values, np.float32), (numbers, places)), shape=shape)
    dense = np.full((len(made), features), absent, np.float32)
    for row, named in zip(dense, made, strict=True):
        row[list(named)] = list(named.values())
    return dense


def sample_rows(made: Sequence[Row], said: npt.NDArray[Any], card: ModelCard) -> tuple[SampleRow, ...]:
    """Return the rows as a card has them, each with what the saved model says of it.

    Args:
        made: The rows, by the place of a feature; of images by channel.
        said: (n,), or (n, outputs).
        card: The rest of the card, which knows the names and the texts of categories.
    """
    names = card.features.names

    def spell(row: Row) -> dict[str, float | str]:
        by_name = {names[place] if names else f"f{place}": value for place, value in row.items()}
        return {name: _spell_cell(card.categories.get(name), value) for name, value in by_name.items()}

    return tuple(SampleRow(spell(row), as_prediction(answer)) for row, answer in zip(made, said, strict=True))


def _spell_cell(texts: Sequence[str] | None, value: float) -> float | str:
    return value if texts is None else texts[int(value)]


def as_prediction(said: Any) -> Prediction:  # noqa: ANN401 - a number or an array of any type
    """Return what a model says of one row as JSON has it: a number, a text, or several numbers."""
    value = np.asarray(said).ravel().tolist()
    if isinstance(value[0], str):
        return str(value[0])
    numbers = [float(each) if math.isfinite(each) else None for each in value]
    return tuple(numbers) if len(numbers) > 1 else numbers[0]
