"""Answers: what a request gets, by its content type and `Accept`."""

import json
from typing import Any

import numpy as np
import pytest

from trainbox.contract.hosting import Hosting, read_hosting
from trainbox.contract.model_card import Features, ModelCard
from trainbox.serving.answer import Answer, answer


class Linear:
    """Adds up the features, each times its place from 1; what is missing counts as nothing."""

    is_rowwise = True

    def __init__(self, *, names: tuple[str, ...] = ("age", "pay", "size"), **about: Any) -> None:
        fields = {"framework": "xgboost", "algorithm": "xgboost", "objective": "reg:squarederror"}
        self.card = ModelCard(**{**fields, "features": Features(len(names), names), **about})

    def predict(self, rows: Any) -> Any:
        dense = rows.toarray() if hasattr(rows, "toarray") else rows
        return (np.nan_to_num(dense) @ np.arange(1, 1 + dense.shape[1])).astype(np.float32)

    def contributions(self, rows: Any) -> Any:
        return np.zeros((rows.shape[0], rows.shape[1] + 1), np.float32)

    def set_threads(self, count: int) -> None:
        """Nothing to do."""


def ask(body: bytes, content_type: str = "text/csv", accept: str = "", **env: str) -> Answer:
    return answer(body, content_type, accept, hosting(**env), Linear())


def hosting(**env: str) -> Hosting:
    return read_hosting(env)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv", b"1,2,3\n,5,6\n"),
        ("text/csv; header=present", b"size,age,pay\n3,1,2\n6,,5\n"),
        ("application/json", b"[[1,2,3],[null,5,6]]"),
        ("application/json", b'{"instances": [{"features": [1,2,3]}, {"features": [null,5,6]}]}'),
        ("application/json", b'[{"pay": 2, "age": 1, "size": 3}, {"pay": 5, "age": null, "size": 6}]'),
        ("application/jsonlines", b'[1,2,3]\n{"features": [null,5,6]}\n'),
    ],
)
def test_the_same_rows_get_the_same_answer_in_every_form(content_type: str, body: bytes) -> None:
    found = ask(body, content_type)
    assert (found.status, found.body, found.rows) == (200, b"14.0\n28.0\n", 2)
    assert found.headers == (("Content-Type", "text/csv; charset=utf-8"),)
    found = ask(body, content_type, "application/json")
    assert json.loads(found.body) == {"predictions": [{"score": 14.0}, {"score": 28.0}]}


def test_a_bad_cell_is_told_with_its_place_and_the_id_of_the_request() -> None:
    found = answer(b"1,2,3\n4,abc,6\n", "text/csv", "", hosting(), Linear(), request_id="r1")
    assert found.status == 400
    told = json.loads(found.body)
    assert told.pop("error") == "body:2: column 2 ('pay'): 'abc' is not a number"
    assert told.pop("hint").startswith("send a number")
    assert told == {"row": 2, "column": 2, "name": "pay", "value": "abc", "id": "r1"}
