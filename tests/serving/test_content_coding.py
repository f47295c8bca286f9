"""Compressed requests: every way in which gzip is written, what is not gzip, and how much memory a bomb gets."""

import gzip
import io
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.content_coding import DecompressedBody, decompress, is_compressed

LIMIT = 2**20
CONTENT = b"1,2,3\n" * 1000


def whole(body: bytes) -> bytes:
    return decompress(body, LIMIT)


def by_parts(body: bytes) -> bytes:
    source = DecompressedBody({"content-encoding": "gzip"}, io.BytesIO(body))
    return b"".join(iter(lambda: source.read(700), b""))


def result_of(read: Callable[[bytes], bytes], body: bytes) -> str:
    try:
        read(body)
    except RequestError as error:
        return str(int(error.status))
    return "read"


WAYS = pytest.mark.parametrize("read", [whole, by_parts])


@pytest.mark.parametrize("header", ["gzip", "GZIP ", "x-gzip", "", "identity"])
def test_codings_are_told_by_their_names(header: str) -> None:
    assert is_compressed({"content-encoding": header}) == ("gzip" in header.lower())
    assert not is_compressed({})


@pytest.mark.parametrize("header", ["br", "deflate", "gzip, gzip", "gzip;q=1", "\x00", "x" * 5_000])
def test_other_codings_are_refused(header: str) -> None:
    with pytest.raises(RequestError, match=r"the content encoding .* is not supported") as caught:
        is_compressed({"content-encoding": header})
    assert (caught.value.status, caught.value.hint) == (415, "send gzip, or no Content-Encoding")
    assert len(caught.value.message) < 300


@WAYS
def test_what_gzip_has_written_is_read(read: Callable[[bytes], bytes]) -> None:
    once = gzip.compress(CONTENT)
    assert read(once) == CONTENT
    assert read(once + gzip.compress(b"") + once) == CONTENT * 2  # members one after the other
    assert read(once + bytes(512)) == CONTENT  # padded, as tapes are
    assert read(b"") == b""


@WAYS
@pytest.mark.parametrize("name", ["plain", "cut", "wrong sum", "wrong size", "rest"])
def test_what_is_not_gzip_or_not_whole_is_refused(read: Callable[[bytes], bytes], name: str) -> None:
    good = gzip.compress(CONTENT)
    bad = {
        "plain": CONTENT,
        "cut": good[:-9],
        "wrong sum": good[:-8] + bytes(4) + good[-4:],
        "wrong size": good[:-1] + b"\x01",
        "rest": good + b"1,2,3\n",
    }
    with pytest.raises(RequestError, match="the body is not gzip, as its Content-Encoding says") as caught:
        read(bad[name])
    assert caught.value.status == 400


def test_a_bomb_gets_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(50 * LIMIT))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"the body has [\d,]+ bytes, and more than 1,048,576 after") as caught:
            whole(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert len(whole(gzip.compress(bytes(LIMIT)))) == LIMIT


@given(body=st.binary(max_size=200), at=st.integers(0, 40), piece=st.binary(max_size=4))
def test_no_bytes_are_anything_but_read_or_refused(body: bytes, at: int, piece: bytes) -> None:
    good = gzip.compress(body)
    for changed in (good[:at] + piece + good[at:], good[:at] + piece + good[at + len(piece) :], body):
        for read in (whole, by_parts):
            assert result_of(read, changed) in {"read", "400"}
