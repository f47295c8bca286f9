"""Who can write a checkpoint writes its digests, too: what it holds is looked at before XGBoost gets it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import boosters
from tests.support.ubjson import encode
from trainbox.checkpoint.store import Checkpoint, Checkpoints
from trainbox.comm import Members, join
from trainbox.errors import CheckpointError
from trainbox.xgboost.folds import load_folds
from trainbox.xgboost.model_check.ubjson import decode
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.agreement import RowsAgreement
from trainbox.xgboost.segments import Progress, resume

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "xgboost_train.py"
STEP = 4
HISTORY = json.dumps([{"train:logloss": 0.5}] * STEP)


def model(kind: str = "binary:logistic") -> bytes:
    return bytes(boosters.train(kind)[0].save_raw("ubj"))


def beyond(content: bytes) -> bytes:
    """The same model; its second tree leads out of its nodes."""
    document: Any = decode(content)
    tree = document["learner"]["gradient_booster"]["model"]["trees"][1]
    tree["left_children"] = np.array([10**6, *tree["left_children"][1:]], np.int32)
    return encode(document)


def forge(store: Checkpoints, change: Callable[[Path], object]) -> Checkpoint:
    """Another checkpoint in the place of the newest, whole by its digests."""
    found = store.latest()
    assert found is not None
    with store.writing(found.step, info=found.info) as path:
        for file in found.path.iterdir():
            if file.name != "MANIFEST.json":
                (path / file.name).write_bytes(file.read_bytes())
        change(path)
    forged = store.latest()
    assert forged is not None
    assert forged.path != found.path
    return forged


@pytest.mark.process
def test_a_job_that_resumes_from_a_forged_model_ends_with_its_name_and_no_crash(tmp_path: Path) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    hyperparameters = {"num_round": "12", "objective": "binary:logistic", "checkpoint_every": "5", "nthread": "1"}
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "inputdataconfig.json").write_text(json.dumps({"train": {}}))
    (config / "checkpointconfig.json").write_text("{}")
    rows = np.random.default_rng(1).normal(size=(200, 4))
    rows[:, 0] = rows[:, 1] > 0
    (tmp_path / "input" / "data" / "train").mkdir(parents=True)
    np.savetxt(tmp_path / "input" / "data" / "train" / "a.csv", rows, delimiter=",")

    def run() -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "TRAINBOX_ROOT": str(tmp_path)}
        return subprocess.run(
            [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
        )

    assert run().returncode == 0

    def change(path: Path) -> None:
        (path / "model.ubj").write_bytes(beyond((path / "model.ubj").read_bytes()))

    forge(Checkpoints(tmp_path / "checkpoints"), change)
    resumed = run()
    assert resumed.returncode == CheckpointError.exit_code, resumed.stderr
    assert "model.ubj of the checkpoint of step 10 is not a model of XGBoost: tree 1, node 0 of" in resumed.stderr


def resumed(tmp_path: Path, change: Callable[[Path], object], *, columns: int = 4) -> Progress:
    store = Checkpoints(tmp_path)
    with store.writing(STEP, info={"a": "b"}) as path:
        (path / "model.ubj").write_bytes(model())
        (path / "history.json").write_text(HISTORY)
    found = forge(store, change)
    agreement = RowsAgreement({}, {}, tuple("abcdefgh"[:columns]), {}, (STEP, 0))
    members = Members(("algo-1",), "algo-1", "127.0.0.1")
    with join(members, timeout=1.0, limit=0.0, port=0) as communicator:
        return resume(
            found, agreement, communicator, {"a": "b"}, XGBoostParams(num_round=9, objective="binary:logistic")
        )


def put(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(content.encode() if isinstance(content, str) else content)


def put_model(make: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: (path / "model.ubj").write_bytes(make())


def test_an_honest_one_is_resumed_from(tmp_path: Path) -> None:
    progress = resumed(tmp_path, put("history.json", HISTORY.replace("0.5", "NaN", 1)))
    assert progress.model == model()
    assert len(progress.history) == STEP


FORGERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a child": (put_model(lambda: beyond(model())), "tree 1, node 0"),
    "half of it": (put_model(lambda: model()[:999]), "is not a model of XGBoost: .*(cut off|length)"),
    "no model": (lambda path: (path / "model.ubj").unlink(), "lacks model.ubj"),
    "a model of other rounds": (put_model(lambda: model("no rounds")), "0 rounds"),
    "another objective": (put_model(lambda: model("reg:squarederror")), "is reg:squarederror of 4 features"),
    "other scores": (put("history.json", "[]"), "scores of 0"),
    "scores in words": (put("history.json", '[{"a": "b"}]'), r"history.json .* cannot be used: Expected `float`"),
    "scores without end": (put("history.json", "[" * 10**5), "history.json .* cannot be used"),
    "no scores": (put("history.json", b"\xff"), "history.json .* cannot be used"),
}


@pytest.mark.parametrize(("change", "words"), FORGERIES.values(), ids=FORGERIES.keys())
def test_what_a_checkpoint_holds_that_is_no_progress_is_refused(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        resumed(tmp_path, change)
    assert caught.value.hint


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is binary:logistic of 4 features.*; expected .* of 5"):
        resumed(tmp_path, lambda _: None, columns=5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: (path / "0000.ubj").write_bytes(beyond(model())), "0000.ubj is not a model of XGBoost: tree 1"),
        (lambda path: (path / "0000.npy").write_bytes(b"x"), "0000.npy cannot be used"),
        (lambda path: (path / "scores.json").write_text("3"), "scores.json cannot be used"),
    ],
)
def test_a_fold_of_something_else_is_refused(tmp_path: Path, change: Callable[[Path], object], words: str) -> None:
    store = Checkpoints(tmp_path)
    with store.writing(1, info={"a": "b"}) as path:
        (path / "0000.ubj").write_bytes(model())
        np.save(path / "0000.npy", np.zeros(3, np.float32))
        (path / "scores.json").write_text('[{"validation:auc": 0.5}]')
    (result,) = load_folds(store.latest(), {"a": "b"})
    assert (result.model, len(result.predictions)) == (model(), 3)
    with pytest.raises(CheckpointError, match=words):
        load_folds(forge(store, change), {"a": "b"})
