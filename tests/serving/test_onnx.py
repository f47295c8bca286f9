"""Models in ONNX: how they are asked, from what their files say; and their answers."""

import base64
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.serving import ask
from trainbox.contract.hosting import Predictor, read_hosting
from trainbox.errors import DataError
from trainbox.serving.models.find import find_model, list_model, load
from trainbox.serving.models.onnx import OnnxPlan, OnnxPort, plan_model

#: rows (n, 3) -> rows @ (1, 2, 3); zlib, base 85.
LINEAR = """
c-rIO5MnH`s^T&dVk}qUaL&&wE=kNQ(NgAOElbQPP1O?TVCG;HU{vB^U}&&sU|?_nA_phN@&$}6Tw+`-Mfv5$T#V&H%*Ca-N^HJ~CBCIOLX7EA
A`mGd9xg5pMj<vX1}-KJ<|JV*kUA7WMkf|71_53GCMg%W
"""
#: rows (n, 3) -> label, and a dictionary of probabilities: softmax of 0 and rows @ (1, 2, 3); zlib, base 85.
CLASSES = """
c-oCnu};G<5RH=%tRszrVE~Dx88ei<5+W3dp-?fvfVxCZ<Wwgmc4QlsZhT69i9g{JNU9F$#tlz*dhhP(9i@!e`L7E<1bnTwhMm;B5H<5O-zM=3
O2PGG&5gkdg-)k%Q4Z5yWO8FQ%8gmNQZ2omFdd=kErg{KRfQ!AY0aI}*AaZ*4_($nmUSdZuK`e6p-a(@<pagwtof`h=6lmC(h)bkfv8o+=2mlQ
Dy5s`^zHTOef99s5pND0XG+SiSyRI^3@O;8)vDkH)@V_fBv@m+;_W}8jE^z0SzjJr6arAf0&u{kUU3eGmr)2PWiB|y6plSvoJ0_&(9;3<{jRg{
!HFk}2u2pM_Xj^1XB+
"""
#: age float (n, 1), count int64 (n, 1) -> age - count; zlib, base 85.
COLUMNS = """
c-rIO5MnH`D(8~sVolC3%_|XNOjBZUPAo3b;^bl~$(LYUz{tcU%*C9Tp323TCd87HT3oEe99)_t#F!oh5f|d&;^JTwV&h`qV&Y(o5`~!r5@v@9
Cy8)@^`a_vV&P&C-~|AE(iL6
"""
FLOATS, LABELS = "tensor(float)", "tensor(int64)"
BY_LABEL = "seq(map(string,tensor(float)))"


def predictor(root: Path, model: str) -> Predictor:
    (root / "model").mkdir()
    (root / "model" / "model.onnx").write_bytes(zlib.decompress(base64.b85decode(model.replace("\n", ""))))
    hosting = read_hosting({"TRAINBOX_ROOT": str(root)})
    return load(find_model(hosting, list_model(hosting)))


def test_a_model_is_asked_as_its_file_says() -> None:
    rows, label = OnnxPort("rows", FLOATS, ("n", 3)), OnnxPort("label", LABELS, ("n",))
    plan = OnnxPlan((("rows", "f4"),), (), (3,), "sum", is_by_label=False)
    assert plan_model([rows], [OnnxPort("sum", FLOATS)]) == plan
    assert plan_model([rows], [label, OnnxPort("sum", FLOATS)]) == plan
    assert plan_model([rows], [label]).output == "label"
    assert plan_model([rows], [label, OnnxPort("p", BY_LABEL)]).is_by_label
    assert plan_model([OnnxPort("rows", "tensor(double)", ("n", "k"))], [label]).shape == ()
    assert plan_model([OnnxPort("image", FLOATS, (None, 1, 28, 28))], [label]).shape == (1, 28, 28)
    columns = [OnnxPort("age", FLOATS, (None, 1)), OnnxPort("count", LABELS, (None, 1))]
    assert plan_model(columns, [label]).names == ("age", "count")
    assert plan_model(columns, [label]).inputs == (("age", "f4"), ("count", "i8"))


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ([OnnxPort("sex", "tensor(string)", (None, 1))], [], r"the input 'sex' of the model is tensor\(string\)"),
        (
            [OnnxPort("a", FLOATS, ("n", 2)), OnnxPort("b", FLOATS, ("n", 1))],
            [OnnxPort("y", FLOATS)],
            "not a column each",
        ),
        (
            [OnnxPort("a", FLOATS, ("n", 2))],
            [OnnxPort("y", "tensor(string)")],
            r"no output of numbers: 'y': tensor\(str",
        ),
    ],
)
def test_what_a_model_takes_or_gives_beside_numbers_needs_hooks(
    inputs: list[OnnxPort], outputs: list[OnnxPort], text: str
) -> None:
    with pytest.raises(DataError, match=text) as caught:
        plan_model(inputs, outputs)
    assert caught.value.hint.startswith("add code/inference.py")


def test_without_onnxruntime_the_server_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as Python notes that it is not installed
    with pytest.raises(DataError, match=r"model\.onnx needs onnxruntime, which is not installed"):
        predictor(tmp_path, LINEAR)


def test_rows_are_answered_by_the_model(tmp_path: Path) -> None:
    model = predictor(tmp_path, LINEAR)
    assert ask(b"1,2,3\n0,0,1\n", model=model, accept="text/csv").body == b"14.0\n3.0\n"
    assert json.loads(ask(b"1,2,3", model=model).body) == {"predictions": [{"score": 14.0}]}
    assert ask(b"0:1 2:1\n", "text/libsvm", "text/csv", model=model).body == b"4.0\n"
    assert json.loads(ask(b"1,2", model=model).body)["error"] == "the first row has 2 columns; the model has 3 features"
    model.set_threads(2)
    assert ask(b"1,2,3", model=model, accept="text/csv").body == b"14.0\n"
    assert len(model.predict(np.zeros((0, 3), np.float32))) == 0


def test_a_classifier_tells_labels_and_probabilities(tmp_path: Path) -> None:
    found = ask(b"1,0,0\n-1,0,0\n", model=predictor(tmp_path, CLASSES), accept="text/csv").body.decode().splitlines()
    assert [line.partition(",")[0] for line in found] == ["yes", "no"]
    np.testing.assert_allclose([float(line.partition(",")[2]) for line in found], 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_columns_are_matched_by_name(tmp_path: Path) -> None:
    model = predictor(tmp_path, COLUMNS)
    assert ask(b'[{"count": 2, "age": 7.5}]', "application/json", "text/csv", model=model).body == b"5.5\n"
    assert ask(b"count,age\n2,7.5\n", "text/csv", "text/csv", model=model).body == b"5.5\n"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    damaged = base64.b85encode(zlib.compress(b"\x08\x08 no model")).decode()
    with pytest.raises(DataError, match=r"model\.onnx cannot be loaded by onnxruntime"):
        predictor(tmp_path, damaged)
