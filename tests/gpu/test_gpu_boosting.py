"""XGBoost on a real GPU: exact on resume, right in its scores, and its model at home on any processor."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xgboost as xgb

from tests.support import segments
from tests.support.trees import Tree
from tests.support.waiting import eventually
from trainbox.contract.model_card import read_card

ROWS = 40_000
GPUS = torch.cuda.device_count()
PARAMETERS = {
    "trainbox_script": "xgboost",
    "objective": "binary:logistic",
    "eval_metric": "logloss,auc,accuracy",
    "num_round": "60",
    "checkpoint_every": "4",
    "subsample": "0.7",
    "colsample_bynode": "0.7",
}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    random = np.random.default_rng(5)
    with Tree(tmp_path / "ml") as tree:
        tree.hosts("algo-1")
        tree.write("input/config/checkpointconfig.json", json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
        for channel, rows in (("train", ROWS), ("validation", ROWS // 4)):
            features = random.normal(size=(rows, 8)).round(4)
            score = features[:, 0] + features[:, 1] * features[:, 2]
            labels = (score + random.normal(size=rows) > 0).astype(int)
            lines = [",".join(map(str, (label, *row))) for label, row in zip(labels, features.tolist(), strict=True)]
            tree.channel(channel, {"rows.csv": "\n".join(lines) + "\n"})
        yield tree


def start(tree: Tree, **more: str) -> "subprocess.Popen[bytes]":
    tree.hyperparameters_from(PARAMETERS | more)
    return tree.start({"SAGEMAKER_PROGRAM": ""}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def trained(tree: Tree, **more: str) -> tuple[bytes, str]:
    """The model, and the log."""
    run = tree.finish(start(tree, **more))
    assert run.code == 0, run.stdout.decode()
    return (tree.model / "xgboost-model").read_bytes(), run.stdout.decode()


def final(tree: Tree) -> dict[str, float | None]:
    return dict(read_card(tree.model).metrics)


def test_interrupted_at_four_rounds_training_comes_to_the_same_bytes_on_a_gpu() -> None:
    names = [name for name in segments.CASES if name not in segments.ON_PROCESSORS]
    answer = subprocess.run(
        [sys.executable, segments.__file__, "--device", "cuda", *names],
        env={**os.environ, "PYTHONPATH": str(Path(segments.__file__).parents[2] / "container")},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["same"] == dict.fromkeys(names, True)


def test_a_gpu_learns_what_a_processor_learns_and_its_model_runs_there(tree: Tree) -> None:
    trained(tree)
    on_processor = final(tree)
    shutil.rmtree(tree.root / "checkpoints")
    model, log = trained(tree, device="cuda")
    on_gpu = final(tree)
    booster = xgb.Booster(model_file=bytearray(model))
    rows = xgb.DMatrix(np.zeros((3, 8), np.float32))

    assert on_gpu == pytest.approx(on_processor, rel=0.02)
    assert "training on cuda:0" in log
    assert booster.predict(rows).shape == (3,)


@pytest.mark.parametrize("external", ["off", "on"])
def test_stopped_and_started_again_it_leaves_the_same_model(tree: Tree, external: str) -> None:
    checkpoints = tree.root / "checkpoints"
    asked = {"device": "cuda", "external_memory": external, "num_round": "200"}
    process = start(tree, **asked)
    eventually(lambda: any(checkpoints.glob("step-*")) or process.poll() is not None, "a checkpoint")
    process.send_signal(signal.SIGTERM)
    stopped = tree.finish(process).stdout.decode()
    again, log = trained(tree, **asked)
    shutil.rmtree(checkpoints)
    whole, _ = trained(tree, **asked)

    assert "asked to stop" in stopped
    assert "resum" in log
    assert again == whole


def test_a_gpu_that_is_not_there_is_asked_for_in_vain(tree: Tree) -> None:
    run = tree.finish(start(tree, device=f"cuda:{GPUS}"))
    assert run.code == 6, run.stdout.decode()
    assert f"finds {GPUS} GPU(s), no cuda:{GPUS}" in (run.failure or "")
