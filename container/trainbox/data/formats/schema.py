"""Column specification and row schema: which columns of a row are labels, weight, group and features.

The specification is what a caller says by name or position; the schema has the indices for rows of a known width.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import msgspec

from trainbox.contract.model_card import MISSING
from trainbox.contract.text import short, some
from trainbox.errors import DataError, HyperparameterError

Format = Literal["CSV", "libsvm", "Parquet", "recordio-protobuf"]


class SourceInfo(msgspec.Struct, frozen=True):
    """What the first rows of a file, pipe or request say about all of it."""

    #: For messages; of a file, its path from the channel's name on.
    shown: str
    format: Format
    #: The number of columns of a row, or of features of recordio-protobuf; None for libsvm, whose rows differ.
    width: int | None
    names: tuple[str, ...] | None = None
    #: Of CSV, as is the rest up to `note`.
    delimiter: str = ","
    #: The number of lines up to and with the header.
    skip: int = 0
    header: str = ""
    #: The length of the first row.
    row_bytes: int = 0
    #: What the user should know.
    note: str = ""
    #: The names of Parquet's columns of texts.
    texts: tuple[str, ...] = ()


class ColumnSpec(msgspec.Struct, frozen=True):
    """The columns of CSV and Parquet: labels first, then the weight if there is one, then the features.

    Other formats mark them: libsvm by its syntax, recordio-protobuf by the names in a record.
    """

    #: How many of the leading columns are labels; 0 for rows of features alone, as requests have them.
    labels: int = 1
    #: Whether the next column is the row's weight (`csv_weights` of the built-in XGBoost).
    weight: bool = False
    #: The column with the query id of ranking: its name in the header or in Parquet, or its position from 0, as "7".
    group: str | None = None
    #: Markers of a missing value in CSV.
    missing: tuple[str, ...] = MISSING
    #: The delimiter of CSV; None: detected.
    delimiter: str | None = None
    #: Whether the first line of CSV is a header; None: detected.
    header: bool | None = None
    #: Whether the two labels are the bounds of one number, of which one may be missing or infinite.
    bounds: bool = False
    #: Whether a column may hold texts, which become codes (see `Coding`); if not, a text is an error.
    texts: bool = False
    #: Columns whose cells are all texts, even numbers: their names, or positions among the features.
    categorical: tuple[str, ...] = ()
    #: What to do with a text that is not in the given coding.
    unseen: Literal["error", "missing"] = "error"

    def __post_init__(self) -> None:
        if self.labels < 0:
            raise ValueError(f"{self.labels} columns are labels; the number must not be negative")
        if self.bounds and self.labels != 2:  # noqa: PLR2004 - a lower and an upper one
            raise ValueError(f"{self.labels} columns are labels; bounds are two, the lower and the upper one")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"0123456789.+-'):
            raise ValueError(f"the delimiter {self.delimiter!r} is not one character, or one of a number or a line end")


#: Rows without labels: all columns are features.
FEATURES_ONLY = ColumnSpec(labels=0)


@functools.lru_cache(maxsize=2)
def default_names(count: int) -> tuple[str, ...]:
    """Return the names of features without a header; cached, as wide tables share them."""
    return tuple(f"f{i}" for i in range(count))


class RowSchema(msgspec.Struct, frozen=True):
    """The indices of the columns of a row, from 0."""

    width: int
    labels: tuple[int, ...]
    features: tuple[int, ...]
    weight: int | None
    group: int | None
    #: The names of all columns; None if neither a header nor Parquet names them.
    names: tuple[str, ...] | None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features; `f0`, `f1`, … if nothing names them."""
        names = self.names
        return default_names(len(self.features)) if names is None else tuple(names[i] for i in self.features)

    def name(self, column: int) -> str:
        """Return the name of a column; an empty text if it has none."""
        return "" if self.names is None else self.names[column]

    def role(self, column: int) -> str:
        """Return `label`, `weight` or `group`; an empty text for a feature."""
        if column in self.labels:
            return "label"
        return {self.weight: "weight", self.group: "group"}.get(column, "")

    def find_named(self, wanted: Sequence[str], shown: str) -> tuple[int, ...]:
        """Return the columns of these names; a feature may be given by its position among the features, from 0.

        Args:
            wanted: Names of features or labels, or positions.
            shown: The file whose columns these are, for messages.

        Raises:
            HyperparameterError: There is no such column.
        """
        names = self.names or ()
        known = {names[column]: column for column in (*self.features, *self.labels) if names}
        found = []
        for name in wanted:
            if name in known:
                found.append(known[name])
            elif name.isdecimal() and len(name) <= len(str(self.width)) and int(name) < len(self.features):
                found.append(self.features[int(name)])
            else:
                places = f"positions among the features from 0 to {len(self.features) - 1}"
                raise HyperparameterError(
                    f"categorical: in {shown} there is no column {name!r}",
                    hint=f"the columns are {some(self.feature_names)}, or {places}" if names else f"give {places}",
                )
        return tuple(found)

    def describe(self, column: int) -> str:
        """Describe a column for a message: its number from 1, and its name if it has one."""
        name = self.name(column)
        return f"column {column + 1}" + (f" ({name!r})" if name else "")


def resolve_schema(columns: ColumnSpec, width: int, names: tuple[str, ...] | None, shown: str) -> RowSchema:
    """Resolve names and positions to the indices of a row of `width` columns.

    Args:
        columns: The caller's specification.
        width: The number of columns.
        names: Their names, if known.
        shown: The file whose columns these are, for messages.

    Raises:
        DataError: There is no such group column, no column is left to be a feature, or a name holds a NUL.
    """
    for column, name in enumerate(names or (), start=1):
        if "\0" in name:  # libraries in C would cut it there
            raise DataError(f"{shown}: the name of column {column} holds a NUL: {short(name)}", hint="rename it")
    group = None if columns.group is None else _find_group(columns.group, width, names, shown)
    rest = [column for column in range(width) if column != group]
    special = columns.labels + columns.weight
    if len(rest) <= special:
        raise _too_narrow(columns, width, shown)
    weight = rest[columns.labels] if columns.weight else None
    return RowSchema(width, tuple(rest[: columns.labels]), tuple(rest[special:]), weight, group, names)


def _find_group(group: str, width: int, names: tuple[str, ...] | None, shown: str) -> int:
    if names is not None and names.count(group) == 1:
        return names.index(group)
    if names is not None and names.count(group) > 1:
        raise DataError(f"{shown} has {names.count(group)} columns called {group!r}", hint="rename all but the group's")
    if group.isdecimal() and len(group) <= len(str(width)) and int(group) < width:
        return int(group)
    known = "no header names its columns" if names is None else f"its columns are {', '.join(names)}"
    raise DataError(
        f"{shown} has no column {group!r} for the groups of rows: {known}",
        hint=f"give a name that the header has, or a position from 0 to {width - 1}",
    )


def _too_narrow(columns: ColumnSpec, width: int, shown: str) -> DataError:
    labels = ["a label" if columns.labels == 1 else f"{columns.labels} labels"] if columns.labels else []
    weight = ["a weight"] if columns.weight else []
    group = ["a group"] if columns.group is not None else []
    others = ", ".join([*labels, *weight, *group])
    needed = f"{others} and " if others else ""
    count = "one column only" if width == 1 else f"{width} columns only"
    return DataError(
        f"{shown} has {count}; {needed}at least one feature {'are' if needed else 'is'} needed",
        hint="columns are separated by a comma, semicolon, tab, vertical bar or blanks; the hyperparameter delimiter"
        " names another. Is it libsvm, whose first rows have no feature? Then set the content type to text/libsvm",
    )
