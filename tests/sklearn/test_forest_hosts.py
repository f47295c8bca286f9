"""Forests on several hosts, each a process with an address of its own: the trees of one host, whatever happens."""

import json
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import joblib
import msgspec
import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from tests.support.growth import trees_of, write_rows
from tests.support.script_runs import Ended, ScriptRuns, hosts, make_job
from trainbox.contract.model_card import ModelCard, read_card

pytestmark = pytest.mark.cluster

GIVEN = {"n-estimators": "11", "max-depth": "4", "checkpoint-every": "2", "n-jobs": "1"}
REPLICATED = {"train": "FullyReplicated", "validation": "FullyReplicated"}
SHARDED = {"train": "ShardedByS3Key", "validation": "ShardedByS3Key"}

#: To run first: a signal to itself when it has saved so many groups.
SIGNAL_AT_GROUP = """
import os
import trainbox.sklearn.training as room
save = room.save_parts
def save_and_signal(store, parts, identity, history):
    save(store, parts, identity, history)
    if len(parts) == {groups}:
        os.kill(os.getpid(), {number})
room.save_parts = save_and_signal
"""
NO_ROOM = "import trainbox.sklearn.agreement as agreement; agreement.SHARE_OF_MEMORY = 0.0"


@pytest.fixture(scope="module")
def runs() -> Iterator[ScriptRuns]:
    with ScriptRuns(pictures=False) as started:
        yield started


@pytest.fixture(scope="module")
def alone(runs: ScriptRuns, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The job of one host that has all rows."""
    root = make_job(tmp_path_factory.mktemp("alone"), GIVEN, channels=REPLICATED)
    for name, seed in (("train", 0), ("validation", 1)):
        write_rows(root / "input/data" / name / "a.csv", task="three", seed=seed)
    ended = runs.run(root)
    assert ended.returncode == 0, ended.stderr
    return root, ended


class Cluster:
    """The trees of two hosts whose checkpoints go to one place, as to one S3 prefix."""

    def __init__(self, directory: Path, given: Mapping[str, str], channels: Mapping[str, str]) -> None:
        self.names = hosts(2)
        self.roots = [directory / f"host-{number}" for number in (1, 2)]
        (directory / "shared").mkdir(exist_ok=True)
        for number, (root, name) in enumerate(zip(self.roots, self.names, strict=True)):
            make_job(root, given, names=self.names, name=name, channels=channels)
            (root / "checkpoints").symlink_to(directory / "shared")
            for place, (channel, how) in enumerate(sorted(channels.items())):
                half = slice(number * 150, number * 150 + 150) if how == "ShardedByS3Key" else None
                write_rows(root / "input/data" / channel / "a.csv", task="three", seed=place, part=half)

    def run(self, runs: ScriptRuns, *first: str) -> list[Ended]:
        """Run both to their ends; `first` is what each runs before the script."""
        before = first or ("", "")
        children = [runs.start(root, first=code) for root, code in zip(self.roots, before, strict=True)]
        return [child.wait() for child in children]


def card_of(root: Path) -> ModelCard:
    return read_card(root / "model")


def metric(card: ModelCard, name: str) -> float:
    return card.metrics[name] or 0.0


def well(ended: list[Ended]) -> list[Ended]:
    assert [one.returncode for one in ended] == [0] * len(ended), "\n".join(one.stderr for one in ended)
    return ended


def all_refuse(ended: list[Ended], code: int, reason: str) -> Ended:
    """All have found the same: whoever says so first is also heard by those who were about to. Gives one that has."""
    assert [one.returncode for one in ended] == [code] * len(ended)
    for one in ended:
        assert reason in one.stderr
    return next(one for one in ended if "PeerError: " not in one.stderr)


@pytest.mark.representative
def test_two_hosts_grow_the_trees_of_one_and_log_its_lines(
    tmp_path: Path, runs: ScriptRuns, alone: tuple[Path, Ended]
) -> None:
    cluster = Cluster(tmp_path, GIVEN, REPLICATED)
    first, second = well(cluster.run(runs))
    for name in ("model.joblib", "model.skops"):
        assert (cluster.roots[0] / "model" / name).read_bytes() == (alone[0] / "model" / name).read_bytes()
    assert first.stdout == alone[1].stdout
    assert second.stdout == ""
    assert not (cluster.roots[1] / "model").exists()
    assert re.search(r"of 11 trees, about \d+ s left", second.stderr)
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == sorted(cluster.names)
    curves = "output/data/learning-curves.json"
    assert (cluster.roots[0] / curves).read_bytes() == (alone[0] / curves).read_bytes()


@pytest.mark.representative
def test_a_host_that_dies_ends_the_job_and_a_restart_resumes_each_hosts_own_trees(
    tmp_path: Path, runs: ScriptRuns, alone: tuple[Path, Ended]
) -> None:
    cluster = Cluster(tmp_path, GIVEN, REPLICATED)
    first, second = cluster.run(runs, "", SIGNAL_AT_GROUP.format(groups=2, number=int(signal.SIGKILL)))
    assert (first.returncode, second.returncode) == (5, -signal.SIGKILL)
    assert f"PeerError: {cluster.names[1]} is lost" in first.stderr
    ended = well(cluster.run(runs))
    assert "resuming from step 8 " in ended[1].stderr  # trees 5 to 7: groups end at multiples of two
    assert "resuming from step " in ended[0].stderr
    assert trees_of(cluster.roots[0]) == trees_of(alone[0])
    last = alone[1].stdout.splitlines()[-1]
    assert ended[0].stdout.splitlines()[-1] == last


def test_a_stop_of_one_host_stops_all_and_a_restart_goes_on(
    tmp_path: Path, runs: ScriptRuns, alone: tuple[Path, Ended]
) -> None:
    cluster = Cluster(tmp_path, GIVEN, REPLICATED)
    well(cluster.run(runs, "", SIGNAL_AT_GROUP.format(groups=1, number=int(signal.SIGTERM))))
    told = card_of(cluster.roots[0])
    assert told.complete is False
    assert 0 < (told.iterations or 0) < 11
    well(cluster.run(runs))
    assert card_of(cluster.roots[0]).complete is True
    assert trees_of(cluster.roots[0]) == trees_of(alone[0])


@pytest.mark.representative
def test_sharded_rows_are_gathered_and_give_the_trees_of_one_host(
    tmp_path: Path, runs: ScriptRuns, alone: tuple[Path, Ended]
) -> None:
    """The first host has the first half of the rows, so that all of them are in the order of one host's."""
    cluster = Cluster(tmp_path, GIVEN, SHARDED)
    (cluster.roots[1] / "input/data/validation/a.csv").write_text("")  # no validation row on one host loses nothing
    write_rows(cluster.roots[0] / "input/data/validation/a.csv", task="three", seed=1)
    first, _ = well(cluster.run(runs))
    assert trees_of(cluster.roots[0]) == trees_of(alone[0])
    assert first.stdout == alone[1].stdout
    assert "train is sharded: each of the 2 hosts gets all rows" in first.stderr


def test_sharded_rows_that_are_too_many_are_refused_on_all_hosts(tmp_path: Path, runs: ScriptRuns) -> None:
    cluster = Cluster(tmp_path, GIVEN, SHARDED)
    refused = all_refuse(
        cluster.run(runs, NO_ROOM, NO_ROOM), 7, "channel train is sharded and has 0.0 GB, more than 0%"
    )
    assert "allow_shard_forests=true: " in refused.stderr
    assert "engine=xgboost: " in refused.stderr


def test_a_forest_of_shards_knows_all_classes_and_has_trees_by_rows(tmp_path: Path, runs: ScriptRuns) -> None:
    cluster = Cluster(tmp_path, {**GIVEN, "allow-shard-forests": "true"}, SHARDED)
    rows = (cluster.roots[1] / "input/data/train/a.csv").read_text().splitlines(keepends=True)
    few = [row for row in rows if not row.startswith("1,")][:60]
    (cluster.roots[1] / "input/data/train/a.csv").write_text("".join(few))
    first, _ = well(cluster.run(runs, NO_ROOM, NO_ROOM))
    assert "as allow_shard_forests says, each host grows trees on its own rows" in first.stderr
    forest = joblib.load(cluster.roots[0] / "model/model.joblib")
    assert len(forest.estimators_) == 11
    own = [int(tree.tree_.n_node_samples[0]) for tree in forest.estimators_]
    # As many different rows as a tree draws: of 150 more than 60, which the other has at most, and one for the class.
    assert [count > 61 for count in own] == [True] * 7 + [False] * 4
    assert forest.predict_proba(np.zeros((1, 4))).shape == (1, 3)
    assert metric(card_of(cluster.roots[0]), "validation:accuracy") > 0.6


@pytest.mark.parametrize("channels", [SHARDED, REPLICATED], ids=["sharded", "replicated"])
def test_xgboosts_forest_learns_from_the_rows_of_all_hosts(
    tmp_path: Path, runs: ScriptRuns, channels: dict[str, str]
) -> None:
    given = {name: value for name, value in GIVEN.items() if name != "checkpoint-every"}
    cluster = Cluster(tmp_path, {**given, "engine": "xgboost"}, channels)
    first, second = well(cluster.run(runs))
    assert "engine=xgboost grows a forest of another kind" in first.stderr
    assert "150 rows of its own" in first.stderr
    assert "[metrics]" not in second.stdout  # XGBoost itself says its rank
    told = card_of(cluster.roots[0])
    assert metric(told, "validation:accuracy") > 0.6
    assert re.search(r"final validation:accuracy=0\.\d+ validation:auc=0\.[89]", first.stdout)
    assert (cluster.roots[0] / "model/xgboost-model").stat().st_size > 1000
    gains = json.loads((cluster.roots[0] / "output/data/feature-importance.json").read_text())["gain"]
    assert set(list(gains)[:2]) == {"f0", "f1"}


def test_other_rows_on_a_host_that_should_have_the_same_are_found(tmp_path: Path, runs: ScriptRuns) -> None:
    cluster = Cluster(tmp_path, GIVEN, REPLICATED)
    write_rows(cluster.roots[1] / "input/data/train/b.csv", task="three", rows=5)
    reason = f"channel train: {cluster.names[1]} has other rows than {cluster.names[0]}"
    all_refuse(cluster.run(runs), 7, reason)


def test_what_is_wrong_on_one_host_is_told_on_all(tmp_path: Path, runs: ScriptRuns) -> None:
    cluster = Cluster(tmp_path, GIVEN, SHARDED)
    for channel, row, reason in (
        ("train", "0,1,2,three,4", "column 4: 'three' is not a number"),
        ("train", "0.5,1,2,3,4", "label 0.5 is invalid: task=classification needs whole numbers"),
        ("validation", "7,1,2,3,4", "label 7 does not occur in training (in 1 row)"),
    ):
        path = cluster.roots[1] / "input/data" / channel / "b.csv"
        path.write_text(f"1,1,1,1,1\n{row}\n")
        for ended in cluster.run(runs):
            assert ended.returncode == 7, ended.stderr
            told = f"FAILED: ClientError: DataError: {cluster.names[1]}: {channel}/b.csv:2: {reason}"
            assert told in ended.stderr
        path.unlink()


# ---- one host, something else than a forest ----


def test_another_estimator_has_the_same_rows_metrics_and_files(tmp_path: Path, runs: ScriptRuns) -> None:
    given = {"estimator": "sklearn.linear_model.LogisticRegression", "estimator-params": '{"C": 0.5}'}
    root = make_job(tmp_path, given, channels=REPLICATED)
    for name, seed in (("train", 0), ("validation", 1)):
        write_rows(root / "input/data" / name / "a.csv", task="three", seed=seed)
    ended = well([runs.run(root)])[0]
    assert "a single fit: an interrupted job starts again" in ended.stderr
    model = joblib.load(root / "model/model.joblib")
    assert isinstance(model, LogisticRegression)
    told = card_of(root)
    assert told.trusted == ()
    safe = skops.io.load(root / "model/model.skops", trusted=[])
    assert (safe.coef_ == model.coef_).all()
    assert metric(told, "validation:auc") > 0.8
    names = " ".join(rf"validation:{name}=[0-9.]+" for name in ("accuracy", "auc", "f1", "logloss"))
    assert re.fullmatch(rf"\[metrics\] final {names}\n", ended.stdout)
    assert set(json.loads((root / "output/data/feature-importance.json").read_text())) == {"coefficient"}


def test_a_class_of_the_job_s_own_code_is_an_estimator_too(tmp_path: Path, runs: ScriptRuns) -> None:
    root = make_job(tmp_path, {"estimator": "mine:Vote"}, channels={"train": "FullyReplicated"})
    write_rows(root / "input/data/train/a.csv")
    (root / "code").mkdir()
    (root / "code/mine.py").write_text(
        "from sklearn.ensemble import BaggingClassifier\nclass Vote(BaggingClassifier): ...\n"
    )
    ended = well([runs.run(root)])[0]
    assert "the metrics are those of the training rows" in ended.stderr
    told = card_of(root)
    assert told.algorithm == "mine:Vote"
    assert "mine.Vote" in told.trusted


def test_an_estimator_is_fitted_on_one_host(tmp_path: Path, runs: ScriptRuns) -> None:
    cluster = Cluster(tmp_path, {"estimator": "sklearn.linear_model.LogisticRegression"}, REPLICATED)
    all_refuse(cluster.run(runs), 10, "is fitted on one host")


def test_weights_of_rows_count_for_trees_and_for_metrics(tmp_path: Path, runs: ScriptRuns) -> None:
    given = {**GIVEN, "csv-weights": "1", "oob-score": "true", "checkpoint-every": "11", "n-estimators": "60"}
    root = make_job(tmp_path, given, channels=REPLICATED)
    random = np.random.default_rng(0)
    for name in ("train", "validation"):
        features = random.normal(size=(200, 2)).round(3)
        labels = (features[:, 0] > 0).astype(int)
        wrong = random.random(200) < 0.4  # without weight
        rows = np.column_stack([np.where(wrong, 1 - labels, labels), np.where(wrong, 0, 1), features])
        np.savetxt(root / "input/data" / name / "a.csv", rows, delimiter=",", fmt="%g")
    ended = well([runs.run(root)])[0]
    told = card_of(root)
    assert metric(told, "validation:accuracy") > 0.95
    assert 0.4 < metric(told, "train:oob") < 0.75
    assert "train:oob=" in ended.stdout
    assert told.features.listed() == ("f0", "f1")
    assert msgspec.json.decode((root / "output/data/learning-curves.json").read_bytes())["train:oob"]["trees"][-1] == 60
