"""The channel `model`: every bundled script starts from what a former job has left, and refuses what is none."""

import io
import json
import signal
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import xgboost as xgb

from tests.support.growth import trees_of, write_rows
from tests.support.runs import COMMAND
from tests.support.script_runs import SIGNAL_AT_STEP, run_script
from tests.support.script_runs import make_job as write_job
from tests.support.waiting import LIMIT
from trainbox.contract.model_card import ModelCard, encode_card, features_of

pytestmark = pytest.mark.process

SCRIPTS = Path(__file__).parents[2] / "train_scripts"
LONG = pytest.mark.long
BOOSTING = {
    "objective": "binary:logistic",
    "max_depth": "3",
    "subsample": "0.7",
    "checkpoint_every": "4",
    "nthread": "1",
}
FOREST = {"max-depth": "4", "n-jobs": "1", "checkpoint-every": "4"}
NETWORK = {"hidden": "[8]", "epochs": "1", "learning-rate": "0.01"}


def make_job(root: Path, hyperparameters: Mapping[str, str], former: Path | None = None) -> Path:
    """A tree with two channels, and `model` where there is a former one."""
    write_job(root, hyperparameters, channels=dict.fromkeys(("train", "validation"), "FullyReplicated"))
    for number, name in enumerate(("train", "validation")):
        write_rows(root / "input" / "data" / name / "a.csv", seed=number)
    return root if former is None else with_former(root, former)


def with_former(root: Path, archive: Path) -> Path:
    """Give a job the channel `model`."""
    config = root / "input" / "config" / "inputdataconfig.json"
    config.write_text(json.dumps({name: {"TrainingInputMode": "File"} for name in ("train", "validation", "model")}))
    (root / "input" / "data" / "model").mkdir()
    (root / "input" / "data" / "model" / "model.tar.gz").write_bytes(archive.read_bytes())
    return root


def run(script: str, root: Path, *, code: int = 0, stop_at: int | None = None, name: str = "SIGTERM") -> str:
    first = "" if stop_at is None else SIGNAL_AT_STEP.format(number=int(signal.Signals[name]), step=stop_at)
    done = run_script(SCRIPTS / f"{script}_train.py", root, first=first)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def pack(root: Path, **more: bytes) -> Path:
    """`model.tar.gz` of a job, as SageMaker makes it."""
    archive = root / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        if (root / "model").is_dir():
            tar.add(root / "model", ".")
        for name, content in more.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def booster_of(root: Path) -> xgb.Booster:
    return xgb.Booster(model_file=bytearray((root / "model" / "xgboost-model").read_bytes()))


@pytest.fixture(scope="module")
def boosted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What six rounds have left."""
    root = make_job(tmp_path_factory.mktemp("boosted"), {**BOOSTING, "num_round": "6"})
    run("xgboost", root)
    return pack(root)


def test_xgboost_boosts_on_and_a_resumed_job_gives_the_same_model(tmp_path: Path, boosted: Path) -> None:
    hyperparameters = {**BOOSTING, "num_round": "7"}
    whole = make_job(tmp_path / "whole", hyperparameters, boosted)
    said = run("xgboost", whole)
    assert "channel model: 6 rounds; 7 more are trained on top of them" in said
    model, former = booster_of(whole), booster_of(boosted.parent)
    assert model.num_boosted_rounds() == 13
    assert model[:6].get_dump() == former.get_dump()
    resumed = make_job(tmp_path / "resumed", hyperparameters, boosted)
    run("xgboost", resumed, stop_at=5, name="SIGKILL", code=-signal.SIGKILL)
    run("xgboost", resumed)
    assert (resumed / "model/xgboost-model").read_bytes() == (whole / "model/xgboost-model").read_bytes()


def test_xgboost_boosts_as_xgboost_itself_does_from_a_model(tmp_path: Path, boosted: Path) -> None:
    root = make_job(tmp_path, {**BOOSTING, "num_round": "4", "subsample": "1.0", "tree_method": "exact"}, boosted)
    run("xgboost", root)
    rows = np.loadtxt(root / "input/data/train/a.csv", delimiter=",")
    settings = {"objective": "binary:logistic", "max_depth": 3, "tree_method": "exact", "nthread": 1}
    matrix = xgb.DMatrix(rows[:, 1:], rows[:, 0])
    former = (boosted.parent / "model/xgboost-model").read_bytes()
    expected = xgb.train(settings, matrix, 4, xgb_model=bytearray(former))
    assert booster_of(root).get_dump() == expected.get_dump()


def test_columns_in_another_order_are_refused_by_name(tmp_path: Path) -> None:
    first, second = (make_job(tmp_path / name, {**BOOSTING, "num_round": "2"}) for name in ("first", "second"))
    for root, header in ((first, "y,a,b,c,d\n"), (second, "y,b,a,c,d\n")):
        for channel in ("train", "validation"):
            write_rows(root / "input" / "data" / channel / "a.csv", header=header)
    run("xgboost", first)
    with_former(second, pack(first))
    assert "the former model calls feature 1 'a', channel train calls it 'b'" in run("xgboost", second, code=7)


def write_colours(root: Path, texts: str) -> None:
    """Rows whose label depends on a column of texts."""
    for channel in ("train", "validation"):
        words = texts.split() * 20
        lines = [f"{int(word == 'red')},{word},{number % 7}" for number, word in enumerate(words)]
        (root / "input" / "data" / channel / "a.csv").write_text("y,colour,size\n" + "\n".join(lines) + "\n")


@pytest.mark.long
def test_texts_keep_the_numbers_that_the_former_model_knows(tmp_path: Path) -> None:
    roots = {name: make_job(tmp_path / name, {**BOOSTING, "num_round": "2"}) for name in ("first", "fewer", "new")}
    for root, texts in zip(roots.values(), ("red green blue", "red green", "red violet"), strict=True):
        write_colours(root, texts)
    run("xgboost", roots["first"])
    card = ModelCard(
        framework="xgboost",
        algorithm="xgboost",
        objective="binary:logistic",
        features=features_of(["colour", "size"], {"colour": "text"}),
        categories={"colour": ("blue", "green", "red")},
    )
    former = pack(roots["first"], **{"trainbox/model__json": encode_card(card)})
    run("xgboost", with_former(roots["fewer"], former))
    rows = np.array([[2.0, 1.0], [1.0, 1.0]])
    margins = booster_of(roots["fewer"]).predict(xgb.DMatrix(rows, feature_types=["c", "q"], enable_categorical=True))
    assert margins[0] > 0.5 > margins[1], "red is still 2, and green 1"
    assert "'violet' is not among the texts of training: 'blue', 'green', 'red'" in _refused(
        with_former(roots["new"], former)
    )


def _refused(root: Path) -> str:
    return run("xgboost", root, code=7)


def test_a_model_that_xgboost_itself_has_saved_with_names_is_continued(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    matrix = xgb.DMatrix(random.normal(size=(50, 4)), random.integers(0, 2, 50), feature_names=list("abcd"))
    former = xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, 2)
    archive = pack(_new(tmp_path / "former"), **{"xgboost-model": bytes(former.save_raw("ubj"))})
    root = make_job(tmp_path / "job", {**BOOSTING, "num_round": "3"}, archive)
    run("xgboost", root)
    assert booster_of(root).num_boosted_rounds() == 5


def test_a_stop_before_the_first_new_round_leaves_no_model(tmp_path: Path, boosted: Path) -> None:
    root = make_job(tmp_path, {**BOOSTING, "num_round": "7"}, boosted)
    stop = "import os, signal, trainbox\ntrainbox.stop_requested()\nos.kill(os.getpid(), signal.SIGTERM)\n"
    run_script(SCRIPTS / "xgboost_train.py", root, first=stop)
    assert not (root / "model" / "xgboost-model").exists()


def test_a_checkpoint_of_another_former_model_is_not_continued(tmp_path: Path, boosted: Path) -> None:
    root = make_job(tmp_path, {**BOOSTING, "num_round": "7"})
    run("xgboost", root, stop_at=5, name="SIGKILL", code=-signal.SIGKILL)
    with_former(root, boosted)
    assert "channel model was None and is 6 rounds" in run("xgboost", root, code=8)


@pytest.mark.parametrize(
    ("hyperparameters", "said"),
    [
        ({"objective": "reg:squarederror"}, "objective was binary:logistic and is reg:squarederror"),
        pytest.param({"num_parallel_tree": "2"}, "trees in each round was 1 and is 2", marks=LONG),
        pytest.param(
            {"booster": "gblinear", "max_depth": None, "subsample": None},
            "booster was gbtree and is gblinear",
            marks=pytest.mark.long,
        ),
        ({"base_score": "0.3"}, "base_score=0.3 has no effect"),
        pytest.param({"_kfold": "3"}, "_kfold=3 has no use for the model", marks=LONG),
    ],
)
def test_xgboost_refuses_what_does_not_fit_the_former_model(
    tmp_path: Path, boosted: Path, hyperparameters: dict[str, str | None], said: str
) -> None:
    given = {**BOOSTING, "num_round": "2", **hyperparameters}
    root = make_job(tmp_path, {name: value for name, value in given.items() if value is not None}, boosted)
    code = 6 if "has no" in said else 7
    assert said in run("xgboost", root, code=code)


def test_archives_that_hold_no_model_are_refused_with_what_they_hold(tmp_path: Path, boosted: Path) -> None:
    damaged = bytearray((boosted.parent / "model/xgboost-model").read_bytes())
    damaged[len(damaged) // 2 :] = b"\xff" * 40
    for number, (archive, said) in enumerate(
        {
            pack(_new(tmp_path / "other"), notes__txt=b"-"): "there is no xgboost-model; it holds 'notes.txt'",
            pack(_new(tmp_path / "bad"), **{"xgboost-model": bytes(damaged)}): "is not a model of XGBoost",
            _linked(tmp_path): "is a link",
            _torn(tmp_path, boosted): "cannot be unpacked",
        }.items()
    ):
        root = make_job(tmp_path / str(number), {**BOOSTING, "num_round": "2"}, archive)
        text = run("xgboost", root, code=7)
        assert said in text
        assert "DataError" in text


def _new(path: Path) -> Path:
    path.mkdir()
    return path


def _linked(here: Path) -> Path:
    archive = here / "linked.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("xgboost-model")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    return archive


def _torn(here: Path, whole: Path) -> Path:
    archive = here / "torn.tar.gz"
    archive.write_bytes(whole.read_bytes()[:-20])
    return archive


# ---- forests ----


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What six trees have left."""
    root = make_job(tmp_path_factory.mktemp("forest"), {**FOREST, "n-estimators": "6"})
    run("random_forest", root)
    return pack(root)


@pytest.mark.long
def test_a_forest_that_grows_on_is_the_one_that_grew_at_once(tmp_path: Path, forest: Path) -> None:
    at_once = make_job(tmp_path / "once", {**FOREST, "n-estimators": "11"})
    run("random_forest", at_once)
    grown = make_job(tmp_path / "grown", {**FOREST, "n-estimators": "11"}, forest)
    said = run("random_forest", grown)
    assert "channel model: 6 trees; 5 more are grown" in said
    assert trees_of(grown) == trees_of(at_once)
    resumed = make_job(tmp_path / "resumed", {**FOREST, "n-estimators": "11"}, forest)
    run("random_forest", resumed, stop_at=8, name="SIGKILL", code=-signal.SIGKILL)
    run("random_forest", resumed)
    assert trees_of(resumed) == trees_of(at_once)


@pytest.mark.long
def test_a_forest_on_two_hosts_grows_on_as_on_one(tmp_path: Path, forest: Path) -> None:
    alone = make_job(tmp_path / "alone", {**FOREST, "n-estimators": "11"}, forest)
    run("random_forest", alone)
    flags = [word for name, value in {**FOREST, "n-estimators": "11"}.items() for word in ("--hp", f"{name}={value}")]
    data = alone / "input" / "data"
    channels = [word for name in ("train", "validation") for word in ("--channel", f"{name}={data / name}")]
    command = [*COMMAND, "random_forest", *flags, *channels, "--channel", f"model={forest}", "--hosts", "2"]
    done = subprocess.run(
        [*command, "--out", "out"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert trees_of(tmp_path / "out") == trees_of(alone)


@pytest.mark.parametrize(
    ("hyperparameters", "said", "code"),
    [
        ({"n-estimators": "6"}, "n-estimators is 6, and the model of the channel model has 6 trees", 6),
        pytest.param({"n-estimators": "9", "oob-score": "true"}, "oob_score has no meaning", 6, marks=LONG),
        pytest.param(
            {"n-estimators": "9", "algorithm": "extra_trees"},
            "expected a ExtraTreesClassifier",
            7,
            marks=pytest.mark.long,
        ),
        ({"n-estimators": "9", "engine": "xgboost"}, "engine=xgboost cannot start from the model", 6),
    ],
)
def test_a_forest_refuses_what_does_not_fit_the_former_one(
    tmp_path: Path, forest: Path, hyperparameters: dict[str, str], said: str, code: int
) -> None:
    root = make_job(tmp_path, {**FOREST, **hyperparameters}, forest)
    assert said in run("random_forest", root, code=code)


# ---- PyTorch ----


def test_pytorch_starts_from_the_weights_of_the_former_job(tmp_path: Path) -> None:
    first = make_job(tmp_path / "first", NETWORK)
    run("pytorch", first)
    second = make_job(tmp_path / "second", {**NETWORK, "learning-rate": "1e-12", "seed": "5"}, pack(first))
    said = run("pytorch", second)
    assert "training starts from" in said
    weights = [torch.load(root / "model" / "model.pt", weights_only=True) for root in (first, second)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value)
