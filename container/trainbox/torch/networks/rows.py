"""A channel of a table for a network: its labels and codes checked row by row as they are read, its texts coded."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from trainbox.contract.job import Channel
from trainbox.contract.text import some
from trainbox.data import Block, Coding, ColumnSpec, Table, read_table
from trainbox.data.formats.cell_types import classify_cell
from trainbox.errors import DataError
from trainbox.former import former_model
from trainbox.log_lines import emit
from trainbox.tabular.domains import Domain, classes_below, codes_of, labels_in
from trainbox.tabular.faults import Scan, find_place
from trainbox.tabular.labels import MOST_CLASSES, refuse_constant
from trainbox.tabular.texts import read_codes, texts_like_missing

_LABEL_FIRST = ColumnSpec()
#: From here on a 32-bit float does not tell two neighbouring whole numbers apart.
_LARGEST_CODE = 2**24


def read_rows(
    channel: Path | Channel,
    *,
    columns: ColumnSpec = _LABEL_FIRST,
    like: Table | None = None,
    has_classes: bool = False,
    codes: Sequence[str] = (),
) -> Table:
    """Read a channel whose labels and codes a network can learn.

    Args:
        channel: As for `trainbox.data.read_table`.
        columns: What stands where in a row.
        like: The rows trained on, whose columns and classes these must have.
        has_classes: Whether the labels are classes, whole numbers from 0.
        codes: Names of the columns whose numbers are codes, or that hold texts.

    Raises:
        DataError: A channel cannot be read, or a label or code is none; with file, row and value.
    """
    of_codes = [codes_of(codes, largest=_LARGEST_CODE, may_be_negative=True)] if codes else []
    of_labels = [labels_in(_classes(like), "task=classification")] if has_classes else []
    scan = Scan(*of_codes, *of_labels)
    table = read_table(channel, like=like, columns=columns, coding=_codes_to_follow(like), inspect=scan)
    scan.check()
    if table.coding.labels and not has_classes:
        raise DataError(
            f"channel train: the labels are texts ({some([repr(text) for text in table.coding.labels])}), and"
            " task=regression predicts numbers",
            hint="write the labels as numbers; or learn them as classes: task=classification",
        )
    if like is None:
        table = _as_numbers(table)
        source = channel if isinstance(channel, Channel) else Channel(channel.name, channel)
        block = Block(table.labels, table.features, None, None, lambda row: find_place(source, row, columns))
        again = Scan(*of_codes)
        again(block, table.feature_names)
        again.check()
        for text in texts_like_missing(table.coding, table.feature_names, columns.missing):
            emit(text)
    if like is None and (table.labels == table.labels.flat[0]).all():
        refuse_constant("train", float(table.labels.flat[0]), len(table.labels))
    return table


def _codes_to_follow(like: Table | None) -> Coding | None:
    """Those of the rows trained on, or of a former model; None where there is neither."""
    if like is not None:
        return like.coding
    directory = former_model()
    return None if directory is None else read_codes(directory)


def _as_numbers(table: Table) -> Table:
    """The same rows, with numbers in place of codes where all texts of a column are numbers: a network takes them."""
    numeric = {
        place: np.array(texts, np.float32)
        for place, texts in table.coding.features.items()
        if all(classify_cell(text) == "number" for text in texts)
    }
    for place, values in numeric.items():
        column = table.features[:, place]
        known = ~np.isnan(column)
        column[known] = values[column[known].astype(np.int64)]
    texts = {place: texts for place, texts in table.coding.features.items() if place not in numeric}
    return msgspec.structs.replace(table, coding=Coding(texts, table.coding.labels))


def _classes(like: Table | None) -> Domain:
    if like is None:
        hint = "number the classes from 0, without gaps; to predict numbers, set task=regression"
        return classes_below(MOST_CLASSES, hint=hint)
    return classes_below(int(like.labels.max()) + 1, hint="check the split: each class must occur in channel train")
