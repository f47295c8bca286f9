"""What an answer holds: labels, probabilities and scores, by the names and in the forms of the built-in XGBoost."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.serving import Linear, ask, service
from tests.support.writers import entry, frame, tensor
from trainbox.contract.hosting import NO_EXTRAS
from trainbox.contract.model_card import SampleRow
from trainbox.errors import ContractError, DataError

ALL = "predicted_label,labels,probability,probabilities,raw_score,raw_scores"
BODY = b"1,0,0\n0,1,0\n"


class Fixed(Linear):
    """Gives the same numbers to every request."""

    def __init__(self, numbers: Any, **about: Any) -> None:
        super().__init__(**about)
        self.numbers = np.array(numbers)

    def predict(self, rows: Any) -> Any:
        return self.numbers[: len(rows)]


def xgboost(objective: str, numbers: Any, classes: tuple[int | str, ...] = ()) -> Fixed:
    return Fixed(np.array(numbers, np.float32), objective=objective, classes=classes)


BINARY = xgboost("binary:logistic", [0.75, 0.125], (0, 1))
RAW = xgboost("binary:logitraw", [1.5, -2.0], (0, 1))
HINGE = xgboost("binary:hinge", [1.0, 0.0], (0, 1))
SOFTMAX = xgboost("multi:softmax", [2.0, 0.0], (0, 1, 2))
SOFTPROB = xgboost("multi:softprob", [[0.25, 0.25, 0.5], [0.5, 0.375, 0.125]], (0, 1, 2))
NUMBER = xgboost("reg:squarederror", [3.5, -1.0])
TEXTS = xgboost("multi:softprob", [[0.25, 0.25, 0.5], [0.5, 0.375, 0.125]], ("a", "b, c", 'd"'))


def told(model: Linear, outputs: str, accept: str = "application/json", body: bytes = BODY) -> bytes:
    found = ask(body, accept=accept, model=model, SAGEMAKER_INFERENCE_OUTPUT=outputs)
    assert found.status == 200, found
    return found.body


@pytest.mark.parametrize(
    ("model", "outputs", "line", "first"),
    [
        (
            BINARY,
            ALL,
            b'1,"[0, 1]",0.75,"[0.25, 0.75]",0.75,"[0.25, 0.75]"',
            """{"predicted_label": 1, "labels": [0, 1], "probability": 0.75, "probabilities": [0.25, 0.75], \
"raw_score": 0.75, "raw_scores": [0.25, 0.75]}""",
        ),
        (
            RAW,
            "raw_scores,raw_score,labels,predicted_label",
            b'"[-0.5, 1.5]",1.5,"[0, 1]",1',
            '{"predicted_label": 1, "labels": [0, 1], "raw_score": 1.5, "raw_scores": [-0.5, 1.5]}',
        ),
        (
            HINGE,
            "predicted_label,raw_score,raw_scores",
            b'1.0,1.0,"[0.0, 1.0]"',
            '{"predicted_label": 1.0, "raw_score": 1.0, "raw_scores": [0.0, 1.0]}',
        ),
        (
            SOFTMAX,
            "predicted_label,labels,raw_score,raw_scores",
            b'2.0,"[0, 1, 2]",2.0,"[-1.0, 2.0]"',
            '{"predicted_label": 2.0, "labels": [0, 1, 2], "raw_score": 2.0, "raw_scores": [-1.0, 2.0]}',
        ),
        (
            SOFTPROB,
            "probabilities,predicted_label,probability",
            b'"[0.25, 0.25, 0.5]",2,0.5',
            '{"predicted_label": 2, "probability": 0.5, "probabilities": [0.25, 0.25, 0.5]}',
        ),
        (NUMBER, "predicted_score", b"3.5", '{"predicted_score": 3.5}'),
    ],
)
def test_outputs_have_the_bytes_of_the_built_in(model: Linear, outputs: str, line: bytes, first: str) -> None:
    lines = told(model, outputs, "text/csv").split(b"\n")
    assert lines[0] == line
    assert len(lines) == 2  # no line end after the last
    assert told(model, outputs, body=b"1,0,0").decode() == f'{{"predictions": [{first}]}}'
    assert told(model, outputs, "application/jsonlines").split(b"\n")[0].decode() == first


def test_records_have_each_output_as_a_label() -> None:
    content = told(SOFTPROB, "predicted_label,probabilities", "application/x-recordio-protobuf", b"1,0,0")
    values: dict[str, list[float]] = {"predicted_label": [2], "probabilities": [0.25, 0.25, 0.5]}
    assert content == frame(b"".join(entry(2, tensor(each), name) for name, each in sorted(values.items())))


def test_binary_formats_have_a_column_an_output() -> None:
    names = "predicted_label,probabilities"
    table = pa.parquet.read_table(pa.BufferReader(told(TEXTS, names, "application/x-parquet")))
    assert table.to_pydict() == {
        "predicted_label": ['d"', "a"],
        "probabilities": [[0.25, 0.25, 0.5], [0.5, 0.375, 0.125]],
    }
    array = np.load(io.BytesIO(told(SOFTPROB, names, "application/x-npy")))
    np.testing.assert_array_equal(array, [[2, 0.25, 0.25, 0.5], [0, 0.5, 0.375, 0.125]])
    refused = ask(BODY, accept="application/x-npy", model=TEXTS, SAGEMAKER_INFERENCE_OUTPUT=names)
    assert refused.status == 406
    assert "no texts" in json.loads(refused.body)["error"]


def test_labels_that_are_texts_are_told_as_texts() -> None:
    assert told(TEXTS, "predicted_label,labels", "text/csv") == (
        b'"d""","[""a"", ""b, c"", ""d\\""""]"\na,"[""a"", ""b, c"", ""d\\""""]"'
    )
    assert json.loads(told(TEXTS, "predicted_label"))["predictions"] == [
        {"predicted_label": 'd"'},
        {"predicted_label": "a"},
    ]


def test_a_request_chooses_its_outputs() -> None:
    found = ask(BODY, accept='application/json; output="predicted_label, probability"', model=BINARY)
    assert json.loads(found.body)["predictions"][0] == {"predicted_label": 1, "probability": 0.75}
    refused = ask(BODY, accept="application/json; output=predicted_score", model=BINARY)
    assert refused.status == 406
    assert json.loads(refused.body)["hint"].startswith("its outputs are predicted_label, labels")


def test_contributions_have_a_number_for_each_feature_and_the_bias() -> None:
    assert told(BINARY, "contributions", "text/csv") == b'"[1.0, 0.0, 0.0, 1.0]"\n"[0.0, 1.0, 0.0, 1.0]"'


class OfClasses(Fixed):
    """Says for each of two classes what the features add."""

    def contributions(self, rows: Any) -> Any:
        one = super().contributions(rows)
        return np.stack([one, -one], axis=1)


def test_contributions_to_several_outputs_have_a_list_for_each() -> None:
    classes = OfClasses([[0.25, 0.75], [0.5, 0.5]], objective="multi:softprob", classes=(0, 1))
    assert json.loads(told(classes, "contributions"))["predictions"] == [
        {"contributions": [[1, 0, 0, 1], [-1, 0, 0, -1]]},
        {"contributions": [[0, 1, 0, 1], [0, -1, 0, -1]]},
    ]
    line = b'"[[1.0, 0.0, 0.0, 1.0], [-1.0, -0.0, -0.0, -1.0]]"'
    assert told(classes, "predicted_label,contributions", "text/csv", b"1,0,0") == b"1," + line
    array = np.load(io.BytesIO(told(classes, "contributions", "application/x-npy")))
    assert array.shape == (2, 2, 4)
    array = np.load(io.BytesIO(told(classes, "contributions,probabilities", "application/x-npy")))
    np.testing.assert_array_equal(array[1], [0, 1, 0, 1, 0, -1, 0, -1, 0.5, 0.5])
    table = pa.parquet.read_table(pa.BufferReader(told(classes, "contributions", "application/x-parquet")))
    assert table.to_pydict()["contributions"][0] == [[1, 0, 0, 1], [-1, 0, 0, -1]]
    (record,) = [told(classes, "contributions", "application/x-recordio-protobuf", b"1,0,0")]
    values = [1.0, 0.0, 0.0, 1.0, -1.0, -0.0, -0.0, -1.0]
    assert record == frame(entry(2, tensor(values, shape=[2, 4]), "contributions"))


def test_the_leaf_of_each_tree_is_a_whole_number_in_every_format() -> None:
    assert told(BINARY, "leaf", "text/csv") == b'"[2, 0]"\n"[1, 0]"'
    assert json.loads(told(BINARY, "leaf"))["predictions"] == [{"leaf": [2, 0]}, {"leaf": [1, 0]}]
    assert told(BINARY, "predicted_label,leaf", "application/jsonlines", b"1,0,0") == (
        b'{"predicted_label": 1, "leaf": [2, 0]}\n'
    )
    array = np.load(io.BytesIO(told(BINARY, "leaf", "application/x-npy")))
    assert (array.dtype, array.tolist()) == (np.int32, [[2, 0], [1, 0]])
    table = pa.parquet.read_table(pa.BufferReader(told(BINARY, "leaf", "application/x-parquet")))
    assert table.to_pydict() == {"leaf": [[2, 0], [1, 0]]}
    stream = pa.ipc.open_stream(told(BINARY, "leaf", "application/vnd.apache.arrow.stream"))
    assert stream.read_all() == table
    record = told(BINARY, "leaf", "application/x-recordio-protobuf", b"1,0,0")
    assert record == frame(entry(2, tensor([2.0, 0.0]), "leaf"))


class OfFolds(Fixed):
    """Cannot say what the features add."""

    def contributions(self, rows: Any) -> Any:
        raise DataError(f"contributions of {len(rows)} rows are not available", hint="ask for another output")


def test_a_model_that_cannot_say_what_contributes_is_told_at_the_start_or_where_a_request_asks() -> None:
    model = OfFolds([0.75, 0.125], objective="binary:logistic", classes=(0, 1))
    with pytest.raises(ContractError, match="SAGEMAKER_INFERENCE_OUTPUT: contributions of 1 rows are not available"):
        service(model, SAGEMAKER_INFERENCE_OUTPUT="predicted_label,contributions")
    refused = ask(BODY, accept="application/json; output=contributions", model=model)
    assert (refused.status, json.loads(refused.body)["hint"]) == (406, "ask for another output")


class WithoutExtras(Fixed):
    """Has its numbers alone."""

    extras = NO_EXTRAS


def test_an_output_that_the_model_has_not_is_an_error_at_the_start() -> None:
    with pytest.raises(ContractError, match="SAGEMAKER_INFERENCE_OUTPUT: this model has no output probability"):
        service(NUMBER, SAGEMAKER_INFERENCE_OUTPUT="probability")
    with pytest.raises(ContractError, match="has no output contributions"):
        service(WithoutExtras([1.0]), SAGEMAKER_INFERENCE_OUTPUT="contributions")
    refused = ask(BODY, accept="application/json; output=leaf", model=WithoutExtras([1.0, 2.0]))
    assert refused.status == 406
    assert json.loads(refused.body) == {
        "error": "this model has no output leaf",
        "hint": "its outputs are predicted_score, score",
        "id": "r1",
    }


def test_classifiers_of_other_frameworks_tell_their_label_and_its_probability() -> None:
    about: dict[str, Any] = {"framework": "scikit-learn", "algorithm": "forest", "objective": "classification"}
    shares = Fixed([[0.25, 0.75], [0.5, 0.5]], classes=("no", "yes"), samples=(SampleRow({}, (0.5, 0.5)),), **about)
    assert json.loads(ask(BODY, model=shares).body)["predictions"] == [
        {"predicted_label": "yes", "probability": 0.75},
        {"predicted_label": "no", "probability": 0.5},
    ]
    assert ask(BODY, accept="text/csv", model=shares).body == b"yes,0.75\nno,0.5"
    assert ask(BODY, accept="text/csv", model=shares, SAGEMAKER_BATCH="true").body == b"yes,0.75\nno,0.5\n"
    assert ask(b"[]", "application/json", model=shares).body == b'{"predictions": []}'
    array = np.load(io.BytesIO(ask(BODY, accept="application/x-npy", model=shares).body))
    np.testing.assert_array_equal(array, [[0.25, 0.75], [0.5, 0.5]])  # the numbers of the model
    # A foreign estimator: its numbers say whether it has shares.
    labels = Fixed([7.0, 1.0], classes=(1, 7), **about)
    assert ask(BODY, accept="text/csv", model=labels).body == b"7\n1"
    logits = np.log(np.array([[1.0, 3.0], [1.0, 1.0]], np.float32))
    network = Fixed(logits, classes=("0", "1"), **(about | {"framework": "pytorch"}))
    predicted = json.loads(ask(BODY, model=network).body)["predictions"]
    assert [each["predicted_label"] for each in predicted] == ["1", "0"]
    np.testing.assert_allclose([each["probability"] for each in predicted], [0.75, 0.5], rtol=1e-6)


@pytest.mark.parametrize("value", [1e-5, 1e16, 1e22, 1.5e-7, 123456789.0, -0.0, 0.1, 3.4e38])
def test_numbers_are_written_as_python_writes_them(value: float) -> None:
    model = xgboost("reg:squarederror", [value, 0.5])
    wide = float(np.float32(value))
    assert ask(BODY, model=model).body.decode() == f"{wide}\n0.5\n"
    expected = json.dumps({"predictions": [{"score": wide}, {"score": 0.5}]})
    assert ask(BODY, accept="application/json", model=model).body.decode() == expected


def test_what_is_not_finite_is_null_in_json() -> None:
    for shape in ((2,), (1, 2)):
        model = xgboost("reg:squarederror", np.reshape([np.nan, np.inf], shape))
        found = ask(BODY, accept="application/json", model=model).body
        assert found.count(b"null") == 2
    assert ask(BODY, model=xgboost("reg:squarederror", [np.nan, np.inf])).body == b"nan\ninf\n"
