"""The JSONPath of batch transform: what SageMaker documents, and nothing else."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.errors import DataError, RunError
from trainbox.local.transform.json_path import LONGEST_PATH, parse_path, select

ROW = ["id-7", 1, 2, 3]
RECORD = {"id": 7, "features": [1, 2, 3], "a": {"b": {"c": 1}, "d e": 2}, "SageMakerOutput": {"score": 0.5}}


def at(path: str, value: Any) -> Any:
    return select(parse_path(path, flag="--input-filter"), value)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("$", RECORD, RECORD),
        ("$", 3, 3),
        ("$.features", RECORD, [1, 2, 3]),
        ("$.a.b.c", RECORD, 1),
        ("$['a']['b']", RECORD, {"c": 1}),
        ('$["a"]', RECORD, RECORD["a"]),
        ("$.a['d e']", RECORD, 2),
        ("$.a.['d e']", RECORD, 2),
        ("$['id','SageMakerOutput']", RECORD, {"id": 7, "SageMakerOutput": {"score": 0.5}}),
        ("$['SageMakerOutput', 'id']", RECORD, {"SageMakerOutput": {"score": 0.5}, "id": 7}),
        ("$.a.*", RECORD, [{"c": 1}, 2]),
        ("$.features[*]", RECORD, [1, 2, 3]),
        ("$[0]", ROW, "id-7"),
        ("$[-1]", ROW, 3),
        ("$[1,3]", ROW, [1, 3]),
        ("$[0,-1]", ROW, ["id-7", 3]),
        ("$[0, 2:]", ROW, ["id-7", 2, 3]),
        ("$[1:]", ROW, [1, 2, 3]),
        ("$[:2]", ROW, ["id-7", 1]),
        ("$[1:3]", ROW, [1, 2]),
        ("$[-2:]", ROW, [2, 3]),
        ("$.features[0]", RECORD, 1),
        ("$[*].x", [{"x": 1}, {"x": 2}], [1, 2]),
    ],
)
def test_a_path_selects_what_the_documentation_says(path: str, value: Any, expected: Any) -> None:
    assert at(path, value) == expected


@pytest.mark.parametrize(
    "path",
    [
        "", "features", "$.", "$..id", "$[", "$[]", "$[1", "$['a'", "$[a]", "$[1:2:3]", "$[?(@.x)]", "$['a' 'b']",
        "$['a',]", "$[1,]", "$.a b", "$[1.5]", "$['a',1]", "$[(@.length-1)]", "$x", "$[',']['", "$.a,b",
    ],
)  # fmt: skip
def test_what_sagemaker_does_not_document_is_refused_by_name(path: str) -> None:
    with pytest.raises(RunError, match="--input-filter"):
        parse_path(path, flag="--input-filter")


def test_a_path_has_at_most_63_characters_as_in_the_api() -> None:
    parse_path("$." + "x" * (LONGEST_PATH - 2), flag="--output-filter")
    with pytest.raises(RunError, match="has 64 characters"):
        parse_path("$." + "x" * (LONGEST_PATH - 1), flag="--output-filter")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("$[4]", ROW, "asks for what 4 elements do not have"),
        ("$[-5]", ROW, "asks for what 4 elements do not have"),
        ("$[4:]", ROW, "asks for what 4 elements do not have"),
        ("$.label", RECORD, "asks for 'label', which is missing"),
        ("$.id.x", RECORD, "asks for 'x' of a number"),
        ("$[0]", RECORD, "asks for elements of an object"),
        ("$.id.*", RECORD, "asks for the children of a number"),
        ("$['id','x']", RECORD, "asks for 'x', which is missing"),
    ],
)
def test_what_a_record_does_not_have_is_an_error(path: str, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        at(path, value)


@given(
    st.text(alphabet="$.[]'\",:*-0123 ab\\", max_size=20),
    st.recursive(
        st.integers() | st.text(max_size=2), lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner)
    ),
)
def test_any_text_is_a_path_or_an_error_of_ours(text: str, value: Any) -> None:
    with contextlib.suppress(RunError, DataError):
        select(parse_path("$" + text, flag="--input-filter"), value)


@given(st.lists(st.integers(), min_size=1), st.integers(-9, 9) | st.none(), st.integers(-9, 9) | st.none())
def test_slices_are_those_of_arrays(values: list[int], start: int | None, end: int | None) -> None:
    path = f"$[{'' if start is None else start}:{'' if end is None else end}]"
    if expected := values[start:end]:
        assert at(path, values) == expected
