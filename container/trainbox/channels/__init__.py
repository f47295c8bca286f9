"""The files of a channel become one numeric table, or an error that names file, line and cell.

CSV, Parquet, libsvm and recordio-protobuf, in files or through a pipe, become labels, features, weights and groups:

* files in the order of their paths below the channel, through nested folders; what is no data is left out and said;
* every cell is a number, or missing: in CSV an empty cell, `NA` or `NaN`. Anything else, and an infinite value, is an
  error;
* every row of every file has the same number of columns; the first is the label, which may not be missing;
* a first line without any number is a header; one with numbers and words is an error;
* the delimiter is whichever of `,` `;` tab `|` gives numbers.
"""

from trainbox.channels.estimate import estimate_bytes
from trainbox.channels.files import find_files
from trainbox.channels.read import read_blocks, read_table
from trainbox.channels.table import Columns, Table, default_names, digest, take_part

__all__ = [
    "Columns",
    "Table",
    "default_names",
    "digest",
    "estimate_bytes",
    "find_files",
    "read_blocks",
    "read_table",
    "take_part",
]
