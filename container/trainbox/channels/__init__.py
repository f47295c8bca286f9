"""The files of a channel become one numeric table, or an error that names file, line and cell.

CSV, Parquet, libsvm and recordio-protobuf, in files or through a pipe, become labels, features, weights and groups:

* files in the order of their paths below the channel, through nested folders; what is no data is left out and said;
* every cell is a number, `True` or `False`, or missing: in CSV an empty cell, `NA`, `NULL`, `NaN` and the like.
  Anything else, also an infinite value, is an error; where the caller takes texts, a column of them becomes codes
  (`Table.coding`);
* every row of every file has the same number of columns; the first is the label, which may not be missing;
* a first line without any number is a header, and so is one whose numbers are names (`target,0,1,2`); any other with
  numbers and words is an error;
* the delimiter is whichever of `,` `;` tab `|` or blanks gives numbers; lines that begin with `#` are comments;
* a file of another kind (a workbook, an archive, JSON, a pickle) is an error that says what it is.
"""

from trainbox.channels.blocks import Block, Inspect
from trainbox.channels.coding import Coding
from trainbox.channels.compressed import Sparse
from trainbox.channels.estimate import estimate_bytes
from trainbox.channels.files import find_files
from trainbox.channels.read import read_blocks, read_table
from trainbox.channels.table import Columns, Table, default_names, digest, take_part
from trainbox.channels.unread import say_unread

__all__ = [
    "Block",
    "Coding",
    "Columns",
    "Inspect",
    "Sparse",
    "Table",
    "default_names",
    "digest",
    "estimate_bytes",
    "find_files",
    "read_blocks",
    "read_table",
    "say_unread",
    "take_part",
]
