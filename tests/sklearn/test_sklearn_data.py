"""The rows of several hosts: what must fit together, and how they come to where trees grow; hosts are threads here."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.sparse

from tests.support.addresses import addresses
from tests.support.growth import anatomy, make_data, make_table
from trainbox.checkpoint.store import Checkpoints
from trainbox.comm import Communicator, Members, heartbeat, join
from trainbox.data import Table
from trainbox.errors import ConfigurationError, DataError, HyperparameterError, PeerError
from trainbox.sklearn import rows
from trainbox.sklearn.agreement import RowsReport, agree, check_training_labels, stays_sharded
from trainbox.sklearn.forests.checkpoints import identify, resume, save_parts
from trainbox.sklearn.forests.growing import exchange_progress, groups_left, grow, slices
from trainbox.sklearn.forests.parts import assemble_forest, gather_parts
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.rows import allgather_rows, gather_rows, pack_rows, unpack_rows

NAMES = ("f0", "f1", "f2", "f3")


@pytest.fixture(autouse=True)
def _nobody_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a host would be ended that does not leave by itself: here all hosts are one process."""
    monkeypatch.setattr(heartbeat, "end_process", lambda _error, _thread: None)


def report(member: str, **changed: Any) -> RowsReport:
    told = RowsReport(
        member=member,
        rows={"train": 100},
        size={"train": 2_000},
        digest="same",
        columns=("a", "b"),
        classes={"0": 60, "1": 40},
        extremes=(0.0, 1.0),
        weight=None,
        memory=1_000_000,
        version="1.9.1",
    )
    return msgspec.structs.replace(told, **changed)


def together(count: int, act: Callable[[Communicator], Any]) -> list[Any]:
    """Let members do something at once, by rank."""
    (leader,) = addresses(1)
    names = tuple(f"algo-{number}" for number in range(1, count + 1))

    def one(name: str) -> Any:
        members = Members(names, name, leader, "job")
        with join(members, timeout=30, limit=30, port=29473) as communicator:
            return act(communicator)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, names))


# ---- what fits together ----


def test_members_with_the_same_rows_agree() -> None:
    assert agree([report("algo-1"), report("algo-2")], set()) == ("a", "b")


def test_a_member_without_rows_agrees_with_all() -> None:
    none = report("algo-1", rows={"train": 0}, columns=(), extremes=None)
    assert agree([none, report("algo-2")], {"train"}) == ("a", "b")


def test_sparse_rows_are_as_wide_as_the_widest_of_any_member() -> None:
    assert agree([report("algo-1", columns=NAMES[:3]), report("algo-2", columns=NAMES)], {"train"}) == NAMES


DIFFERING: dict[str, tuple[dict[str, Any], set[str], type[Exception], str]] = {
    "fewer columns": ({"columns": ("a",)}, {"train"}, DataError, "algo-2 has 1 features, algo-1 has 2"),
    "other columns": ({"columns": ("a", "x")}, {"train"}, DataError, "algo-2 calls feature 2 'x', algo-1 calls it 'b'"),
    "other rows": ({"digest": "x"}, set(), DataError, "algo-2 has other rows than algo-1, but the channel"),
    "another version": ({"version": "1.8"}, set(), ConfigurationError, "algo-2 has scikit-learn 1.8, algo-1 has 1.9.1"),
}


@pytest.mark.parametrize(("changed", "sharded", "kind", "message"), DIFFERING.values(), ids=DIFFERING.keys())
def test_members_that_differ_are_named(
    changed: dict[str, Any], sharded: set[str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        agree([report("algo-1"), report("algo-2", **changed)], sharded)


def test_no_row_on_any_member_is_an_error() -> None:
    none = {"rows": {"train": 0}, "columns": ()}
    with pytest.raises(DataError, match="channel train: no rows on any of the 2 hosts"):
        agree([report("algo-1", **none), report("algo-2", **none)], {"train"})


# ---- sharded rows: gathered, or refused ----


def test_rows_that_fit_are_gathered(capsys: pytest.CaptureFixture[str]) -> None:
    assert stays_sharded(EstimatorParams(), [report("algo-1"), report("algo-2")]) is False
    assert "each of the 2 hosts gets all rows" in capsys.readouterr().err


def test_rows_that_do_not_fit_are_refused_with_the_reason_and_the_ways_out() -> None:
    large = [report("algo-1", size={"train": 200_000}), report("algo-2", size={"train": 90_000}, memory=900_000)]
    with pytest.raises(
        DataError, match=r"more than 25% of the 0\.0 GB of algo-2: a tree of this forest must"
    ) as caught:
        stays_sharded(EstimatorParams(), large)
    assert "allow_shard_forests=true: each host grows trees on its own rows alone" in caught.value.hint
    assert "engine=xgboost: trees of another kind" in caught.value.hint


def test_who_allows_it_is_told_what_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    large = [report("algo-1", size={"train": 900_000}), report("algo-2")]
    assert stays_sharded(EstimatorParams(allow_shard_forests=True), large) is True
    assert (
        "each host grows trees on its own rows, as many as it has rows. The forest is weaker" in capsys.readouterr().err
    )
    assert stays_sharded(EstimatorParams(engine="xgboost"), [report("algo-1")]) is True


# ---- labels of all members ----


def test_a_class_that_only_one_member_has_is_known_to_all() -> None:
    told = [report("algo-1"), report("algo-2", classes={"1": 5, "-3": 2})]
    assert check_training_labels(EstimatorParams(), told, is_sharded=True) == (-3, 0, 1)
    assert check_training_labels(EstimatorParams(), told, is_sharded=False) == (0, 1)


def test_one_class_on_each_member_is_enough_if_they_differ() -> None:
    told = [report("algo-1", classes={"0": 5}), report("algo-2", classes={"1": 5})]
    assert check_training_labels(EstimatorParams(), told, is_sharded=True) == (0, 1)
    with pytest.raises(DataError, match=r"all labels are equal, 0 \(10 rows\)"):
        check_training_labels(EstimatorParams(), [told[0], told[0]], is_sharded=True)


def test_numbers_that_are_all_the_same_are_nothing_to_learn() -> None:
    params = EstimatorParams(task="regression")
    told = [report("algo-1", extremes=(1.5, 1.5)), report("algo-2", extremes=(1.5, 1.5))]
    with pytest.raises(DataError, match=r"all labels are equal, 1\.5 \(200 rows\)"):
        check_training_labels(params, told, is_sharded=True)
    assert check_training_labels(params, [told[0], report("algo-2")], is_sharded=True) == ()


def test_weights_of_all_members_count_where_their_rows_are_sharded() -> None:
    told = [report("algo-1", weight=0.0), report("algo-2", weight=2.0)]
    assert check_training_labels(EstimatorParams(), told, is_sharded=True) == (0, 1)
    with pytest.raises(DataError, match="channel train: all weights are 0"):
        check_training_labels(EstimatorParams(), told, is_sharded=False)


def test_a_weight_for_a_class_that_does_not_occur_is_refused() -> None:
    with pytest.raises(
        HyperparameterError, match="'class_weight' has a weight for 7, which does not occur in the training rows"
    ):
        check_training_labels(EstimatorParams(class_weight={"0": 1.0, "7": 2.0}), [report("a")], is_sharded=False)


# ---- rows on their way ----


def tables(*, sparse: bool, weights: bool = True) -> list[Table]:
    made = []
    for rank, count in enumerate((50, 0, 7)):
        table = make_table(rows=max(count, 1), seed=rank, weights=np.arange(max(count, 1), dtype=np.float32))
        features: Any = table.features[:count]
        if sparse:
            features = scipy.sparse.csr_matrix(features)[:, : 4 - rank % 2]
        made.append(
            Table(table.labels[:count], features, NAMES, (), table.weights[:count] if weights else None)  # type: ignore[index]
        )
    return made


def dense(table: Table) -> Any:
    features: Any = table.features
    return features.toarray() if scipy.sparse.issparse(features) else features


def same(one: Table, other: Table) -> bool:
    pairs: list[Any] = [(one.labels, other.labels), (one.weights, other.weights), (dense(one), dense(other))]
    return one.feature_names == other.feature_names and all(np.array_equal(*pair) for pair in pairs)


def expected(made: Sequence[Table]) -> Table:
    wide = [np.pad(dense(table), ((0, 0), (0, 4 - table.features.shape[1]))) for table in made]
    weights: Any = [table.weights for table in made]
    labels = np.concatenate([table.labels for table in made])
    return Table(labels, np.concatenate(wide), NAMES, (), np.concatenate(weights))


@pytest.mark.process
@pytest.mark.parametrize("sparse", [False, True])
def test_everybody_gets_everybodys_rows_in_the_order_of_the_ranks(
    monkeypatch: pytest.MonkeyPatch, sparse: bool
) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 300)  # many blocks
    made = tables(sparse=sparse)
    sizes = [(len(table.labels), rows.count_bytes(table)) for table in made]
    found = together(3, lambda communicator: allgather_rows(communicator, made[communicator.rank], sizes, NAMES))
    assert all(same(table, expected(made)) for table in found)


@pytest.mark.process
def test_the_first_gets_everybodys_rows_and_the_others_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 300)
    made = tables(sparse=False)
    sizes = [(len(table.labels), rows.count_bytes(table)) for table in made]
    found = together(3, lambda communicator: gather_rows(communicator, made[communicator.rank], sizes, NAMES))
    assert same(found[0], expected(made))
    assert found[1:] == [None, None]


def test_bytes_that_are_no_rows_are_refused() -> None:
    table = make_table(rows=9)
    content = pack_rows(table, 2, 5)
    assert np.array_equal(unpack_rows(content, table, "algo-2").labels, table.labels[2:5])
    for wrong in (b"", content[:100], np.array([{}], dtype=object).dumps()):
        with pytest.raises(PeerError, match="algo-2 sent damaged rows"):
            unpack_rows(wrong, table, "algo-2")


# ---- trees of several hosts ----


@pytest.mark.process
def test_trees_of_three_hosts_put_together_are_those_of_one(tmp_path: Path) -> None:
    params, data = EstimatorParams(n_estimators=11, checkpoint_every=2, n_jobs=1), make_data("three")

    def host(communicator: Communicator) -> list[Any]:
        own = slices([1, 1, 1], 11)[communicator.rank]
        store, identity = Checkpoints(tmp_path / communicator.members.name), identify(params, data)
        parts, _ = resume(store, identity, own, params, data)
        with grow(params, data, groups_left(own, parts, 2)) as growing:
            for part in growing:
                parts.append(part)
                save_parts(store, parts, identity, [])
        return gather_parts(communicator, parts, params, data)

    gathered = together(3, host)
    assert gathered[1:] == [[], []]
    with grow(params, data, [range(11)]) as growing:
        one = assemble_forest(list(growing), params)
    assert anatomy(assemble_forest(gathered[0], params).estimators_) == anatomy(one.estimators_)
    # Restarted, nobody grows anything, and the forest is the same.
    again = together(3, host)
    assert anatomy(assemble_forest(again[0], params).estimators_) == anatomy(one.estimators_)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["algo-1", "algo-2", "algo-3"]


@pytest.mark.process
def test_a_host_that_is_asked_to_stop_stops_all() -> None:
    stocks = together(
        2, lambda communicator: exchange_progress(communicator, range(4), [], stop=communicator.rank == 1)
    )
    assert [(stock.grown, stock.left, stock.stop) for stock in stocks] == [(0, 8, True)] * 2


def test_with_another_number_of_hosts_what_fits_is_used_and_the_rest_grows_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, data = EstimatorParams(n_estimators=12, checkpoint_every=2, n_jobs=1), make_data()
    store, identity = Checkpoints(tmp_path), identify(params, data)
    with grow(params, data, groups_left(range(6), [], 2)) as growing:
        parts = list(growing)
    save_parts(store, parts, identity, [(2, {"train:auc": 0.5}), (4, {"train:auc": float("nan")}), (6, {})])
    found, history = resume(store, identity, range(4), params, data)
    assert [(part.first, part.last) for part in found] == [(0, 2), (2, 4)]
    assert [step for step, _ in history] == [2, 4]
    assert history[1][1]["train:auc"] != history[1][1]["train:auc"]
    assert resume(store, identity, range(4, 8), params, data) == ([], [])
    assert "this host grows its own again" in capsys.readouterr().err
