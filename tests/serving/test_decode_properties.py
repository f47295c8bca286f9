"""Any body: the rows are those that training reads of the same bytes, to the bit, or it is refused; never a 500."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.test_answer import BODIES, npy
from tests.serving.test_bad_bodies import BAD, MODEL
from tests.support.serving import Linear, ask, service
from tests.support.writers import entry, frame, tensor
from trainbox.contract.model_card import MISSING
from trainbox.data import ColumnSpec
from trainbox.data.formats import Format, parse_body
from trainbox.errors import DataError
from trainbox.serving.bodies.decode import decode
from trainbox.serving.bodies.decode_csv import decode_csv
from trainbox.serving.bodies.features import Floats
from trainbox.serving.bodies.media_types import read_input_type
from trainbox.serving.bodies.request_errors import RequestError

NAMES = ("a", "b", "c")
PLAN = service(Linear(names=NAMES)).plan
floats = st.floats(width=32, allow_infinity=False, allow_nan=False)


def middle(value: np.float32, nudge: str) -> str:
    """The decimal number between a 32-bit float and the next one, and a little more or less than it."""
    exact = (float(value) + float(np.nextafter(value, np.float32(np.inf)))) / 2
    return f"{exact:.60f}".rstrip("0") + nudge


numbers = st.one_of(
    floats.map(repr),
    floats.map(lambda value: f"{value:.6g}"),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.builds(
        middle,
        st.floats(2**-10, 2**20, width=32, allow_subnormal=False).map(np.float32),
        st.sampled_from(("", "1", "00000000000000001")),
    ),
    st.sampled_from(("-0", "-0.0", "0", "1e-46", "1e-400", "1.2e-38", "3.4028235e38", "3.4028236e38", "1e39", "1e400")),
    st.sampled_from(("+1", ".5", "5.", "007", "1E5", "1e+5", "True", "false", " 1 ", "\t2")),
)
cells = st.one_of(numbers, numbers, numbers, st.sampled_from((*MISSING, "", "", "nan", "-NaN")))
oddities = st.sampled_from(
    ("x", "1_0", "inf", '"1"', "1 2", "#", "1e", "--1", "0x1", "é", "[1", "null", "1,2", "\n", "\0")
)


def same(content: bytes, format_: Format, content_type: str) -> None:
    """Compare what a request has with what a channel has of the same bytes."""
    try:
        expected = parse_body(content, format_, ColumnSpec(labels=0), names=NAMES)
    except DataError:
        expected = None
    is_empty = expected is not None and not expected.features.shape[0]
    is_refused = expected is None or (expected.names not in {None, NAMES}) or expected.features.shape[1] != len(NAMES)
    if is_refused and not is_empty:
        with pytest.raises(RequestError) as refused:
            decode(content, read_input_type(content_type), PLAN)
        assert refused.value.status == 400
        return
    assert expected is not None
    try:
        found = decode(content, read_input_type(content_type), PLAN).rows
    except RequestError:
        assert is_empty  # of names that the model has not
        return
    assert isinstance(found, np.ndarray)
    assert isinstance(expected.features, np.ndarray)
    assert found.dtype == np.float32
    assert _bits(found) == _bits(expected.features)


def _bits(rows: Floats) -> bytes:
    """The bits of rows; one NaN is like another."""
    return np.where(np.isnan(rows), np.float32(np.nan), rows).tobytes()


@settings(max_examples=300)
@given(
    rows=st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=5),
    end=st.sampled_from(("\n", "\r\n", "")),
    delimiter=st.sampled_from((",", ",", ",", ";")),
)
def test_csv_has_the_bits_of_training(rows: list[list[str]], end: str, delimiter: str) -> None:
    body = (end or "\n").join(delimiter.join(row) for row in rows) + end
    same(body.encode(), "CSV", "text/csv")


@settings(max_examples=200)
@given(
    rows=st.lists(st.lists(st.one_of(cells, oddities), min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_odd_csv_is_refused_where_training_refuses_it(rows: list[list[str]]) -> None:
    same("\n".join(",".join(row) for row in rows).encode(), "CSV", "text/csv")


@pytest.mark.parametrize(
    "body",
    [
        "1,2,3,null,4,5,6",  # the quick way writes the end of a line so
        "1,2,3,null,4,5,6\n7,8,9",
        "1,2,3\n4,5,6,null,7,8,9",
        "1,2\n3,null,4,5,6",
        "1,2,3\n\n4,5,6",
        "1,2,3\n4,5\n6,7,8,9",
        "1,2,3,4\n5,6",
        ",2,3\n4,,6\n7,8,\n",
        "1,,\n,,6\n7,8,9",
        "1,2,3\n,,\n4,5,6\n,,",
        "1,2,3\n,\n4,5,6",
        "1,2,-0\n-0,1,2\n1,-0,3",
        "null,2,3\n4,5,6",
        "1,2,3\n4,5,null",
    ],
)
@pytest.mark.parametrize("times", [1, 2_000])
def test_lines_of_csv_are_told_apart_as_in_training(body: str, times: int) -> None:
    same("\n".join([body] * times).encode(), "CSV", "text/csv")
    same("\n".join(["1,2,3"] * times + [body]).encode(), "CSV", "text/csv")


@given(rows=st.lists(st.lists(st.one_of(st.none(), floats), min_size=3, max_size=3), min_size=1, max_size=5))
def test_every_format_has_the_same_bits(rows: list[list[float | None]]) -> None:
    expected = np.array([[np.nan if cell is None else cell for cell in row] for row in rows], np.float32)
    records = [dict(zip(NAMES, row, strict=True)) for row in rows]
    columns = {name: [row[place] for row in rows] for place, name in reversed([*enumerate(NAMES)])}
    for content_type, body in {
        "text/csv": "\n".join(",".join("" if cell is None else repr(cell) for cell in row) for row in rows).encode(),
        "application/json": json.dumps(rows).encode(),
        "application/json; records": json.dumps({"instances": records}).encode(),
        "application/json; columns": json.dumps(columns).encode(),
        "application/jsonlines": "\n".join(map(json.dumps, records)).encode(),
        "application/x-npy": npy(expected),
        "application/x-recordio-protobuf": b"".join(frame(entry(1, tensor(row))) for row in expected.tolist()),
        "text/libsvm": "\n".join(
            " ".join(["1", *(f"{place}:{cell!r}" for place, cell in enumerate(row) if cell is not None)])
            for row in rows
        ).encode(),
    }.items():
        if content_type == "text/csv" and body.startswith(b","):
            continue  # `,0,1` may be the header of a data frame
        found = decode(body, read_input_type(content_type), PLAN).rows
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32), content_type, strict=True)


texts = st.sampled_from(("blue", "red", "red", " red", "", "NA", "null", "green", "1", '"blue"', "blue,"))
codes = st.sampled_from(("0", "1", "", "7", "-1", "0.5", "nan"))


@settings(max_examples=300)
@given(rows=st.lists(st.tuples(cells, texts, codes, cells), min_size=1, max_size=4))
def test_texts_have_the_codes_of_training(rows: list[tuple[str, str, str, str]]) -> None:
    """The quick way against the reader of training, whose blocks `open_csv` reads."""
    body = "\n".join(map(",".join, rows)).encode()
    plan = service(MODEL).plan

    def read(*, is_quick: bool) -> bytes | str:
        try:
            found = decode_csv(body, msgspec.structs.replace(plan, is_plain=is_quick), None)
        except RequestError as error:
            return f"{error.row} {error.column} {error.name}"
        return _bits(found.rows)

    assert plan.is_plain
    assert read(is_quick=True) == read(is_quick=False)


def test_a_long_body_has_the_bits_of_its_lines() -> None:
    rows = np.random.default_rng(1).normal(size=(20_000, 3)).astype(np.float32)
    lines = [",".join(f"{cell:.9g}" for cell in row) for row in rows.tolist()]
    for count in (1, 2, 10, 1_000, 20_000):
        found = decode("\n".join(lines[:count]).encode(), read_input_type("text/csv"), PLAN).rows
        np.testing.assert_array_equal(found, rows[:count])


SEEDS = [*BODIES, *((content_type, body[:2_000]) for content_type, body, *_ in BAD)]


@settings(max_examples=400)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.sampled_from("dirc"), st.binary(max_size=4)), max_size=4),
)
def test_no_body_is_a_500(seed: tuple[str, bytes], edits: list[tuple[float, str, bytes]]) -> None:
    content_type, body = seed
    for share, kind, piece in edits:
        at = int(share * len(body))
        rest = {"d": body[at + len(piece) :], "i": piece + body[at:], "r": piece + body[at + len(piece) :], "c": b""}
        body = body[:at] + rest[kind]
    for model in (MODEL, Linear()):
        found = ask(body, content_type, model=model)
        assert found.status in {200, 204, 400, 413, 415}
        if found.status == 200:
            assert found.body.count(b"\n") == found.rows


@settings(max_examples=200)
@given(body=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)), seed=st.sampled_from(SEEDS))
def test_nor_are_bytes_of_any_kind(body: bytes, seed: tuple[str, bytes]) -> None:
    assert ask(body, seed[0]).status in {200, 204, 400, 413, 415}


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                ("age", "pay", "size", "instances", "inputs", "data", "features", "values", "keys", "columns", "x")
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@given(value=json_values)
def test_json_of_any_shape_is_answered_or_refused(value: object) -> None:
    body = json.dumps(value).encode()
    for content_type in ("application/json", "application/jsonlines"):
        found = ask(body, content_type)
        assert found.status in {200, 400}
        if found.status == 200:
            assert found.body.count(b"\n") == found.rows


@pytest.mark.parametrize("accept", ["", "*/*;q=", 'a/b;c="', ";;;", ",,,", "a/b;q=0,,;", "\x00", "text/csv;" * 1_000])
def test_headers_of_any_kind_are_answered_or_refused(accept: str) -> None:
    assert ask(b"1,2,3", accept=accept).status in {200, 406}
    assert ask(b"1,2,3", accept or "x").status in {200, 415}
