"""Answer a request of any length block by block, in memory that does not grow with it (batch transform, chunked)."""

from collections.abc import Iterator
from http import HTTPStatus
from itertools import chain, islice

import msgspec

from trainbox.contract.hosting import DEFAULT_BODY_MB
from trainbox.data.formats import ByteStream
from trainbox.data.formats.byte_stream import Readable, read_lines
from trainbox.errors import DataError
from trainbox.serving.bodies.answer import (
    Question,
    Service,
    choose_output,
    chosen_outputs,
    content_type_of,
    encode_rows,
    predict,
    read,
    write,
)
from trainbox.serving.bodies.decode import LINE_FORMATS, LineCounter
from trainbox.serving.bodies.decode_csv import open_csv
from trainbox.serving.bodies.decode_json import decode_json_lines
from trainbox.serving.bodies.decode_records import read_record_blocks
from trainbox.serving.bodies.features import FeaturePlan, Matrix, translate
from trainbox.serving.bodies.media_types import InputType, OutputType, read_input_type
from trainbox.serving.bodies.request_errors import RequestError

#: Parsed at a time.
BLOCK_BYTES = 2**20
#: Of a format that is read as a whole.
_MOST_BYTES = 4 * DEFAULT_BODY_MB * 2**20
#: What can be written block by block.
_BY_BLOCKS = {"CSV", "JSON Lines", "recordio-protobuf"}


class BlockAnswer(msgspec.Struct, frozen=True, eq=False):
    """An answer that is sent as it is made."""

    headers: tuple[tuple[str, str], ...]
    #: What is sent. It raises `RequestError` for a row that cannot be used: part of the answer is sent by then, so the
    #: connection must be closed without the end of the body.
    blocks: Iterator[bytes]


def answer_blocks(
    service: Service, body: Readable, content_type: str, accept: str, *, size: int = BLOCK_BYTES
) -> BlockAnswer:
    """Answer a request of any length; the first two blocks are answered before this returns.

    CSV, JSON Lines, libsvm and recordio-protobuf are read block by block; other formats as a whole, up to a limit.

    Args:
        service: The model.
        body: The bytes, decompressed.
        content_type: The header of this name; empty if there is none.
        accept: The header of this name; empty if there is none.
        size: The number of bytes to parse at a time.

    Raises:
        RequestError: The request, or its first block, cannot be answered.
    """
    kind = read_input_type(content_type, takes_images=bool(service.plan.shape))
    output = choose_output(service, accept)
    counted = _Counted(body)
    stream = ByteStream(counted, "body")
    if kind.format in {"CSV", "JSON Lines", "libsvm", "recordio-protobuf"} and _is_by_lines(service, output):
        decoded = _decoded(stream, kind, service.plan, size)
        if service.hosting.batch is not None and kind.format in LINE_FORMATS:
            decoded = counted.counted(decoded)
        blocks = _answered(service, decoded, output)
    else:
        blocks = iter([_answer_whole(service, stream, content_type, accept)])
    # With the second, so that what is wrong with a body of one block is known by its status.
    first = list(islice(blocks, 2))
    return BlockAnswer((("Content-Type", content_type_of(output)),), chain(first, blocks))


class _Counted:
    """A body whose lines are counted as they are read."""

    def __init__(self, body: Readable) -> None:
        self._body = body
        self._lines = LineCounter()
        self._rows = 0

    def read(self, size: int, /) -> bytes:
        content = self._body.read(size)
        self._lines.add(content)
        return content

    def close(self) -> None:
        self._body.close()

    def counted(self, decoded: Iterator[tuple[Matrix, bool]]) -> Iterator[tuple[Matrix, bool]]:
        """Yield the same, and check at the end that each line had a row."""
        for rows, has_header in decoded:
            self._rows += rows.shape[0] + has_header
            yield rows, has_header
        self._lines.check(self._rows)


def _is_by_lines(service: Service, output: OutputType) -> bool:
    return output.format in _BY_BLOCKS or (output.format == "JSON" and service.hosting.batch is not None)


def _answer_whole(service: Service, stream: ByteStream, content_type: str, accept: str) -> bytes:
    limit = service.hosting.max_body_bytes or _MOST_BYTES
    content = stream.peek(limit + 1)
    if len(content) > limit:
        raise RequestError(
            f"the body has more than {limit:,} bytes, and its format, or that of the answer, needs all of it at once",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            hint="send and accept CSV or JSON Lines, which are answered block by block",
        )
    question = read(service, content, content_type, accept)
    return b"" if question is None else write(service, question, predict(service, question)).body


def _answered(service: Service, decoded: Iterator[tuple[Matrix, bool]], output: OutputType) -> Iterator[bytes]:
    """Yield the answer to each block; a line end comes before a block, not after it, so that the last may have none."""
    between = b""
    for rows, has_header in decoded:
        question = Question(rows, output, chosen_outputs(service, output), has_header)
        if not rows.shape[0] and not has_header:
            continue
        content = encode_rows(service, question, predict(service, question))
        if output.format == "recordio-protobuf":
            yield content
            continue
        yield between + content.removesuffix(b"\n")
        between = b"\n"
    ends = service.hosting.ends_with_newline if service.hosting.batch is not None else True
    if between and ends:
        yield between


def _decoded(stream: ByteStream, kind: InputType, plan: FeaturePlan, size: int) -> Iterator[tuple[Matrix, bool]]:
    """Yield the rows of each block, and whether a header is before them."""
    if kind.format == "CSV":
        reader = open_csv(stream, plan, kind.header, size=size)
        has_header = reader.has_header
        for rows in reader.blocks:
            yield rows, has_header
            has_header = False
    elif kind.format == "JSON Lines":
        try:
            for lines in read_lines(stream, size=size):
                yield decode_json_lines(lines.content, plan, lines.number), False
        except DataError as error:
            raise translate(plan, error) from error
    elif kind.format == "libsvm" or kind.format == "recordio-protobuf":  # noqa: PLR1714 - so that mypy knows which
        for block in read_record_blocks(stream, kind.format, plan, kind.index_base, size=size):
            yield block, False
