"""Which columns of CSV or Parquet are labels, weight, group and features: names and positions become indices, once."""

from collections.abc import Sequence

import msgspec

from trainbox.channels.table import Columns, default_names
from trainbox.channels.wording import some
from trainbox.contract.text import short
from trainbox.errors import DataError, HyperparameterError


class Layout(msgspec.Struct, frozen=True):
    """The indices of a row's columns, from 0."""

    width: int
    labels: tuple[int, ...]
    features: tuple[int, ...]
    weight: int | None
    group: int | None
    #: Of all columns, where a header or Parquet names them.
    names: tuple[str, ...] | None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features; `f0`, `f1`, … where nothing names them."""
        names = self.names
        return default_names(len(self.features)) if names is None else tuple(names[i] for i in self.features)

    def role(self, column: int) -> str:
        """`label`, `weight` or `group`; nothing for a feature."""
        if column in self.labels:
            return "label"
        return {self.weight: "weight", self.group: "group"}.get(column, "")

    def find_named(self, wanted: Sequence[str], shown: str) -> tuple[int, ...]:
        """The columns of these names; a feature may be given by its position among the features, from 0.

        Args:
            wanted: Names of features or labels, or positions.
            shown: The file that shows the columns, for messages.

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
        """A column as messages name it: its number from 1, and its name if it has one."""
        name = self.names[column] if self.names is not None else ""
        return f"column {column + 1}" + (f" ({name!r})" if name else "")


def lay_out(columns: Columns, width: int, names: tuple[str, ...] | None, shown: str) -> Layout:
    """Find each column of a row of `width` columns.

    Args:
        columns: What the caller says about them.
        width: How many there are.
        names: What they are called, if anything says so.
        shown: The file that shows them, for messages.

    Raises:
        DataError: There is no such group column, no column is left to be a feature, or a name holds a NUL.
    """
    for column, name in enumerate(names or (), start=1):
        if "\0" in name:  # libraries in C would know half of it
            raise DataError(f"{shown}: the name of column {column} holds a NUL: {short(name)}", hint="rename it")
    group = None if columns.group is None else _find_group(columns.group, width, names, shown)
    rest = [column for column in range(width) if column != group]
    special = columns.labels + columns.weight
    if len(rest) <= special:
        raise _too_narrow(columns, width, shown)
    weight = rest[columns.labels] if columns.weight else None
    return Layout(width, tuple(rest[: columns.labels]), tuple(rest[special:]), weight, group, names)


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


def _too_narrow(columns: Columns, width: int, shown: str) -> DataError:
    labels = "a label" if columns.labels == 1 else f"{columns.labels} labels"
    weight = ["a weight"] if columns.weight else []
    group = ["a group"] if columns.group is not None else []
    needed = ", ".join([labels, *weight, *group])
    count = "one column only" if width == 1 else f"{width} columns only"
    return DataError(
        f"{shown} has {count}; {needed} and at least one feature are needed",
        hint="columns are separated by a comma, semicolon, tab, vertical bar or blanks; the hyperparameter delimiter"
        " names another. Is it libsvm, whose first rows have no feature? Then set the content type to text/libsvm",
    )
