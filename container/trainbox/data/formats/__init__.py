"""Formats turn bytes into rows: CSV, Parquet, libsvm and recordio-protobuf, of a file, a pipe or a request body.

No label is demanded: the caller says what the columns are (`ColumnSpec`). Reading takes two steps for every format:
`inspect` looks at the first rows without consuming them, `read_rows` yields the rows block by block. `parse_body` does
both for the bytes of a request.
"""

from trainbox.data.formats.byte_stream import ByteStream, stream_from
from trainbox.data.formats.format_detection import ContentType, read_content_type
from trainbox.data.formats.read import BodyReader, BodyRows, inspect, open_body, parse_body, read_rows
from trainbox.data.formats.row_block import Location, RowError, Rows
from trainbox.data.formats.schema import FEATURES_ONLY, ColumnSpec, Format, SourceInfo

__all__ = [
    "FEATURES_ONLY",
    "BodyReader",
    "BodyRows",
    "ByteStream",
    "ColumnSpec",
    "ContentType",
    "Format",
    "Location",
    "RowError",
    "Rows",
    "SourceInfo",
    "inspect",
    "open_body",
    "parse_body",
    "read_content_type",
    "read_rows",
    "stream_from",
]
