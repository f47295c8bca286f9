"""A channel becomes one table, or a table for every few thousand rows of it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse

from trainbox.channels.blocks import Block, Growing, Inspect, regroup
from trainbox.channels.coding import Coding, sort_coding
from trainbox.channels.compressed import Sparse
from trainbox.channels.request import LABEL_FIRST, PATIENCE, Request, ask
from trainbox.channels.rows import Rows, open_rows
from trainbox.channels.shortage import naming_shortage
from trainbox.channels.sources import compare_features
from trainbox.channels.table import Columns, Table, default_names, recode_table
from trainbox.channels.words import Words
from trainbox.contract.job import Channel
from trainbox.contract.text import printable
from trainbox.errors import DataError
from trainbox.say import say

#: Of a block: 7 MB of 28 features.
ROWS = 65_536
_HEADERS_ALONE = "no rows in {}: its files hold headers alone, or comments"


def read_table(
    channel: Path | Channel,
    *,
    like: Table | None = None,
    columns: Columns = LABEL_FIRST,
    content_type: str | None = None,
    coding: Coding | None = None,
    allow_empty: bool = False,
    patience: float = PATIENCE,
    inspect: Inspect | None = None,
) -> Table:
    """Read every file of a channel.

    Args:
        channel: The job's channel, or a directory, or one file. In Pipe mode, its first pipe is read to its end.
        like: The table of another channel, whose columns and codes of texts this one must have; libsvm is made at
            least as wide.
        columns: What stands where in a row of CSV or Parquet.
        content_type: In place of the channel's own; None for both: each file's name or content says what it is.
        coding: The codes of texts, in place of those of `like`.
        allow_empty: Whether a channel without a row (on this host) is a table without rows instead of an error. It has
            the columns that a header, or `like`, says.
        patience: How long to wait for a pipe, in seconds.
        inspect: Called with each block of rows as it is read, and the names of its features.

    Raises:
        DataError: With file, line and cell, and what to do.
        ResourceError: There is not enough memory, or no thread, to read it.
    """
    coding = coding if coding is not None or like is None else like.coding
    request = ask(channel, columns, content_type, patience, coding)
    if allow_empty and not request.is_pipe and not request.path.exists():
        _refuse_nothing(request, f"there is no {request.path}", allow_empty=allow_empty)
        return _without_rows(request, None, like)
    with naming_shortage(request.name), open_rows(request) as found:
        if isinstance(found, str):
            _refuse_nothing(request, found, allow_empty=allow_empty)
            return _without_rows(request, None, like)
        if like is not None and found.names is not None:
            compare_features(found.shown, found.names, _name_of(like), like.feature_names)
        growing, words = Growing(), found.words()
        for block in _inspected(found, words, inspect):
            growing.add(block)
            del block  # so that there is one block in memory, not two
        if growing.rows:
            table = _make(growing, found, like, words.coding())
            if coding is None:
                table = recode_table(table, sort_coding(table.coding))
            say(f"{request.name}: {growing.rows:,} rows, {len(table.feature_names)} features, {len(found.files)} files")
            return table
    _refuse_nothing(request, _HEADERS_ALONE.format(request.path), allow_empty=allow_empty)
    return _without_rows(request, found, like)


def read_blocks(
    channel: Path | Channel,
    *,
    columns: Columns = LABEL_FIRST,
    content_type: str | None = None,
    like: tuple[str, ...] | None = None,
    coding: Coding | None = None,
    rows: int = ROWS,
    allow_empty: bool = False,
    patience: float = PATIENCE,
    inspect: Inspect | None = None,
) -> Iterator[Table]:
    """Read a channel in bounded memory: the same rows in the same order, checked the same way.

    Each table has `rows` rows, the last one fewer. All have the same width; to know it, libsvm files are read twice.
    From a pipe that is not possible: there a table of libsvm is as wide as the widest row so far, and at least `like`.
    The codes of texts are those of their first rows: each table has the texts of those before, in the same order, and
    perhaps more.

    Args:
        channel: As for `read_table`.
        columns: As for `read_table`.
        content_type: As for `read_table`.
        like: The names of another channel's features, which this one must have.
        coding: Its codes of texts, which these must follow.
        rows: Of a table.
        allow_empty: Whether a channel without a row (on this host) gives no table instead of an error.
        patience: How long to wait for a pipe, in seconds.
        inspect: As for `read_table`.

    Raises:
        DataError: With file, line and cell, and what to do. When it comes, tables before it have been given out.
    """
    request = ask(channel, columns, content_type, patience, coding)
    if allow_empty and not request.is_pipe and not request.path.exists():
        _refuse_nothing(request, f"there is no {request.path}", allow_empty=allow_empty)
        return
    count = 0
    with naming_shortage(request.name), open_rows(request) as found:
        if isinstance(found, str):
            _refuse_nothing(request, found, allow_empty=allow_empty)
            return
        if like is not None and found.names is not None:
            compare_features(found.shown, found.names, "the other channel", like)
        width = len(like or ())
        if found.names is None and not request.is_pipe:
            blocks = found.read(found.words())
            widths = (block.features.width for block in blocks if isinstance(block.features, Sparse))
            width = max(width, max(widths, default=0))
        words = found.words()
        for growing in regroup(_inspected(found, words, inspect), rows):
            width = max(width, growing.width)
            count += growing.rows
            yield _make(growing, found, None, words.coding(), width=width)
    if not count:
        _refuse_nothing(request, _HEADERS_ALONE.format(request.path), allow_empty=allow_empty)
        return
    say(f"{request.name}: {count:,} rows read in blocks of {rows:,}, {len(found.files)} files")


def _inspected(found: Rows, words: Words, inspect: Inspect | None) -> Iterator[Block]:
    for block in found.read(words):
        if inspect is not None:
            inspect(block, found.names)
        yield block
        del block  # so that there is one block in memory, not two


def _make(growing: Growing, found: Rows, like: Table | None, coding: Coding, *, width: int = 0) -> Table:
    if found.names is None:
        width = max(width, growing.width, 0 if like is None else len(like.feature_names))
        if not width:
            raise DataError(f"{found.shown}: no row has a feature", hint="a row is label index:value …")
    names = found.names or default_names(width)
    return Table(
        growing.take("labels"),
        growing.take_features(len(names)),
        names,
        found.files,
        growing.take("weights"),
        growing.take("groups"),
        coding,
    )


def _refuse_nothing(request: Request, why: str, *, allow_empty: bool) -> None:
    if not allow_empty:
        raise DataError(why, hint="check the S3 prefix or the path that the channel was given")
    say(f"{request.name}: no rows on this host, going on without: {why}")


def _without_rows(request: Request, found: Rows | None, like: Table | None) -> Table:
    """No rows, but columns: other hosts have rows, and all must go on with the same columns."""
    names = (found and found.names) or (like and like.feature_names) or ()
    columns = request.columns
    labels = columns.labels if like is None or like.labels.ndim == 1 else like.labels.shape[1]
    is_sparse = like is not None and scipy.sparse.issparse(like.features)
    empty = np.empty((0, len(names)), np.float32)
    return Table(
        np.empty((0, labels) if labels > 1 else 0, np.float32),
        scipy.sparse.csr_matrix(empty) if is_sparse else empty,
        names,
        found.files if found else (),
        np.empty(0, np.float32) if columns.weight or (like is not None and like.weights is not None) else None,
        np.empty(0, np.int64) if columns.group or (like is not None and like.groups is not None) else None,
        request.coding or Coding(),
    )


def _name_of(table: Table) -> str:
    """How messages name the channel of a table."""
    return printable("/".join(table.files[0].parts[-2:])) if table.files else "the other channel"
