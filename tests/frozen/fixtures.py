"""Checkpoints and models of commit 9841551, which every later version must still resume and load.

`recorded/fixtures/JOB/` has `checkpoints/` with one checkpoint in the middle of the job, `model/`, and `about.json`:
step, versions, and what the model predicts for the first rows of the validation channel. The rows that the jobs train
on are those of `trainings.draw_rows`, which must stay as they are: a checkpoint of other rows is refused.

They are recorded once. A later format gets fixtures beside these, under other names.

`xgboost-at-quantiles` is of `trainings.AT_QUANTILES`, and has the model with which that commit ended, whole: of so many
rows it cut the features into bins at exact quantiles, where nobody had to ask for it.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.frozen.digests import versions
from tests.frozen.recorded import DIRECTORY, as_json
from tests.frozen.trainings import TRAININGS, Trained, Training, draw_rows
from trainbox.contract.model_card import CARD_FILE, read_card

FIXTURES = DIRECTORY / "fixtures"
_ROWS = 8
_PLACE = re.compile(rb'(File \\")/[^"]*?/((?:site-packages|trainbox|train_scripts)/)')
_MODEL_FILES = ("xgboost-model", "model.joblib", "model.skops", "model.pt", "model.pt2", CARD_FILE)


AT_QUANTILES = "xgboost-at-quantiles"


def about(name: str) -> dict[str, Any]:
    """What is noted beside a fixture."""
    noted: dict[str, Any] = json.loads((FIXTURES / name / "about.json").read_text())
    return noted


def with_a(what: str) -> list[str]:
    """The jobs that have left a fixture of a kind: `checkpoint` or `model`."""
    return [name for name, job in TRAININGS.items() if what in job.fixtures]


def has_same_versions(name: str, job: Training | None = None) -> bool:
    """Whether the libraries are those that have made a fixture."""
    return bool(about(name)["versions"] == versions(job or TRAININGS[name]))


def keep(name: str, job: Training, done: Trained) -> None:
    """Make the fixture of a job that has ended: its earliest checkpoint, its model, what that predicts."""
    directory, (root, *_) = FIXTURES / name, done.roots
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    noted: dict[str, object] = {"versions": versions(job)}
    if "checkpoint" in job.fixtures:
        earliest = min((root / "checkpoints").glob("step-*"))
        shutil.copytree(earliest, directory / "checkpoints" / earliest.name)
        noted["step"] = int(earliest.name.removeprefix("step-"))
    if "model" in job.fixtures:
        (directory / "model" / CARD_FILE).parent.mkdir(parents=True)
        for file in _MODEL_FILES:
            if (root / "model" / file).exists():
                shutil.copy(root / "model" / file, directory / "model" / file)
        _leave_out_places(directory / "model" / "model.pt2")
        noted["predictions"] = {file: said.tolist() for file, said in predict(directory / "model").items()}
    (directory / "about.json").write_text(as_json(noted))


def _leave_out_places(exported: Path) -> None:
    """An exported program knows from which file of this machine each of its operations comes."""
    if not exported.exists():
        return
    with zipfile.ZipFile(exported) as archive:
        contents = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(exported, "w") as archive:
        for name, content in contents:
            archive.writestr(name, _PLACE.sub(rb"\1\2", content) if name.endswith(".json") else content)


def predict(model: Path) -> Mapping[str, npt.NDArray[Any]]:
    """What each file of a model says of the first rows of the validation channel."""
    rows = [line.split(",")[1:] for line in draw_rows(1, _ROWS)]
    inputs = np.array(rows, dtype=np.float32)
    predictors = {
        "xgboost-model": _xgboost,
        "model.joblib": _joblib,
        "model.skops": _skops,
        "model.pt2": _exported,
    }
    return {name: say(model / name, inputs) for name, say in predictors.items() if (model / name).exists()}


def _xgboost(path: Path, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import xgboost  # noqa: PLC0415 - seconds, which the other jobs need not take

    booster = xgboost.Booster(model_file=bytearray(path.read_bytes()))
    found: npt.NDArray[Any] = booster.predict(xgboost.DMatrix(inputs))
    return found


def _joblib(path: Path, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import joblib  # noqa: PLC0415 - likewise

    found: npt.NDArray[Any] = joblib.load(path).predict_proba(inputs)
    return found


def _skops(path: Path, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import skops.io  # noqa: PLC0415 - likewise

    trusted = read_card(path.parent).trusted
    found: npt.NDArray[Any] = skops.io.load(path, trusted=trusted).predict_proba(inputs)
    return found


def _exported(path: Path, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import torch  # noqa: PLC0415 - likewise

    program: Any = torch.export.load(path).module()
    with torch.no_grad():
        found: npt.NDArray[Any] = program(torch.from_numpy(inputs)).numpy()
    return found
