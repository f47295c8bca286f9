"""Hyperparameters as they come, as arguments, and which of them are nobody's business."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.hyperparameters import (
    REDACTED,
    arguments,
    decode,
    is_reserved,
    is_secret,
    redact,
    secrets,
    without_secrets,
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


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "api_token",
        "API_TOKEN",
        "apiToken",
        "hf-token",
        "password",
        "DB_PASSWORD",
        "passwd",
        "secret",
        "clientSecret",
        "key",
        "api_key",
        "apikey",
        "AWS_SECRET_ACCESS_KEY",
        "secret.key",
        "credentials",
        "google_credential",
    ],
)
def test_a_name_can_say_that_its_value_is_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["eta", "max_depth", "keyboard", "tokenizer", "tokenize_fn", "secretary", "num_tokens_seen"],
)
def test_other_names_say_no_such_thing(name: str) -> None:
    assert not is_secret(name)


def test_secrets_are_left_out_longest_first() -> None:
    values = {"a_key": "abc", "b_key": "abcdef", "c_key": 12345, "d_key": "xy", "eta": "0.1"}
    assert secrets(values) == ("abcdef", "12345", "abc")
    assert without_secrets("abcdef abc 12345 xy 0.1", secrets(values)) == f"{REDACTED} {REDACTED} {REDACTED} xy 0.1"
    assert redact(values)["eta"] == "0.1"
    assert set(redact(values).values()) == {REDACTED, "0.1"}


@pytest.mark.parametrize(
    ("name", "secret"),
    [("api_tokens", True), ("hf-tokens", True), ("tokens", True), ("max_tokens", False), ("num_tokens_seen", False)],
)
def test_tokens_are_secret_unless_they_are_counted(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_a_secret_within_a_json_object_is_found_and_left_out() -> None:
    values = {"db": '{"host": "here", "password": "hunter22"}', "sinks": '[{"api_key": "k-1234"}, 5]', "eta": "0.1"}
    assert set(secrets(values)) == {"hunter22", "k-1234"}
    assert redact(values) == {
        "db": '{"host": "here", "password": "***"}',
        "sinks": '[{"api_key": "***"}, 5]',
        "eta": "0.1",
    }


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://me:hunter22@example.org/simple", {"hunter22"}),
        ("https://tok-12345@example.org", {"tok-12345"}),
        ("https://tok-12345:x-oauth-basic@example.org", {"tok-12345", "x-oauth-basic"}),
        ("one postgresql://me:pass-1@db/x two https://me:pass-2@db", {"pass-1", "pass-2"}),
        ("git+ssh://git@example.org/a.git@main", set()),
        ("https://example.org/a@b:c", set()),
        ("s3://bucket/key@2", set()),
    ],
)
def test_what_urls_give_away_is_secret_under_any_name(url: str, found: set[str]) -> None:
    assert set(secrets({"source": url})) == found


def test_a_secret_is_hidden_as_it_came_and_as_it_is_read() -> None:
    assert set(secrets({"api_token": '"tok-FFFF"'})) == {'"tok-FFFF"', "tok-FFFF"}
