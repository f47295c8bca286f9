"""Hyperparameters as they come, and as arguments."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.hyperparameters import (
    arguments,
    decode,
    is_reserved,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(json_values)
def test_what_an_sdk_encodes_is_decoded(value: object) -> None:
    assert decode(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    ["adam", "", "s3://b/k", "0.1.2", "$(touch x)", "'", '"', "{", "[1", "True", "1e5x", "[" * 100_000, "9" * 5000],
)
def test_what_is_no_json_stays_the_text_it_is(text: str) -> None:
    assert decode(text) == text


@pytest.mark.parametrize("value", [1, 0.5, True, None, [1], {"a": 1}])
def test_what_is_no_text_is_left_alone(value: object) -> None:
    assert decode(value) == value


@pytest.mark.parametrize(
    ("name", "reserved"),
    [("sagemaker_program", True), ("trainbox_script", True), ("_tuning_objective_metric", True), ("eta", False)],
)
def test_reserved_names_are_for_the_container(name: str, reserved: bool) -> None:
    assert is_reserved(name) == reserved


VALUES = {
    "b": True,
    "a": 0.1,
    "list": [1, "x"],
    "table": {"k": 1, "j": "v"},
    "none": None,
    "text": "two words",
    "z": "",
}


def test_arguments_in_the_toolkits_style() -> None:
    assert arguments(VALUES, "toolkit") == [
        *("-a", "0.1", "-b", "True", "--list", "[1, 'x']", "--none", ""),
        *("--table", "j=v,k=1", "--text", "two words", "-z", ""),
    ]


def test_arguments_in_the_style_of_the_v3_drivers() -> None:
    assert arguments(VALUES, "json") == [
        *("--b", "true", "--a", "0.1", "--list", '[1, "x"]', "--table", '{"k": 1, "j": "v"}'),
        *("--none", "null", "--text", "two words", "--z", ""),
    ]


@given(st.dictionaries(st.text(min_size=2), st.text()), st.sampled_from(["toolkit", "json"]))
def test_text_arrives_exactly_in_both_styles(values: dict[str, str], style: str) -> None:
    given_out = arguments(values, "toolkit" if style == "toolkit" else "json")
    assert dict(zip(given_out[::2], given_out[1::2], strict=True)) == {f"--{name}": v for name, v in values.items()}
