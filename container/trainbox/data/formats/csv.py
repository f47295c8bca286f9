"""CSV: Arrow parses blocks of lines against a strict schema; a block that it rejects is diagnosed cell by cell.

XGBoost's own text loader takes a header for a row with label 0, text for a missing value, and a short row for one with
missing values at its end. Here every cell is a number or missing, every row has the same number of columns, and a first
line without any number is a header. Arrow does not say on which line it failed, so a block that it rejects is read
again, slowly, to find it (`csv_diagnostics`).
"""

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from trainbox.data.formats.byte_stream import (
    LONGEST_LINE,
    PIECE_BYTES,
    ByteStream,
    LineBlock,
    max_pieces,
    read_lines,
)
from trainbox.data.formats.categories import RowFormat, encode_columns, observe_columns
from trainbox.data.formats.csv_diagnostics import find_line_number, first_bad_row
from trainbox.data.formats.row_block import Location, Rows, is_valid, make_rows
from trainbox.data.formats.schema import SourceInfo
from trainbox.lazy_names import lazy_module
from trainbox.log_lines import emit

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

_COMMENT = re.compile(rb"(?m)^[ \t]*#[^\r\n]*")
#: Ctrl-Z is the end of file of DOS.
_BLANK_LINE = re.compile(rb"(?m)^[ \t\x1a]+(?=\r?$|\Z)")
_BLANKS = re.compile(rb"[ \t]+")
#: Possessive, so that each run of blanks is scanned once.
_AROUND_LINES = re.compile(rb"(?m)^[ \t]++|(?<![ \t])[ \t]++(?=\r?$)")
#: Rows to parse at a time at least, if they are long.
_FEWEST_ROWS = 256


def collapse_blanks(lines: LineBlock) -> LineBlock:
    """Separate cells by one blank each."""
    content = _AROUND_LINES.sub(b"", _BLANKS.sub(b" ", lines.content))
    return LineBlock(content, lines.number)


def strip_non_rows(lines: LineBlock, *, delimiter: str, header: str) -> tuple[LineBlock, int, int]:
    """Blank comments and repeated headers, and strip blanks around cells; each row keeps its line number.

    Args:
        lines: A block that could not be parsed.
        delimiter: The delimiter of its cells.
        header: The header of the file, which may be repeated; empty if there is none.

    Returns:
        The block, its number of comments, and its number of headers.
    """
    content, comments = _COMMENT.subn(b"", lines.content) if b"#" in lines.content else (lines.content, 0)
    content, headers = _without_headers(content, header) if header else (content, 0)
    content = _BLANK_LINE.sub(b"", content)
    if delimiter not in " \t" and b'"' not in content:
        sign = delimiter.encode()
        around = re.compile(rb"(?<![ \t])[ \t]*+" + re.escape(sign) + rb"[ \t]*+")
        content = _AROUND_LINES.sub(b"", around.sub(lambda _: sign, content))
    return LineBlock(content, lines.number), comments, headers


def _without_headers(content: bytes, header: str) -> tuple[bytes, int]:
    """Replace each header by a blank line; returns the lines and the number of headers."""
    return re.subn(rb"(?m)^(?:\xef\xbb\xbf)?" + re.escape(header.encode()) + rb"\r?$", b"", content)


def read_rows(stream: ByteStream, form: RowFormat, *, size: int) -> Iterator[Rows]:
    """Yield the rows, block by block; texts are encoded by the encoder of `form`.

    Raises:
        RowError: With file, line and column.
    """
    source = form.source
    header = " ".join(source.header.split()) if source.delimiter == " " else source.header
    logged: set[str] = set()
    # Arrow's work for a column is the same for few rows as for many.
    size = max(size, min(_FEWEST_ROWS * source.row_bytes, LONGEST_LINE))
    for lines in read_lines(stream, size=size):
        if source.delimiter == " ":
            lines = collapse_blanks(lines)  # noqa: PLW2901 - the same rows
        skip = max(0, source.skip - lines.number + 1)
        # A repeated header is a row of texts among texts, which Arrow accepts.
        joined = form.columns.texts and header and lines.content.count(header.encode()) > (skip > 0)
        block = None if joined else _parse(lines, skip, form)
        if block is None:
            lines, comments, headers = strip_non_rows(lines, delimiter=source.delimiter, header=header)  # noqa: PLW2901
            _log_once(source, logged, comments=comments > 0, repeats=headers > (skip > 0 and bool(header)))
            if not lines.content.strip():
                continue
            block = _parse(lines, skip, form)
        if block is None:
            raise first_bad_row(lines, skip, form)
        if len(block):
            yield block
        del block, lines  # so that there is one block in memory, not two


def _log_once(source: SourceInfo, logged: set[str], *, comments: bool, repeats: bool) -> None:
    """Log what is skipped in a block besides the rows."""
    texts = {
        "the header is repeated further down: several files were joined": repeats,
        "lines that begin with # are comments and are skipped": comments and not source.note,
    }
    for text in [text for text, is_so in texts.items() if is_so and text not in logged]:
        logged.add(text)
        emit(f"{source.shown}: {text}")


def _parse(lines: LineBlock, skip: int, form: RowFormat) -> Rows | None:
    """Parse a block of lines; None if anything is wrong with it."""
    table = _read_words(lines, skip, form)
    group = form.schema.group
    if table is None or (group is not None and table.column(group).null_count):
        return None
    delimiter, bounds = form.source.delimiter, form.columns.bounds

    def where(row: int) -> Location:
        number = find_line_number(lines, skip, delimiter, row)
        return Location(number, f"{form.source.shown}:{number}")

    block = make_rows(table, form.schema, where, bounds=bounds)
    if not is_valid(block, bounds=bounds):
        return None
    form.encoder.observe_numbers(block.features, block.labels)
    return block


def _read_words(lines: LineBlock, skip: int, form: RowFormat) -> Any:  # noqa: ANN401 - a table, or None
    """Parse a table of numbers, with words encoded; None if anything is wrong with it."""
    known = form.encoder.word_columns
    table = _read_whole(lines, skip, form, known)
    if table is None:
        others = [column for column in range(form.schema.width) if column not in {*known, form.schema.group}]
        words = _read_whole(lines, skip, form, frozenset({*known, *others}))
        if words is not None:
            observe_columns(words, form.encoder, others)
        if form.encoder.word_columns == known:
            return None
        table = _read_whole(lines, skip, form, form.encoder.word_columns)
    return None if table is None else encode_columns(table, form.encoder)


def _read_whole(lines: LineBlock, skip: int, form: RowFormat, words: AbstractSet[int]) -> Any:  # noqa: ANN401 - a table, or None
    piece = max(PIECE_BYTES, len(lines.content) // max_pieces())
    table = _read_csv(lines, skip, form, words, piece)
    if table is None and len(lines.content) > piece:  # is a row longer than a piece?
        table = _read_csv(lines, skip, form, words, len(lines.content))
    return table


def _read_csv(lines: LineBlock, skip: int, form: RowFormat, words: AbstractSet[int], piece: int) -> Any:  # noqa: ANN401
    names = [str(i) for i in range(form.schema.width)]
    texts = pa.dictionary(pa.int32(), pa.string())
    types = {name: texts if column in words else pa.float32() for column, name in enumerate(names)}
    if form.schema.group is not None:
        types[str(form.schema.group)] = pa.int64()
    try:
        return pa.csv.read_csv(
            pa.BufferReader(lines.content),
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=skip, block_size=piece),
            parse_options=pa.csv.ParseOptions(delimiter=form.source.delimiter),
            convert_options=pa.csv.ConvertOptions(
                column_types=types, null_values=list(form.columns.missing), strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:  # the content is invalid; other errors are not about the content
        return None
