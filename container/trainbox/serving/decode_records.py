"""libsvm and recordio-protobuf of a request: the reader of training, with the width and the codes of the model.

An index of libsvm is the place of a feature, as in training. The built-in XGBoost guesses from the smallest index of
each request whether they count from 1, and shifts a row whose first feature is missing; here a request says so:
`text/libsvm; index_base=1`.
"""

from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np
import scipy.sparse

from trainbox.data.formats import ByteStream, RowError, Rows, open_body, stream_from
from trainbox.data.formats.row_block import Sparse, join_features
from trainbox.errors import DataError
from trainbox.serving.features import FeaturePlan, Matrix, Numbering, check_codes, check_count, fit_sparse, translate


def decode_records(
    body: bytes, format_: Literal["libsvm", "recordio-protobuf"], plan: FeaturePlan, index_base: int = 0
) -> Matrix:
    """Return the rows of a body of libsvm or recordio-protobuf; labels are ignored.

    Args:
        body: The bytes.
        format_: Which of the two.
        plan: What the model expects.
        index_base: What the first index of libsvm is.

    Raises:
        RequestError: With row and column of the first value that cannot be used.
    """
    blocks = list(read_record_blocks(stream_from(body, "body"), format_, plan, index_base))
    if len(blocks) == 1:
        return blocks[0]
    if not blocks:
        return np.empty((0, plan.count), np.float32)
    if all(isinstance(block, np.ndarray) for block in blocks):
        return np.concatenate(blocks)
    joined: Matrix = scipy.sparse.vstack([scipy.sparse.csr_matrix(block) for block in blocks], "csr")
    return joined


def read_record_blocks(
    stream: ByteStream,
    format_: Literal["libsvm", "recordio-protobuf"],
    plan: FeaturePlan,
    index_base: int = 0,
    *,
    size: int | None = None,
) -> Iterator[Matrix]:
    """Yield the rows of libsvm or recordio-protobuf of any length, block by block.

    Raises:
        RequestError: As `decode_records`.
    """
    try:
        reader = open_body(stream, format_, size=size)
        if reader.width:
            check_count(plan, reader.width, "the body")
        for block in reader.blocks:
            yield _fitted(_shifted(block) if index_base else block, plan)
    except DataError as error:
        raise translate(plan, error) from error


def _fitted(block: Rows, plan: FeaturePlan) -> Matrix:
    number: Numbering = lambda row: block.where(row).number  # noqa: E731
    rows = join_features([block])
    if not isinstance(rows, np.ndarray):
        return fit_sparse(plan, rows, number)
    check_codes(plan, rows, number)
    return rows


def _shifted(block: Rows) -> Rows:
    """Return rows whose columns count from 0."""
    features = block.features
    if not isinstance(features, Sparse) or not len(features.columns):
        return block
    if not features.columns.min():
        at = int(np.argmin(features.columns))
        place = block.where(int(np.searchsorted(np.cumsum(features.counts), at, side="right")))
        raise RowError(f"{place}: the index is 0, and index_base is 1", hint="leave index_base out", row=place.number)
    shifted = Sparse(features.values, features.columns - 1, features.counts, features.width - 1)
    return msgspec.structs.replace(block, features=shifted)
