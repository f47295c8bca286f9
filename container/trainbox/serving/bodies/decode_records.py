"""libsvm and recordio-protobuf of a request: the reader of training, with the width and the codes of the model.

An index of libsvm is the place of a feature, as in training. The built-in XGBoost guesses from the smallest index of
each request whether they count from 1, and shifts a row whose first feature is missing; here a request says so:
`text/libsvm; index_base=1`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from trainbox.data.formats import ByteStream, RowError, Rows, open_body, stream_from
from trainbox.data.formats.row_block import Sparse, join_features, make_csr
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module
from trainbox.serving.bodies.features import FeaturePlan, Matrix, Numbering, check_codes, check_count, translate
from trainbox.serving.bodies.request_errors import RequestError

if TYPE_CHECKING:
    import scipy.sparse
else:
    scipy = lazy_module("scipy")

#: The most cells of a sparse body that becomes a dense one: it predicts faster, and has the bits of other formats, as a
#: linear model adds up sparse rows in another order.
_MOST_DENSE_CELLS = 2**20
#: Codes of sparse rows checked at a time.
_CHECKED = 64


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
        return _fit_sparse(plan, rows, number)
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


def _fit_sparse(plan: FeaturePlan, rows: Any, number: Numbering) -> Matrix:  # noqa: ANN401 - a csr_matrix
    """Return sparse rows with the width of the model; dense ones if they are few.

    Raises:
        RequestError: A row has a column that the model has not, or a code that is none.
    """
    count, width = rows.shape[0], rows.shape[1] if plan.is_open else plan.count
    if rows.nnz and int(rows.indices.max()) >= width:
        at = int(np.argmax(rows.indices >= width))
        raise _wrong_index(plan, number(int(np.searchsorted(rows.indptr, at, side="right")) - 1), int(rows.indices[at]))
    if count * width > _MOST_DENSE_CELLS:
        _check_sparse_codes(plan, rows, number)
        return make_csr(rows.data, rows.indices, rows.indptr, width)
    dense = np.full((count, width), 0.0 if plan.is_absent_zero else np.nan, np.float32)
    dense[np.repeat(np.arange(count), np.diff(rows.indptr)), rows.indices] = rows.data
    check_codes(plan, dense, number)
    return dense


def _check_sparse_codes(plan: FeaturePlan, rows: Any, number: Numbering) -> None:  # noqa: ANN401 - a csr_matrix
    at = np.flatnonzero(np.isin(rows.indices, plan.coded))
    for start in range(0, len(at), _CHECKED):
        found = at[start : start + _CHECKED]
        of_row = np.searchsorted(rows.indptr, found, side="right") - 1
        cells = np.full((len(found), plan.count), np.nan, np.float32)
        cells[np.arange(len(found)), rows.indices[found]] = rows.data[found]
        check_codes(plan, cells, [number(int(row)) for row in of_row].__getitem__)


def _wrong_index(plan: FeaturePlan, row: int, index: int) -> RequestError:
    return RequestError(
        f"row {row} has the index {index:,}; the model has {plan.count:,} features, counted from 0",
        hint="count from 0, as in training; libsvm that counts from 1 says so: Content-Type: text/libsvm; index_base=1",
        row=row,
        column=index + 1,
    )
