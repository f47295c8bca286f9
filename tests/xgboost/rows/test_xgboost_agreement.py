"""What members of a job say of their rows must fit together before the first round."""

from typing import Any

import pytest

from trainbox.data import default_names
from trainbox.errors import ConfigurationError, DataError
from trainbox.tabular.faults import Fault
from trainbox.xgboost.rows.agreement import LabelSummary, MemberReport, agree, check_labels, report_columns

NAMES = ("age", "fare")


def report(member: str = "algo-1", **more: object) -> MemberReport:
    given: dict[str, object] = {
        "rows": {"train": 10, "validation": 2},
        "labels": {
            "train": LabelSummary(0, 1, {0: 4, 1: 6}),
            "validation": LabelSummary(1, 1, {1: 2}),
        },
        "columns": NAMES,
        "digests": {"train": "a", "validation": "b"},
        "checkpoint": None,
        "version": "3.2.0",
    }
    return MemberReport(member=member, **{**given, **more})  # type: ignore[arg-type]


def test_rows_and_labels_are_those_of_all_members() -> None:
    other = report(
        "algo-2",
        rows={"train": 5, "validation": 0},
        labels={
            "train": LabelSummary(1, 2, {1: 4, 2: 1}),
            "validation": LabelSummary(),
        },
    )
    agreed = agree([report(), other])
    assert agreed.rows == {"train": 15, "validation": 2}
    assert agreed.labels["train"] == LabelSummary(0, 2, {0: 4, 1: 10, 2: 1})
    assert agreed.labels["validation"] == LabelSummary(1, 1, {1: 2})
    assert agreed.digests["train"] == ("a", "a")


def test_a_member_without_a_row_to_learn_from_is_named() -> None:
    empty = report(
        "algo-2",
        rows={"train": 0, "validation": 0},
        columns=(),
        labels={
            "train": LabelSummary(),
            "validation": LabelSummary(),
        },
    )
    with pytest.raises(DataError, match="channel train: no rows on algo-2"):
        agree([empty, report()])


def test_a_channel_without_a_row_anywhere_is_an_error() -> None:
    rows = {"train": 10, "validation": 0}
    with pytest.raises(DataError, match="channel validation: no rows on any of the 2 members"):
        agree([report(rows=rows), report("algo-2", rows=rows)])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("age", "fare", "sex"), "algo-1 has 2 features, algo-2 has 3"),
        (("age", "sex"), "algo-2 calls feature 2 'sex', algo-1 calls it 'fare'"),
    ],
)
def test_different_columns_on_two_hosts_are_named(columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        agree([report(), report("algo-2", columns=columns)])


def test_sparse_rows_are_as_wide_as_the_widest_member() -> None:
    assert agree([report(columns=2), report("algo-2", columns=3)]).columns == ("f0", "f1", "f2")


def test_columns_without_names_are_told_by_their_number() -> None:
    assert report_columns(default_names(1_000_000)) == 1_000_000
    assert report_columns(("f0", "f2")) == ("f0", "f2")
    assert not report_columns(())
    with pytest.raises(DataError, match="algo-2 calls feature 1 'age', algo-1 calls it 'f0'"):
        agree([report(columns=2), report("algo-2")])


def test_the_newest_checkpoint_of_any_member_counts_and_of_equals_the_first_ones() -> None:
    members = [report(checkpoint=None), report("algo-2", checkpoint=100), report("algo-3", checkpoint=100)]
    assert agree(members).checkpoint == (100, 1)
    assert agree([report()]).checkpoint is None


def test_another_version_of_xgboost_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"algo-2 has XGBoost 3\.4\.1, algo-1 has 3\.2\.0"):
        agree([report(), report("algo-2", version="3.4.1")])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            LabelSummary(1, 1, {1: 7}),
            r"channel train: all labels are equal, 1 \(7 rows\); training needs at least two different values",
        ),
        (LabelSummary(3.5, 3.5), r"channel train: all labels are equal, 3\.5 \(7 rows\)"),
        (LabelSummary(0, 1, weight=0.0), "channel train: all weights are 0; training needs a weight above 0"),
        (LabelSummary(0, 1, fault=Fault("a.csv:3: wrong")), r"^a\.csv:3: wrong$"),
        (
            LabelSummary(0, 2, {0: 6, 2: 1}, fault=Fault("a.csv:3: wrong")),
            r"wrong; .*train has the labels 0 \(6 rows\), 2",
        ),
    ],
)
def test_labels_from_which_nothing_can_be_learnt_are_refused(labels: LabelSummary, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_labels("train", labels, 7, learn=True)


def test_one_class_alone_is_enough_to_be_scored_on() -> None:
    check_labels("validation", LabelSummary(1, 1, {1: 7}), 7, learn=False)
    with pytest.raises(DataError, match="channel validation: all weights are 0"):
        check_labels("validation", LabelSummary(0, 1, weight=0.0), 7, learn=False)


def test_survival_without_an_event_is_nothing_to_learn() -> None:
    check_labels("train", LabelSummary(-5, 2), 7, learn=True, has_events=True)
    check_labels("validation", LabelSummary(-5, -2), 7, learn=False, has_events=True)
    with pytest.raises(DataError, match="channel train: no label is above 0"):
        check_labels("train", LabelSummary(-5, 0), 7, learn=True, has_events=True)


def test_weights_are_summed_and_the_first_members_fault_is_everybodys() -> None:
    def told(member: str, **more: Any) -> MemberReport:
        return report(member, labels={"train": LabelSummary(0, 1, **more), "validation": LabelSummary(0, 1)})

    agreed = agree([told("algo-1", weight=0.0), told("algo-2", weight=1.5), told("algo-3", weight=0.5)])
    assert agreed.labels["train"].weight == 2
    assert agree([told("algo-1"), told("algo-2")]).labels["train"].weight is None
    faults = [told("algo-1"), told("algo-2", fault=Fault("a:1: wrong", "hint")), told("algo-3", fault=Fault("b:1"))]
    assert agree(faults).labels["train"].fault == Fault("algo-2: a:1: wrong", "hint")
    assert agree(faults[1:2]).labels["train"].fault == Fault("a:1: wrong", "hint")
