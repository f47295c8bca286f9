"""Texts in the shards of members: blocks on the disk coded as a table in memory is, and what cannot be learnt."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.support.writers import write
from trainbox.comm import Communicator
from trainbox.contract.job import Channel
from trainbox.data import Coding
from trainbox.errors import DataError, HyperparameterError
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.blocks import read_block
from trainbox.xgboost.rows.shards import RowPartition, Shard, read_shard
from trainbox.xgboost.rows.texts import check_texts, with_shared_codes

BINARY = XGBoostParams(num_round=1, objective="binary:logistic")
ROWS = "yes,red,1\nno,blue,2\nyes,,3\nno,amber,4\nyes,red,5\n"


class SingleProcess:
    """What is asked of a communicator of one."""

    size = 1


def settled(channel: Channel, spool: Path | None) -> Shard:
    shard = read_shard(channel, "train", BINARY, RowPartition(), like=None, spool=spool)
    return with_shared_codes(shard, cast("Communicator", SingleProcess()), BINARY, None)


def test_blocks_on_the_disk_have_the_codes_of_a_table_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainbox.xgboost.rows.shards.BLOCK_ROWS", 2)
    channel = Channel("train", write(tmp_path, {"a.csv": ROWS}))
    memory, disk = settled(channel, None), settled(channel, tmp_path / "spool")
    assert memory.coding == disk.coding == Coding({0: ("amber", "blue", "red")}, ("no", "yes"))
    blocks = [read_block(block) for block in disk.blocks if isinstance(block, Path)]
    assert [len(block.labels) for block in blocks] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), memory.table.features)
    np.testing.assert_array_equal(np.concatenate([block.labels for block in blocks]), [1, 0, 1, 0, 1])
    assert memory.labels == disk.labels
    again = read_shard(channel, "train", BINARY, RowPartition(), like=disk, spool=tmp_path / "more", coding=disk.coding)
    assert again.digest == disk.digest


@pytest.mark.parametrize(
    ("given", "labels", "message"),
    [
        ({"objective": "reg:squarederror"}, ("a", "b"), "predicts a number\n.*objective=binary:logistic"),
        ({"objective": "rank:ndcg"}, ("a", "b", "c"), "predicts a number\n.*multi:softprob and num_class=3"),
        ({"objective": "binary:logistic"}, ("a", "b", "c"), "has 2 classes\n.*multi:softprob and num_class=3"),
        ({"objective": "multi:softmax", "num_class": 4}, ("a", "b"), "has 4 classes\n.*objective=binary:logistic"),
        ({"objective": "binary:logistic"}, ("a",), "training needs at least two"),
    ],
)
def test_labels_of_texts_are_classes_and_nothing_else(
    given: dict[str, object], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=f"the labels are {len(labels)} different texts .*{message}"):
        check_texts(Coding({}, labels), (), XGBoostParams(num_round=1, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"tree_method": "exact"}, {"booster": "gblinear"}])
def test_categories_need_trees_of_histograms(given: dict[str, object]) -> None:
    with pytest.raises(HyperparameterError, match="supports only numbers, and the channel train has texts in color"):
        check_texts(Coding({0: ("a",)}), ("color",), XGBoostParams(num_round=1, **given))  # type: ignore[arg-type]
