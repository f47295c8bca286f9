"""Reject labels that cannot be trained on, before the first tree, with the labels and their counts."""

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from trainbox.errors import DataError

#: More different labels than this are not classes, and are not listed.
MOST_CLASSES = 10_000
_SHOWN = 10

Labels = npt.NDArray[np.float32]


def count_labels(labels: Labels) -> dict[float, int]:
    """Return the number of rows of each label, in ascending order of labels.

    Args:
        labels: (n,) or (n, k), without missing ones.
    """
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def check_classes(channel: str, counts: Mapping[float, int], *, learn: bool = True) -> None:
    """Reject labels that are too many for classes, or all equal.

    Args:
        channel: Its name, for the message.
        counts: How many rows have each label.
        learn: Whether these are all the rows to learn from: then one label alone is an error, too.

    Raises:
        DataError: With the labels that were found and how many rows have them.
    """
    if len(counts) > MOST_CLASSES:
        raise DataError(
            f"channel {channel}: {len(counts):,} different labels are too many for classes;"
            f" found {list_counts(counts)}",
            hint="to predict numbers, use task=regression, or an objective such as reg:squarederror",
        )
    if learn and len(counts) == 1:
        refuse_constant(channel, *next(iter(counts.items())))


def refuse_constant(channel: str, label: float, rows: int) -> NoReturn:
    """Raise the error of a channel whose labels are all equal.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"channel {channel}: all labels are equal, {list_counts({label: rows})};"
        " training needs at least two different values",
        hint="the first column must be the label; check that it is, and how the rows were chosen",
    )


def refuse_weights(channel: str) -> NoReturn:
    """Raise the error of a channel whose weights are all 0.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"channel {channel}: all weights are 0; training needs a weight above 0",
        hint="the column after the label must be the weight; check that it is",
    )


def list_counts(counts: Mapping[float, int]) -> str:
    """Format the first few labels with their numbers of rows.

    >>> some({0.0: 12_000, 1.0: 1})
    '0 (12,000 rows), 1 (1 row)'
    """
    shown = [f"{label:g} ({count:,} row{'s' * (count != 1)})" for label, count in list(counts.items())[:_SHOWN]]
    more = len(counts) - _SHOWN
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
