"""What a request holds of its records, and what is written of the answer: one line for each record. Pure."""

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

from trainbox.errors import DataError
from trainbox.local.endpoints.lines import strip_newline
from trainbox.local.transform.options import TransformPlan
from trainbox.local.transform.processing import filter_input, finish_output
from trainbox.local.transform.records import MiniBatch, Record

_COUNT_HINT = "ask for an answer with one line for each record: --accept text/csv or application/jsonlines"


def write_record(record: Record, plan: TransformPlan) -> bytes:
    """Return what the model is sent of a record.

    A frame loses its head and padding where it is sent alone, as in SageMaker (API TransformInput, SplitType).

    Raises:
        DataError: The filter finds nothing; says in which row.
    """
    if plan.split == "RecordIO":
        return record.payload if plan.strategy == "SingleRecord" else record.content
    processing = plan.processing
    if processing is None or not processing.changes_input:
        return record.content
    return _in_row(record, lambda: filter_input(record.content, processing)) + b"\n"


def finish_batch(batch: MiniBatch, answer: bytes, plan: TransformPlan) -> bytes:
    """Return what is written of the answer to a request.

    Raises:
        DataError: It has not one line for each record, or cannot be joined with them; says which rows.
    """
    if plan.counts_lines:
        lines = answer.removesuffix(b"\n").split(b"\n") if answer else []
        if len(lines) != len(batch.records):
            raise _other_count(batch.rows, len(batch.records), f"{len(lines):,}", has_empty=_has_empty(batch.records))
        finished = [_finish(record, line, plan) for record, line in zip(batch.records, lines, strict=True)]
        return b"".join([line + b"\n" for line in finished])
    if plan.changes_output:
        answer = _finish(batch.records[0], answer, plan)
    return answer if plan.assemble == "None" or answer.endswith(b"\n") else answer + b"\n"


def finish_stream(records: Iterable[Record], lines: Iterable[bytes], plan: TransformPlan) -> Iterator[bytes]:
    """Return what is written of an answer of any length, line by line.

    Args:
        records: The records of the request.
        lines: The lines of the answer.
        plan: Counts lines.

    Raises:
        DataError: It has not one line for each record, or cannot be joined with them; says which rows.
    """
    for count, (record, line) in enumerate(zip_longest(records, lines)):
        if record is None:
            raise _other_count("the input", count, f"more than {count:,}")
        if line is None:
            raise _other_count("the input", f"more than {count:,}", f"{count:,}")
        yield _finish(record, line, plan) + b"\n"


def _finish(record: Record, answer: bytes, plan: TransformPlan) -> bytes:
    processing = plan.processing
    if processing is None:
        return strip_newline(answer)
    return _in_row(record, lambda: finish_output(record.content, answer, processing))


def _in_row(record: Record, act: Callable[[], bytes]) -> bytes:
    try:
        return act()
    except DataError as error:
        raise DataError(f"row {record.number:,}: {error.message}", hint=error.hint) from error


def _has_empty(records: Iterable[Record]) -> bool:
    return any(not record.content.strip() for record in records)


def _other_count(rows: str, rows_in: int | str, rows_out: str, *, has_empty: bool = False) -> DataError:
    hint = "a line of the input is empty: remove it" if has_empty else _COUNT_HINT
    shown = f"{rows_in:,}" if isinstance(rows_in, int) else rows_in
    return DataError(f"{rows}: rows in and rows out differ: {shown} in, {rows_out} out", hint=hint)
