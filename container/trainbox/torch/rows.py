"""A channel of a table for a network: its labels and codes checked row by row as they are read."""

from collections.abc import Sequence
from pathlib import Path

from trainbox.channels import Columns, Table, read_table
from trainbox.contract.job import Channel
from trainbox.tabular.domains import Domain, classes_below, codes_of, labels_in
from trainbox.tabular.faults import Scan
from trainbox.tabular.labels import MOST_CLASSES, refuse_constant

_LABEL_FIRST = Columns()
#: From here on a 32-bit float does not tell two neighbouring whole numbers apart.
_LARGEST_CODE = 2**24


def read_rows(
    channel: Path | Channel,
    *,
    columns: Columns = _LABEL_FIRST,
    like: Table | None = None,
    has_classes: bool = False,
    codes: Sequence[str] = (),
) -> Table:
    """Read a channel whose labels and codes a network can learn.

    Args:
        channel: As for `trainbox.channels.read_table`.
        columns: What stands where in a row.
        like: The rows trained on, whose columns and classes these must have.
        has_classes: Whether the labels are classes, whole numbers from 0.
        codes: Names of the columns whose numbers are codes.

    Raises:
        DataError: A channel cannot be read, or a label or code is none; with file, row and value.
    """
    rules = [codes_of(codes, largest=_LARGEST_CODE, may_be_negative=True)] if codes else []
    if has_classes:
        rules.append(labels_in(_classes(like), "task=classification"))
    scan = Scan(*rules)
    table = read_table(channel, like=like, columns=columns, inspect=scan)
    scan.check()
    if like is None and (table.labels == table.labels.flat[0]).all():
        refuse_constant("train", float(table.labels.flat[0]), len(table.labels))
    return table


def _classes(like: Table | None) -> Domain:
    if like is None:
        hint = "number the classes from 0, without gaps; to predict numbers say task=regression"
        return classes_below(MOST_CLASSES, hint=hint)
    return classes_below(int(like.labels.max()) + 1, hint="check the split: each class must occur in channel train")
