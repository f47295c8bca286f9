"""Requests that the built-in XGBoost's hosting takes get the same bytes here, but for the differences that are listed.

Each difference has a row in `docs/differences.md`, and a test here that fails when it is no longer true.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost as xgb

from tests.support import builtin_hosting
from tests.support.serving import Linear, ask
from tests.support.writers import entry, frame, tensor
from trainbox.contract.model_card import Features, classes_of
from trainbox.serving.bodies.answer import Answer

FEATURES = 6
OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary:logistic": {},
    "binary:logitraw": {},
    "binary:hinge": {},
    "reg:squarederror": {},
    "count:poisson": {},
    "multi:softmax": {"num_class": 3},
    "multi:softprob": {"num_class": 3},
}
_PAGE = Path(__file__).parents[2] / "docs" / "differences.md"


class Booster(Linear):
    """A trained booster."""

    def __init__(self, objective: str) -> None:
        classes = OBJECTIVES[objective].get("num_class", 2)
        super().__init__(features=Features(FEATURES), objective=objective, classes=classes_of(objective, classes))
        rng = np.random.default_rng(len(objective))
        rows = rng.normal(size=(200, FEATURES)).astype(np.float32)
        rows[rng.random(rows.shape) < 0.2] = np.nan
        labels = (np.nan_to_num(rows[:, 0]) + rng.random(200) > 0.5).astype(int) + (rows[:, 1] > 0.7) * (classes - 2)
        matrix = xgb.DMatrix(rows, labels)
        params = {"objective": objective, "nthread": 1, "max_depth": 3, **OBJECTIVES[objective]}
        self.booster = xgb.train(params, matrix, 8)

    def predict(self, rows: Any) -> Any:
        return self.booster.predict(xgb.DMatrix(rows, missing=np.nan, nthread=1))


@pytest.fixture(scope="module")
def boosters() -> dict[str, Booster]:
    return {objective: Booster(objective) for objective in OBJECTIVES}


def requests(seed: int, count: int) -> list[tuple[str, bytes]]:
    """Requests that the built-in takes, each with its content type."""
    chance = random.Random(seed)
    return [_request(chance) for _ in range(count)]


def _request(chance: random.Random) -> tuple[str, bytes]:
    rows = [[_number(chance) for _ in range(FEATURES)] for _ in range(chance.choice((1, 1, 2, 5, 40)))]
    kind = chance.choice(("csv", "csv", "libsvm", "recordio"))
    if kind == "csv":
        end = chance.choice(("\n", "\r\n"))
        sign = chance.choice((",", ",", ", ", "\t"))
        if sign != ", ":
            for row in rows[1:]:  # not in the first line, of which the delimiter is found; nor before a carriage return
                row[chance.randrange(FEATURES - 1)] = ""
        ending = chance.choice(("", end))
        return "text/csv", (end.join(sign.join(row) for row in rows) + ending).encode()
    if kind == "libsvm":
        kept = [[0, *sorted(chance.sample(range(1, FEATURES), chance.randrange(FEATURES)))] for _ in rows]
        lines = [
            " ".join([*chance.choice(([], ["1"])), *(f"{place}:{row[place]}" for place in places)])
            for row, places in zip(rows, kept, strict=True)
        ]
        return "text/libsvm", ("\n".join(lines) + chance.choice(("", "\n"))).encode()
    content = b"".join(frame(entry(1, tensor([float(cell) for cell in row]))) for row in rows)
    return "application/x-recordio-protobuf", content


def _number(chance: random.Random) -> str:
    value = chance.gauss(0, 1)
    return chance.choice((f"{value:.6f}", f"{value:.3f}", repr(value), f"{value:.4e}"))


def bytes_of(found: Answer) -> tuple[str, bytes]:
    assert found.status == 200, found
    return found.headers[0][1], found.body


@pytest.mark.parametrize("accept", ["", "text/csv", "application/json"])
def test_requests_that_the_built_in_takes_get_the_same_bytes(boosters: dict[str, Booster], accept: str) -> None:
    for number, (content_type, body) in enumerate(requests(1, 200)):
        model = boosters[[*OBJECTIVES][number % len(OBJECTIVES)]]
        expected = builtin_hosting.answer(model.booster, body, content_type, accept)
        assert bytes_of(ask(body, content_type, accept, model=model)) == expected, body


@pytest.mark.parametrize("accept", ["", "text/csv", "application/json"])
def test_batches_get_the_same_lines(boosters: dict[str, Booster], accept: str) -> None:
    for number, (content_type, body) in enumerate(requests(2, 60)):
        model = boosters[[*OBJECTIVES][number % (len(OBJECTIVES) - 1)]]
        _, expected = builtin_hosting.answer(model.booster, body, content_type, accept, is_batch=True)
        assert bytes_of(ask(body, content_type, accept, model=model, SAGEMAKER_BATCH="true"))[1] == expected


# ---- differences ----

ROW = b"0.5,1,-1,0.25,2,0\n"


def refused(body: bytes, content_type: str = "text/csv", model: Linear | None = None) -> dict[str, Any]:
    found = ask(body, content_type, model=model or Linear(features=Features(FEATURES)))
    assert found.status == 400
    told: dict[str, Any] = json.loads(found.body)
    return told


def fewer_columns(boosters: dict[str, Booster]) -> None:
    booster, body = boosters["binary:logistic"].booster, b"0.5,1,-1\n"
    assert builtin_hosting.answer(booster, body, "text/csv", "")[1]
    assert refused(body)["error"] == "the first row has 3 columns; the model has 6 features"


def libsvm_base(boosters: dict[str, Booster]) -> None:
    model, body = boosters["reg:squarederror"], b"1:0.5 2:1 4:2\n"
    shifted = builtin_hosting.answer(model.booster, body, "text/libsvm", "")
    assert builtin_hosting.answer(model.booster, b"0:0.5 1:1 3:2\n", "text/libsvm", "") == shifted
    assert bytes_of(ask(body, "text/libsvm; index_base=1", model=model)) == shifted
    as_trained = model.predict(np.array([[np.nan, 0.5, 1, np.nan, 2, np.nan]], np.float32))
    assert bytes_of(ask(body, "text/libsvm", model=model))[1] == f"{as_trained.tolist()[0]}\n".encode()
    assert "index_base=1" in refused(b"1:0.5 6:1\n", "text/libsvm")["hint"]


def places_of_faults(_: dict[str, Booster]) -> None:
    told = refused(ROW + b"0.5,1,-1,x,2,0\n")
    assert (told["row"], told["column"], told["name"], told["value"]) == (2, 4, "f3", "x")


def more_forms(boosters: dict[str, Booster]) -> None:
    model = boosters["reg:squarederror"]
    expected = ask(ROW, model=model).body
    for content_type, body in {
        "application/json": b"[[" + ROW.strip() + b"]]",
        "application/jsonlines": b"[" + ROW.strip() + b"]",
        "text/csv;label_size=0": ROW,
        "text/csv; header=present": b"f0,f1,f2,f3,f4,f5\n" + ROW,
        "": ROW,
    }.items():
        assert ask(body, content_type, model=model).body == expected
    for accept in ("application/jsonlines", "application/x-recordio-protobuf", "text/html, */*;q=0.1"):
        assert ask(ROW, accept=accept, model=model).status == 200


def missing_markers(boosters: dict[str, Booster]) -> None:
    model = boosters["reg:squarederror"]
    assert ask(b"NA,1,-1,NULL,2,0\n", model=model).body == ask(b",1,-1,,2,0\n", model=model).body


def batch_of_classes(boosters: dict[str, Booster]) -> None:
    model = boosters["multi:softprob"]
    _, expected = builtin_hosting.answer(model.booster, ROW, "text/csv", "", is_batch=True)
    found = ask(ROW, model=model, SAGEMAKER_BATCH="true").body
    assert found.decode() == expected.decode().replace("[", "").replace("]", "").replace(" ", "")


def unfit_outputs(_: dict[str, Booster]) -> None:
    with pytest.raises(Exception, match="this model has no output probability"):
        ask(ROW, model=Linear(features=Features(FEATURES)), SAGEMAKER_INFERENCE_OUTPUT="probability")


def not_finite(_: dict[str, Booster]) -> None:
    class Odd(Linear):
        def predict(self, rows: Any) -> Any:
            return np.full(len(rows), np.nan, np.float32)

    model = Odd(features=Features(FEATURES))
    assert ask(ROW, accept="application/json", model=model).body == b'{"predictions": [{"score": null}]}'


#: By the name of its row.
DIFFERENCES = {
    "hosting-columns": fewer_columns,
    "hosting-libsvm": libsvm_base,
    "hosting-faults": places_of_faults,
    "hosting-formats": more_forms,
    "hosting-missing": missing_markers,
    "hosting-batch-of-classes": batch_of_classes,
    "hosting-outputs": unfit_outputs,
    "hosting-not-finite": not_finite,
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_as_its_row_says(boosters: dict[str, Booster], name: str) -> None:
    DIFFERENCES[name](boosters)


def test_the_page_has_a_row_for_each_difference() -> None:
    assert re.findall(r"(?m)^\| `(hosting-[\w-]+)` \|", _PAGE.read_text()) == [*DIFFERENCES]
