"""What a member holds of a channel, and the matrix that is made of it."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import xgboost as xgb

from trainbox.channels import Table
from trainbox.checkpointing import Checkpoint
from trainbox.contract.job import Channel
from trainbox.errors import CheckpointError, DataError, HyperparameterError
from trainbox.xgboost import Alone, Params, booster_parameters, evaluate
from trainbox.xgboost.agreement import Report, agree
from trainbox.xgboost.matrices import LEAST_ROWS, bins_of, feature_types, fields, make_matrices
from trainbox.xgboost.segments import compare, identify
from trainbox.xgboost.shards import Part, Shard, is_too_large, read_shard, shard_of

MIB = 2**20


def params(**given: object) -> Params:
    return Params(num_round=5, nthread=1, **{"objective": "binary:logistic", **given})  # type: ignore[arg-type]


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
    monkeypatch.setattr("trainbox.xgboost.shards.BLOCK_ROWS", 128)
    chosen = params(subsample=0.7)
    train, held_out = channel(tmp_path / "train"), channel(tmp_path / "validation", rows=100, seed=1)
    models, scores = [], []
    for spool, device in ((None, "cpu"), (tmp_path / "blocks", "cpu"), (tmp_path / "for-gpu", "cuda")):
        shards: dict[str, Shard] = {}
        for source in (train, held_out):
            place = spool and spool / source.name
            like = shards.get("train")
            shards[source.name] = read_shard(source, source.name, chosen, Part(), like=like, spool=place)
        assert shards["train"].rows == 500
        assert shards["train"].labels.counts == {
            0.0: 500 - shards["train"].labels.counts[1.0],
            1.0: pytest.approx(250, abs=60),
        }
        matrices = make_matrices(shards, params(subsample=0.7, device=device), members=1)
        assert isinstance(matrices["train"], xgb.ExtMemQuantileDMatrix) == (spool is not None and device == "cpu")
        booster = xgb.Booster(booster_parameters(chosen, version=xgb.__version__), list(matrices.values()))
        for step in range(5):
            booster.update(matrices["train"], step)
        models.append(bytes(booster.save_raw("ubj")))
        scores.append(evaluate(booster, matrices, ("auc", "accuracy"), params=chosen, iteration=4, group=Alone()))
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
    shard = read_shard(channel(tmp_path / "train"), "train", chosen, Part(), like=None, spool=spool)
    matrix = make_matrices({"train": shard}, chosen, members=1)["train"]
    booster = xgb.Booster(booster_parameters(chosen, version=xgb.__version__), [matrix])
    for step in range(5):
        booster.update(matrix, step)
    assert set(booster.get_score()) == {"f1", "f3"}


def test_members_share_a_replicated_channel_and_its_blocks(tmp_path: Path) -> None:
    source = channel(tmp_path / "train")
    for spool in (None, tmp_path / "blocks"):
        shards = [
            read_shard(source, "train", params(), Part(rank, 3), like=None, spool=spool and spool / str(rank))
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


MANY = np.zeros(LEAST_ROWS, np.float32)


@pytest.mark.parametrize(
    ("more", "given", "members", "expected"),
    [
        ({}, {}, 1, "exact"),
        ({}, {"tree_method": "approx"}, 1, "none"),
        ({}, {"tree_method": "exact"}, 1, "none"),
        ({}, {}, 2, "sketch"),
        ({}, {"device": "cuda"}, 1, "sketch"),
        ({}, {"categorical_features": ("f0",)}, 1, "sketch"),
        ({"weights": MANY}, {}, 1, "sketch"),
        ({"features": scipy.sparse.csr_matrix(MANY.reshape(-1, 1))}, {}, 1, "sketch"),
        ({"labels": MANY[1:], "features": MANY[1:].reshape(-1, 1)}, {}, 1, "sketch"),
    ],
)
def test_many_rows_in_one_process_are_binned_at_exact_quantiles_and_others_by_xgboost(
    more: dict[str, object], given: dict[str, object], members: int, expected: str
) -> None:
    rows = {"labels": MANY, "features": MANY.reshape(-1, 1), "feature_names": ("f0",), **more}
    chosen = params(**given)
    assert bins_of(shard_of(table(**rows), "train", chosen), chosen, members=members) == expected


def test_rows_on_the_disk_are_binned_by_xgboost_and_a_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainbox.xgboost.matrices.LEAST_ROWS", 100)
    source, chosen = channel(tmp_path / "train"), params()
    identities = []
    for spool in (None, tmp_path / "blocks"):
        shard = read_shard(source, "train", chosen, Part(), like=None, spool=spool)
        report = Report("algo-1", {"train": 500}, {"train": shard.labels}, tuple("abcd"), {"train": "x"}, None, "3")
        identities.append(identify(chosen, agree([report]), bins_of(shard, chosen, members=1)))
    assert [identity["bins"] for identity in identities] == ["exact", "sketch"]
    in_memory = Checkpoint(tmp_path / "step-00000050", 50, identities[0], size=0)
    compare(in_memory, identities[0])
    with pytest.raises(CheckpointError, match="bins was exact and is sketch") as refused:
        compare(in_memory, identities[1])
    assert "set external_memory to off or on" in str(refused.value.hint)
    with pytest.raises(CheckpointError, match="seed was 0 and is 1") as refused:
        compare(in_memory, identities[1] | {"seed": "1"})
    assert str(refused.value.hint).startswith("take the values back")


def test_a_model_from_exact_quantiles_is_as_good_as_one_from_the_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    features = random.lognormal(size=(30_000, 4)).astype(np.float32)
    labels = (features[:, 0] * features[:, 1] > random.lognormal(size=30_000)).astype(np.float32)
    chosen = params(max_bin=32)
    scores = []
    for least in (LEAST_ROWS, 0):
        monkeypatch.setattr("trainbox.xgboost.matrices.LEAST_ROWS", least)
        shards = {
            name: shard_of(
                table(labels=labels[part], features=features[part], feature_names=tuple("abcd")), name, chosen
            )
            for name, part in {"train": slice(0, 20_000), "validation": slice(20_000, None)}.items()
        }
        matrices = make_matrices(shards, chosen, members=1)
        booster = xgb.train(booster_parameters(chosen, version=xgb.__version__), matrices["train"], 20)
        scores.append(evaluate(booster, matrices, ("auc",), params=chosen, group=Alone())["validation:auc"])
    assert scores[1] == pytest.approx(scores[0], abs=0.003)
    assert scores[0] != scores[1]


def test_a_weight_of_ranking_is_that_of_its_group() -> None:
    groups = np.array([7, 7, 3, 3])
    weights = np.array([2, 2, 1, 1], np.float32)
    given = fields(table(groups=groups, weights=weights), params(objective="rank:ndcg", group_column="qid"))
    assert given["weight"].tolist() == [2, 1]
    assert given["qid"].tolist() == [7, 7, 3, 3]
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
