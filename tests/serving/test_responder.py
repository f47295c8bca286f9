"""Requests that arrive together are answered by one call of the model, where that is quicker than a call for each."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from trainbox.contract.hosting import NO_EXTRAS, read_hosting
from trainbox.contract.model_card import ModelCard, SampleRow, features_of
from trainbox.serving.responder import ModelResponder, Request

Floats = npt.NDArray[np.float32]


def spin(seconds: float) -> None:
    """Use the processor for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Sums:
    """Predicts the sum of each row.

    Args:
        cost: Seconds that a call takes, of the number of its rows.
    """

    is_rowwise = True
    extras = NO_EXTRAS
    card = ModelCard(
        framework="xgboost",
        algorithm="xgboost",
        objective="reg:squarederror",
        features=features_of(["f0", "f1"]),
        samples=tuple(SampleRow({"f0": place, "f1": 1.0}, place + 1.0) for place in range(5)),
    )

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.calls: list[int] = []
        self._cost = cost

    def predict(self, rows: Floats) -> Floats:
        self.calls.append(len(rows))
        spin(self._cost(len(rows)))
        total: Floats = rows.sum(axis=1, dtype=np.float32)
        return total

    def set_threads(self, count: int) -> None:
        pass


@pytest.mark.parametrize(
    ("cost", "counts"),
    [
        (lambda _rows: 0.0002, {1: [1], 2: [2], 3: [3]}),  # whatever the rows, a call is a call
        (lambda rows: 0.0002 if rows == 1 else 0.00045, {2: [1, 1], 3: [3], 7: [7]}),  # as of XGBoost 3.4
        (lambda rows: 0.0002 * rows, {1: [1], 2: [1, 1], 4: [1, 1, 1, 1], 5: [5]}),
    ],
)
def test_so_many_requests_are_joined_as_pay_for_it(cost: Callable[[int], float], counts: dict[int, list[int]]) -> None:
    model = Sums(cost)
    responder = ModelResponder(read_hosting({}), model)
    responder.check()
    for count, expected in counts.items():
        model.calls.clear()
        bodies = [b"%d,0.5" % place for place in range(count)]
        answers = responder.answer_together([Request({"content-type": "text/csv"}, body) for body in bodies])
        assert model.calls == expected
        assert [answer.body for answer in answers] == [b"%.1f\n" % (place + 0.5) for place in range(count)]


def test_a_bad_request_among_others_is_refused_alone() -> None:
    responder = ModelResponder(read_hosting({}), Sums(lambda _rows: 0.0))
    bodies = (b"1,1", b"1,x", b"2,2\n3,3", b"", b"4,4")
    answers = responder.answer_together([Request({"content-type": "text/csv"}, body) for body in bodies])
    assert [answer.status for answer in answers] == [200, 400, 200, 204, 200]
    assert [answer.body for answer in answers if answer.status == 200] == [b"2.0\n", b"4.0\n6.0\n", b"8.0\n"]


def test_a_large_table_whose_later_rows_are_shorter_keeps_every_row_in_its_place() -> None:
    responder = ModelResponder(read_hosting({}), Sums(lambda _rows: 0.0))
    long, short = b"0.1234567890123456789,0.5\n" * 44_000, b"".join(b"%d,1\n" % (place % 7) for place in range(400_000))
    answer = responder.answer(Request({"content-type": "text/csv"}, long + short))
    assert isinstance(answer.body, bytes)
    lines = answer.body.split()
    assert answer.rows == len(lines) == 444_000
    assert {*lines[:44_000]} == {b"0.6234567761421204"}
    assert lines[44_000:] == [b"%.1f" % (place % 7 + 1) for place in range(400_000)]
