"""Turn the body of a request into rows of a model, by its content type."""

from collections.abc import Callable, Mapping

import msgspec

from trainbox.serving.bodies.decode_csv import decode_csv
from trainbox.serving.bodies.decode_images import decode_image, decode_image_array
from trainbox.serving.bodies.decode_json import decode_json, decode_json_lines
from trainbox.serving.bodies.decode_records import decode_records
from trainbox.serving.bodies.decode_tables import decode_arrow, decode_npy, decode_parquet
from trainbox.serving.bodies.features import FeaturePlan, Floats, Matrix
from trainbox.serving.bodies.media_types import InputFormat, InputType
from trainbox.serving.bodies.request_errors import RequestError

#: A record is a line.
LINE_FORMATS = frozenset[InputFormat]({"CSV", "JSON Lines", "libsvm"})
_BY_FORMAT: Mapping[InputFormat, Callable[[bytes, FeaturePlan], Floats]] = {
    "JSON": decode_json,
    "JSON Lines": decode_json_lines,
    "Parquet": decode_parquet,
    "Arrow": decode_arrow,
    "NumPy": decode_npy,
    "image": decode_image,
}


class Decoded(msgspec.Struct, frozen=True, eq=False):
    """The rows of a body: float32, C-ordered, in the order of the model, a missing value is NaN."""

    rows: Matrix
    #: Whether its first line is no row.
    has_header: bool = False


def decode(body: bytes, content_type: InputType, plan: FeaturePlan) -> Decoded:
    """Return the rows of a body.

    Args:
        body: The bytes, decompressed.
        content_type: What they are.
        plan: What the model expects.

    Raises:
        RequestError: The body cannot be used; with row, column, name and value as far as they are known.
    """
    format_ = content_type.format
    if format_ == "CSV":
        found = decode_csv(body, plan, content_type.header)
        return Decoded(found.rows, found.has_header)
    if format_ == "libsvm" or format_ == "recordio-protobuf":  # noqa: PLR1714 - so that mypy knows which
        return Decoded(decode_records(body, format_, plan, content_type.index_base))
    if plan.shape and format_ == "NumPy":
        return Decoded(decode_image_array(body, plan))
    return Decoded(_BY_FORMAT[format_](body, plan))


class LineCounter:
    """Counts the lines of a body; blank lines at its end do not count, and in quotes a line may have several."""

    def __init__(self) -> None:
        self._count = 0
        self._blank = 0
        self._is_within = False
        self._has_quotes = False

    def add(self, content: bytes) -> None:
        """Count the next bytes."""
        kept = content.rstrip(b"\r\n \t")
        self._has_quotes = self._has_quotes or b'"' in content
        if kept:
            self._count += self._blank + kept.count(b"\n")
            self._blank = 0
            self._is_within = True
        self._blank += content.count(b"\n", len(kept))

    def check(self, rows: int) -> None:
        """Check that there is a line for each row, so that a batch transform job joins each line with its own answer.

        Args:
            rows: The number of rows, and 1 more for a header.

        Raises:
            RequestError: There are more lines, as some are blank or comments.
        """
        lines = self._count + self._is_within
        if lines > rows and not self._has_quotes:
            raise RequestError(
                f"the body has {lines:,} lines and {rows:,} rows: a blank line or a comment has no answer",
                hint="a batch transform job joins each line with its answer: remove blank lines and comments",
            )
