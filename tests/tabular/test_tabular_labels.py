"""Labels from which nothing can be learnt, with what was found and how often; and how long the rest takes."""

from collections.abc import Sequence

import numpy as np
import pytest

from trainbox.channels import Table
from trainbox.errors import DataError
from trainbox.tabular.labels import check_counts, check_labels, count_labels, some
from trainbox.tabular.pace import Pace, spoken


def table(labels: Sequence[float]) -> Table:
    return Table(np.array(labels, np.float32), np.zeros((len(labels), 1), np.float32), ("a",), ())


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 2], 2, r"the labels are 0 \(1 row\), 1 \(1 row\), 2 \(1 row\), which are not the classes 0 to 1"),
        ([-1, 1, 1], 2, r"the labels are -1 \(1 row\), 1 \(2 rows\), which are not the classes 0 to 1"),
        ([0, 1, 0.5], 2, r"label 0\.5 is no class; found 0 \(1 row\), 0\.5 \(1 row\), 1 \(1 row\)"),
        ([1, 1, 1], 2, r"every label is 1 \(3 rows\): there is nothing to learn"),
        ([2.5, 2.5], None, r"every label is 2\.5 \(2 rows\): there is nothing to learn"),
    ],
)
def test_labels_from_which_nothing_is_learnt_are_refused(
    labels: Sequence[float], classes: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=f"channel train: {message}"):
        check_labels("train", table(labels), classes=classes)


def test_any_whole_numbers_are_classes_where_none_are_named() -> None:
    check_labels("train", table([3, 7, -2]), classes=None, whole=True)
    with pytest.raises(DataError, match="is no class"):
        check_labels("train", table([3, 7.5]), classes=None, whole=True)


def test_a_class_that_training_has_not_is_named_with_its_rows() -> None:
    with pytest.raises(DataError, match=r"channel validation: label 4 \(2 rows\) does not occur in training"):
        check_labels("validation", table([0, 4, 4]), classes=None, known=(0, 1), learn=False)


def test_one_class_alone_may_be_judged_by_and_numbers_may_be_anything() -> None:
    check_labels("validation", table([1, 1]), classes=2, learn=False)
    check_labels("validation", table([2.5, 2.5]), classes=None, learn=False)
    check_labels("train", table([2.5, -7.0]), classes=None)


def test_numbers_that_are_no_classes_are_found_by_how_many_there_are() -> None:
    with pytest.raises(DataError, match="20,000 different labels are no classes"):
        check_counts("train", count_labels(np.arange(20_000, dtype=np.float32)))


def test_many_labels_are_cut_short() -> None:
    assert some(dict.fromkeys(range(1200), 1000)).endswith("9 (1,000 rows) and 1,190 more")


def test_how_long_the_rest_takes_follows_from_the_pace_so_far(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = iter([0.0, 10.0, 11.0, 40.0, 50.0])
    told = Pace(40, 10, "trees", least=5.0, clock=lambda: next(now))
    for done in (20, 22, 30, 40):
        told.tell(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "trainbox: 20 of 40 trees, about 20 s left",
        "trainbox: 30 of 40 trees, about 20 s left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (3.4, "3 s")])
def test_a_time_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
