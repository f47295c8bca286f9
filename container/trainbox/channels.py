"""The files of a channel become one numeric table, label first, or an error that names file, line and cell.

XGBoost's own text loader takes a header for a row with label 0, text for a missing value, a short row for one padded
with missing values, and files in the order of the directory. Here Arrow parses against a strict schema instead:

* files in the order of their paths below the channel, through nested folders; hidden files, `*-manifest` and `_SUCCESS`
  are left out, and that is said;
* every cell is a number, or missing: an empty cell, `NA` or `NaN`. Anything else, and an infinite value, is an error;
* every row of every file has the same number of columns; the first is the label, which may not be missing;
* a first line without any number is a header; one with numbers and words is an error;
* the delimiter is whichever of `,` `;` tab `|` gives numbers.

Parquet files (`*.parquet`) are read too, their first column being the label; their names count as a header.
"""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from trainbox.errors import DataError
from trainbox.say import say

DELIMITERS = ",;\t|"
MISSING = ("", "NA", "NaN", "nan")
#: A first row of 0,1,2,… longer than this is no accident.
_COUNTING = 3
_SPOKEN = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LARGEST = float(np.finfo(np.float32).max)
_NOT_A_NUMBER = re.compile(r"[+-]?nan", re.IGNORECASE)
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)

Floats = npt.NDArray[np.float32]


class Table(msgspec.Struct, frozen=True, eq=False):
    """A channel in memory: `features` is C-ordered, n rows by m columns; a missing value is NaN."""

    labels: Floats
    features: Floats
    #: From the header; `f0`, `f1`, … where no file has one.
    feature_names: tuple[str, ...]
    files: tuple[Path, ...]


class _Source(msgspec.Struct, frozen=True):
    """What the first lines of a file say about all of it."""

    path: Path
    shown: str  # the path below the channel, for messages
    width: int
    names: tuple[str, ...] | None
    delimiter: str | None  # None: Parquet
    skip: int = 0  # lines up to and with the header


def read_table(channel_dir: Path, *, like: Table | None = None) -> Table:
    """Read every file of a channel.

    Args:
        channel_dir: The channel's directory, or one file.
        like: The table of another channel, whose columns this one must have.

    Raises:
        DataError: With file, line and cell, and what to do.
    """
    sources = _look_at_all(find_files(channel_dir), channel_dir)
    names = _agree(sources, channel_dir.name)
    feature_names = names[1:] if names else _default_names(sources[0].width - 1)
    if like is not None:
        _compare(like, feature_names, sources[0])
    labels, features = _read_all(sources)
    if not len(labels):
        raise DataError(f"no rows in {channel_dir}: its files hold headers alone")
    say(f"{channel_dir.name}: {len(labels):,} rows, {len(feature_names)} features, {len(sources)} files")
    return Table(labels, features, feature_names, tuple(source.path for source in sources))


def find_files(channel_dir: Path) -> tuple[Path, ...]:
    """The data files below a channel's directory, sorted by their relative path."""
    if channel_dir.is_file():
        return (channel_dir,)
    if not channel_dir.is_dir():
        pipe = Path(f"{channel_dir}_0").exists()
        raise DataError(
            f"{channel_dir} is not a directory" + (": the channel is in Pipe mode" if pipe else ""),
            hint="use input mode File or FastFile" if pipe else "check the channel's name and path",
        )
    found = sorted(_walk(channel_dir, ()), key=lambda path: path.relative_to(channel_dir).as_posix())
    data = tuple(path for path in found if not _is_marker(path.relative_to(channel_dir)))
    ignored = [path.relative_to(channel_dir).as_posix() for path in found if path not in set(data)]
    if ignored:
        say(f"{channel_dir.name}: ignored {_some(ignored)} (hidden, *-manifest or _SUCCESS: not data)")
    return data


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Every file below `folder`, through links too: a linked folder left out would be rows lost in silence."""
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder} links back to {real}, which contains it", hint="remove the link")
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        elif entry.is_file():
            yield entry
        else:
            raise DataError(f"{entry} is not a file that can be read (a broken link or a pipe)", hint="remove it")


def _is_marker(path: Path) -> bool:
    return (
        any(part.startswith(".") for part in path.parts) or path.name.endswith("-manifest") or path.name == "_SUCCESS"
    )


# ---- what a file is ----


def _look_at_all(paths: Sequence[Path], channel_dir: Path) -> list[_Source]:
    """Every file that has a first line; those without one are said and left out."""
    looks = [(path, _look_at(path, _shown(path, channel_dir))) for path in paths]
    empty = [_shown(path, channel_dir) for path, source in looks if source is None]
    sources = [source for _, source in looks if source is not None]
    if not sources:
        what = f"holds nothing but empty files ({_some(empty)})" if empty else "holds no file"
        raise DataError(f"the channel {channel_dir} {what}", hint="check the S3 prefix or the path that it was given")
    if empty:
        say(f"{channel_dir.name}: skipped empty files: {_some(empty)}")
    return sources


def _shown(path: Path, channel_dir: Path) -> str:
    return path.name if path == channel_dir else f"{channel_dir.name}/{path.relative_to(channel_dir).as_posix()}"


def _look_at(path: Path, shown: str) -> _Source | None:
    """What kind of file this is; None for one without a row."""
    source = _look_at_parquet(path, shown) if path.suffix == ".parquet" else _look_at_csv(path, shown)
    if source is not None and source.width < 2:  # noqa: PLR2004 - a label and a feature
        raise DataError(
            f"{shown} has one column only; a label and at least one feature are needed",
            hint="columns are separated by a comma, semicolon, tab or vertical bar",
        )
    return source


def _look_at_parquet(path: Path, shown: str) -> _Source | None:
    try:
        with pa.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shown} cannot be read as Parquet: {error}") from error
    for field in schema:
        kind = field.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise DataError(
                f"{shown}: column {field.name!r} is of type {kind}",
                hint="every column must be a number; encode text as numbers",
            )
    return _Source(path, shown, len(schema.names), tuple(schema.names), None) if rows else None


def _look_at_csv(path: Path, shown: str) -> _Source | None:
    lines = _first_lines(path, shown)
    if not lines:
        return None
    # The last of them: where there is a second line, it is no header.
    delimiter = _delimiter_of([line for _, line in lines][::-1], shown)
    number, first = lines[0]
    cells = tuple(cell.strip() for cell in next(csv.reader([first], delimiter=delimiter)))
    words = [cell for cell in cells if not _is_cell(cell)]
    if not words:
        if len(cells) > _COUNTING and list(cells) == [str(i) for i in range(len(cells))]:
            say(
                f"{shown}:{number}: 0,1,2,… is taken for a row; if it is a data frame's header, write with header=False"
            )
        return _Source(path, shown, len(cells), None, delimiter)
    if any(_is_cell(cell) and cell not in MISSING for cell in cells):
        raise DataError(
            f"{shown}:{number}: {words[0]!r} is not a number",
            hint="if this line is a header, give every column a name that is not a number, or leave the header out",
        )
    if cells[0] in {"", "Unnamed: 0"}:
        raise DataError(
            f"{shown}:{number}: the header does not name the first column, which looks like a data frame's index",
            hint="the first column must be the label: write with index=False",
        )
    return _Source(path, shown, len(cells), cells, delimiter, skip=number)


def _first_lines(path: Path, shown: str) -> list[tuple[int, str]]:
    """The first two lines with something in them, with their numbers."""
    lines: list[tuple[int, str]] = []
    with _open_text(path, shown, errors="strict") as file:
        for number, line in enumerate(file, start=1):
            if line.rstrip("\n"):
                lines.append((number, line.rstrip("\n")))
            if len(lines) == 2:  # noqa: PLR2004 - a header and a row
                break
    return lines


def _delimiter_of(lines: Sequence[str], shown: str) -> str:
    """The delimiter that makes numbers of the first of `lines`; else the one that cuts it in most pieces."""
    split = {delimiter: next(csv.reader([lines[0]], delimiter=delimiter)) for delimiter in DELIMITERS}
    numeric = [
        delimiter
        for delimiter, cells in split.items()
        if len(cells) > 1 and all(_is_cell(cell.strip()) for cell in cells)
    ]
    if not numeric and len(split[";"]) > 1 and all(_is_cell(cell.strip().replace(",", ".")) for cell in split[";"]):
        raise DataError(f"{shown} has decimal commas: {_short(lines[0])}", hint="write numbers with a decimal point")
    return numeric[0] if numeric else max(DELIMITERS, key=lambda delimiter: len(split[delimiter]))


def _is_cell(text: str) -> bool:
    return text in MISSING or any(kind.fullmatch(text) for kind in (_NUMBER, _NOT_A_NUMBER, _INFINITE))


# ---- what the files of a channel have in common ----


def _agree(sources: Sequence[_Source], channel: str) -> tuple[str, ...] | None:
    """The one header of all files, or None if no file has one."""
    first = sources[0]
    for source in sources:
        if source.width != first.width:
            raise DataError(
                f"{source.shown} has {source.width} columns, {first.shown} has {first.width}",
                hint="every file of a channel must have the same columns",
            )
    for delimiter in sorted({source.delimiter or "," for source in sources} - {","}):
        files = [source.shown for source in sources if source.delimiter == delimiter]
        say(f"{channel}: columns are separated by a {_SPOKEN[delimiter]} in {_some(files)}")
    named = [source for source in sources if source.names is not None]
    if not named:
        return None
    for source in named:
        _compare_names(source.shown, source.names or (), named[0].shown, named[0].names or ())
    bare = [source.shown for source in sources if source.names is None]
    say(
        f"{channel}: {len(named)} of {len(sources)} files have a header ({_some(named[0].names or ())})"
        + (f", {_some(bare)} not: columns are taken by their position" if bare else "")
    )
    return named[0].names


def _compare(like: Table, names: tuple[str, ...], source: _Source) -> None:
    """Two channels must have the same columns; names count where both have some."""
    other = "/".join(like.files[0].parts[-2:])
    if len(names) != len(like.feature_names):
        raise DataError(
            f"{source.shown} has {len(names)} features, {other} has {len(like.feature_names)}",
            hint="every channel must have the same columns",
        )
    if _default_names(len(names)) not in {names, like.feature_names}:
        _compare_names(source.shown, names, other, like.feature_names)


def _compare_names(here: str, names: tuple[str, ...], there: str, other_names: tuple[str, ...]) -> None:
    for name, other_name in zip(names, other_names, strict=True):
        if name != other_name:
            raise DataError(
                f"{here} calls a column {name!r} where {there} calls it {other_name!r}",
                hint="every file must have the same columns in the same order",
            )


def _default_names(count: int) -> tuple[str, ...]:
    return tuple(f"f{i}" for i in range(count))


# ---- the rows ----


def _read_all(sources: Sequence[_Source]) -> tuple[Floats, Floats]:
    """One matrix of all files, grown file by file.

    Growing moves the pages of a large array instead of copying them (mremap), so the peak is the matrix and one file.
    """
    labels, features = np.empty(0, np.float32), np.empty((0, sources[0].width - 1), np.float32)
    for source in sources:
        table = _read_csv(source) if source.delimiter is not None else _read_parquet(source)
        start = len(labels)
        labels.resize(start + table.num_rows, refcheck=False)
        features.resize((len(labels), source.width - 1), refcheck=False)
        _fill(labels[start:], features[start:], table)
        if not np.isfinite(labels[start:]).all() or np.isinf(features[start:]).any():
            raise _first_fault(source, labels[start:], features[start:])
    return labels, features


def _fill(labels: Floats, features: Floats, table: Any) -> None:  # noqa: ANN401 - pyarrow has no types
    """Copy batch by batch, so that the scattered writes of one column stay in the processor's cache."""
    at = 0
    for batch in table.to_batches(max_chunksize=4096):
        end = at + batch.num_rows
        labels[at:end] = batch.column(0).to_numpy(zero_copy_only=False)
        for column in range(features.shape[1]):
            features[at:end, column] = batch.column(column + 1).to_numpy(zero_copy_only=False)
        at = end


def _read_csv(source: _Source) -> Any:  # noqa: ANN401 - pyarrow has no types
    columns = [str(i) for i in range(source.width)]
    try:
        return pa.csv.read_csv(
            source.path,
            read_options=pa.csv.ReadOptions(column_names=columns, skip_rows=source.skip),
            parse_options=pa.csv.ParseOptions(delimiter=source.delimiter),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.float32()), null_values=list(MISSING)
            ),
        )
    except (pa.ArrowException, OSError) as error:
        # Arrow does not tell the line when it parses in parallel: find it by reading again, slowly.
        raise (_first_bad_row(source) or DataError(f"{source.shown}: {error}")) from None


def _read_parquet(source: _Source) -> Any:  # noqa: ANN401 - pyarrow has no types
    try:
        with pa.parquet.ParquetFile(source.path) as file:
            table = file.read()
        return table.cast(pa.schema([(name, pa.float32()) for name in table.schema.names]), safe=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source.shown} cannot be read as Parquet: {error}") from error


def _first_fault(source: _Source, labels: Floats, features: Floats) -> DataError:
    fault = _first_bad_row(source) if source.delimiter is not None else None
    if fault is not None:
        return fault
    row = int(np.argmax(~np.isfinite(labels) | np.isinf(features).any(axis=1)))
    what = "the label is missing" if np.isnan(labels[row]) else "a value is infinite"
    return DataError(f"{source.shown}, row {row + 1}: {what}")


def _first_bad_row(source: _Source) -> DataError | None:
    """The first row that breaks a rule, with its line."""
    with _open_text(source.path, source.shown, errors="replace") as file:
        rows = csv.reader(file, delimiter=source.delimiter or ",")
        for cells in rows:
            if not cells or rows.line_num <= source.skip:
                continue
            where = f"{source.shown}:{rows.line_num}"
            if len(cells) != source.width:
                return DataError(
                    f"{where}: {len(cells)} columns, the first row has {source.width}: {_short(','.join(cells))}",
                    hint="every row must have the same number of columns",
                )
            for column, cell in enumerate(cells, start=1):
                fault = _fault_of(cell, is_label=column == 1)
                if fault:
                    return DataError(f"{where}: column {column}: {fault[0]}", hint=fault[1])
    return None


def _fault_of(cell: str, *, is_label: bool) -> tuple[str, str] | None:
    """What is wrong with a cell, and what to do."""
    if cell in MISSING or _NOT_A_NUMBER.fullmatch(cell):
        return ("the label is missing", "remove the row, or give it a label") if is_label else None
    number = cell.strip(" \t")  # Arrow takes blanks around a number, and around nothing else
    if _INFINITE.fullmatch(number) or (_NUMBER.fullmatch(number) and abs(float(number)) > _LARGEST):
        return f"{_short(cell)} is infinite as a 32-bit float", "leave the cell empty if the value is missing"
    if _NUMBER.fullmatch(number):
        return None
    return f"{_short(cell)} is not a number", "encode text as numbers; a missing value is an empty cell, NA or NaN"


# ---- text ----


@contextmanager
def _open_text(path: Path, shown: str, *, errors: str) -> Iterator[IO[str]]:
    """The lines of a file, unpacked where its name ends in `.gz` or the like, as Arrow does."""
    try:
        with pa.input_stream(os.fspath(path), compression="detect") as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown} is not UTF-8 text: {error}", hint="a channel holds CSV or .parquet files only"
        ) from error
    except (pa.ArrowException, OSError, csv.Error) as error:
        raise DataError(f"{shown} cannot be read: {error}") from error


def _some(items: Sequence[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")
