"""What batch transform does to a record on its way in and out: filter, join with the answer, filter again. Pure.

Source: https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from trainbox.contract.text import short
from trainbox.errors import DataError
from trainbox.local.endpoints.lines import split_cells, strip_newline
from trainbox.local.transform.json_path import JsonPath, select

#: The formats whose records can be filtered and joined.
RecordFormat: TypeAlias = Literal["csv", "json"]
#: What a join calls the answer, and a record that is no object.
OUTPUT_KEY, INPUT_KEY = "SageMakerOutput", "SageMakerInput"
_SHOWN_BYTES = 60


class Processing(msgspec.Struct, frozen=True):
    """DataProcessing of a transform job."""

    format: RecordFormat
    input_filter: JsonPath
    output_filter: JsonPath
    joins: bool

    @property
    def changes_input(self) -> bool:
        """Whether the model is sent something else than the record as it is."""
        return not self.input_filter.is_root

    @property
    def changes_output(self) -> bool:
        """Whether something else is written than the answer as it is."""
        return self.joins or not self.output_filter.is_root


def filter_input(record: bytes, processing: Processing) -> bytes:
    """Return what the model is sent of a record, without the end of the line.

    Raises:
        DataError: The record cannot be read, or has not what the filter selects.
    """
    content = strip_newline(record)
    if not processing.changes_input:
        return content
    return _encode(select(processing.input_filter, _decode(content, processing, "the record")), processing)


def finish_output(record: bytes, answer: bytes, processing: Processing) -> bytes:
    """Return what is written of a record and the answer to it, without the end of the line.

    Raises:
        DataError: One of them cannot be read, or has not what the filter selects.
    """
    if not processing.changes_output:
        return strip_newline(answer)
    value = _decode(strip_newline(answer), processing, "the answer")
    if processing.joins:
        value = _join(_decode(strip_newline(record), processing, "the record"), value)
    return _encode(select(processing.output_filter, value), processing)


def _join(record: Any, answer: Any) -> Any:  # noqa: ANN401 - cells, or any JSON
    if isinstance(record, _Row) and isinstance(answer, _Row):
        return _Row([*record, *answer])
    if isinstance(record, Mapping):
        return {**record, OUTPUT_KEY: answer}
    return {INPUT_KEY: record, OUTPUT_KEY: answer}


class _Row(list[bytes]):
    """The cells of a row of CSV."""


def _decode(content: bytes, processing: Processing, what: str) -> Any:  # noqa: ANN401
    if processing.format == "csv":
        return _Row(split_cells(content))
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        shown = short(content[:_SHOWN_BYTES].decode(errors="replace"))
        raise DataError(f"{what} {shown} is no JSON: {error}") from error


def _encode(value: Any, processing: Processing) -> bytes:  # noqa: ANN401
    if processing.format == "csv":
        return value if isinstance(value, bytes) else b",".join(value)
    return msgspec.json.encode(value)
