"""What a member holds of a channel, and the matrix that is made of it."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import xgboost as xgb

from trainbox.checkpoint.store import Checkpoint
from trainbox.contract.job import Channel
from trainbox.data import Table
from trainbox.errors import CheckpointError, DataError, HyperparameterError
from trainbox.xgboost.collective.group import SingleProcess
from trainbox.xgboost.metrics import evaluate
from trainbox.xgboost.params.hyperparameters import XGBoostParams, booster_parameters
from trainbox.xgboost.rows.agreement import MemberReport, agree
from trainbox.xgboost.rows.matrices import LEAST_ROWS, Bins, choose_bins, feature_types, fields, make_matrices
from trainbox.xgboost.rows.shards import RowPartition, Shard, is_too_large, read_shard, shard_of
from trainbox.xgboost.segments import compare, identify

MIB = 2**20


def params(**given: object) -> XGBoostParams:
    return XGBoostParams(num_round=5, nthread=1, **{"objective": "binary:logistic", **given})  # type: ignore[arg-type]


def channel(directory: Path, rows: int = 500, seed: int = 0) -> Channel:
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 4)).round(4)
    labels = (features[:, 0] > 0).astype(int)
    directory.mkdir()
    lines = [",".join(map(str, (label, *row))) for label, row in zip(labels, features.tolist(), strict=True)]
    (directory / "a.csv").write_text("\n".join(lines) + "\n")
    return Channel(name=directory.name, path=directory)


@pytest.mark.parametrize(
    ("estimate", "limit", "processes", "asked", "expected"),
    [
        (100 * MIB, 1000 * MIB, 1, "auto", False),
        (400 * MIB, 1000 * MIB, 1, "auto", True),
        (100 * MIB, 1000 * MIB, 4, "auto", True),
        (400 * MIB, None, 1, "auto", False),
        (1, 1000 * MIB, 1, "on", True),
        (400 * MIB, 1000 * MIB, 1, "off", False),
    ],
)
def test_rows_stay_on_the_disk_where_they_would_not_fit(
    estimate: int, limit: int | None, processes: int, asked: str, expected: bool
) -> None:
    assert is_too_large(estimate, limit, processes=processes, asked=asked) is expected


def test_a_model_from_rows_on_the_disk_is_that_from_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the matrices are made for a GPU, of which there is none here: they train on a processor, too."""
    monkeypatch.setattr("trainbox.xgboost.rows.shards.BLOCK_ROWS", 128)
    chosen = params(subsample=0.7)
    train, held_out = channel(tmp_path / "train"), channel(tmp_path / "validation", rows=100, seed=1)
    models, scores = [], []
    for spool, device in ((None, "cpu"), (tmp_path / "blocks", "cpu"), (tmp_path / "for-gpu", "cuda")):
        shards: dict[str, Shard] = {}
        for source in (train, held_out):
            place = spool and spool / source.name
            like = shards.get("train")
            shards[source.name] = read_shard(source, source.name, chosen, RowPartition(), like=like, spool=place)
        assert shards["train"].rows == 500
        assert shards["train"].labels.counts == {
            0.0: 500 - shards["train"].labels.counts[1.0],
            1.0: pytest.approx(250, abs=60),
        }
        matrices = make_matrices(shards, params(subsample=0.7, device=device), bins="sketch")
        assert isinstance(matrices["train"], xgb.ExtMemQuantileDMatrix) == (spool is not None and device == "cpu")
        booster = xgb.Booster(booster_parameters(chosen, version=xgb.__version__), list(matrices.values()))
        for step in range(5):
            booster.update(matrices["train"], step)
        models.append(bytes(booster.save_raw("ubj")))
        scores.append(
            evaluate(booster, matrices, ("auc", "accuracy"), params=chosen, iteration=4, group=SingleProcess())
        )
    assert models[0] == models[1] == models[2]
    assert scores[0] == scores[1] == scores[2]
    assert len(list((tmp_path / "blocks" / "train").glob("0*"))) == 4


@pytest.mark.parametrize(
    ("method", "is_on_disk"), [("hist", False), ("hist", True), ("approx", False), ("exact", False)]
)
def test_features_are_drawn_by_their_weights(tmp_path: Path, method: str, is_on_disk: bool) -> None:
    """Labels are those of f0; a million draws of f1 and f3 come before one of it."""
    weights = {"f0": 0.0, "2": 0.0, "f1": 1e6, "f3": 1e6}
    chosen = params(tree_method=method, colsample_bytree=0.5, feature_weights=weights, max_depth=3)
    spool = tmp_path / "blocks" if is_on_disk else None
    shard = read_shard(channel(tmp_path / "train"), "train", chosen, RowPartition(), like=None, spool=spool)
    matrix = make_matrices({"train": shard}, chosen, bins=choose_bins(shard, chosen, members=1))["train"]
    booster = xgb.Booster(booster_parameters(chosen, version=xgb.__version__), [matrix])
    for step in range(5):
        booster.update(matrix, step)
    assert set(booster.get_score()) == {"f1", "f3"}


def test_members_share_a_replicated_channel_and_its_blocks(tmp_path: Path) -> None:
    source = channel(tmp_path / "train")
    for spool in (None, tmp_path / "blocks"):
        shards = [
            read_shard(source, "train", params(), RowPartition(rank, 3), like=None, spool=spool and spool / str(rank))
            for rank in range(3)
        ]
        assert sum(shard.rows for shard in shards) == 500
        assert len({shard.digest for shard in shards}) == 3


def table(**more: object) -> Table:
    given: dict[str, object] = {
        "labels": np.array([0, 1, 1, 0], np.float32),
        "features": np.arange(8, dtype=np.float32).reshape(4, 2),
        "feature_names": ("age", "colour"),
        "files": (),
    }
    return Table(**{**given, **more})  # type: ignore[arg-type]


SPARSE = {"features": scipy.sparse.csr_matrix(np.eye(4, 2, dtype=np.float32))}
WEIGHTED = {"weights": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("given", "begun", "expected"),
    [
        ({}, None, "sketch"),
        ({"bins": "sketch"}, None, "sketch"),
        ({"bins": "quantiles"}, None, "quantiles"),
        ({"tree_method": "approx", "bins": "quantiles"}, None, "none"),
        ({"tree_method": "exact"}, "quantiles", "none"),
        ({}, "quantiles", "quantiles"),
        ({}, "exact", "exact"),
        ({"bins": "quantiles"}, "exact", "exact"),
        ({}, "sketch", "sketch"),
        ({"bins": "sketch"}, "exact", "sketch"),
        ({"bins": "quantiles"}, "sketch", "quantiles"),
        ({}, "of a stranger", "sketch"),
    ],
)
def test_bins_are_xgboosts_unless_others_are_asked_for_or_were_begun_with(
    given: dict[str, object], begun: str | None, expected: str
) -> None:
    chosen = params(**given)
    assert choose_bins(shard_of(table(), "train", chosen), chosen, members=1, begun=begun) == expected


@pytest.mark.parametrize(
    ("more", "given", "members", "why"),
    [
        ({}, {}, 2, "2 processes have a part each"),
        (WEIGHTED, {}, 1, "they have weights"),
        (SPARSE, {}, 1, "they are sparse"),
    ],
)
def test_quantiles_that_cannot_be_had_of_the_rows_are_an_error_where_they_are_asked_for(
    more: dict[str, object], given: dict[str, object], members: int, why: str
) -> None:
    shard = shard_of(table(**more), "train", params())
    assert choose_bins(shard, params(**given), members=members, begun="exact") == "sketch"
    with pytest.raises(HyperparameterError, match=why) as refused:
        choose_bins(shard, params(bins="quantiles", **given), members=members)
    assert "bins=sketch" in str(refused.value.hint)


@pytest.mark.parametrize(
    "given",
    [{"categorical_features": ("f0",)}, {"csv_weights": True}, {"external_memory": "on"}, {"device": "cuda"}],
)
def test_quantiles_that_no_rows_can_have_are_an_error_of_the_hyperparameters(given: dict[str, object]) -> None:
    params(**given)
    with pytest.raises(ValueError, match="bins=quantiles does not go with"):
        params(bins="quantiles", **given)


@pytest.mark.parametrize(("begun", "given"), [("exact", {}), ("quantiles", {}), ("quantiles", {"bins": "sketch"})])
def test_a_checkpoint_begun_with_quantiles_is_not_continued_with_other_bins(
    tmp_path: Path, begun: str, given: dict[str, object]
) -> None:
    source, chosen = channel(tmp_path / "train"), params(**given)
    shard = read_shard(source, "train", chosen, RowPartition(), like=None, spool=None if given else tmp_path / "blocks")
    report = MemberReport("algo-1", {"train": 500}, {"train": shard.labels}, tuple("abcd"), {"train": "x"}, None, "3")
    bins = choose_bins(shard, chosen, members=1, begun=begun)
    identity = identify(chosen, agree([report]), bins)
    found = Checkpoint(tmp_path / "step-00000050", 50, {**identity, "bins": begun}, size=0)
    with pytest.raises(CheckpointError, match=f"bins was {begun} and is sketch") as refused:
        compare(found, identity)
    assert "leave the hyperparameter bins out" in str(refused.value.hint)
    with pytest.raises(CheckpointError, match="seed was 0 and is 1") as refused:
        compare(found, {**identity, "bins": begun, "seed": "1"})
    assert str(refused.value.hint).startswith("restore the values")


@pytest.mark.parametrize("rows", [LEAST_ROWS, LEAST_ROWS - 1])
def test_a_fold_of_an_earlier_versions_job_has_quantiles_where_it_had_them(rows: int) -> None:
    """That version looked at each fold: one of fewer rows was left to the sketch."""
    labels = np.arange(rows, dtype=np.float32) % 2
    features = np.random.default_rng(3).normal(size=(rows, 1)).astype(np.float32)
    chosen, kinds = params(), dict[Bins, object]()
    for bins in ("sketch", "quantiles", "exact"):
        shard = shard_of(table(labels=labels, features=features, feature_names=("f0",)), "train", chosen)
        made = make_matrices({"train": shard}, chosen, bins=bins)["train"]
        kinds[bins] = made.get_quantile_cut()[1].tolist()
    assert kinds["sketch"] != kinds["quantiles"]
    assert kinds["exact"] == kinds["quantiles" if rows == LEAST_ROWS else "sketch"]


def test_a_model_from_exact_quantiles_is_as_good_as_one_from_the_sketch() -> None:
    random = np.random.default_rng(3)
    features = random.lognormal(size=(30_000, 4)).astype(np.float32)
    labels = (features[:, 0] * features[:, 1] > random.lognormal(size=30_000)).astype(np.float32)
    chosen = params(max_bin=32)
    scores = []
    kinds: tuple[Bins, ...] = ("sketch", "quantiles")
    for bins in kinds:
        shards = {
            name: shard_of(
                table(labels=labels[part], features=features[part], feature_names=tuple("abcd")), name, chosen
            )
            for name, part in {"train": slice(0, 20_000), "validation": slice(20_000, None)}.items()
        }
        matrices = make_matrices(shards, chosen, bins=bins)
        booster = xgb.train(booster_parameters(chosen, version=xgb.__version__), matrices["train"], 20)
        scores.append(evaluate(booster, matrices, ("auc",), params=chosen, group=SingleProcess())["validation:auc"])
    assert scores[1] == pytest.approx(scores[0], abs=0.003)
    assert scores[0] != scores[1]


def test_sparse_rows_stay_sparse_on_the_disk_and_give_the_model_of_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their cells would be 80 MB, and of a table of text more than any disk has."""
    monkeypatch.setattr("trainbox.xgboost.rows.shards.BLOCK_ROWS", 64)
    (tmp_path / "train").mkdir()
    lines = [f"{row % 2} {row % 5}:1 {100 + row % 2}:{row} {500 * row + 7}:1" for row in range(200)]
    (tmp_path / "train" / "a.libsvm").write_text("\n".join([*lines, "1 99999:1"]) + "\n")
    chosen, models = params(), []
    for spool in (None, tmp_path / "blocks"):
        source = Channel(name="train", path=tmp_path / "train")
        shard = read_shard(source, "train", chosen, RowPartition(), like=None, spool=spool)
        assert shard.is_sparse
        assert len(shard.feature_names) == 100_000
        matrix = make_matrices({"train": shard}, chosen, bins="sketch")["train"]
        booster = xgb.train(booster_parameters(chosen, version=xgb.__version__), matrix, 3)
        models.append(bytes(booster.save_raw("ubj")))
    assert models[0] == models[1]
    assert sum(path.stat().st_size for path in (tmp_path / "blocks").rglob("*.npy")) < 100_000


def test_a_weight_of_ranking_is_that_of_its_group() -> None:
    groups = np.array([7, 7, 3, 3])
    weights = np.array([2, 2, 1, 1], np.float32)
    given = fields(table(groups=groups, weights=weights), params(objective="rank:ndcg", group_column="qid"))
    assert given["weight"].tolist() == [2, 1]
    assert given["qid"].tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="group 3: row 4 has another weight than the first of its group"):
        fields(table(groups=groups, weights=np.array([2, 2, 1, 5], np.float32)), params())


def test_survival_takes_both_bounds_of_a_row() -> None:
    labels = np.array([[1, 2], [1, np.inf], [3, 3], [0, 1]], np.float32)
    given = fields(table(labels=labels), params(objective="survival:aft", label_columns=2))
    assert given["label_lower_bound"].tolist() == [1, 1, 3, 0]
    assert given["label_upper_bound"].tolist() == [2, np.inf, 3, 1]
    assert "label" not in given


def test_categories_are_found_by_name_or_position_and_a_missing_one_is_named() -> None:
    assert feature_types(("age", "colour"), params()) is None
    assert feature_types(("age", "colour"), params(categorical_features=("colour",))) == ["q", "c"]
    assert feature_types(("f0", "f1"), params(categorical_features=(0,))) == ["c", "q"]
    with pytest.raises(HyperparameterError, match="there is no feature 'colur'"):
        feature_types(("age", "colour"), params(categorical_features=("colur",)))
