"""The image as an endpoint of both SDKs' local modes: what they ask, and what their predictors make of the answers."""

import fcntl
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from tests.support.addresses import free_port
from tests.support.snippets import example

pytestmark = [pytest.mark.docker, pytest.mark.sdk]

HERE = Path(__file__).parent
SECONDS = 300
ROWS = [[1.0, 2.0], [3.5, 4.0], [0.0, 1.25]]
HOOKS = """
import json


def output_fn(prediction, accept):
    return json.dumps({"scores": prediction.tolist()}), "application/json"
"""

Drive = Callable[..., str]


@pytest.fixture
def drive(
    engine: Any, image: str, sdk_python: Mapping[str, Path], sdk_env: Mapping[str, str], tmp_path: Path
) -> Iterator[Drive]:
    """Run a program in an SDK's environment; what it leaves on the engine is removed."""
    assert image

    def run(version: str, *arguments: object) -> str:
        done = subprocess.run(
            [sdk_python[version], *map(str, arguments)],
            cwd=tmp_path,
            env={**sdk_env, "NO_PROXY": "localhost,127.0.0.1", "no_proxy": "localhost,127.0.0.1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    for container in engine.containers(all=True):
        directory = container["Labels"].get("com.docker.compose.project.working_dir", "")
        places = [directory, *(mount.get("Source", "") for mount in container["Mounts"])]
        if any(place.startswith(f"{tmp_path}/") for place in places):
            engine.remove_container(container, force=True)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The `model.tar.gz` of a model of two features."""
    x = np.random.default_rng(0).normal(size=(60, 2))
    given = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    booster = xgboost.train(given, xgboost.DMatrix(x, (x[:, 0] > 0).astype(float)), 5)
    booster.save_model(tmp_path / "xgboost-model.ubj")
    (tmp_path / "trained").mkdir()
    path = tmp_path / "trained" / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "xgboost-model.ubj", "xgboost-model")
    return path


def predicted(archive: Path, rows: object) -> list[float]:
    """What the library predicts."""
    booster = xgboost.Booster(model_file=archive.parents[1] / "xgboost-model.ubj")
    values: list[float] = booster.predict(xgboost.DMatrix(np.array(rows, dtype=np.float32))).tolist()
    return values


def write_inputs(directory: Path, counts: Mapping[str, int]) -> dict[str, list[list[float]]]:
    """Files with so many rows, and without a newline at their end."""
    directory.mkdir()
    made = {name: [[float(row % 9), row / 8] for row in range(count)] for name, count in counts.items()}
    for name, rows in made.items():
        (directory / name).write_text("\n".join(f"{first:g},{second!r}" for first, second in rows))
    return made


def test_sdk_v2_deploys_predicts_and_transforms(drive: Drive, image: str, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "inference.py").write_text(HOOKS)
    (tmp_path / "root").mkdir()
    inputs = {
        "MultiRecord": write_inputs(tmp_path / "multi", {"one.csv": 1, "two.csv": 2, "many.csv": 10_001}),
        "SingleRecord": write_inputs(tmp_path / "single", {"one.csv": 1, "some.csv": 20}),
    }
    job = {
        "image_uri": image,
        "model_data": f"file://{archive}",
        "serving_port": free_port(),
        "container_root": str(tmp_path / "root"),
        "rows": ROWS,
        "source_dir": str(tmp_path / "src"),
        "inputs": {"MultiRecord": str(tmp_path / "multi"), "SingleRecord": str(tmp_path / "single")},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    drive("v2", HERE / "v2" / "serve.py", "job.json", "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    expected = predicted(archive, ROWS)
    as_rows = {
        "CSVDeserializer": [[str(value)] for value in expected],
        "JSONDeserializer": {"predictions": [{"score": value} for value in expected]},
        "NumpyDeserializer": expected,
    }
    answers = result["answers"]
    said = json.loads(answers.pop("wrong"))
    assert (said["row"], said["column"], said["value"]) == (1, 2, "abc")
    assert "CSVSerializer()" in json.loads(answers.pop("untyped"))["hint"]
    assert answers.pop("libsvm") == as_rows["CSVDeserializer"]
    assert len(answers) == 12
    for names, answer in answers.items():
        assert answer == as_rows[names.split()[1]], names
    assert result["hooks"] == {"scores": expected}
    for strategy, made in inputs.items():
        for name, rows in made.items():
            written = Path(result["outputs"][strategy], f"{name}.out").read_text()
            assert written == "".join(f"{value}\n" for value in predicted(archive, rows)), (strategy, name)


@pytest.fixture
def page_data(tmp_path: Path) -> Path:
    """What the page has beside its code."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    rows = [f"{int(x > 0)},{x},{x * x / 10}\n" for x in (-3.0, -2.0, -1.5, -1.0, 1.0, 1.5, 2.0, 3.0)]
    (tmp_path / "data" / "train" / "part.csv").write_text("".join(rows))
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "part.csv").write_text("1.5,0.225\n-2,0.4\n")
    return tmp_path


@pytest.mark.long
def test_the_calls_of_the_page_run_in_the_local_mode_of_sdk_v2(drive: Drive, page_data: Path) -> None:
    call = example("deploy.md", "LocalSession()")
    here = '"container_root": str(here)'
    assert here in call
    said = drive("v2", "-c", call.replace(here, f'{here}, "serving_port": {free_port()}'))
    assert "{'predictions': [{'score': 0." in said
    assert len((page_data / "predictions" / "part.csv.out").read_text().splitlines()) == 2


@pytest.fixture
def _one_at_a_time() -> Iterator[None]:
    """The SDK publishes port 8080 of every container."""
    with (Path(tempfile.gettempdir()) / "trainbox-port-8080.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.long
@pytest.mark.usefixtures("_one_at_a_time")
@pytest.mark.parametrize("program", ["", HOOKS], ids=["alone", "with hooks"])
def test_the_calls_of_the_page_run_in_the_local_mode_of_sdk_v3(
    program: str, drive: Drive, image: str, archive: Path, tmp_path: Path
) -> None:
    call = example("deploy.md", "LOCAL_CONTAINER")
    assert f'"{image}"' in call
    archive.parent.rename(tmp_path / "result")
    if program:
        (tmp_path / "served" / "code").mkdir(parents=True)
        (tmp_path / "served" / "code" / "inference.py").write_text(program)
    (tmp_path / "call.py").write_text(call)
    said = drive("v3", HERE / "v3" / "serve.py", "call.py")
    score = predicted(archive, [[1.5, 0.225]])[0]
    answer: object = {"scores": [score]} if program else {"predictions": [{"score": score}]}
    (line,) = [line for line in said.splitlines() if line.startswith("[{")]
    assert json.loads(line) == [answer]
