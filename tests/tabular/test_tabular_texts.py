"""Texts of several members put together, by pure functions; and what is said of them."""

import pytest

from trainbox.data import Coding
from trainbox.errors import DataError
from trainbox.tabular.texts import TextColumn, by_name, merge_texts, note_on_texts, texts_like_missing


def column(member: str, texts: tuple[str, ...] = (), *, has_numbers: bool = False) -> TextColumn:
    return TextColumn(member, texts, has_numbers)


def test_the_texts_of_all_members_are_sorted_and_each_comes_once() -> None:
    columns = [column("algo-1", ("red", "blue")), column("algo-2", ("amber", "red")), column("algo-3")]
    assert merge_texts("feature 'color'", columns) == ("amber", "blue", "red")


def test_numbers_on_one_member_and_texts_on_another_are_an_error_that_names_both() -> None:
    columns = [column("algo-1"), column("algo-2", has_numbers=True), column("algo-3", ("red",))]
    message = r"feature 'color' has numbers on algo-2, and texts such as 'red' on algo-3\n.*categorical"
    with pytest.raises(DataError, match=message):
        merge_texts("feature 'color'", columns)


def test_too_many_texts_on_all_members_together_are_an_error() -> None:
    halves = [column(str(part), tuple(f"{part} {i}" for i in range(5_001))) for part in (1, 2)]
    with pytest.raises(DataError, match="'id' has 10,002 different texts on the 2 members together, more than 10,000"):
        merge_texts("feature 'id'", halves)


def test_columns_of_one_name_cannot_be_told_apart_by_it() -> None:
    coding = Coding({0: ("a",), 2: ("b",)})
    assert by_name(coding, ("x", "y", "z")) == {"x": ("a",), "z": ("b",)}
    with pytest.raises(DataError, match="several columns are called 'x'"):
        by_name(coding, ("x", "x", "z"))


def test_what_is_to_be_known_of_texts_is_said_in_a_line_and_nothing_without_them() -> None:
    assert note_on_texts(Coding(), ("a",), "error") == ()
    (line,) = note_on_texts(Coding({0: ("red", "blue")}, ("no", "yes", "maybe")), ("color",), "missing")
    assert "color (2 texts), the label (3 texts). It needs trainbox's `serve`" in line
    assert line.endswith("a text that training has not seen counts as missing there")


def test_a_text_that_other_programs_write_for_a_missing_value_is_told() -> None:
    (line,) = texts_like_missing(Coding({0: ("?", "red")}), ("color",), ("", "NA"))
    assert line.startswith("color: '?' is read as a text; if '?' stands for a missing value")
    assert 'missing=["","NA","?"]' in line
