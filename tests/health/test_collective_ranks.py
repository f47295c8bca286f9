"""The program of the ranks: how a rank finds the first of its group."""

import socket
from datetime import timedelta

import pytest

pytest.importorskip("torch")

from tests.support.timeline import Timeline
from trainbox.health import collective_ranks as ranks

pytestmark = pytest.mark.process

_LIMIT = timedelta(seconds=20)


@pytest.mark.process
def test_a_rank_that_comes_too_early_waits_until_the_first_one_listens() -> None:
    """The first listens once it has been called in vain."""
    refused = 0
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))

        def sleep(_seconds: float) -> None:
            nonlocal refused
            refused += 1
            if refused == 3:
                first.listen()

        left = ranks.await_store("127.0.0.1", first.getsockname()[1], _LIMIT, clock=lambda: 0.0, sleep=sleep)
    assert refused == 3
    assert left == _LIMIT


class Listener(Timeline):
    """Is tried again and again; each try takes so long and ends with an error, or with none at last."""

    def __init__(self, *errors: type[OSError], seconds: float = 0.0) -> None:
        super().__init__()
        self.errors = list(errors)
        self.seconds = seconds
        self.tries = 0

    def connect(self, _host: str, _port: int) -> None:
        self.tries += 1
        self.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)

    def left(self) -> float:
        return ranks.await_store(
            "algo-1", 29500, _LIMIT, clock=self.clock, sleep=self.sleep, connect=self.connect
        ).total_seconds()


def test_what_is_left_of_the_limit_is_what_was_not_waited() -> None:
    assert Listener().left() == 20
    assert Listener(*[ConnectionRefusedError] * 1000).left() == pytest.approx(15)  # 5 ms each
    assert Listener(ConnectionRefusedError, seconds=0.5).left() == pytest.approx(18.995)


@pytest.mark.process
def test_where_nobody_ever_listens_a_moment_is_left_for_the_store_to_say_so() -> None:
    listener = Listener(*[ConnectionRefusedError] * 100_000)
    assert listener.left() == 1.0
    assert listener.now - 1000 == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("error", [socket.gaierror, TimeoutError, OSError])
def test_a_host_that_cannot_be_reached_is_left_to_the_store_at_once(error: type[OSError]) -> None:
    listener = Listener(error)
    assert (listener.left(), listener.tries) == (20, 1)


def test_a_name_that_does_not_resolve_is_such_a_host() -> None:
    tried: list[float] = []
    ranks.await_store("nobody.invalid", 29500, _LIMIT, sleep=tried.append)
    assert tried == []
