"""Labels from which nothing can be learnt are found before the first tree, with what was found and how often."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from trainbox.channels import Table
from trainbox.errors import DataError

#: Of more different labels than this nobody makes a list: they are no classes.
MOST_CLASSES = 10_000
_SHOWN = 10

Labels = npt.NDArray[np.float32]


def count_labels(labels: Labels) -> dict[float, int]:
    """How many rows each label has, in ascending order.

    Args:
        labels: (n,) or (n, k), without missing ones.
    """
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def check_labels(
    channel: str,
    table: Table,
    *,
    classes: int | None,
    known: Sequence[float] | None = None,
    whole: bool = False,
    learn: bool = True,
) -> None:
    """Refuse labels from which nothing can be learnt. Text and missing labels were refused when they were read.

    Args:
        channel: Its name, for the message.
        table: Its rows.
        classes: The labels must be 0, 1, … below this; `None` where any number will do.
        known: The classes of the rows trained on, where these rows are to be judged by them.
        whole: Whether any whole number is a class.
        learn: Whether these are the rows to learn from: then one label alone is an error, too.

    Raises:
        DataError: With the labels that were found and how many rows have them.
    """
    if classes is None and known is None and not whole:
        if learn:
            lowest = float(table.labels.min()) if table.labels.size else 0.0
            if (table.labels == lowest).all():
                refuse_constant(channel, lowest, len(table.labels))
        return
    check_counts(channel, count_labels(table.labels), classes=classes, known=known, learn=learn)


def check_counts(
    channel: str,
    counts: Mapping[float, int],
    *,
    classes: int | None = None,
    known: Sequence[float] | None = None,
    learn: bool = True,
) -> None:
    """The same for classes of which only the counts are at hand, as those of several hosts together.

    Args:
        channel: Its name, for the message.
        counts: How many rows each label has.
        classes: The labels must be 0, 1, … below this; `None`: any whole numbers.
        known: The classes of the rows trained on.
        learn: Whether these are the rows to learn from.

    Raises:
        DataError: With the labels that were found and how many rows have them.
    """
    fractions = [label for label in counts if not float(label).is_integer()]
    if fractions:
        raise DataError(
            f"channel {channel}: label {fractions[0]:g} is no class; found {some(counts)}",
            hint="classes are whole numbers; numbers to predict are task=regression, or an objective such as"
            " reg:squarederror",
        )
    if len(counts) > MOST_CLASSES:
        raise DataError(
            f"channel {channel}: {len(counts):,} different labels are no classes; found {some(counts)}",
            hint="is it a number to predict? Then say task=regression, or an objective such as reg:squarederror",
        )
    if classes is not None and any(not 0 <= label < classes for label in counts):
        raise DataError(
            f"channel {channel}: the labels are {some(counts)}, which are not the classes 0 to {classes - 1}",
            hint=f"give labels from 0 to {classes - 1}",
        )
    if learn and len(counts) == 1:
        refuse_constant(channel, *next(iter(counts.items())))
    unknown = {label: count for label, count in counts.items() if known is not None and label not in set(known)}
    if unknown:
        raise DataError(
            f"channel {channel}: label {some(unknown)} does not occur in training",
            hint="check how the rows were split: each class must be among the rows to learn from",
        )


def refuse_constant(channel: str, label: float, rows: int) -> NoReturn:
    """Say that all rows of a channel have the same label.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"channel {channel}: every label is {some({label: rows})}: there is nothing to learn",
        hint="the first column must be the label; check that it is, and how the rows were chosen",
    )


def some(counts: Mapping[float, int]) -> str:
    """The labels and how many rows have them, the first few.

    >>> some({0.0: 12_000, 1.0: 1})
    '0 (12,000 rows), 1 (1 row)'
    """
    shown = [f"{label:g} ({count:,} row{'s' * (count != 1)})" for label, count in list(counts.items())[:_SHOWN]]
    more = len(counts) - _SHOWN
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
