"""What stands in CSV beside its rows, and what separates cells loosely: comments, blanks, headers that come again."""

import re
from collections.abc import Sequence

import msgspec

from trainbox.channels.streams import Lines

_COMMENT = re.compile(rb"(?m)^[ \t]*#[^\r\n]*")
#: Ctrl-Z is what DOS ended files with.
_NOTHING = re.compile(rb"(?m)^[ \t\x1a]+(?=\r?$|\Z)")
_BLANKS = re.compile(rb"[ \t]+")
#: Each run of blanks is looked at once: what stands before it is no blank.
_AROUND_LINES = re.compile(rb"(?m)^[ \t]++|(?<![ \t])[ \t]++(?=\r?$)")
#: What Excel reads as the name of the delimiter.
_NAMES_DELIMITER = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)


class Opening(msgspec.Struct, frozen=True):
    """The first lines of a file without what stands before its rows."""

    lines: tuple[tuple[int, str], ...]
    #: How many lines come before the first of them.
    skipped: int
    #: That the file itself names; empty where it names none.
    delimiter: str
    #: Comments among the lines looked at.
    comments: int


def open_lines(lines: Sequence[tuple[int, str]]) -> Opening:
    """Leave out comments (#) and a line `sep=;`, unless nothing else is there."""
    rows = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    named = _NAMES_DELIMITER.fullmatch(rows[0][1]) if len(rows) > 1 else None
    # Cells may begin with #, as colours do: then all lines do, and have several.
    others = lines if all(any(sign in line for sign in ",;\t|") for _, line in lines) else ()
    kept = (rows[1:] if named else rows) or list(others)
    return Opening(
        lines=tuple(kept),
        skipped=kept[0][0] - 1 if kept else 0,
        delimiter=named[1] if named else "",
        comments=len(lines) - len(rows) if rows or not kept else 0,
    )


def with_single_blanks(lines: Lines) -> Lines:
    """The same rows, whose cells one blank separates."""
    content = _AROUND_LINES.sub(b"", _BLANKS.sub(b" ", lines.content))
    return Lines(content, lines.number)


def tidied(lines: Lines, *, delimiter: str, header: str) -> tuple[Lines, int, int]:
    """The same lines without what is no row, and without blanks around cells; each row keeps its number.

    Args:
        lines: A block that could not be read.
        delimiter: What separates its cells.
        header: That of the file, which may come again; empty where there is none.

    Returns:
        The block, how many comments it had, and how many headers.
    """
    content, comments = _COMMENT.subn(b"", lines.content) if b"#" in lines.content else (lines.content, 0)
    content, headers = _without_headers(content, header) if header else (content, 0)
    content = _NOTHING.sub(b"", content)
    if delimiter not in " \t" and b'"' not in content:
        sign = delimiter.encode()
        around = re.compile(rb"(?<![ \t])[ \t]*+" + re.escape(sign) + rb"[ \t]*+")
        content = _AROUND_LINES.sub(b"", around.sub(lambda _: sign, content))
    return Lines(content, lines.number), comments, headers


def _without_headers(content: bytes, header: str) -> tuple[bytes, int]:
    """The lines with a blank one in place of each header, and how many there were."""
    return re.subn(rb"(?m)^(?:\xef\xbb\xbf)?" + re.escape(header.encode()) + rb"\r?$", b"", content)
