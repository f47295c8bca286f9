"""`pytorch_train.py` on columns and labels of texts: embeddings of their codes, and numbers that stay numbers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.script_runs import Ended, make_job, run_script
from trainbox.contract.model_card import read_card

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "pytorch_train.py"
COLORS = ("blue", "green", "red")
SPECIES = ("setosa", "virginica")


def make_rows(count: int, seed: int = 0) -> str:
    """Species that depend on the color."""
    random = np.random.default_rng(seed)
    lines = ["species,color,zip,x"]
    for _ in range(count):
        color, x = str(random.choice(COLORS)), round(float(random.normal()), 3)
        lines.append(f"{SPECIES[int(color == 'green')]},{color},{random.choice([94103, 10001])},{x}")
    return "\n".join(lines) + "\n"


def run(root: Path, files: Mapping[str, str], **hyperparameters: str) -> Ended:
    given = {"epochs": "3", "hidden": "8", "batch-size": "32", "learning-rate": "0.05"} | hyperparameters
    return run_script(SCRIPT, make_job(root, given, files=files))


@pytest.mark.long
def test_texts_have_embeddings_and_named_numbers_stay_numbers(tmp_path: Path) -> None:
    files = {"train/a.csv": make_rows(200), "validation/a.csv": make_rows(40, seed=1)}
    done = run(tmp_path, files, categorical="zip")
    assert done.returncode == 0, done.stderr
    assert "needs trainbox's `serve`" in done.stderr
    card = read_card(tmp_path / "model")
    assert card.categories == {"color": COLORS}
    assert card.features.types == {"color": "text", "zip": "code"}
    assert card.classes == SPECIES
    module = torch.export.load(tmp_path / "model" / "model.pt2").module()
    for sample in card.samples:
        values = [float(COLORS.index(str(sample.values["color"]))), *(sample.values[name] for name in ("zip", "x"))]
        assert values[1] in {94103, 10001}
        said = module(torch.tensor([values], dtype=torch.float32))[0].tolist()
        assert said == pytest.approx(sample.prediction, rel=1e-5, abs=1e-5)


@pytest.mark.long
def test_a_mixed_column_is_an_error_unless_it_is_named(tmp_path: Path) -> None:
    mixed = make_rows(60) + "setosa,red,unknown zip,1\n"
    done = run(tmp_path / "bare", {"train/a.csv": mixed})
    assert done.returncode not in {0, 1}
    assert "train/a.csv:62: column 3 ('zip'): 'unknown zip' is not a number" in done.stderr
    named = run(tmp_path / "named", {"train/a.csv": mixed}, categorical="zip")
    assert named.returncode == 0, named.stderr
    card = read_card(tmp_path / "named" / "model")
    assert card.categories["zip"] == ("10001", "94103", "unknown zip")


def test_numbers_are_not_predicted_from_labels_of_texts(tmp_path: Path) -> None:
    done = run(tmp_path, {"train/a.csv": make_rows(20)}, task="regression")
    assert done.returncode not in {0, 1}
    assert "the labels are texts ('setosa', 'virginica'), and task=regression predicts numbers" in done.stderr
