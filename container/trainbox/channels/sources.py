"""What the first lines of a file say about all of it, and what the files of a channel have in common."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trainbox.channels.kinds import Kind
from trainbox.channels.table import default_names
from trainbox.channels.wording import some
from trainbox.errors import DataError

_SPOKEN = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar", " ": "blank"}


class Source(msgspec.Struct, frozen=True):
    """One file, or the stream of a pipe."""

    path: Path
    shown: str  # the path from the channel's name on, for messages
    kind: Kind
    #: How many columns a row has; for recordio-protobuf, features; None where each row says it (libsvm).
    width: int | None
    names: tuple[str, ...] | None = None
    #: CSV alone.
    delimiter: str = ","
    #: Lines up to and with the header, and the header itself.
    skip: int = 0
    header: str = ""
    #: How long its first row is.
    row_bytes: int = 0
    #: What the user should know about it.
    note: str = ""
    #: The columns whose type is text (Parquet alone).
    texts: tuple[str, ...] = ()


def agree(sources: Sequence[Source], channel: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The one header of all files, or None if no file has one; and what to say about it.

    Raises:
        DataError: Two files differ in their number of columns, in a column's name, or in what they are.
    """
    first = sources[0]
    for source in sources:
        compare_sources(source, first)
    notes = [source.note for source in sources if source.note]
    for delimiter in sorted({source.delimiter for source in sources} - {","}):
        files = [source.shown for source in sources if source.delimiter == delimiter]
        spoken = _SPOKEN.get(delimiter, repr(delimiter))
        notes.append(f"{channel}: columns are separated by a {spoken} in {some(files)}")
    named = [source for source in sources if source.names is not None]
    if not named:
        return None, tuple(notes)
    for source in named:
        compare_names(source.shown, source.names or (), named[0].shown, named[0].names or ())
    bare = [source.shown for source in sources if source.names is None]
    notes.append(
        f"{channel}: {len(named)} of {len(sources)} files have a header ({some(named[0].names or ())})"
        + (f", {some(bare)} not: columns are taken by their position" if bare else "")
    )
    return named[0].names, tuple(notes)


def compare_sources(source: Source, first: Source) -> None:
    """Refuse two files that cannot be one table.

    Raises:
        DataError: One is of another format, or has another number of columns.
    """
    if source.kind != first.kind and {source.kind, first.kind} != {"CSV", "Parquet"}:
        raise DataError(
            f"{source.shown} is {source.kind}, {first.shown} is {first.kind}",
            hint="all files of a channel must be of one format (CSV and Parquet go together)",
        )
    if source.width != first.width:
        raise DataError(
            f"{source.shown} has {source.width} columns, {first.shown} has {first.width}",
            hint="every file of a channel must have the same columns",
        )


def compare_features(here: str, names: tuple[str, ...], there: str, other_names: tuple[str, ...]) -> None:
    """Two channels must have the same features; names count where both have some.

    Raises:
        DataError: They have not.
    """
    if len(names) != len(other_names):
        raise DataError(
            f"{here} has {len(names)} features, {there} has {len(other_names)}",
            hint="every channel must have the same columns",
        )
    if default_names(len(names)) not in {names, other_names}:
        compare_names(here, names, there, other_names)


def compare_names(here: str, names: tuple[str, ...], there: str, other_names: tuple[str, ...]) -> None:
    """The same columns must have the same names.

    Raises:
        DataError: They have not.
    """
    for name, other_name in zip(names, other_names, strict=True):
        if name != other_name:
            raise DataError(
                f"{here} calls a column {name!r} where {there} calls it {other_name!r}",
                hint="every file must have the same columns in the same order",
            )
