"""The labels that each objective and metric can work with, found row by row as they are read."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainbox.contract.job import Channel
from trainbox.xgboost.params.catalogue import METRICS, OBJECTIVES
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.domains import DOMAINS, METRIC_DOMAINS
from trainbox.xgboost.rows.shards import RowPartition, read_shard

CLASSES = {"num_class": 3}
BOUNDS = {"label_columns": 2}
GROUPS = {"group_column": "1"}
RANKING = {**GROUPS, "objective": "rank:ndcg"}


def test_every_objective_has_a_domain_and_every_metric_of_the_table_is_one() -> None:
    assert DOMAINS.keys() == OBJECTIVES.keys()
    assert METRIC_DOMAINS.keys() <= METRICS.keys()


#: Hyperparameters, a row as it must not be, and what is said of it. Each file has good rows around it.
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "gamma, 0": ({"objective": "reg:gamma"}, "0,2", "label 0 is invalid: objective reg:gamma needs labels above 0"),
    "gamma, negative": ({"objective": "reg:gamma"}, "-1,2", "label -1 is invalid"),
    "poisson": (
        {"objective": "count:poisson"},
        "-0.5,2",
        "label -0.5 is invalid: objective count:poisson needs labels of 0 or more",
    ),
    "tweedie": ({"objective": "reg:tweedie"}, "-3,2", "label -3 is invalid: objective reg:tweedie"),
    "squared logarithm": ({"objective": "reg:squaredlogerror"}, "-1,2", "label -1 is invalid: .* labels above -1"),
    "shares": ({"objective": "reg:logistic"}, "1.5,2", "label 1.5 is invalid: .* labels from 0 to 1"),
    "two classes": ({"objective": "binary:logistic"}, "2,2", "label 2 is invalid: .* needs labels 0 and 1"),
    "two classes, a fraction": ({"objective": "binary:hinge"}, "0.5,2", "label 0.5 is invalid"),
    "two classes, -1": ({"objective": "binary:logitraw"}, "-1,2", "label -1 is invalid"),
    "three classes": (
        {"objective": "multi:softprob", **CLASSES},
        "3,2",
        "label 3 is invalid: objective multi:softprob needs whole labels from 0 to 2",
    ),
    "three classes, a fraction": ({"objective": "multi:softmax", **CLASSES}, "1.5,2", "label 1.5 is invalid"),
    "three classes, a huge one": ({"objective": "multi:softmax", **CLASSES}, "1e9,2", "label 1000000000 is invalid"),
    "grades above 31": (RANKING, "32,1,2", "label 32 is invalid: objective rank:ndcg needs grades"),
    "grades, a fraction": (RANKING, "0.5,1,2", "label 0.5 is invalid"),
    "grades, negative": (RANKING, "-1,1,2", "label -1 is invalid"),
    "gains, negative": (
        {**RANKING, "ndcg_exp_gain": False},
        "-1,1,2",
        "label -1 is invalid: objective rank:ndcg needs grades, labels of 0 or more",
    ),
    "map": ({**GROUPS, "objective": "rank:map"}, "2,1,2", "label 2 is invalid: objective rank:map"),
    "the metric map": (
        {**RANKING, "eval_metric": ("ndcg", "map@3")},
        "2,1,2",
        "label 2 is invalid: metric map@3 needs labels 0 and 1",
    ),
    "the metric pre": (
        {**RANKING, "eval_metric": ("pre@2",)},
        "2,1,2",
        "label 2 is invalid: metric pre@2 needs labels",
    ),
    "the metric ndcg": ({**GROUPS, "eval_metric": ("ndcg",)}, "40,1,2", "label 40 is invalid: metric ndcg"),
    "a second label": (
        {"objective": "count:poisson", **BOUNDS},
        "1,-2,5",
        "label -2 is invalid: objective count:poisson",
    ),
    "a negative code": ({"categorical_features": ("0",)}, "1,-1", "code -1 of categorical feature '0' is invalid"),
    "a code in part": ({"categorical_features": ("0",)}, "1,0.5", "code 0.5 of categorical feature '0' is invalid"),
    "a huge code": ({"categorical_features": ("0",)}, "1,5000000", "code 5000000 of categorical feature '0'"),
    "weights of a group": (
        {**RANKING, "csv_weights": True, "group_column": "2"},
        "0,0.5,1,2",
        "weight 0.5 is invalid: the rows before it in group 1 have another",
    ),
}
GOOD = {1: "1,2", 2: "1,1,2", 3: "1,1,1,2"}


def on_disk_too() -> Iterator[object]:
    """Every case with rows in memory and, but for groups, which are never read block by block, on the disk."""
    for name, (given, row, message) in BAD.items():
        for place in ("off",) if "group_column" in given else ("off", "on"):
            yield pytest.param(given, row, message, place, id=f"{name}-{place}")


@pytest.mark.parametrize(("given", "row", "message", "external_memory"), list(on_disk_too()))
def test_the_first_row_that_breaks_a_rule_is_named(
    given: dict[str, Any], row: str, message: str, external_memory: str, tmp_path: Path
) -> None:
    good = GOOD[row.count(",")]
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.csv").write_text(f"{good}\n" * 3)
    (tmp_path / "train/b.csv").write_text(f"{good}\n{row}\n{good}\n{row}\n")
    params = XGBoostParams(num_round=1, nthread=1, **given)
    spool = tmp_path / "blocks" if external_memory == "on" else None
    shard = read_shard(
        Channel(name="train", path=tmp_path / "train"), "train", params, RowPartition(), like=None, spool=spool
    )
    assert shard.labels.fault is not None
    place, _, said = shard.labels.fault.message.partition(": ")
    assert place == "train/b.csv:2"
    assert re.match(message, said), said


FINE: dict[str, tuple[dict[str, Any], str]] = {
    "numbers": ({}, "-1e30,2"),
    "gamma": ({"objective": "reg:gamma"}, "0.001,2"),
    "counts": ({"objective": "count:poisson"}, "0,2"),
    "shares": ({"objective": "reg:logistic"}, "0.25,2"),
    "cox": ({"objective": "survival:cox"}, "-7,2"),
    "grades": (RANKING, "31,1,2"),
    "gains": ({**RANKING, "ndcg_exp_gain": False}, "70.5,1,2"),
    "codes, one missing": ({"categorical_features": ("0",)}, "1,"),
    "censored from the left": ({"objective": "survival:aft", **BOUNDS}, "0,2,5"),
}


@pytest.mark.parametrize(("given", "row"), FINE.values(), ids=FINE.keys())
def test_rows_that_can_be_learnt_from_are_let_through(given: dict[str, Any], row: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.csv").write_text(f"{GOOD[row.count(',')]}\n{row}\n")
    channel = Channel(name="train", path=tmp_path / "train")
    shard = read_shard(channel, "train", XGBoostParams(num_round=1, **given), RowPartition(), like=None, spool=None)
    assert shard.labels.fault is None


def test_the_sum_of_the_weights_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,0.5,2\n0,2,3\n")
    channel = Channel(name="train", path=tmp_path)
    shard = read_shard(
        channel, "train", XGBoostParams(num_round=1, csv_weights=True), RowPartition(), like=None, spool=None
    )
    assert shard.labels.weight == 2.5
