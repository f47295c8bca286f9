"""Hyperparameters: texts become what the declaration says, and all that is wrong is said at once."""

import dataclasses
import datetime as dt
import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from trainbox.contract import params
from trainbox.contract.params import Field
from trainbox.errors import HyperparameterError


class Booster(enum.Enum):
    TREE = "gbtree"
    LINEAR = "gblinear"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Params(msgspec.Struct, frozen=True, kw_only=True, rename={"l2": "lambda"}):
    num_round: Annotated[int, Meta(ge=1, description="boosting rounds")]
    eta: Annotated[float, Meta(gt=0, le=1, description="learning rate")] = 0.3
    l2: float = 1.0
    max_depth: Annotated[int, Meta(ge=1)] | None = None
    verbose: bool = False
    name: str = "model"
    note: str | None = None
    tree_method: Literal["hist", "approx"] = "hist"
    booster: Booster = Booster.TREE
    eval_metric: tuple[str, ...] = ("auc",)
    layers: list[Annotated[int, Meta(ge=1)]] = msgspec.field(default_factory=lambda: [64, 64])
    weights: dict[str, float] = {}
    api_token: str = ""


FIELD_TYPES: list[tuple[Any, object, object]] = [
    (int, "3", 3),
    (int, " 3 ", 3),
    (int, "-3", -3),
    (int, "+3", 3),
    (int, "007", 7),
    (int, "1e2", 100),
    (int, "100.0", 100),
    (int, 100.0, 100),
    (int, 100, 100),
    (int, '"3"', 3),
    (int, "123456789012345678901234567890", 123456789012345678901234567890),
    (float, "0.1", 0.1),
    (float, ".5", 0.5),
    (float, "1", 1.0),
    (float, 1, 1.0),
    (float, "1e-05", 1e-05),
    (float, "-1E5", -1e5),
    (float, '"0.1"', 0.1),
    (float, "inf", math.inf),
    (float, "-Infinity", -math.inf),
    *((bool, word, True) for word in ("true", "True", "TRUE", "1", "yes", "Yes", '"true"', True, 1)),
    *((bool, word, False) for word in ("false", "False", "0", "no", '"0"', False, 0)),
    (str, "0123", "0123"),
    (str, "1e5", "1e5"),
    (str, "true", "true"),
    (str, "null", "null"),
    (str, " spaced ", " spaced "),
    (str, "", ""),
    (str, '"adam"', "adam"),
    (str, '"0123"', "0123"),
    (str, '"say \\"hi\\""', 'say "hi"'),
    (str, '"', '"'),
    (str, '""', ""),
    (str, '"a" and "b"', '"a" and "b"'),
    (str, '["a"]', '["a"]'),
    (str, "$(touch x); 'q' \n 🙂", "$(touch x); 'q' \n 🙂"),
    (str, 5, "5"),
    (str, True, "true"),
    (str | None, "null", None),
    (str | None, "None", None),
    (str | None, None, None),
    (str | None, '"null"', "null"),
    (str | None, "none", "none"),
    (int | None, "null", None),
    (int | None, "5", 5),
    (Literal["hist", "approx"], "hist", "hist"),
    (Literal["hist", "approx"], '"approx"', "approx"),
    (Literal["a", 3], "3", 3),
    (Literal["a"] | None, "null", None),
    (Literal["true", "auto"], True, "true"),
    (Booster, "gblinear", Booster.LINEAR),
    (Booster, '"gbtree"', Booster.TREE),
    (Level, "2", Level.HIGH),
    (Level, 1, Level.LOW),
    (list[str], "auc,logloss", ["auc", "logloss"]),
    (list[str], "auc, logloss", ["auc", "logloss"]),
    (list[str], '["auc", "logloss"]', ["auc", "logloss"]),
    (list[str], '"auc,logloss"', ["auc", "logloss"]),
    (list[str], "['auc', 'logloss']", ["auc", "logloss"]),  # what SDK v2 sends without an entry point
    (dict[str, bool], "{'deep': True}", {"deep": True}),
    (list[str], '"[\\"auc\\"]"', ["auc"]),
    (list[str], "auc", ["auc"]),
    (list[str], "", []),
    (list[str], "[]", []),
    (list[str], ["auc"], ["auc"]),
    (list[str], "1e5,true", ["1e5", "true"]),
    (list[str], "[1, true]", ["1", "true"]),
    (list[str], "(a, b)", ["(a", "b)"]),  # text that happens to stand in parentheses
    (list[int], "(1, -1, 0)", [1, -1, 0]),  # as XGBoost writes its constraints, and SDK v2 a tuple
    (list[int], "(1)", [1]),
    (list[int], "(1,)", [1]),
    (list[int], "()", []),
    (list[list[int]], "((0, 1), (2,))", [[0, 1], [2]]),
    (tuple[int, ...] | dict[str, int] | None, "(1, 0)", (1, 0)),
    (tuple[int, ...] | dict[str, int] | None, '{"a": 1}', {"a": 1}),
    (tuple[int, ...] | dict[str, int] | None, "null", None),
    (list[int], "1,2", [1, 2]),
    (list[int], "[1, 2.0]", [1, 2]),
    (list[int], 7, [7]),
    (list[Literal["a", "b"]], "a,b", ["a", "b"]),
    (tuple[float, ...], "0.9,0.999", (0.9, 0.999)),
    (tuple[int, str], "1,a", (1, "a")),
    (set[str], "a,b,a", {"a", "b"}),
    (frozenset[int], "[1,1]", frozenset({1})),
    (list[list[int]], "[[1], [2, 3]]", [[1], [2, 3]]),
    (dict[str, float], '{"a": 1, "b": 0.5}', {"a": 1.0, "b": 0.5}),
    (dict[str, float], {"a": "0.5"}, {"a": 0.5}),
    (dict[int, bool], '{"1": true}', {1: True}),
    (dict[str, Any], '{"a": [1, null]}', {"a": [1, None]}),
    (int | float, "1", 1),
    (int | float, "1.0", 1.0),
    (int | float, 1.0, 1.0),
    (int | str, "1", 1),
    (int | str, "auto", "auto"),
    (str | list[int] | None, "[1]", [1]),
    (bool | str, "true", True),
    (bool | str, "maybe", "maybe"),
    (Literal["sqrt", "log2"] | int | float | None, "sqrt", "sqrt"),
    (Literal["sqrt", "log2"] | int | float | None, "0.5", 0.5),
    (Literal["sqrt", "log2"] | int | float | None, "None", None),
    (Any, "[1]", [1]),
    (Any, "adam", "adam"),
    (Path, "/tmp/a b", Path("/tmp/a b")),
    (dt.date, "2026-01-02", dt.date(2026, 1, 2)),
]


UNREADABLE: list[tuple[Any, object, str]] = [
    (int, "1.5", "'x' is '1.5', expected int"),
    (int, "", "'x' is '', expected int"),
    (int, "three", "'x' is 'three', expected int"),
    (int, "1_000", "'x' is '1_000', expected int"),
    (int, "٣", "'x' is '٣', expected int"),
    (int, "0x10", "'x' is '0x10', expected int"),
    (int, "true", "'x' is 'true', expected int"),
    (int, True, "'x' is True, expected int"),
    (int, None, "'x' is None, expected int"),
    (int, "inf", "'x' is 'inf', expected int"),
    (int, "1e999999999", "'x' is '1e999999999', expected int"),
    (int, "1" * 5000, "… (5002 characters), expected int"),
    (int, [1], "'x' is [1], expected int"),
    (float, "nan", "'x' is 'nan', expected float"),
    (float, math.nan, "'x' is nan, expected float"),
    (float, "1e999", "'x' is '1e999', expected float"),
    (float, "0,5", "'x' is '0,5', expected float"),
    (float, "False", "'x' is 'False', expected float"),
    (bool, "2", "'x' is '2', expected bool (true or false)"),
    (bool, "on", "'x' is 'on', expected bool (true or false)"),
    (bool, "", "'x' is '', expected bool (true or false)"),
    (int | None, "none", "'x' is 'none', expected int or null"),
    (Annotated[int, Meta(ge=1)] | None, "0", "'x' is '0', expected int >= 1 or null"),
    (Annotated[float, Meta(gt=0, le=1)], "0", "'x' is '0', expected float > 0 and <= 1"),
    (Annotated[float, Meta(ge=0, lt=0.5)], "0.5", "'x' is '0.5', expected float >= 0 and < 0.5"),
    (Annotated[float, Meta(gt=0, le=1)], "inf", "'x' is 'inf', expected float > 0 and <= 1"),
    (Annotated[int, Meta(multiple_of=8)], "12", "'x' is '12', expected int a multiple of 8"),
    (Annotated[str, Meta(pattern="^a", max_length=3)], "b", "expected str length <= 3 and matching ^a"),
    (Literal["hist", "approx"], "Hist", "'x' is 'Hist', expected one of approx, hist"),
    (Booster, "dart", "'x' is 'dart', expected one of gbtree, gblinear"),
    (list[int], "1,x", "'x' is '1,x', expected list of int (JSON, or separated by commas)"),
    (list[int], "[1", "'x' is '[1', expected list of int (JSON, or separated by commas)"),
    (list[int], "(1, 2", "'x' is '(1, 2', expected list of int (JSON, or separated by commas)"),
    (list[int], "(1, len('ab'))", "\"(1, len('ab'))\", expected list of int (JSON, or separated by commas)"),
    (list[int], "[{[]: 1}]", "'x' is '[{[]: 1}]', expected list of int (JSON, or separated by commas)"),
    (list[int], "(" * 100_000 + ")" * 100_000, "… (200002 characters), expected list of int (JSON, or"),
    (list[Annotated[int, Meta(ge=1)]], "0", "expected list of int >= 1 (JSON, or separated by commas)"),
    (Annotated[list[int], Meta(min_length=2)], "1", "expected list of int length >= 2 (JSON, or"),
    (list[Literal["a", "b"]], "a,c", "expected list of one of a, b (JSON, or separated by commas)"),
    (tuple[int, str], "1", "'x' is '1', expected tuple of int, str (JSON)"),
    (tuple[int, str], "1,a,b", "'x' is '1,a,b', expected tuple of int, str (JSON)"),
    (dict[str, float], "[1]", "'x' is '[1]', expected dict of str to float (JSON)"),
    (dict[str, float], "a=1", "'x' is 'a=1', expected dict of str to float (JSON)"),
    (dict[str, float], '{"a": "b"}', "expected dict of str to float (JSON)"),
    (dict[str, Any], "[" * 100_000, "… (100002 characters), expected dict of str to any (JSON)"),
    (list[Any], "[" * 100_000, "… (100002 characters), expected list of any (JSON, or"),
    (int | bool | None, "x", "'x' is 'x', expected int or bool (true or false) or null"),
    (Literal["auto"] | Annotated[int, Meta(ge=1)], "0", "'x' is '0', expected one of auto or int >= 1"),
    (dt.date, "tomorrow", "'x' is 'tomorrow', expected date"),
]


def names(cases: Sequence[tuple[Any, object, object]]) -> list[str]:
    """The same names in every process: a set's own text differs between two workers."""
    return [f"{kind}-{raw!r}"[:60] for kind, raw, _ in cases]


def parse_one(kind: Any, raw: object) -> object:
    declaration = msgspec.defstruct("One", [("x", kind)], frozen=True)
    return getattr(params.parse(declaration, {"x": raw}), "x")  # noqa: B009 - defstruct gives a type without attributes


@pytest.mark.parametrize(("kind", "raw", "value"), FIELD_TYPES, ids=names(FIELD_TYPES))
def test_a_text_is_read_as_the_type_of_its_field(kind: Any, raw: object, value: object) -> None:
    parsed = parse_one(kind, raw)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(("kind", "raw", "expected"), UNREADABLE, ids=names(UNREADABLE))
def test_a_text_that_its_field_cannot_hold_is_an_error_that_says_what_it_can(
    kind: Any, raw: object, expected: str
) -> None:
    with pytest.raises(HyperparameterError) as caught:
        parse_one(kind, raw)
    assert expected in caught.value.message
    assert "[[[[" * 100 not in caught.value.message


@given(st.text())
def test_every_text_without_quotes_around_it_stays_as_it_is(text: str) -> None:
    if not text.startswith('"'):
        assert parse_one(str, text) == text
    assert parse_one(str, json.dumps(text)) == text  # as SDK v2 sends it


@given(st.integers())
def test_integers_survive_every_way_to_send_them(number: int) -> None:
    for raw in (number, str(number), json.dumps(str(number))):
        assert parse_one(int, raw) == number


@given(st.floats(allow_nan=False))
def test_floats_survive_every_way_to_send_them(number: float) -> None:
    for raw in (number, str(number), json.dumps(number), json.dumps(str(number))):
        assert parse_one(float, raw) == number


@given(st.lists(st.text(min_size=1)), st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)))
def test_lists_and_dicts_survive_as_json(texts: list[str], numbers: dict[str, float]) -> None:
    for encode in (json.dumps, lambda value: json.dumps(json.dumps(value))):
        assert parse_one(list[str], encode(texts)) == texts
        assert parse_one(dict[str, float], encode(numbers)) == numbers


@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=20) | st.none() | st.booleans() | st.integers(), max_size=6)
)
def test_no_input_raises_anything_but_a_hyperparameter_error(values: Mapping[str, object]) -> None:
    with pytest.raises(HyperparameterError):  # at least num_round is missing
        params.parse(Params, values)


@given(
    st.sampled_from([kind for kind, _, _ in FIELD_TYPES]),
    st.text(max_size=12) | st.sampled_from(["[1,[", '{"a":', "1e400"]),
)
def test_no_type_raises_anything_but_a_hyperparameter_error(kind: Any, raw: str) -> None:
    try:
        parse_one(kind, raw)
    except HyperparameterError as error:
        assert error.message.startswith("hyperparameter 'x' is ")  # noqa: PT017 - passing is fine, too


def test_what_is_not_given_has_its_default() -> None:
    assert params.parse(Params, {"num_round": "10"}) == Params(num_round=10)


def test_dashes_and_underscores_are_alike_and_renamed_fields_have_both_names() -> None:
    parsed = params.parse(Params, {"num-round": "1", "max_depth": "2", "lambda": "0.5", "eval-metric": "auc"})
    assert (parsed.num_round, parsed.max_depth, parsed.l2) == (1, 2, 0.5)
    assert params.parse(Params, {"num_round": 1, "l2": "3"}).l2 == 3.0

    class Dashed(msgspec.Struct, frozen=True, rename="kebab"):
        min_samples_split: int

    assert params.parse(Dashed, {"min_samples_split": "2"}) == params.parse(Dashed, {"min-samples-split": "2"})


@pytest.mark.parametrize("names", [("max-depth", "max_depth"), ("max_depth", "max-depth"), ("lambda", "l2")])
def test_the_same_hyperparameter_by_two_names_is_an_error(names: tuple[str, str]) -> None:
    with pytest.raises(
        HyperparameterError, match=f"'{names[0]}' and '{names[1]}' are both given, but they are the same one"
    ):
        params.parse(Params, {"num_round": 1, names[0]: "1", names[1]: "2"})


def test_all_that_is_wrong_is_said_in_one_error() -> None:
    with pytest.raises(HyperparameterError) as caught:
        params.parse(
            Params,
            {"max-dept": "3", "eta": "2.0", "nonsense\n$(x)": "1", "layers": "0", "api_token": "s3cr3t"},
            program="train.py",
        )
    assert caught.value.exit_code == 6
    assert caught.value.message == (
        "5 hyperparameters of train.py are wrong:\n"
        "  - 'max-dept' is not known - did you mean 'max_depth'?\n"
        "  - 'nonsense\\n$(x)' is not known\n"
        "  - 'num_round' is missing, expected int >= 1\n"
        "  - 'eta' is '2.0', expected float > 0 and <= 1\n"
        "  - 'layers' is '0', expected list of int >= 1 (JSON, or separated by commas)\n"
        "  known: api_token, booster, eta, eval_metric, lambda, layers, max_depth, name, note, num_round, tree_method, "
        "verbose, weights"
    )
    assert caught.value.hint == "`trainbox describe train.py` lists every hyperparameter"


def test_one_thing_wrong_is_one_line() -> None:
    with pytest.raises(HyperparameterError) as caught:
        params.parse(Params, {"num_round": "1", "Max_Depht": "3"})
    assert caught.value.message == "hyperparameter 'Max_Depht' is not known to Params - did you mean 'max_depth'?"


def test_values_with_secret_names_are_never_shown() -> None:
    class Secretive(msgspec.Struct, frozen=True):
        api_token: int = 0
        user: str = ""
        db_password: str = "hunter22"

        def __post_init__(self) -> None:
            if self.user == "wrong":
                raise ValueError(f"no such user with {self.db_password}")

    with pytest.raises(HyperparameterError) as caught:
        params.parse(Secretive, {"api-token": "s3cr3t-text", "secret_thing": "s3cr3t-too"})
    assert "'api-token' is ***, expected int" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)

    for raw in ("hunter2-2", '"hunter2-2"'):
        with pytest.raises(HyperparameterError, match=r"do not fit together: no such user with \*\*\*") as caught:
            params.parse(Secretive, {"user": "wrong", "db_password": raw})
        assert caught.value.__suppress_context__

    described = {field.name: field.default for field in params.fields(Secretive)}
    assert described == {"api_token": "0", "user": "", "db_password": "***"}
    assert "hunter" not in json.dumps(params.json_schema(Secretive))


def test_what_the_declaration_checks_itself_is_a_hyperparameter_error() -> None:
    class Pair(msgspec.Struct, frozen=True):
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(HyperparameterError, match="the hyperparameters do not fit together: low is above high"):
        params.parse(Pair, {"low": "2"})


def test_a_dataclass_is_a_declaration_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Plain:
        rounds: Annotated[int, Meta(ge=1)] = 3
        names: list[str] = dataclasses.field(default_factory=list)

    assert params.parse(Plain, {"rounds": "5", "names": "a,b"}) == Plain(5, ["a", "b"])
    with pytest.raises(HyperparameterError, match="'rounds' is '0', expected int >= 1"):
        params.parse(Plain, {"rounds": "0"})
    assert [field.default for field in params.fields(Plain)] == ["3", "[]"]


def test_a_declaration_of_another_kind_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"is no msgspec\.Struct and no dataclass"):
        params.parse(dict, {})


def test_fields_describe_the_declaration_in_words() -> None:
    described = params.fields(Params)
    assert [field.name for field in described] == [field.encode_name for field in msgspec.structs.fields(Params)]
    assert described[:2] == (
        Field("num_round", "int", required=True, default="", range=">= 1", description="boosting rounds"),
        Field("eta", "float", required=False, default="0.3", range="> 0 and <= 1", description="learning rate"),
    )
    texts = {field.name: (field.type, field.default, field.range) for field in described}
    assert texts["lambda"] == ("float", "1.0", "")
    assert texts["max_depth"] == ("int or null", "null", ">= 1")
    assert texts["verbose"] == ("bool", "false", "")
    assert texts["tree_method"] == ("one of", "hist", "approx, hist")
    assert texts["booster"] == ("one of", "gbtree", "gbtree, gblinear")
    assert texts["eval_metric"] == ("list of str", '["auc"]', "")
    assert texts["layers"] == ("list of int", "[64,64]", "each >= 1")
    assert texts["weights"] == ("dict of str to float", "{}", "")


def test_the_description_of_an_optional_field_is_found_wherever_it_stands() -> None:
    inside = msgspec.defstruct("A", [("x", Annotated[int, Meta(description="inside")] | None, None)])
    outside = msgspec.defstruct("B", [("x", Annotated[int | None, Meta(description="outside")], None)])
    assert [params.fields(kind)[0].description for kind in (inside, outside)] == ["inside", "outside"]


def test_the_json_schema_has_the_declaration_at_its_root() -> None:
    schema = json.loads(json.dumps(params.json_schema(Params)))
    assert (schema["type"], schema["required"]) == ("object", ["num_round"])
    assert schema["properties"]["eta"] == {
        "description": "learning rate",
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.3,
    }
    assert schema["properties"]["booster"] == {"$ref": "#/$defs/Booster", "default": "gbtree"}
    assert schema["$defs"] == {"Booster": {"title": "Booster", "enum": ["gblinear", "gbtree"]}}


def test_messages_show_at_most_a_hundred_characters_of_a_value() -> None:
    with pytest.raises(HyperparameterError, match=re.escape("… (2502 characters), expected int >= 1")) as caught:
        params.parse(Params, {"num_round": "x" * 2500})
    assert len(caught.value.message) < 250
