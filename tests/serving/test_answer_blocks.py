"""Bodies of any length: the answer is that to the whole body, in memory that does not grow with it."""

import io
import itertools
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from tests.serving.test_answer import DENSE, npy
from tests.support.serving import Linear, ask, service
from tests.support.writers import entry, frame, tensor
from trainbox.contract.model_card import Features
from trainbox.serving.bodies.answer_blocks import answer_blocks
from trainbox.serving.bodies.request_errors import RequestError

BATCH = {"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}
ROWS = np.random.default_rng(3).integers(0, 1000, size=(200, 3)).tolist()
BODIES = {
    "text/csv": "".join(f"{a},{b},{c}\n" for a, b, c in ROWS).encode(),
    "application/jsonlines": "".join(f"{row}\n" for row in ROWS).encode(),
    "text/libsvm": "".join(f"0:{a} 1:{b} 2:{c}\n" for a, b, c in ROWS).encode(),
    "application/x-recordio-protobuf": b"".join(frame(entry(1, tensor(row))) for row in ROWS),
}


class Source:
    """A body of which nothing is kept."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def read(self, size: int, /) -> bytes:
        self._held = self._held or next(self._pieces, b"")
        piece, self._held = self._held[:size], self._held[size:]
        return piece

    def close(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("content_type", BODIES)
@pytest.mark.parametrize("accept", ["", "text/csv", "application/jsonlines", "application/x-recordio-protobuf"])
@pytest.mark.parametrize("newline", ["true", "false"])
def test_blocks_together_are_the_answer_to_the_whole(content_type: str, accept: str, newline: str) -> None:
    env = {**BATCH, "TRAINBOX_BATCH_NEWLINE": newline}
    body = BODIES[content_type]
    expected = ask(body, content_type, accept, **env)
    for size in (300, 10**6):
        found = answer_blocks(service(**env), io.BytesIO(body), content_type, accept, size=size)
        assert found.headers == expected.headers
        assert b"".join(found.blocks) == expected.body


def test_other_formats_are_answered_as_a_whole_up_to_a_limit() -> None:
    ready = service(**BATCH)
    found = answer_blocks(ready, io.BytesIO(npy(np.ones((2, 3), np.float32))), "application/x-npy", "")
    assert b"".join(found.blocks) == b"6.0\n6.0\n"
    with pytest.raises(RequestError) as refused:
        answer_blocks(service(MAX_CONTENT_LENGTH="100"), io.BytesIO(b" " * 200 + b"[]"), "application/json", "")
    assert refused.value.status == 413
    # An endpoint's JSON is one document.
    found = answer_blocks(service(), io.BytesIO(DENSE), "application/x-recordio-protobuf", "application/json")
    assert b"".join(found.blocks) == b'{"predictions": [{"score": 14.0}, {"score": 28.0}]}'


def test_a_header_is_found_in_the_first_block_alone() -> None:
    body = b"size,age,pay\n" + BODIES["text/csv"]
    with pytest.raises(RequestError, match="the first line is a header"):
        answer_blocks(service(**BATCH), io.BytesIO(body), "text/csv", "", size=200)
    found = answer_blocks(service(**BATCH), io.BytesIO(body), "text/csv; header=present", "", size=200)
    lines = b"".join(found.blocks).split(b"\n")
    assert lines[0] == b""
    assert len(lines) == 1 + len(ROWS) + 1


def test_an_error_in_the_first_block_comes_before_the_answer_and_a_later_one_ends_it() -> None:
    with pytest.raises(RequestError) as refused:
        answer_blocks(service(**BATCH), io.BytesIO(b"1,x,3\n" * 3), "text/csv", "")
    assert (refused.value.row, refused.value.column) == (1, 2)
    found = answer_blocks(
        service(**BATCH), io.BytesIO(b"1,2,3\n" * 2_000 + b"1,x,3\n"), "text/csv", "application/jsonlines", size=200
    )
    with pytest.raises(RequestError) as refused:
        b"".join(found.blocks)
    assert (refused.value.row, refused.value.column, refused.value.name) == (2_001, 2, "pay")


def test_a_line_without_an_answer_is_refused() -> None:
    body = b"1,2,3\n" * 2_000 + b"\n" + b"4,5,6\n"
    for size in (200, 10**6):
        with pytest.raises(RequestError, match="2,002 lines and 2,001 rows"):
            b"".join(answer_blocks(service(**BATCH), io.BytesIO(body), "text/csv", "", size=size).blocks)
    with pytest.raises(RequestError):
        answer_blocks(service(**BATCH), io.BytesIO(body), "text/csv", "")  # no status is sent yet
    assert b"".join(answer_blocks(service(), io.BytesIO(body), "text/csv", "").blocks)


def test_an_empty_body_has_no_answer() -> None:
    for content_type in BODIES:
        assert b"".join(answer_blocks(service(**BATCH), io.BytesIO(b""), content_type, "").blocks) == b""


@pytest.mark.parametrize("content_type", ["text/csv", "application/jsonlines"])
def test_memory_does_not_grow_with_the_body(content_type: str) -> None:
    class Counting(Linear):
        def predict(self, rows: object) -> object:
            found = super().predict(rows)
            self.given.clear()
            return found

    cells = b",".join([b"0.123456789"] * 20)
    line = (b"[%b]\n" if content_type == "application/jsonlines" else b"%b\n") % cells
    piece, count = line * 100, 120
    model = Counting(names=(), features=Features(20))

    def peak(pieces: int) -> tuple[int, int]:
        tracemalloc.start()
        body = Source(itertools.repeat(piece, pieces))
        found = answer_blocks(service(model, **BATCH), body, content_type, "", size=len(piece))
        answered = sum(block.count(b"\n") for block in found.blocks)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return answered, used

    few, of_few = peak(12)
    many, of_many = peak(count)
    assert (few, many) == (12 * 100, count * 100)
    assert of_many - of_few < count * len(piece) / 5  # what is kept would be five times as much, at least
