"""A body on its way from the event loop to the thread that reads it: whole, cut off, or stalled."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.body_pipe import BodyPipe

pytestmark = pytest.mark.process

Receive = Callable[[], Awaitable[Any]]


def sender(*parts: bytes, end: str = "whole") -> Receive:
    """What uvicorn gives for a body of these parts, which ends so."""
    left = list(parts)

    async def receive() -> Any:
        if left:
            part = left.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(left) or end != "whole"}
        if end == "stalls":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return receive


async def through(first: bytes, receive: Receive, sizes: Sequence[int]) -> list[bytes]:
    pipe = BodyPipe(first, asyncio.get_running_loop(), 0.05)
    feeding = asyncio.create_task(pipe.feed(receive))
    try:
        return await asyncio.to_thread(lambda: [pipe.read(size) for size in sizes])
    finally:
        feeding.cancel()


def test_a_body_comes_through_in_pieces_of_any_size() -> None:
    parts = [b"x" * size for size in (5, 100_000, 1, 300)] * 20
    found = asyncio.run(through(b"abc", sender(*parts), [2, 1, 2, 10**6, 7, *[10**6] * 100]))
    assert found[:4] == [b"ab", b"c", b"xx", b"xxx"]
    assert b"".join(found) == b"abc" + b"".join(parts)
    assert found[-1] == b""


@pytest.mark.parametrize(
    ("end", "status", "text"),
    [("leaves", 400, "the body has not come to its end"), ("stalls", 408, r"the body has paused for 0\.05 s")],
)
def test_a_body_without_an_end_is_an_error_for_whoever_reads_it(end: str, status: int, text: str) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        asyncio.run(through(b"abc", sender(b"def", end=end), [10, 10, 10]))
    assert caught.value.status == status
