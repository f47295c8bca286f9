"""Runs a transform job: every input becomes one `.out` file, whole or not at all, with the rows in their order."""

import contextlib
import itertools
import stat
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec

from trainbox import atomic_write
from trainbox.contract.text import some
from trainbox.errors import DataError, RunError, TrainboxError
from trainbox.files import walk_below
from trainbox.local.endpoints.endpoint import Endpoint, read_blocks, read_lines
from trainbox.local.transform.answers import finish_batch, finish_stream, write_record
from trainbox.local.transform.options import TransformPlan
from trainbox.local.transform.records import MiniBatch, make_batches, read_records
from trainbox.local.transform.requests import check_stream, send_batch

#: API TransformOutput: behind the name of the input.
SUFFIX = ".out"
#: What is sent at once of a body of any length.
_CHUNK_BYTES = 256 * 1024


class Input(msgspec.Struct, frozen=True):
    """A file, and the file that becomes of it."""

    source: Path
    target: Path


class Transformed(msgspec.Struct, frozen=True):
    """What became of an input."""

    input: Input
    #: Records that were answered; 0 where the input is not split, or not counted.
    rows: int
    error: TrainboxError | None = None


def find_inputs(source: Path, output: Path) -> tuple[Input, ...]:
    """Find the files to transform, and where each goes: below a directory with the same path.

    Raises:
        RunError: There is none, or the output lies among them.
    """
    if source.is_file():
        return (Input(source, output / f"{source.name}{SUFFIX}"),)
    if not source.is_dir():
        raise RunError(f"there is no input {source}", hint="give a file or a directory")
    if output.resolve().is_relative_to(source.resolve()):
        raise RunError(f"the output {output} lies in the input {source}", hint="give a directory elsewhere")
    try:
        found = sorted(path for path, status in walk_below(source) if stat.S_ISREG(status.st_mode))
    except OSError as error:
        raise RunError(f"{source} cannot be read: {error.strerror}") from error
    if not found:
        raise RunError(f"there are no files in {source}")
    places = [(path, path.relative_to(source)) for path in found]
    return tuple(Input(path, output / place.with_name(place.name + SUFFIX)) for path, place in places)


def run_transform(
    inputs: Sequence[Input], plan: TransformPlan, endpoint: Endpoint, report: Callable[[Transformed], None]
) -> None:
    """Transform all inputs; one that fails leaves no file, and the others go on, as in SageMaker.

    Args:
        inputs: Files.
        plan: How.
        endpoint: Answers.
        report: Is told of each input when it has ended.

    Raises:
        DataError: Some inputs failed.
        RunError: The endpoint does not answer, or an output cannot be written; nothing more is tried.
    """
    failed = []
    streams = (_transform_stream(each, plan, endpoint) for each in inputs)
    with contextlib.closing(streams if _is_stream(plan) else _transform_batches(inputs, plan, endpoint)) as results:
        for done in results:
            report(done)
            if isinstance(done.error, RunError):
                raise done.error
            if done.error is not None:
                failed.append(str(done.input.source))
    if failed:
        raise DataError(f"{len(failed)} of {len(inputs)} inputs failed: {some(failed)}", hint="see the reasons above")


# ---- requests up to a limit ----


class _Sent(msgspec.Struct, frozen=True, eq=False):
    """A request on its way; the begin of an input where there is no batch; or why its records end."""

    input: Input
    batch: MiniBatch | None = None
    answer: Future[bytes] | None = None
    error: TrainboxError | None = None


def _transform_batches(inputs: Sequence[Input], plan: TransformPlan, endpoint: Endpoint) -> Generator[Transformed]:
    stop, failed = threading.Event(), set[Input]()
    pool = ThreadPoolExecutor(plan.workers)
    try:
        sent = _send_all(inputs, plan, lambda batch: pool.submit(send_batch, endpoint, batch, plan, stop), failed)
        for each, group in itertools.groupby(_ahead(sent, plan.workers), key=lambda one: one.input):
            done = _write(each, group, plan)
            if done.error is not None:
                failed.add(each)
            yield done
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        endpoint.close()  # a thread that waits for an answer ends now
        pool.shutdown()


def _send_all(
    inputs: Sequence[Input],
    plan: TransformPlan,
    submit: Callable[[MiniBatch], Future[bytes]],
    failed: Collection[Input],
) -> Iterator[_Sent]:
    for each in inputs:
        yield _Sent(each)
        try:
            with each.source.open("rb") as file:
                records = read_records(file, plan.split, plan.longest_record)
                batches = make_batches(
                    records, plan.strategy, plan.max_payload_bytes, lambda record: write_record(record, plan)
                )
                for batch in batches:
                    if each in failed:
                        break
                    yield _Sent(each, batch, submit(batch))
        except OSError as error:
            yield _Sent(each, error=DataError(f"cannot be read: {error.strerror}"))
        except DataError as error:
            yield _Sent(each, error=error)


def _ahead(sent: Iterator[_Sent], most: int) -> Iterator[_Sent]:
    """Return the requests in their order, while up to `most` later ones are on their way."""
    pending: deque[_Sent] = deque()
    for one in sent:
        pending.append(one)
        if len(pending) > most:
            yield pending.popleft()
    yield from pending


def _write(each: Input, group: Iterable[_Sent], plan: TransformPlan) -> Transformed:
    rows = 0
    try:
        with _writing(each) as file:
            for sent in group:
                if sent.error is not None:
                    raise sent.error
                if sent.batch is not None and sent.answer is not None:
                    file.write(finish_batch(sent.batch, sent.answer.result(), plan))
                    rows += len(sent.batch.records) if plan.split != "None" else 0
    except TrainboxError as error:
        return Transformed(each, rows, error)
    return Transformed(each, rows)


@contextlib.contextmanager
def _writing(each: Input) -> Iterator[BinaryIO]:
    try:
        each.target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write.writing(each.target) as file:
            yield file
    except OSError as error:
        raise RunError(f"{each.target} cannot be written: {error.strerror}", hint="give another --output") from error


# ---- one request of any length for each input ----


def _is_stream(plan: TransformPlan) -> bool:
    is_document = plan.split == "None" and plan.processing is not None
    return plan.max_payload_bytes == 0 and plan.strategy == "MultiRecord" and not is_document


def _transform_stream(each: Input, plan: TransformPlan, endpoint: Endpoint) -> Transformed:
    rows = 0
    try:
        with each.source.open("rb") as body, each.source.open("rb") as again, _writing(each) as file:
            chunks = _chunks(body, plan)
            asking = endpoint.invoke_chunked(chunks, content_type=plan.content_type, accept=plan.accept)
            with asking as response:
                check_stream(response)
                if plan.counts_lines:
                    found = finish_stream(read_records(again, plan.split, 0), read_lines(response), plan)
                else:
                    found = read_blocks(response)
                for content in found:
                    _put(file, content, each)
                    rows += plan.counts_lines
    except OSError as error:
        return Transformed(each, rows, DataError(f"cannot be read: {error.strerror}"))
    except TrainboxError as error:
        return Transformed(each, rows, error)
    return Transformed(each, rows)


def _put(file: BinaryIO, content: bytes, each: Input) -> None:
    """Write, and tell a full disk from a broken connection."""
    try:
        file.write(content)
    except OSError as error:
        raise RunError(f"{each.target} cannot be written: {error.strerror}") from error


def _chunks(file: BinaryIO, plan: TransformPlan) -> Iterator[bytes]:
    if plan.processing is None or not plan.processing.changes_input:
        while block := file.read(_CHUNK_BYTES):
            yield block
        return
    chunk = bytearray()
    for record in read_records(file, plan.split, 0):
        chunk += write_record(record, plan)
        if len(chunk) >= _CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)
