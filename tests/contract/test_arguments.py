"""Each style of arguments is read back by a parser of its kind, whatever the values are."""

import argparse
import ast
import json
import re
import shlex
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainbox.contract.hyperparameters import ArgumentStyle, arguments

VALUES: Mapping[str, object] = {
    "b": True,
    "off": False,
    "lr": 0.1,
    "list": [1, "x", None],
    "table": {"k": 1, "j": {"v": "w x"}},
    "none": None,
    "text": "two words",
    "quoted": 'it\'s "so"',
    "minus": -5,
    "dash": "--lr",
    "z": "",
}


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (
            "flags",
            [
                *("--b", "--lr", "0.1", "--list", '[1, "x", null]', "--table", '{"k": 1, "j": {"v": "w x"}}'),
                *("--text", "two words", "--quoted", 'it\'s "so"', "--minus=-5", "--dash=--lr", "--z", ""),
            ],
        ),
        (
            "equals",
            [
                *("--b=True", "--off=False", "--lr=0.1", "--list=[1, 'x', None]"),
                *("--table={'k': 1, 'j': {'v': 'w x'}}", "--none=None", "--text=two words", '--quoted=it\'s "so"'),
                *("--minus=-5", "--dash=--lr", "--z="),
            ],
        ),
        (
            "hydra",
            [
                *("b=true", "off=false", "lr=0.1", "list=[1,x,null]", "table={k:1,j:{v:w x}}", "none=null"),
                *("text=two words", "quoted='it\\'s \"so\"'", "minus=-5", "dash=--lr", "z="),
            ],
        ),
    ],
)
def test_the_styles_write_each_kind_of_value_in_their_own_way(style: ArgumentStyle, expected: list[str]) -> None:
    assert arguments(VALUES, style) == expected


NAMES = st.from_regex(r"[a-z][a-z_]{1,8}", fullmatch=True)
#: What means something to a shell, to a parser or to the grammar of a style, and anything else.
HOSTILE = st.sampled_from(
    ["$(id)", "`id`", "; rm -rf /", "'", '"', "\\", "\\'", "a=b", "--x", "-", "--", "a,b", "[1", "x y "]
)
TEXT = HOSTILE | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


@given(st.dictionaries(NAMES, NESTED, max_size=4))
def test_argparse_reads_flags_back(values: dict[str, object]) -> None:
    assume("--" not in values.values())  # argparse of Python 3.11 drops it, wherever it stands
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name, value in values.items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=str if isinstance(value, str) else json.loads)
    assert vars(parser.parse_args(arguments(values, "flags"))) == values


def configure(defaults: Mapping[str, object], argv: Sequence[str]) -> dict[str, object]:
    """As nanoGPT's configurator.py sets its globals: https://github.com/karpathy/nanoGPT."""
    found = dict(defaults)
    for argument in argv:
        assert argument.startswith("--")
        key, value = argument.removeprefix("--").split("=", 1)
        try:
            attempt = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            attempt = value
        assert key in found, f"Unknown config key: {key}"
        if type(attempt) is not type(found[key]) and isinstance(found[key], str):
            attempt = value  # text that reads as a number is one to nanoGPT, too, and refused
        assert type(attempt) is type(found[key])
        found[key] = attempt
    return found


@given(st.dictionaries(NAMES, NESTED, max_size=4))
def test_a_configurator_like_nanogpts_reads_equals_back(values: dict[str, object]) -> None:
    assert configure(values, arguments(values, "equals")) == values


def hydra(text: str) -> object:
    """A reader of the part of Hydra's grammar that is needed here: quoted text, `[…]`, `{key:value}`, primitives."""
    value, rest = _hydra_value(text)
    assert not rest, rest
    return value


def _hydra_value(text: str) -> tuple[object, str]:
    if text.startswith(("[", "{")):
        return _hydra_container(text)
    if text.startswith("'"):
        return _hydra_quoted(text)
    found = re.match(r"[A-Za-z0-9_ ./+$%*@?|:-]*", text)
    assert found is not None
    plain = found[0]
    try:
        read: object = json.loads(plain)
    except ValueError:
        read = plain
    return read, text[len(plain) :]


def _hydra_quoted(text: str) -> tuple[str, str]:
    """Backslashes before a quote, and only those, escape: pairs of them are one, the odd one is the quote's."""
    found, place = "", 1
    while True:
        run = re.compile(r"(\\*)(')").search(text, place)
        assert run is not None, text
        found += text[place : run.start()] + "\\" * (len(run[1]) // 2)
        place = run.end()
        if len(run[1]) % 2 == 0:
            return found, text[place:]
        found += "'"


def _hydra_container(text: str) -> tuple[object, str]:
    is_list, rest = text[0] == "[", text[1:]
    items: list[object] = []
    pairs: dict[str, object] = {}
    while not rest.startswith(("]", "}")):
        if is_list:
            item, rest = _hydra_value(rest)
            items.append(item)
        else:
            key, _, rest = rest.partition(":")
            pairs[key], rest = _hydra_value(rest)
        rest = rest.removeprefix(",")
    return (items if is_list else pairs), rest[1:]


def _as_hydra_reads(value: object) -> object:
    """Text without a letter of syntax stands as it is: `5` in it is a number to Hydra."""
    if isinstance(value, dict):
        return {name: _as_hydra_reads(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_hydra_reads(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_./+$%*@?|:-]+", value):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


@given(NAMES, NESTED)
def test_a_reader_of_hydras_grammar_reads_its_style_back(name: str, value: object) -> None:
    (argument,) = arguments({name: value}, "hydra")
    key, _, text = argument.partition("=")
    assert key == name
    assert hydra(text) == _as_hydra_reads(value)


@pytest.mark.parametrize("style", ["flags", "equals", "hydra"])
@given(values=st.dictionaries(NAMES, TEXT, max_size=4))
def test_text_is_one_argument_whatever_a_shell_would_make_of_it(style: ArgumentStyle, values: dict[str, str]) -> None:
    given_out = arguments(values, style)
    assert len(given_out) <= 2 * len(values)
    assert shlex.split(shlex.join(given_out)) == given_out
    assert not any("\0" in one for one in given_out)
