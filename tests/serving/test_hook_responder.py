"""A model with the user's module answers requests: what the module lacks is ours, by the card or plain arrays."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.test_answer import npy
from tests.support.boosters import train
from tests.support.servers import ServeProcess
from trainbox.contract.hosting import read_hosting
from trainbox.contract.model_card import CARD_FILE, ModelCard, encode_card, features_of
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.hooks.defaults import decode_plain
from trainbox.serving.responder import Request, Responder, Response, load_responder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `load` sets it


@pytest.fixture(autouse=True)
def _no_modules_left() -> Iterator[None]:
    path, before = list(sys.path), {*sys.modules}
    yield
    sys.path[:] = path
    for name in {*sys.modules} - before:
        if name in {"inference", "helper"}:
            del sys.modules[name]


def responder(root: Path, module: str, *, with_model: bool = True, **variables: str) -> Responder:
    code = root / "model/code"
    code.mkdir(parents=True, exist_ok=True)
    (code / "inference.py").write_text(module)
    if with_model:
        booster, _ = train("binary:logistic")
        (root / "model/xgboost-model").write_bytes(bytes(booster.save_raw("ubj")))
        card = ModelCard(
            framework="xgboost",
            algorithm="xgboost",
            objective="binary:logistic",
            features=features_of(["age", "height", "weight", "sex"]),
            classes=(0, 1),
        )
        (root / "model" / CARD_FILE).parent.mkdir(exist_ok=True)
        (root / "model" / CARD_FILE).write_bytes(encode_card(card))
    return load_responder(read_hosting({"TRAINBOX_ROOT": str(root), **variables}))


def ask(model: Responder, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    given = {name.lower(): value for name, value in (headers or {}).items()}
    return model.answer(Request({"content-type": "text/csv", **given}, body, "id-7"))


def expected(row: list[float]) -> float:
    booster, _ = train("binary:logistic")
    return float(booster.predict(xgb.DMatrix(np.array([row], np.float32), nthread=1))[0])


def headers_of(response: Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers}


def test_a_module_that_only_changes_the_prediction_reads_and_writes_as_ours(tmp_path: Path) -> None:
    model = responder(tmp_path, "def predict_fn(data, model):\n    return model.predict(data) * 0 + 0.5\n")
    model.check()
    model.warm_up(1)
    found = ask(model, b"weight,age,height,sex\n1,2,3,0\n4,5,6,1\n")
    assert (found.status, found.body) == (200, b"0.5\n0.5\n")
    assert headers_of(found)["content-type"].startswith("text/csv")
    found = ask(model, b"1,2,3,0", {"Accept": "application/json"})
    assert json.loads(bytes(found.body)) == {"predictions": [{"score": 0.5}]}  # type: ignore[arg-type]
    found = ask(model, b"1,2,abc,0")
    assert found.status == 400
    said = json.loads(bytes(found.body))  # type: ignore[arg-type]
    assert (said["row"], said["column"], said["value"], said["id"]) == (1, 3, "abc", "id-7")


def test_hooks_around_our_model_get_its_rows_and_its_numbers(tmp_path: Path) -> None:
    model = responder(
        tmp_path,
        "import json\n"
        "import numpy as np\n"
        "def input_fn(body, kind): return np.array([json.loads(body)['row']], np.float32)\n"
        "def output_fn(prediction, accept, context):\n"
        "    context.set_response_header('X-Count', len(prediction))\n"
        "    return json.dumps({'p': float(prediction[0])}), 'application/json'\n",
    )
    found = ask(model, b'{"row": [1, 2, 3, 0]}', {"Content-Type": "application/json"})
    assert json.loads(bytes(found.body)) == {"p": expected([1, 2, 3, 0])}  # type: ignore[arg-type]
    assert headers_of(found) == {"x-count": "1", "content-type": "application/json"}


def test_a_model_of_the_users_own_gets_plain_arrays(tmp_path: Path) -> None:
    text = "class Twice:\n    def predict(self, rows): return rows.sum(axis=1) * 2\ndef model_fn(d): return Twice()\n"
    model = responder(tmp_path, text, with_model=False)
    found = ask(model, b"1,2\n3,4\n")
    assert (found.body, headers_of(found)["content-type"]) == (b"[6.0,14.0]", "application/json")
    found = ask(model, b"[[1,2],[3,4]]", {"Content-Type": "application/json", "Accept": "text/csv"})
    assert found.body == b"6\n14\n"
    assert ask(model, b"1,x\n").status == 400
    assert b"value 'x' of row 1, column 2 is not a number" in bytes(ask(model, b"1,x\n").body)  # type: ignore[arg-type]
    assert ask(model, b"1,2\n3\n").status == 400
    assert ask(model, b"{", {"Content-Type": "application/json"}).status == 400
    assert ask(model, b"?", {"Content-Type": "image/png"}).status == 415
    assert ask(model, b"1,2", {"Accept": "image/png"}).status == 406


def test_a_pickle_in_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    model = responder(tmp_path, "def model_fn(d): return lambda rows: rows\n", with_model=False)
    found = ask(model, (tmp_path / "rows.npy").read_bytes(), {"Content-Type": "application/x-npy"})
    assert found.status == 400


def test_a_module_of_pytorch_gets_tensors_whether_or_not_predict_fn_is_the_users(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    text = (
        "import torch\n"
        "def model_fn(d):\n    return torch.nn.Linear(2, 1, bias=False).requires_grad_(True)\n"
        "def predict_fn(data, model):\n    return data.to(torch.float64) * 2\n"
    )
    for content_type, body in {
        "text/csv": b"1,2\n3,4\n",
        "application/json": b"[[1,2],[3,4]]",
        "application/x-npy": npy(np.array([[1, 2], [3, 4]], np.float32)),
    }.items():
        found = ask(responder(tmp_path, text, with_model=False), body, {"Content-Type": content_type})
        assert (found.status, found.body) == (200, b"[[2.0,4.0],[6.0,8.0]]")
    ours = ask(responder(tmp_path, text.partition("def predict")[0], with_model=False), b"1,2\n3,4\n")
    assert np.shape(json.loads(bytes(ours.body))) == (2, 1)  # type: ignore[arg-type]
    raw = "def predict_fn(data, model):\n    import torch\n    return torch.tensor(data[:, 0], requires_grad=True)\n"
    assert ask(responder(tmp_path, raw), b"1,2,3,0\n").body == b"1.0\n"
    assert torch.is_grad_enabled()


PLAIN = [("text/csv", b"1,2\n3,4\n"), ("application/json", b"[[1,2],[3,null]]"), ("application/x-npy", npy(np.eye(2)))]
#: Of a model without a card: what Python or NumPy would read silently, or answer with an exception of their own.
BAD = [
    ("text/csv", b'1,"2\n3,4\n'),
    ("text/csv", b"1_000,2\n"),
    ("text/csv", "\u0661,2\n".encode()),
    ("text/csv", b"1e39,2\n"),
    ("text/csv", b"1,2\n3\n"),
    ("text/csv", b"a,b\n1,2\n"),
    ("text/csv", b"1,\x002\n"),
    ("text/csv", b"\xff\xfe"),
    ("text/csv", b'"' + b"1" * 200_000 + b'"'),
    ("application/json", b"[" * 100_000),
    ("application/json", b"[[1,2],[3]]"),
    ("application/json", b"{"),
    ("application/x-npy", b"PK\x03\x04" + bytes(40)),
    ("application/x-npy", npy(np.eye(2)).replace(b"(2, 2), ", b"(10**12,")),
    ("application/x-npy", npy(np.eye(2))[:-1]),
    ("application/x-npy", npy(np.array(["a"]))),
]


@pytest.mark.parametrize("place", range(len(BAD)))
def test_a_body_for_a_model_without_a_card_is_refused(place: int) -> None:
    content_type, body = BAD[place]
    with pytest.raises(RequestError) as caught:
        decode_plain(body, content_type)
    assert caught.value.status == 400


def test_null_among_numbers_is_missing() -> None:
    np.testing.assert_array_equal(decode_plain(b"[[1,null]]", "application/json"), [[1, np.nan]])
    assert decode_plain(b'[["a",null]]', "application/json").dtype == object


@given(
    seed=st.sampled_from([*PLAIN, *((kind, body[:200]) for kind, body in BAD)]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), max_size=3),
)
def test_no_body_for_a_model_without_a_card_is_a_500(seed: tuple[str, bytes], edits: list[tuple[float, bytes]]) -> None:
    content_type, body = seed
    for share, piece in edits:
        at = int(share * len(body))
        body = body[:at] + piece + body[at + len(piece) // 2 :]
    with contextlib.suppress(RequestError):
        decode_plain(body, content_type)


def test_an_error_of_a_hook_is_an_answer_with_the_users_line_and_its_traceback_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = responder(tmp_path, "def predict_fn(data, model):\n    return data.nothing\n")
    found = ask(model, b"1,2,3,0")
    said = json.loads(bytes(found.body))  # type: ignore[arg-type]
    assert found.status == 500
    assert said["error"].startswith("predict_fn: AttributeError: 'numpy.ndarray' object has no attribute 'nothing'")
    assert said["error"].endswith("(inference.py:2 in predict_fn)")
    assert said["id"] == "id-7"
    log = capfd.readouterr().err
    assert "id=id-7 Traceback (most recent call last):" in log
    assert "return data.nothing" in log


def test_the_text_of_an_exception_is_left_out_where_values_may_be_personal(tmp_path: Path) -> None:
    text = "def predict_fn(data, model):\n    raise ValueError(f'{data[0, 0]} is too much')\n"
    told = ask(responder(tmp_path, text, TRAINBOX_SERVE_DETAIL="false"), b"1234,2,3,0")
    assert json.loads(bytes(told.body))["error"] == "predict_fn: ValueError (inference.py:2 in predict_fn)"  # type: ignore[arg-type]
    assert b"1234" in bytes(ask(responder(tmp_path, text), b"1234,2,3,0").body)  # type: ignore[arg-type]


def test_what_a_hook_makes_bit_by_bit_is_a_stream(tmp_path: Path) -> None:
    model = responder(
        tmp_path, "def model_fn(d): return None\ndef predict_fn(data, model):\n    yield 'a'\n    yield b'b'\n",
        with_model=False,
    )  # fmt: skip
    found = ask(model, b"1,2", {"Accept": "text/event-stream"})
    assert isinstance(found.body, Iterator)
    assert list(found.body) == [b"a", b"b"]
    assert headers_of(found)["content-type"] == "text/event-stream"


def test_the_default_of_accept_is_that_of_the_variable(tmp_path: Path) -> None:
    text = "def output_fn(prediction, accept): return accept\n"
    for accept in ({}, {"Accept": "*/*"}):
        assert ask(responder(tmp_path, text), b"1,2,3,0", accept).body == b"text/csv"
        named = responder(tmp_path, text, SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="application/x-npy")
        assert ask(named, b"1,2,3,0", accept).body == b"application/x-npy"
    assert ask(responder(tmp_path, text), b"1,2,3,0", {"Accept": "a/b"}).body == b"a/b"


@pytest.mark.process
def test_a_server_answers_with_the_users_module(tmp_path: Path) -> None:
    text = (
        "def predict_fn(data, model, context):\n"
        "    if context.get_request_header('X-Break'): raise ValueError('no such product')\n"
        "    return (f'{value:.2f};' for value in model.predict(data))\n"
    )
    responder(tmp_path, text)
    with ServeProcess(tmp_path, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}, obedient=None) as server:
        server.until_ready()
        found = server.invoke(b"1,2,3,0\n1,2,3,0\n", {"Content-Type": "text/csv", "Accept": "text/event-stream"})
        assert (found.status, found.headers["content-type"]) == (200, "text/event-stream")
        assert found.body == f"{expected([1, 2, 3, 0]):.2f};".encode() * 2
        found = server.invoke(b"1,2,3,0", {"Content-Type": "text/csv", "X-Break": "1"})
        said = json.loads(found.body)
        assert (found.status, said["error"]) == (
            500,
            "predict_fn: ValueError: no such product (inference.py:2 in predict_fn)",
        )
        server.until(lambda: f"id={said['id']} Traceback" in server.log, "the traceback is in the log")
        assert "the model brings code, which runs with all rights of the container" in server.log
        assert server.stop() == 0
