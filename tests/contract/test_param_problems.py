"""Many wrong hyperparameters: each is named once, and the reason of the failure holds all of them."""

from pathlib import Path
from traceback import FrameSummary

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainbox.contract import params
from trainbox.contract.failures.diagnosis import diagnose_error
from trainbox.contract.failures.failure import LONGEST_FAILURE, compose
from trainbox.diagnostics.cause import find_cause
from trainbox.errors import HyperparameterError, last_words
from trainbox.xgboost.params.declaration import Declaration

NAMES = sorted(params.names(Declaration))


class Few(msgspec.Struct, frozen=True, kw_only=True):
    epochs: int
    learning_rate: float = 0.1


def error_of(declaration: type, given: dict[str, object]) -> HyperparameterError:
    with pytest.raises(HyperparameterError) as caught:
        params.parse(declaration, given, program="xgboost_train.py")
    return caught.value


def test_several_unknown_names_are_a_line_each_and_the_names_that_there_are_come_once() -> None:
    error = error_of(Few, {"epochs": "1", "epoch": "2", "lerning_rate": "1", "foo": "1", "bar": "2"})
    assert error.message == (
        "4 hyperparameters of xgboost_train.py are wrong:\n"
        "  - 'epoch' is not known - did you mean 'epochs'?\n"
        "  - 'lerning_rate' is not known - did you mean 'learning_rate'?\n"
        "  - 'foo' is not known\n"
        "  - 'bar' is not known\n"
        "  known: epochs, learning_rate"
    )


def test_one_unknown_name_that_is_like_none_is_told_the_few_that_there_are() -> None:
    error = error_of(Few, {"epochs": "1", "foo": "2"})
    assert error.message == "hyperparameter 'foo' is not known to xgboost_train.py; known: epochs, learning_rate"


def test_a_long_list_of_names_is_left_to_describe() -> None:
    error = error_of(Declaration, {"num_round": "1", "foo": "2", "bar": "2"})
    assert error.message == (
        "2 hyperparameters of xgboost_train.py are wrong:\n  - 'foo' is not known\n  - 'bar' is not known"
    )
    assert error.hint == "`trainbox describe xgboost_train.py` lists every hyperparameter"


@pytest.mark.parametrize("count", [2, 5, 11, 25, 60, 97])
def test_the_reason_names_every_problem_of_as_many_as_sagemaker_takes(count: int) -> None:
    given: dict[str, object] = {f"{name[:-1]}q": "1" for name in (NAMES * 2)[:count]}
    given |= {f"unheard_of_{number}": "2" for number in range(count - len(given))}
    error = error_of(Declaration, {**given, "eta": "x"})
    text = compose(diagnose_error(error))
    assert len(text) <= LONGEST_FAILURE
    assert "…" not in text or count > 25
    for name in given:
        assert name in text or (count > 25 and f" {name[:3]}" in text), text
    assert "eta" in text


def test_suggestions_stay_as_long_as_there_is_room() -> None:
    error = error_of(Declaration, {f"{name}q": "1" for name in NAMES if len(name) > 4 and name < "e"})
    assert "alphaq (alpha?)" in error.message


@given(st.dictionaries(st.text(min_size=1, max_size=256), st.text(max_size=20), max_size=97))
@settings(max_examples=50, deadline=None)
def test_no_names_are_too_many_or_too_long_for_the_reason(given: dict[str, object]) -> None:
    error = error_of(Few, given | {"epochs": "none"})
    assert len(compose(diagnose_error(error))) <= LONGEST_FAILURE
    assert len(error.message) <= 900


def test_what_the_script_says_last_is_what_the_supervisor_reads() -> None:
    error = error_of(Declaration, {f"{name}q": "1" for name in NAMES})
    said = last_words(error, [FrameSummary("/code/train.py", 7, "main"), FrameSummary("<string>", 1, "<module>")])
    found = find_cause(f"loading\n{said}", Path("/code"))
    assert found is not None
    assert found.exception == "trainbox.errors.HyperparameterError"
    assert found.text == f"{found.exception}: {error}"
    assert found.where == "/code/train.py:7 in main"
