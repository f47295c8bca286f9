"""The text and the file of a failure: no more than SageMaker shows, whole or not at all."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import (
    LONGEST_FAILURE,
    compose,
    hide_in_failure,
    mark_failure,
    read_failure,
    release_failure,
    reserve_failure,
    write_failure,
)

# -- the text ----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=3000), st.text(max_size=1500), st.text(max_size=1500))
def test_the_text_fits_and_is_whole_characters(cause: str, where: str, hint: str) -> None:
    text = compose(Diagnosis("script", cause, 1, where=where, hint=hint))
    assert len(text) <= LONGEST_FAILURE
    assert text.startswith(cause[:500])


def test_a_message_of_5000_characters_leaves_room_for_where_and_what_to_do() -> None:
    text = compose(
        Diagnosis("script", "ValueError: " + "🚂" * 5000, 1, where="train.py:3 in main", hint="fewer trains")
    )
    assert len(text) <= LONGEST_FAILURE
    assert text.splitlines()[0].endswith("🚂…")
    assert text.splitlines()[1:] == ["at train.py:3 in main", "hint: fewer trains"]
    assert text.encode().decode() == text


@pytest.mark.parametrize("offset", range(580, 601, 5))
def test_a_secret_at_the_cut_is_left_out_whole(offset: int) -> None:
    text = compose(Diagnosis("script", "x" * offset + "hunter2-and-more", 1), ["hunter2-and-more"])
    assert "hunter2" not in text
    assert "hun" not in text


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_is_written_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "output/failure"
    reserve_failure(path)
    assert write_failure(path, "why \N{STEAM LOCOMOTIVE}")
    assert path.read_text(encoding="utf-8") == "why \N{STEAM LOCOMOTIVE}"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "output/failure"
    reserve_failure(path)
    path.write_text("the script's")
    assert not write_failure(path, "ours")
    assert path.read_text() == "the script's"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_was_there_before_is_not_the_scripts(tmp_path: Path) -> None:
    path = tmp_path / "output/failure"
    path.parent.mkdir()
    path.write_text("of an earlier job")
    earlier = mark_failure(path)
    assert write_failure(path, "ours", earlier=earlier)
    assert path.read_text() == "ours"
    assert not write_failure(path, "ours again", earlier=earlier), "by now another has written there"
    assert mark_failure(tmp_path / "none") is None


def test_the_words_of_a_script_stay_but_for_secrets(tmp_path: Path) -> None:
    path = tmp_path / "failure"
    path.write_bytes(b"cannot use hunter2-2 of postgres://u:pw@h\n\n")
    assert hide_in_failure(path, ["hunter2-2"]) == "cannot use *** of postgres://u:***@h\n\n"
    assert path.read_text() == "cannot use *** of postgres://u:***@h\n\n"
    path.write_bytes(b"\xff is no text, and stays\n")
    hide_in_failure(path, ["hunter2-2"])
    assert path.read_bytes() == b"\xff is no text, and stays\n"
    assert list(path.parent.iterdir()) == [path]


def test_an_empty_file_is_no_reason(tmp_path: Path) -> None:
    path = tmp_path / "failure"
    path.touch()
    assert write_failure(path, "ours")
    assert path.read_text() == "ours"


def test_what_was_reserved_is_given_back_and_an_old_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "failure"
    path.write_text("an earlier attempt's")
    reserve_failure(path)
    release_failure(path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_file_of_any_size_is_read_in_part(tmp_path: Path) -> None:
    (tmp_path / "failure").write_text("the loss is not finite\n")
    with (tmp_path / "failure").open("r+b") as file:
        file.truncate(60 * 2**30)  # sparse: it takes no space
    text = read_failure(tmp_path / "failure")
    assert text.startswith("the loss is not finite\n")
    assert len(text) <= 100_000
