"""The files of a channel become one numeric table, or an error that names file, line and cell.

CSV, Parquet, libsvm and recordio-protobuf, in files or through a pipe, become labels, features, weights and groups:

* files are read in the order of their paths below the channel, through nested folders; files that are not data are
  skipped, with a log line;
* every cell is a number, `True` or `False`, or missing: in CSV an empty cell, `NA`, `NULL`, `NaN` and the like.
  Anything else, also an infinite value, is an error; if the caller takes texts, a column of them becomes codes
  (`Table.coding`);
* every row of every file has the same number of columns; the first is the label, which may not be missing;
* a first line without any number is a header, and so is one whose numbers are names (`target,0,1,2`); any other line
  with numbers and words is an error;
* the delimiter is the one of `,` `;` tab `|` or blanks that gives numbers; lines that begin with `#` are comments;
* a file of another kind (a workbook, an archive, JSON, a pickle) is an error that says what it is.

`formats` has the formats alone: bytes become rows, without a channel and without labels.
"""

from typing import TYPE_CHECKING

from trainbox.lazy_names import lazy_names

if TYPE_CHECKING:
    from trainbox.data.estimate import estimate_bytes
    from trainbox.data.files import find_files
    from trainbox.data.formats.categories import Coding, digest_coding
    from trainbox.data.formats.row_block import Sparse
    from trainbox.data.formats.schema import ColumnSpec, default_names
    from trainbox.data.read import log_unread, read_blocks, read_table
    from trainbox.data.table import Block, Inspect, Table, digest, take_part

__all__ = [
    "Block",
    "Coding",
    "ColumnSpec",
    "Inspect",
    "Sparse",
    "Table",
    "default_names",
    "digest",
    "digest_coding",
    "estimate_bytes",
    "find_files",
    "log_unread",
    "read_blocks",
    "read_table",
    "take_part",
]

#: The module of each name; loaded on first use: a server reads bodies alone, and has no channel.
_MODULES = {
    "Block": "trainbox.data.table",
    "Coding": "trainbox.data.formats.categories",
    "ColumnSpec": "trainbox.data.formats.schema",
    "Inspect": "trainbox.data.table",
    "Sparse": "trainbox.data.formats.row_block",
    "Table": "trainbox.data.table",
    "default_names": "trainbox.data.formats.schema",
    "digest": "trainbox.data.table",
    "digest_coding": "trainbox.data.formats.categories",
    "estimate_bytes": "trainbox.data.estimate",
    "find_files": "trainbox.data.files",
    "log_unread": "trainbox.data.read",
    "read_blocks": "trainbox.data.read",
    "read_table": "trainbox.data.read",
    "take_part": "trainbox.data.table",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
