"""Requests that cannot be answered: each gets a status and the place of its fault, and never a 500 or a prediction."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.serving.test_answer import arrow, npy, parquet
from tests.support.serving import Linear, ask
from tests.support.writers import entry, frame, tensor
from trainbox.contract.model_card import Features

TYPES: dict[str, Any] = {"colour": "text", "code": "code"}
MODEL = Linear(
    names=("age", "pay", "size"),
    features=Features(4, ("age", "colour", "code", "size"), TYPES),
    categories={"colour": ("blue", "red")},
)
CSV, JSON, LINES = "text/csv", "application/json", "application/jsonlines"
LIBSVM, RECORDS = "text/libsvm", "application/x-recordio-protobuf"
PARQUET, ARROW, NPY = "application/x-parquet", "application/vnd.apache.arrow.stream", "application/x-npy"
INF = float("inf")


def parquet_of(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def record(values: list[float], **about: Any) -> bytes:
    return frame(entry(1, tensor(values, **about)))


def good(**columns: Any) -> dict[str, Any]:
    return {"age": [1.0], "colour": ["red"], "code": [0], "size": [2.0], **columns}


HEADER = npy(np.zeros((1, 4), np.float32))[:-16]
Case: TypeAlias = tuple[str, bytes, int, int | None, int | None, str, str | None]
#: Parquet with a histogram of a wrong length (zlib, base 85): asked for its row groups, Arrow 26 ends the process.
HISTOGRAM = """
c-oy*%Wl&^6uln1##9kXE6vE3yoeCBg473%)T%{PbexhVA}wh|1gY2r$8uUI4h~H!7JL9-z#6e&jl_->D?WoIV#SgT5;NmTY)Xw3
uB`E$`#9%5WH)GY6>B(;uhucbFb`1txbmxDP>}NDHU>P8uPrin9_v`QO=IjyGy=s7taEc9@h;Z@5W65nLBRN~;KCn#mo@=Z=8ydD
dAfBds?2QiBO5Tg0f4Lq01_=}AZ`6GzU@rD?L<rQrL38J)}u8r^?}#(PdeBDJiCBQwG;S&b4=5{@M(A&EkNDo?P|=Vd12R&<Fvui
OCJcbY^&~ojc2Vj(DRna$2o$?Cxv`foQh*iw_0nF%>gjt^Ubr@t?Rnwh@v@5PO`|_1ko$<R&m}T=bLhVtAAmUG?pf@L{q7fzo^b@
b-H!_yXf&~#K=-a?`NFv+H`x&CL$kZ2yzVaSqIBDbF|sK_uyu{TJtAb;c`Y@O6dWO<u0Wo>ISqzX+X<?u(>Q?k1J(LYr>GcWomiE
HIE-V0_u*qHyA$m9PA0>?j$}Ikzd{K`zI}NZx3aBQ1*CfBBUo=LBdBT`0di>lfxLU#_MMFRb{9M7q0#L3~7U>R78?Hn&ijQ=Emd4
rL$r8VNKNMN<TYV9FNVT%JIieS;Ef6czjfD@37R8EsOkJ>0~8tZGl<nccSN~{);8A-(TuPQ8+3L{b+C$J}Z>gmv1buTKw~xJn)A7
uo~?5`5Wk?-jV
"""
#: Content type, body; status, row, column, name, value.
BAD: list[Case] = [
    (CSV, b"abc,red,0,1\n", 400, 1, 1, "age", "abc"),
    (CSV, b"1,red,0,1\n2,red,0,x y\n", 400, 2, 4, "size", "x y"),
    (CSV, b"1,green,0,1\n", 400, 1, 2, "colour", "green"),
    (CSV, b"1,red,-1,1\n", 400, 1, 3, "code", "-1"),
    (CSV, b"1,red,0.5,1\n", 400, 1, 3, "code", "0.5"),
    (CSV, b"1,red,1e9,1\n", 400, 1, 3, "code", "1e+09"),
    (CSV, b"1,red,0,1e39\n", 400, 1, 4, "size", "1e39"),
    (CSV, b"1,red,0,inf\n", 400, 1, 4, "size", "inf"),
    (CSV, b"1,red,0,-Infinity\n", 400, 1, 4, "size", "-Infinity"),
    (CSV, b"1,red,0,1_000\n", 400, 1, 4, "size", "1_000"),
    (CSV, b"1,red,0,0x10\n", 400, 1, 4, "size", "0x10"),
    (CSV, b"1,red,0,50%\n", 400, 1, 4, "size", "50%"),
    (CSV, b"1,red,0,'1'\n", 400, 1, 4, "size", "'1'"),
    (CSV, b"1,red,0,2020-01-01\n", 400, 1, 4, "size", "2020-01-01"),
    (CSV, b"1,red,0,\xc2\xa01\n", 400, 1, 4, "size", "\xa01"),
    (CSV, b"1,red,0\n", 400, 1, None, "", None),
    (CSV, b"1,red,0,1,2\n", 400, 1, None, "", None),
    (CSV, b"1,red,0,1\n1,red,0\n", 400, 2, None, "", None),
    (CSV, b"1,red,0,1\n1,red,0,1,9\n", 400, 2, None, "", None),
    (CSV, b"[1,red,0,1]\n", 400, None, None, "", None),
    (CSV, b"\xff\xfe1\x00,\x00", 400, None, None, "", None),
    (CSV, b"1,r\xe9d,0,1\n", 400, None, None, "", None),
    (CSV, b'1,"red,0,1\n', 400, 1, None, "", None),
    (CSV, b"age,colour,code\n1,red,0\n", 400, None, None, "size", None),
    (CSV, b"age,colour,code,size,id\n1,red,0,1,7\n", 400, None, 5, "id", None),
    (CSV, b"age,colour,code,colour\n1,red,0,1\n", 400, None, 2, "colour", None),
    (CSV, b"AGE,colour,code,size\n1,red,0,1\n", 400, None, 1, "AGE", None),
    (CSV + "; header=absent", b"age,colour,code,size\n1,red,0,1\n", 400, 1, 1, "age", "age"),
    # JSON
    (JSON, b"{", 400, None, None, "", None),
    (JSON, b"1", 400, None, None, "", None),
    (JSON, b'"1,red,0,1"', 400, None, None, "", None),
    (JSON, b"null", 400, None, None, "", None),
    (JSON, b"\xff", 400, None, None, "", None),
    (JSON, b"[" * 100_000, 400, None, None, "", None),
    (JSON, b'[[1,"red",0,"1"]]', 400, 1, 4, "size", "1"),
    (JSON, b'[[1,"red",0,1],[1,"red",0,[1]]]', 400, 2, 4, "size", "[1]"),
    (JSON, b'[[1,"red",0,1e39]]', 400, 1, 4, "size", None),
    (JSON, b'[[1,"red",0,-Infinity]]', 400, 1, 4, "size", None),
    (JSON, b'[[1,"red",0,1' + b"0" * 400 + b"]]", 400, 1, 4, "size", None),
    (JSON, b'[[1,"green",0,1]]', 400, 1, 2, "colour", "green"),
    (JSON, b'[[1,{"a":1},0,1]]', 400, 1, 2, "colour", '{"a": 1}'),
    (JSON, b'[[1,"red",0]]', 400, 1, None, "", None),
    (JSON, b'[[1,"red",0,1],7]', 400, 2, None, "", None),
    (JSON, b'[{"age":1,"colour":"red","code":0}]', 400, 1, None, "size", None),
    (JSON, b'[{"age":1,"colour":"red","code":0,"sise":1}]', 400, 1, None, "sise", None),
    (JSON, b'{"age":[1,2],"colour":["red"],"code":[0],"size":[1]}', 400, None, 2, "colour", None),
    (JSON, b'{"columns":["age","colour"],"data":[[1]]}', 400, 1, None, "", None),
    (JSON, b'{"columns":["age","age"],"data":[[1,2]]}', 400, None, None, "age", None),
    (JSON, b'{"columns":"age","data":[[1]]}', 400, None, None, "", None),
    (JSON, b'{"features":{"keys":[9],"values":[1]}}', 400, None, None, "", None),
    (JSON, b'{"features":{"keys":[0,0],"values":[1,2]}}', 400, None, None, "", None),
    (JSON, b'{"features":{"keys":[true],"values":[1]}}', 400, None, None, "", None),
    (LINES, b'[1,"red",0,1]\n\n[1,"red",0,"x"]\n', 400, 3, 4, "size", "x"),
    (LINES, b'[1,"red",0,1]\n{"age":\n', 400, 2, None, "", None),
    (LINES, b'[[1,"red",0,1],[1,"red",0,1]]\n', 400, 1, None, "", None),
    # libsvm, records
    (LIBSVM, b"0:1 1:0 4:1\n", 400, 1, 5, "", None),
    (LIBSVM, b"0:1\n1:5\n", 400, 2, 2, "colour", "5"),
    (LIBSVM, b"0:1 0:2\n", 400, 1, 1, "age", "2"),
    (LIBSVM, b"0:x\n", 400, 1, 1, "age", "x"),
    (LIBSVM, b"-1:1\n", 400, 1, None, "", None),
    (LIBSVM, b"0:1,1:2\n", 400, 1, 1, "age", "1,1:2"),
    (LIBSVM + "; index_base=1", b"1:1\n0:1\n", 400, 2, None, "", None),
    (LIBSVM, b"99999999999999999999:1\n", 400, 1, None, "", None),
    (RECORDS, b"1,2,3,4\n", 400, None, None, "", None),
    (RECORDS, record([1, 0, 0, 2])[:-2], 400, None, None, "", None),
    (RECORDS, record([1, 0, 0]), 400, None, None, "", None),
    (RECORDS, record([1, 0, 0, 2]) + record([1, 0, 0, INF]), 400, 2, 4, "size", None),
    (RECORDS, record([1, 5, 0, 2]), 400, 1, 2, "colour", "5"),
    (RECORDS, record([1], keys=[7], shape=[9]), 400, None, None, "", None),
    (RECORDS, frame(b"\xff\xff"), 400, 1, None, "", None),
    # tables
    (PARQUET, b"PAR1", 400, None, None, "", None),
    (PARQUET, parquet()[:-9] + parquet()[-8:], 400, None, None, "", None),
    (PARQUET, parquet_of(**good(size=[INF])), 400, 1, 4, "size", None),
    (PARQUET, parquet_of(**good(colour=["green"])), 400, 1, 2, "colour", "green"),
    (PARQUET, parquet_of(**good(id=[1])), 400, None, 5, "id", None),
    (PARQUET, parquet_of(**good(size=[[1.0]])), 400, None, None, "", None),
    (PARQUET, parquet_of(**good(size=["x"])), 400, None, None, "", None),
    (ARROW, arrow(compression="zstd"), 400, None, None, "", None),
    (ARROW, arrow().replace(b"size", b"s\xd8ze"), 400, None, None, "", None),
    (ARROW, arrow()[:-30], 400, None, None, "", None),
    (ARROW, b"\xff\xff\xff\xff\xff\xff\xff\x7f", 400, None, None, "", None),
    (ARROW, arrow(), 400, None, 3, "pay", None),
    (NPY, npy(np.array([[1, 0, 0, INF]])), 400, 1, 4, "size", None),
    (NPY, npy(np.array([[1, 0, 0, 1e39]])), 400, 1, 4, "size", None),
    (NPY, npy(np.array([[1, 0, -1, 1]])), 400, 1, 3, "code", "-1"),
    (NPY, npy(np.zeros((2, 3))), 400, None, None, "", None),
    (NPY, npy(np.zeros((1, 1, 4))), 400, None, None, "", None),
    (NPY, npy(np.array([["1", "2", "3", "4"]])), 400, None, None, "", None),
    (NPY, npy(np.zeros((1, 4), np.complex64)), 400, None, None, "", None),
    (NPY, HEADER, 400, None, None, "", None),
    (NPY, npy(np.zeros((1, 4))).replace(b"}", b"("), 400, None, None, "", None),
    (NPY, b"\x93NUMPY\x09\x00", 400, None, None, "", None),
    # content types
    ("image/png", b"\x89PNG", 415, None, None, "", None),
    ("application/x-www-form-urlencoded", b"a=1", 415, None, None, "", None),
    ("text/csv; charset=utf-16", b"1", 415, None, None, "", None),
    ("text/libsvm; index_base=2", b"0:1", 415, None, None, "", None),
    ("text/csv, application/json", b"1", 415, None, None, "", None),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[0]} {case[1][:40]!r}")
def test_a_bad_body_is_refused_with_its_place(case: Case) -> None:
    content_type, body, status, *place = case
    found = ask(body, content_type, model=MODEL)
    assert found.status == status, found
    assert found.headers == (("Content-Type", "application/json"),)
    told = json.loads(found.body)
    assert told["error"]
    assert told["hint"]
    assert told["id"] == "r1"
    assert [told.get("row"), told.get("column"), told.get("name", ""), told.get("value")] == place, told


@pytest.mark.parametrize(
    ("content_type", "told"),
    [
        (
            "application/octet-stream",
            "the SageMaker SDK sends this where no serializer is given, such as CSVSerializer(); send one of",
        ),
        (
            "application/x-www-form-urlencoded",
            "with curl, name it: --header 'Content-Type: text/csv'; send one of text/csv, ",
        ),
        ("multipart/form-data; boundary=x", "with curl, send the file as it is: --data-binary @FILE, and not --form; "),
    ],
)
def test_what_a_client_sends_for_no_content_type_is_told_with_the_remedy(content_type: str, told: str) -> None:
    found = ask(b"1,2,3", content_type)
    assert (found.status, json.loads(found.body)["hint"].startswith(told)) == (415, True)


def test_a_pickle_in_an_array_is_not_loaded(tmp_path: Path) -> None:
    class Writes:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "loaded",)

    array = np.array([Writes()], object)
    body = npy(array)
    assert ask(body, NPY, model=MODEL).status == 400
    assert ask(pickle.dumps(Writes()), NPY, model=MODEL).status == 400
    assert not (tmp_path / "loaded").exists()


def test_a_body_is_not_decoded_to_more_than_the_limit() -> None:
    zeros = np.zeros(265_000, np.float32)
    body = parquet_of(age=zeros, code=zeros, size=zeros, colour=pa.array(["red"] * len(zeros)))
    assert len(body) < 10_000
    limit = {"MAX_CONTENT_LENGTH": str(2**20)}
    found = ask(body, PARQUET, model=MODEL, **limit)
    assert found.status == 413
    assert "1060000" not in json.loads(found.body)["error"]
    assert "265,000 rows of 4 columns; at most 1,048,576 cells" in json.loads(found.body)["error"]
    sparse = b"[" + b",".join([b'{"features":{"keys":[0],"values":[1]}}'] * 265_000) + b"]"
    assert ask(sparse, JSON, model=MODEL, **limit).status == 413
    # A header that promises more than follows.
    promised = npy(np.zeros((1, 4), np.float32)).replace(b"'shape': (1, 4), ", b"'shape':(10**12,4)")[:128] + bytes(16)
    assert ask(promised, NPY, model=MODEL).status == 400


def test_a_footer_that_ends_arrow_does_not_end_the_worker() -> None:
    body = zlib.decompress(base64.b85decode(HISTOGRAM.replace("\n", "")))
    assert body.startswith(b"PAR1")
    assert ask(body, PARQUET, model=MODEL).status in {200, 400}
