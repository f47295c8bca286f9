"""Labels from which nothing can be learnt, with what was found and how often; and how long the rest takes."""

import numpy as np
import pytest

from trainbox.errors import DataError
from trainbox.tabular.labels import check_classes, count_labels, list_counts, refuse_weights
from trainbox.tabular.script import RemainingTime, format_duration


def test_one_class_alone_is_nothing_to_learn_but_may_be_judged_by() -> None:
    with pytest.raises(
        DataError,
        match=r"channel train: all labels are equal, 1 \(3 rows\); training needs at least two different values",
    ):
        check_classes("train", {1.0: 3})
    check_classes("validation", {1.0: 3}, learn=False)
    check_classes("train", {3.0: 1, 7.0: 1, -2.0: 5})


def test_rows_without_weight_are_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="channel validation: all weights are 0; training needs a weight above 0"):
        refuse_weights("validation")


def test_numbers_that_are_no_classes_are_found_by_how_many_there_are() -> None:
    with pytest.raises(DataError, match="20,000 different labels are too many for classes"):
        check_classes("train", count_labels(np.arange(20_000, dtype=np.float32)))


def test_many_labels_are_cut_short() -> None:
    assert list_counts(dict.fromkeys(range(1200), 1000)).endswith("9 (1,000 rows) and 1,190 more")


def test_how_long_the_rest_takes_follows_from_the_pace_so_far(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = iter([0.0, 10.0, 11.0, 40.0, 50.0])
    told = RemainingTime(40, 10, "trees", least=5.0, clock=lambda: next(now))
    for done in (20, 22, 30, 40):
        told.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "trainbox: 20 of 40 trees, about 20 s left",
        "trainbox: 30 of 40 trees, about 20 s left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (3.4, "3 s")])
def test_a_time_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
