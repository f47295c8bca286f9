"""Answers: what a request gets, by its content type and `Accept`."""

import io
import json

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.support.serving import Linear, ask, service
from tests.support.writers import entry, frame, tensor
from trainbox.contract.hosting import read_hosting
from trainbox.contract.model_card import Features
from trainbox.errors import ContractError
from trainbox.serving.bodies.answer import answer, make_service, predict, read, write

NAN = float("nan")
ROWS = np.array([[1, 2, 3], [NAN, 5, 6]], np.float32)
TABLE = {"size": [3, 6], "age": [1.0, None], "pay": [2, 5]}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(TABLE), sink)
    return bytes(sink.getvalue().to_pybytes())


def arrow(*, compression: str | None = None) -> bytes:
    table, sink = pa.table(TABLE), pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


DENSE = b"".join(frame(entry(1, tensor(row))) for row in ROWS.tolist())
SPARSE = b"".join(
    frame(entry(1, tensor(list(row.values()), keys=list(row), shape=[3]))) for row in ({0: 1, 1: 2, 2: 3}, {1: 5, 2: 6})
)
#: The same two rows.
BODIES = [
    ("text/csv", b"1,2,3\n,5,6\n"),
    ("", b"1,2,3\n,5,6"),
    ("text/csv; charset=utf-8; label_size=0", b"1,2,3\r\nNA,5,6\r\n"),
    ("TEXT/CSV", b"1;2;3\n;5;6\n"),
    ("text/csv; header=present", b"size,age,pay\n3,1,2\n6,,5\n"),
    ("text/csv", b"size,age,pay\n3,1,2\n6,,5\n"),
    ("text/csv; header=absent", b"1,2,3\n,5,6\n"),
    ("application/json", b"[[1,2,3],[null,5,6]]"),
    ("application/json; charset=utf-8", b"[[1,2,3],[NaN,5,6]]"),
    ("application/json", b'{"instances": [[1,2,3],[null,5,6]]}'),
    ("application/json", b'{"inputs": [[1,2,3],[null,5,6]]}'),
    ("application/json", b'{"instances": [{"features": [1,2,3]}, {"features": [null,5,6]}]}'),
    ("application/json", b'{"instances": [{"data": {"features": {"values": [1,2,3]}}}, {"features": [null,5,6]}]}'),
    ("application/json", b'[{"features": {"keys": [0,1,2], "values": [1,2,3]}}, {"features": [null,5,6]}]'),
    (
        "application/json",
        b'[{"features": [1,2,3]}, {"data": {"features": {"keys": [2,1], "shape": [3], "values": [6,5]}}}]',
    ),
    ("application/json", b'[{"pay": 2, "age": 1, "size": 3}, {"pay": 5, "age": null, "size": 6}]'),
    ("application/json", b'{"columns": ["pay", "age", "size"], "index": [0, 1], "data": [[2,1,3],[5,null,6]]}'),
    ("application/json", b'{"dataframe_split": {"columns": ["pay", "age", "size"], "data": [[2,1,3],[5,null,6]]}}'),
    (
        "application/json",
        b'{"dataframe_records": [{"pay": 2, "age": 1, "size": 3}, {"pay": 5, "age": null, "size": 6}]}',
    ),
    ("application/json", b'{"pay": [2, 5], "size": [3, 6], "age": [1, null]}'),
    ("application/json", b'{"inputs": {"pay": [2, 5], "size": [3, 6], "age": [1, null]}}'),
    ("application/jsonlines", b'[1,2,3]\n\n{"features": [null,5,6]}\n'),
    ("application/x-ndjson", b'{"age": 1, "pay": 2, "size": 3}\n{"data": {"features": {"values": [null,5,6]}}}'),
    ("text/libsvm", b"0:1 1:2 2:3\n1:5 2:6\n"),
    ("text/x-libsvm", b"1 0:1 1:2 2:3\n0 2:6 1:5\n"),
    ("text/libsvm; index_base=1", b"1:1 2:2 3:3\n2:5 3:6\n"),
    ("application/x-recordio-protobuf", DENSE),
    ("application/x-recordio-protobuf", SPARSE),
    ("application/x-parquet", parquet()),
    ("application/vnd.apache.arrow.stream", arrow()),
    ("application/x-npy", npy(ROWS)),
    ("application/x-npy", npy(np.asfortranarray(ROWS.astype(">f8")))),
]


@pytest.mark.parametrize(("content_type", "body"), BODIES)
def test_the_same_rows_get_the_same_answer_in_every_format(content_type: str, body: bytes) -> None:
    model = Linear()
    found = ask(body, content_type, model=model)
    assert (found.status, found.body, found.rows) == (200, b"14.0\n28.0\n", 2)
    assert found.headers == (("Content-Type", "text/csv; charset=utf-8"),)
    (rows,) = model.given
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, ROWS)


@pytest.mark.parametrize("body", [b"[1,2,3]", b'{"age":1,"pay":2,"size":3}', b'{"features":[1,2,3]}', b"[[1,2,3]]"])
def test_one_row_needs_no_list_around_it(body: bytes) -> None:
    assert ask(body, "application/json").body == b"14.0\n"
    assert ask(npy(ROWS[0]), "application/x-npy").body == b"14.0\n"


def test_every_accepted_content_type_has_the_predictions() -> None:
    def told(accept: str) -> bytes:
        found = ask(b"1,2,3\n4,5,6\n", accept=accept)
        assert found.headers[0][1].startswith(accept)
        return found.body

    assert told("text/csv") == b"14.0\n32.0\n"
    assert told("application/json") == b'{"predictions": [{"score": 14.0}, {"score": 32.0}]}'
    assert told("application/jsonlines") == b'{"score": 14.0}\n{"score": 32.0}\n'
    np.testing.assert_array_equal(np.load(io.BytesIO(told("application/x-npy"))), np.array([14, 32], np.float32))
    assert pa.parquet.read_table(pa.BufferReader(told("application/x-parquet"))).to_pydict() == {"score": [14, 32]}
    stream = pa.ipc.open_stream(told("application/vnd.apache.arrow.stream"))
    assert stream.read_all().to_pydict() == {"score": [14, 32]}
    records = told("application/x-recordio-protobuf")
    assert records == b"".join(frame(entry(2, tensor([value]), "score")) for value in (14, 32))


def test_several_numbers_a_row_stay_together() -> None:
    def told(accept: str) -> bytes:
        return ask(b"1,2,3\n4,5,6\n", accept=accept, model=Linear(outputs=2)).body

    assert told("text/csv") == b"14.0,24.0\n32.0,42.0\n"
    assert json.loads(told("application/json")) == {"predictions": [{"score": [14, 24]}, {"score": [32, 42]}]}
    np.testing.assert_array_equal(np.load(io.BytesIO(told("application/x-npy"))), [[14, 24], [32, 42]])
    assert pa.parquet.read_table(pa.BufferReader(told("application/x-parquet"))).to_pydict() == {
        "score": [[14, 24], [32, 42]]
    }


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "text/csv"),
        ("*/*", "text/csv"),
        ("text/*", "text/csv"),
        ("application/*", "application/json"),
        ("Application/JSON", "application/json"),
        ("text/html, application/json;q=0.9, */*;q=0.1", "application/json"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("text/csv;q=0, application/jsonlines;q=0.001", "application/jsonlines"),
        ('application/json; output="score"', "application/json"),
        ("image/png", None),
        ("text/csv;q=0", None),
        ("text/csv;q=2", None),
        ("nonsense", None),
    ],
)
def test_accept_is_negotiated(accept: str, chosen: str | None) -> None:
    found = ask(b"1,2,3", accept=accept)
    assert found.status == (406 if chosen is None else 200)
    if chosen:
        assert found.headers[0][1].partition(";")[0] == chosen
    else:
        assert "accept one of text/csv, application/json" in json.loads(found.body)["hint"]


def test_what_an_answer_is_by_default_depends_on_the_model_and_a_variable() -> None:
    forest = Linear(framework="scikit-learn", algorithm="forest", objective="regression")
    assert ask(b"1,2,3", model=forest).headers == (("Content-Type", "application/json"),)
    assert ask(b"1,2,3", SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="application/jsonlines").body == b'{"score": 14.0}\n'
    with pytest.raises(ContractError, match="SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"):
        service(SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="image/png")


def test_an_empty_body_has_no_content_and_a_body_without_rows_no_predictions() -> None:
    assert ask(b"").status == 204
    assert ask(b"[]", "application/json", "application/json").body == b'{"predictions": []}'
    assert ask(b"age,pay,size\n").body == b""


def test_requests_can_be_read_together_and_answered_apart() -> None:
    ready = service()
    one, two = read(ready, b"1,2,3", "", ""), read(ready, b"[[4,5,6]]", "application/json", "application/json")
    assert one is not None
    assert two is not None
    numbers = ready.predictor.predict(np.concatenate([one.rows, two.rows]))
    assert write(ready, one, numbers[:1]).body == b"14.0\n"
    assert write(ready, two, numbers[1:]).body == b'{"predictions": [{"score": 32.0}]}'
    np.testing.assert_array_equal(predict(ready, one), numbers[:1])


def test_a_request_can_be_answered_in_one_call() -> None:
    assert answer(b"1,2,3", "text/csv", "", read_hosting({}), Linear()).body == b"14.0\n"


# ---- names ----


def test_a_model_without_names_takes_columns_as_they_come_and_its_own_names() -> None:
    bare = Linear(features=Features(3))
    assert ask(b"a,b,c\n1,2,3\n", model=bare).body == b"14.0\n"
    assert ask(b"f2,f0,f1\n3,1,2\n", model=bare).body == b"14.0\n"
    assert ask(b'[{"f2": 3, "f0": 1, "f1": 2}]', "application/json", model=bare).body == b"14.0\n"
    told = msgspec.json.decode(ask(b'[{"a": 3, "b": 1, "c": 2}]', "application/json", model=bare).body)
    assert "'a', 'b', 'c' are unknown" in told["error"]


def test_a_model_that_does_not_say_what_it_takes_gets_what_comes() -> None:
    model = Linear(features=Features(0), framework="pytorch", algorithm="TorchScript", objective="")
    for content_type, body in BODIES:
        if b"{" not in body:  # records need names
            assert ask(body, content_type, "text/csv", model=model).body in {b"14.0\n28.0\n", b"11.0\n21.0\n"}, body
    tensor_of = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for content_type, body in (
        ("application/x-npy", npy(tensor_of)),
        ("application/json", str(tensor_of.tolist()).encode()),
    ):
        assert ask(body, content_type, model=model).status == 200
        np.testing.assert_array_equal(model.given[-1], tensor_of)
    for body in (b"[[1,2],[3]]", b'[[1,"x"]]', b"[[1e99]]", b'[{"a": 1}]', b"[1" + b"0" * 400 + b"]"):
        assert ask(body, "application/json", model=model).status == 400


def test_a_header_of_numbers_is_one_where_these_are_the_names() -> None:
    model = Linear(names=("2010", "2011", "2012"))
    assert ask(b"2012,2010,2011\n3,1,2\n", model=model).body == b"14.0\n"
    assert ask(b"1,2,3\n", model=model).body == b"14.0\n"


def test_all_that_is_wrong_with_names_is_told_at_once() -> None:
    found = ask(b"pay,label,age,pay\n1,2,3,4\n")
    assert found.status == 400
    told = json.loads(found.body)
    assert "'label' is unknown; 'size' is missing; 'pay' is repeated" in told["error"]
    assert (told["column"], told["name"], told["id"]) == (2, "label", "r1")


def test_a_label_that_came_along_is_told() -> None:
    told = json.loads(ask(b"label,age,pay,size\n0,1,2,3\n").body)
    assert "'label' is unknown" in told["error"]
    assert told["hint"].startswith("a request has features alone")
    assert "leave out labels" in json.loads(ask(b"0,1,2,3\n").body)["hint"]


# ---- texts ----

COLOURS = Linear(
    features=Features(3, ("age", "colour", "size"), {"colour": "text"}), categories={"colour": ("blue", "red")}
)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv", b"1,red,3\n2,,4\n3,blue,NA\n"),
        ("text/csv", b'1,"red",3\n2,"",4\n3,blue,\n'),
        ("text/csv", b"colour,age,size\nred,1,3\n,2,4\nblue,3,\n"),
        ("application/json", b'[[1,"red",3],[2,null,4],[3,"blue",null]]'),
        ("application/json", b'{"colour": ["red", "NA", " blue "], "age": [1,2,3], "size": [3,4,null]}'),
        ("text/libsvm", b"0:1 1:1 2:3\n0:2 2:4\n0:3 1:0\n"),
    ],
)
def test_a_text_becomes_its_code(content_type: str, body: bytes) -> None:
    assert ask(body, content_type, model=COLOURS).status == 200
    np.testing.assert_array_equal(COLOURS.given[-1], np.array([[1, 1, 3], [2, NAN, 4], [3, 0, NAN]], np.float32))


def test_an_unknown_text_is_refused_or_missing_as_the_model_was_trained() -> None:
    for content_type, body in (("text/csv", b"1,green,3"), ("application/json", b'[[1,"green",3]]')):
        told = json.loads(ask(body, content_type, model=COLOURS).body)
        assert (told["row"], told["column"], told["name"], told["value"]) == (1, 2, "colour", "green")
        assert told["hint"] == "send one of 'blue', 'red'"
        lenient = Linear(features=COLOURS.card.features, categories=COLOURS.card.categories, unseen="missing")
        assert ask(body, content_type, model=lenient).status == 200
        np.testing.assert_array_equal(lenient.given[-1], [[1, NAN, 3]])


def test_a_model_of_texts_alone_does_not_take_its_first_row_for_a_header() -> None:
    model = Linear(
        features=Features(2, ("a", "b"), {"a": "text", "b": "text"}), categories={"a": ("x", "y"), "b": ("u", "v")}
    )
    assert ask(b"y,v\n", model=model).body == b"3.0\n"
    assert ask(b'"y",v\nx,u\n', model=model).body == b"3.0\n0.0\n"
    assert ask(b"b,a\nv,y\n", model=model).body == b"3.0\n"


def test_markers_of_missing_values_are_those_of_training() -> None:
    model = Linear(missing=("-999", "?"))
    for content_type, body in (("text/csv", b"-999,2,?\n"), ("application/json", b"[[-999,2,null]]")):
        assert ask(body, content_type, model=model).status == 200
        np.testing.assert_array_equal(model.given[-1], [[NAN, 2, NAN]])
    assert ask(b"1,,3", model=model).status == 400


def test_few_sparse_rows_are_dense_and_have_what_is_absent() -> None:
    forest = Linear(framework="scikit-learn", algorithm="forest", objective="regression", absent="zero")
    assert ask(b"0:1 2:3\n", "text/libsvm", "text/csv", model=forest).body == b"10.0\n"
    np.testing.assert_array_equal(forest.given[-1], [[1, 0, 3]])


def test_many_sparse_rows_stay_sparse() -> None:
    wide = Linear(features=Features(2**21))
    found = ask(b"0:1 2:3\n1:1\n", "text/libsvm", model=wide)
    assert found.body == b"10.0\n2.0\n"
    assert wide.given[-1].shape == (2, 2**21)
    assert wide.given[-1].nnz == 3


# ---- batch transform ----


@pytest.mark.parametrize("accept", ["text/csv", "application/json", "application/jsonlines", ""])
def test_a_batch_has_a_line_a_record_in_every_text(accept: str) -> None:
    batch = {"SAGEMAKER_BATCH": "true"}
    for outputs in (0, 2):
        found = ask(b"1,2,3\n4,5,6\n", accept=accept, model=Linear(outputs=outputs), **batch).body
        assert found.count(b"\n") == 2
        assert found.endswith(b"\n")
        bare = ask(
            b"1,2,3\n4,5,6\n", accept=accept, model=Linear(outputs=outputs), TRAINBOX_BATCH_NEWLINE="false", **batch
        )
        assert bare.body == found[:-1]


def test_a_header_in_a_batch_is_refused_unless_it_is_declared() -> None:
    body = b"size,age,pay\n3,1,2\n6,4,5\n"
    found = ask(body, SAGEMAKER_BATCH="true")
    assert found.status == 400
    assert "the first line is a header" in json.loads(found.body)["error"]
    # One line for each line; and the next part of the same file has no header.
    assert ask(body, "text/csv; header=present", SAGEMAKER_BATCH="true").body == b"\n14.0\n32.0\n"
    assert ask(b"1,2,3\n", "text/csv; header=present", SAGEMAKER_BATCH="true").body == b"14.0\n"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv", b"1,2,3\n\n4,5,6\n"),
        ("text/csv", b"1,2,3\n# of May\n4,5,6\n"),
        ("text/csv", b"\n1,2,3\n"),
        ("application/jsonlines", b"[1,2,3]\n\n[4,5,6]\n"),
        ("text/libsvm", b"0:1\n# of May\n1:2\n"),
    ],
)
def test_a_line_of_a_batch_without_an_answer_is_refused(content_type: str, body: bytes) -> None:
    assert ask(body, content_type).status == 200
    found = ask(body, content_type, SAGEMAKER_BATCH="true")
    assert found.status == 400
    assert "a blank line or a comment has no answer" in json.loads(found.body)["error"]
    at_the_end = body.replace(b"\n\n", b"\n").replace(b"# of May\n", b"").lstrip() + b"\n\r\n"
    assert ask(at_the_end, content_type, SAGEMAKER_BATCH="true").status == 200


# ---- what may be told ----


def test_an_error_repeats_no_value_if_values_may_be_personal() -> None:
    for body, content_type in (
        (b"1,secret,3\n", "text/csv"),
        (b"1,2,3\nsecret,5", "text/csv"),
        (b'[[1,"secret",3]]', "application/json"),
        (b'{"secret": 1}', "application/json"),
        (b"0:1 1:secret\n", "text/libsvm"),
    ):
        assert b"secret" in ask(body, content_type).body
        told = ask(body, content_type, TRAINBOX_SERVE_DETAIL="false")
        assert told.status == 400
        assert b"secret" not in told.body
        assert b"value" not in json.loads(told.body)
    cell = json.loads(ask(b"1,secret,3\n", TRAINBOX_SERVE_DETAIL="false").body)
    assert (cell["row"], cell["column"], cell["name"]) == (1, 2, "pay")
    assert make_service(read_hosting({}), Linear()).hosting.shows_values
