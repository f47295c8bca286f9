"""A user copies a bundled script, changes what a user would, and runs the copy: the objective, the model, the loop."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
import xgboost as xgb

from tests.support.growth import draw_rows, write_rows
from tests.support.script_runs import SCRIPT, Ended, ScriptRuns, make_job
from trainbox.contract.model_card import read_card

pytestmark = pytest.mark.process

CHANNELS = {"train": "FullyReplicated", "validation": "FullyReplicated"}


@pytest.fixture(scope="module")
def runs() -> Iterator[ScriptRuns]:
    with ScriptRuns(pictures=False) as started:
        yield started


def copy(directory: Path, bundled: str, **changes: str) -> Path:
    """A copy of a bundled script under a name of its own.

    Args:
        directory: Where it comes to lie.
        bundled: Its name.
        changes: `before` and `after`, `before_2` and `after_2`, …: lines, each of which the script has once.
    """
    text = SCRIPT.with_name(f"{bundled}_train.py").read_text()
    for name, before in changes.items():
        if name.startswith("before"):
            assert text.count(before) == 1, before
            text = text.replace(before, changes[name.replace("before", "after")])
    path = directory / "code" / "my_own.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def job(directory: Path, hyperparameters: Mapping[str, str], task: str = "two") -> Path:
    root = make_job(directory / "root", hyperparameters, channels=CHANNELS)
    for seed, name in enumerate(CHANNELS):
        write_rows(root / "input/data" / name / "rows.csv", task=task, seed=seed)
    return root


def values(ended: Ended, metric: str) -> list[float]:
    return [float(found) for found in re.findall(rf"^\[metrics\] step.* {metric}=(\S+)", ended.stdout, re.MULTILINE)]


OBJECTIVE = """
def asymmetric(penalty):
    \"\"\"Squared errors, where too low is worse than too high.\"\"\"

    def objective(predictions, rows):
        errors = predictions - rows.get_label()
        weights = 1.0 + (penalty - 1.0) * (errors < 0)
        return weights * errors, weights

    return objective
"""
BOOSTING = {
    "num_round": "8",
    "checkpoint_every": "3",
    "objective": "reg:squarederror",
    "base_score": "0.5",
    "max_depth": "3",
    "nthread": "1",
    "eval_metric": "rmse",
    "penalty": "4",
}


def with_an_objective(directory: Path, stop: str = "") -> Path:
    return copy(
        directory,
        "xgboost",
        before='xgboost` lists them."""\n',
        after='xgboost` lists them."""\n\n    penalty: float = 1.0\n',
        before_2="\ndef main() -> None:\n",
        after_2=f"{OBJECTIVE}\n\ndef main() -> None:\n",
        before_3="boosting.rounds(start)",
        after_3="boosting.rounds(start, objective=asymmetric(params.penalty))",
        before_4="            boosting.save_checkpoint(progress)\n",
        after_4=f"            boosting.save_checkpoint(progress)\n{stop}",
    )


def test_xgboost_trains_with_a_custom_objective_as_xgboost_itself_does(runs: ScriptRuns, tmp_path: Path) -> None:
    root = job(tmp_path, BOOSTING, "regression")
    ended = runs.run(root, script=with_an_objective(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert f"my_own: saved 8 rounds to {root}/model/xgboost-model\n" in ended.stderr
    names: dict[str, Any] = {}
    exec(OBJECTIVE, names)
    features, labels = draw_rows("regression")
    settings = {"objective": "reg:squarederror", "base_score": 0.5, "max_depth": 3, "nthread": 1, "seed": 0}
    rows = xgb.QuantileDMatrix(features.astype(np.float32), labels.astype(np.float32), nthread=1)
    oracle = xgb.train(settings, rows, 8, obj=names["asymmetric"](4.0))
    ours = xgb.Booster(model_file=bytearray((root / "model/xgboost-model").read_bytes()))
    assert np.allclose(ours.predict(rows), oracle.predict(rows), atol=1e-6)
    assert float((ours.predict(rows) - labels).mean()) > 0.05, "rather too high than too low"
    assert read_card(root / "model").hyperparameters["penalty"] == 4.0


def test_a_job_with_a_custom_objective_resumes_to_the_same_bytes(runs: ScriptRuns, tmp_path: Path) -> None:
    """The loop of the first attempt leaves after the second segment, as one with a time limit would."""
    models = []
    for name, stop in (("whole", ""), ("cut", "            if len(progress.history) == 6:\n                return\n")):
        root = job(tmp_path / name, BOOSTING, "regression")
        ended = runs.run(root, script=with_an_objective(tmp_path / name, stop))
        assert ended.returncode == 0, ended.stderr
        models.append(root / "model/xgboost-model")
    assert not models[1].exists()
    script = with_an_objective(tmp_path / "again")
    refused = runs.run(root, "--penalty", "2", script=script)
    assert (refused.returncode, "penalty was 4.0 and is 2.0" in refused.stderr) == (8, True), refused.stderr
    ended = runs.run(root, script=script)
    assert len(values(ended, "validation:rmse")) == 2
    assert models[0].read_bytes() == models[1].read_bytes()


def test_the_forest_script_fits_a_pipeline(runs: ScriptRuns, tmp_path: Path) -> None:
    script = copy(
        tmp_path,
        "random_forest",
        before="import trainbox\n",
        after="from sklearn.linear_model import LogisticRegression\nfrom sklearn.pipeline import make_pipeline\n"
        "from sklearn.preprocessing import PolynomialFeatures, StandardScaler\n\nimport trainbox\n",
        before_2="        if params.estimator is not None:\n",
        after_2="        if params.engine == 'sklearn':\n",
        before_3="model = run.make_estimator()",
        after_3="model = make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression(C=0.5))",
    )
    root = job(tmp_path, {})
    ended = runs.run(root, script=script)
    assert ended.returncode == 0, ended.stderr
    model, (features, labels) = joblib.load(root / "model/model.joblib"), draw_rows("two", seed=1)
    card = read_card(root / "model")
    assert card.algorithm == "sklearn.pipeline.Pipeline"
    assert card.metrics["validation:accuracy"] == pytest.approx((model.predict(features) == labels).mean())
    assert "[metrics] final " in ended.stdout
    assert sorted(card.files) == ["model.joblib", "model.skops"]


def test_the_loop_of_the_forest_script_may_end_early(runs: ScriptRuns, tmp_path: Path) -> None:
    script = copy(
        tmp_path,
        "random_forest",
        before="                trainbox.log(trees, declared(params, found))\n",
        after="                trainbox.log(trees, declared(params, found))\n"
        "                if trees >= 4:\n                    break\n",
    )
    root = job(tmp_path, {"n-estimators": "10", "checkpoint-every": "2", "n-jobs": "1", "max-depth": "3"})
    ended = runs.run(root, script=script)
    assert ended.returncode == 0, ended.stderr
    assert len(joblib.load(root / "model/model.joblib").estimators_) == 4
    assert not read_card(root / "model").complete


NETWORK = """
class Wide(nn.Module):
    \"\"\"A linear path beside a deep one.\"\"\"

    def __init__(self, width: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, outputs)
        self.deep = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, rows: Tensor) -> Tensor:
        return self.wide(rows) + self.deep(rows)


def build("""


def test_the_network_script_trains_another_model_with_another_loss_and_loop(runs: ScriptRuns, tmp_path: Path) -> None:
    script = copy(
        tmp_path,
        "pytorch",
        before='and here those of your own."""\n',
        after='and here two of ours."""\n\n    label_smoothing: float = 0.0\n    least_accuracy: float = 1.0\n',
        before_2="\ndef build(",
        after_2=NETWORK,
        before_3="    body = perceptron if train.is_table else convolutions\n",
        after_3="",
        before_4="body(shape, train.outputs, params)",
        after_4="Wide(*shape, train.outputs, hidden=params.hidden[0])",
        before_5="cross_entropy(outputs.float(), targets)",
        after_5="cross_entropy(outputs.float(), targets, label_smoothing=params.label_smoothing)",
        before_6="        batches.next_epoch()\n",
        after_6="        batches.next_epoch()\n"
        "        if scores['validation:accuracy'] > params.least_accuracy:\n            break\n",
    )
    ours = {"label_smoothing": "0.1", "least_accuracy": "0.7"}
    given = {"epochs": "30", "hidden": "[8]", "learning-rate": "0.02", **ours}
    root = job(tmp_path, given)
    ended = runs.run(root, script=script)
    assert ended.returncode == 0, ended.stderr
    card = read_card(root / "model")
    accuracies = values(ended, "validation:accuracy")
    assert accuracies[-1] > 0.7
    assert all(value <= 0.7 for value in accuracies[:-1])
    assert card.hyperparameters["label-smoothing"] == 0.1
    assert len(accuracies) < 30
    weights = torch.load(root / "model/model.pt", weights_only=True)
    assert {"1.wide.weight", "1.deep.0.weight"} <= {*weights}
    program = torch.export.load(root / "model/model.pt2").module()
    features, labels = draw_rows("two", seed=1)
    said = program(torch.tensor(features, dtype=torch.float32)).argmax(1).numpy()
    assert (said == labels).mean() == pytest.approx(card.metrics["validation:accuracy"], abs=0.01)
