"""Rules for labels and codes: which values an objective accepts."""

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.job import Channel
from trainbox.data import Block, ColumnSpec, Sparse, Table
from trainbox.errors import DataError
from trainbox.tabular.faults import BadRow, RowRule, find_place

#: Of a categorical feature: the memory of a model and of its training grows with the largest code.
MOST_CODES = 1_000_000
_PLAIN = 1e15


class Domain(msgspec.Struct, frozen=True):
    """The labels that an objective or a metric accepts.

    Args:
        words: What they are: "labels above 0".
        lowest: The least of them.
        highest: The greatest of them.
        is_open: Whether `lowest` itself is too small.
        is_whole: Whether they are whole numbers.
        hint: What to do about another one.
    """

    words: str
    lowest: float = -math.inf
    highest: float = math.inf
    is_open: bool = False
    is_whole: bool = False
    hint: str = "correct the row or remove it, or choose another objective"

    @property
    def is_everything(self) -> bool:
        """Whether every number is in the domain."""
        return math.isinf(self.lowest) and math.isinf(self.highest) and not self.is_whole

    def outside(self, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return a mask of the labels outside of the domain."""
        inside = (labels > self.lowest) if self.is_open else (labels >= self.lowest)
        inside &= labels <= self.highest
        if self.is_whole:
            inside &= labels == np.floor(labels)
        return ~inside


ANYTHING = Domain("numbers")
WHOLE = Domain("whole numbers", is_whole=True, hint="classes are whole numbers; numbers to predict are task=regression")


def classes_below(count: int, *, hint: str = "") -> Domain:
    """Return the domain of the classes 0, 1, … below a number."""
    words = "labels 0 and 1" if count == 2 else f"whole labels from 0 to {count - 1}"  # noqa: PLR2004
    return Domain(words, lowest=0, highest=count - 1, is_whole=True, hint=hint or f"give labels from 0 to {count - 1}")


def labels_in(domain: Domain, who: str) -> RowRule:
    """Return a rule: every label lies in a domain.

    Args:
        domain: The labels that are right.
        who: Needs them: "objective count:poisson".
    """

    def find(block: Block, _names: Sequence[str] | None) -> BadRow | None:
        outside = domain.outside(block.labels)
        if not outside.any():
            return None
        place = int(np.argmax(outside))
        row = place if block.labels.ndim == 1 else place // block.labels.shape[1]
        value = float(block.labels.reshape(-1)[place])
        return BadRow(row, f"label {spell(value)} is invalid: {who} needs {domain.words}", domain.hint)

    return find


def check_known(table: Table, classes: Sequence[int], channel: Channel, columns: ColumnSpec) -> None:
    """Reject rows of a class that does not occur in the training rows.

    Args:
        table: The rows of the channel, all that this member has.
        classes: Those of the rows trained on.
        channel: Where the rows were read.
        columns: What stands where in a row.

    Raises:
        DataError: With file, row and label.
    """
    unknown = ~np.isin(table.labels, classes)
    if unknown.any():
        row, count = int(unknown.argmax()), int(np.count_nonzero(unknown))
        raise DataError(
            f"{find_place(channel, row, columns)}: label {spell(float(table.labels[row]))} does not occur in training"
            f" (in {count:,} row{'s' * (count != 1)})",
            hint="check how the rows were split: each class must be among the rows to learn from",
        )


def codes_of(wanted: Sequence[str], *, largest: int = MOST_CODES - 1, may_be_negative: bool = False) -> RowRule:
    """Return a rule: values of categorical features are codes, whole numbers from 0; missing values are allowed.

    Args:
        wanted: The features, by name or by position from 0. One that there is not breaks no rule.
        largest: The largest code.
        may_be_negative: Whether a code may be below 0.
    """
    least = -largest if may_be_negative else 0

    def find(block: Block, names: Sequence[str] | None) -> BadRow | None:
        found = []
        for name, place in _places(wanted, names, _width(block)):
            rows, values = _column(block, place)
            with np.errstate(invalid="ignore"):  # of missing values
                wrong = (values < least) | (values > largest) | (values != np.floor(values))
            wrong &= ~np.isnan(values)
            if wrong.any():
                first = int(np.argmax(wrong))
                found.append(BadRow(int(rows[first]), *_explain_code(name, float(values[first]), least, largest)))
        return min(found, key=lambda bad: bad.row, default=None)

    return find


def _explain_code(name: str, value: float, least: int, largest: int) -> tuple[str, str]:
    range_ = f"a whole number from {least:,} to {largest:,}"
    hint = "number the categories of the feature 0, 1, 2, …"
    if value == -1:
        hint = "-1 is the code of pandas for a missing value: leave the cell empty"
    return f"code {spell(value)} of categorical feature {name!r} is invalid: a code is {range_}", hint


def _width(block: Block) -> int:
    return block.features.width if isinstance(block.features, Sparse) else int(block.features.shape[1])


def _places(wanted: Sequence[str], names: Sequence[str] | None, width: int) -> Iterator[tuple[str, int]]:
    """The categorical features of a block with their positions; features without names are called f0, f1, …."""
    for name in wanted:
        if names is not None and name in names:
            yield name, list(names).index(name)
            continue
        text = name[1:] if names is None and name.startswith("f") else name
        if text.isdecimal() and int(text) < width:
            yield name, int(text)


def _column(block: Block, place: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The values of a feature, and the rows that have them."""
    features = block.features
    if not isinstance(features, Sparse):
        return np.arange(len(features)), features[:, place]
    there = np.flatnonzero(features.columns == place)
    ends = np.cumsum(features.counts)
    return np.searchsorted(ends, there, side="right"), features.values[there]


def spell(value: float) -> str:
    """Format a 32-bit float in its shortest form.

    >>> spell(3.0), spell(float(np.float32(0.1))), spell(math.inf)
    ('3', '0.1', 'inf')
    """
    if not math.isfinite(value) or abs(value) > _PLAIN:
        return f"{value:g}"
    return str(np.format_float_positional(np.float32(value), trim="-"))
