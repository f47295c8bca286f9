"""The image under the local mode of SageMaker's SDK v2: what a script is given there, and what a person sees."""

import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgboost

from tests.support.addresses import free_port
from tests.support.differences import DIFFERENCES, apply
from tests.support.sides import Answer, Contract, Incumbent, require_incumbent

pytestmark = [pytest.mark.docker, pytest.mark.sdk]

HERE = Path(__file__).with_name("v2")
SECONDS = 300
#: What v2 takes as hyperparameters, and what of it a script's arguments are.
EVERY_TYPE: Mapping[str, tuple[object, str]] = {
    "text": ('it\'s "quoted" ä 学習 $(id) \\', 'it\'s "quoted" ä 学習 $(id) \\'),
    "empty": ("", ""),
    "digits": ("0123", "0123"),
    "batch-size": (32, "32"),
    "rate": (1e-05, "1e-05"),
    "on": (True, "True"),
    "off": (False, "False"),
    "layers": ([64, "a b"], "[64, 'a b']"),
    "map": ({"b": 1, "a": "x"}, "a=x,b=1"),
    "none": (None, ""),
}


class Fit(msgspec.Struct, frozen=True):
    """What came of one call of `fit`."""

    log: str
    #: The message of the exception that it raised.
    error: str = ""
    #: What its `output_path` holds.
    output: Path = Path()
    #: What the endpoint of its model predicted.
    answer: object = None

    def unpack(self, name: str) -> dict[str, bytes]:
        """The files of `model.tar.gz` or `output.tar.gz`, by their names."""
        with tarfile.open(self.output / name) as archive:
            streams = {member.name: archive.extractfile(member) for member in archive}
            return {path: stream.read() for path, stream in streams.items() if stream is not None}


class Dump(msgspec.Struct, frozen=True):
    """What `v2/dump.py` has written on one host."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    container: Mapping[str, str]
    files: Mapping[str, str]
    processors: int
    met: tuple[str, ...]

    def answer(self) -> Answer:
        """What `train` gave to the script, beside what the container had."""
        added = {name: value for name, value in self.variables.items() if self.container.get(name) != value}
        return Answer((), added, self.arguments)


Estimate = Callable[..., Fit]


@pytest.fixture
def estimate(
    engine: Any, image: str, sdk_python: Mapping[str, Path], sdk_env: Mapping[str, str], tmp_path: Path
) -> Iterator[Estimate]:
    """Run a job by `Estimator(…).fit(…)` in a process of the SDK; what the SDK leaves on the engine is removed."""
    roots: list[Path] = []

    def run(name: str = "job", **arguments: object) -> Fit:
        directory = tmp_path / name
        root = directory / "root"
        output = directory / "output"
        for path in (root, output):
            path.mkdir(parents=True)
        roots.append(root)
        job = {
            "image_uri": image,
            "instance_count": 1,
            "output_path": f"file://{output}",
            "container_root": str(root),
            "channels": {},
            **arguments,
        }
        (directory / "job.json").write_text(json.dumps(job))
        driven = subprocess.run(
            [sdk_python["v2"], HERE / "driver.py", directory / "job.json", directory / "result.json"],
            env=sdk_env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert driven.returncode == 0, driven.stdout + driven.stderr
        result = json.loads((directory / "result.json").read_text())
        return Fit(driven.stdout, result.get("error", ""), output, result.get("answer"))

    yield run
    for directory in (path for root in roots for path in root.iterdir()):
        label = f"com.docker.compose.project.working_dir={directory}"
        for container in engine.containers(all=True, filters={"label": label}):
            engine.remove_container(container, force=True)


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Incumbent]:
    require_incumbent()
    incumbent = Incumbent(tmp_path / "incumbent")
    yield incumbent
    incumbent.close()


def dumps_of(fit: Fit) -> list[Dump]:
    assert not fit.error, fit.log
    files = fit.unpack("model.tar.gz")
    return [msgspec.json.decode(files[name], type=Dump) for name in sorted(files)]


def of_sagemaker_training(theirs: Incumbent, dump: Dump) -> Answer:
    """What sagemaker-training would have given to the script, in a container with the same files and environment."""
    given = Contract(dump.files, dump.container)
    answer = apply(DIFFERENCES, given, theirs.answer)
    text = msgspec.json.encode(answer).decode().replace(str(theirs.root), "/opt/ml")
    inside = msgspec.json.decode(text, type=Answer)
    # It counted those of this machine, which may have other processors and devices than the engine's.
    counted = {"num_cpus": dump.processors, "num_gpus": 0, "num_neurons": 0}
    properties = json.loads(inside.variables["SM_TRAINING_ENV"]) | counted
    variables = {
        **inside.variables,
        **{f"SM_{name.upper()}": str(number) for name, number in counted.items()},
        "SM_TRAINING_ENV": json.dumps(properties, sort_keys=True, separators=(",", ":")),
    }
    return msgspec.structs.replace(inside, variables=variables)


@pytest.mark.incumbent
@pytest.mark.parametrize("hosts", [1, 2])
def test_an_entry_point_is_given_what_sagemaker_training_gives_it(
    estimate: Estimate, theirs: Incumbent, tmp_path: Path, hosts: int
) -> None:
    channel = tmp_path / "channel"
    channel.mkdir()
    (channel / "data.csv").write_text("1,2\n")  # an empty channel would be a finding of the checks of two hosts
    fit = estimate(
        instance_count=hosts,
        entry_point="dump.py",
        source_dir=str(HERE),
        hyperparameters={name: value for name, (value, _) in EVERY_TYPE.items()},
        environment={"OWN_SETTING": "a b"},
        channels={"train": f"file://{channel}", "my-val": f"file://{channel}"},
    )
    dumps = dumps_of(fit)
    assert len(dumps) == hosts
    for dump in dumps:
        assert dump.answer().comparable() == of_sagemaker_training(theirs, dump).comparable()
        assert dict(zip(dump.arguments[::2], dump.arguments[1::2], strict=True)) == {
            f"--{name}": text for name, (_, text) in EVERY_TYPE.items()
        }
        assert dump.variables["OWN_SETTING"] == "a b"
        assert dump.variables["SM_CHANNEL_MY_VAL"] == "/opt/ml/input/data/my-val"
    assert {dump.variables["SM_CURRENT_HOST"] for dump in dumps} == set(json.loads(dumps[0].variables["SM_HOSTS"]))


def test_two_jobs_at_once_each_meet_their_own_hosts(estimate: Estimate) -> None:
    def run(name: str) -> Fit:
        return estimate(
            name, instance_count=2, entry_point="dump.py", source_dir=str(HERE), hyperparameters={"job": name}
        )

    with ThreadPoolExecutor() as pool:
        fits = list(pool.map(run, ("one", "two")))
    for name, fit in zip(("one", "two"), fits, strict=True):
        dumps = dumps_of(fit)
        assert [dump.arguments for dump in dumps] == [("--job", name)] * 2
        (own,) = {dump.variables["SAGEMAKER_JOB_NAME"] for dump in dumps}
        assert [dump.met for dump in dumps] == [(own,), (own,)]


@pytest.mark.representative
def test_without_an_entry_point_the_image_runs_its_own_script_and_serves_its_model(
    estimate: Estimate, tmp_path: Path
) -> None:
    channel = tmp_path / "channel"
    channel.mkdir()
    (channel / "part-0.csv").write_text("".join(f"{x % 2},{x},{(x * 7) % 5}\n" for x in range(60)))
    fit = estimate(
        hyperparameters={
            "trainbox_script": "xgboost",
            "objective": "binary:logistic",
            "num_round": 3,
            "eta": 0.5,
            "eval_metric": ["error", "logloss"],
            "early_stopping_rounds": None,
        },
        channels=dict.fromkeys(("train", "validation"), f"file://{channel}"),
        rows=[[1, 2], [30, 0]],
        port=free_port(),
    )
    assert not fit.error, fit.log
    assert "validation:logloss" in fit.log
    model = xgboost.Booster(model_file=bytearray(fit.unpack("model.tar.gz")["xgboost-model"]))
    assert model.num_boosted_rounds() == 3
    predicted = model.predict(xgboost.DMatrix(np.array([[1, 2], [30, 0]], np.float32))).tolist()
    assert fit.answer == {"predictions": [{"score": value} for value in predicted]}


def test_a_failing_script_ends_fit_and_says_why(estimate: Estimate, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "fail.py").write_text(
        "import pathlib, os\n"
        "pathlib.Path(os.environ['SM_MODEL_DIR'], 'half').write_text('half a model')\n"
        "raise ValueError('learning rate must be positive')\n"
    )
    fit = estimate(entry_point="fail.py", source_dir=str(code))
    assert "Process exited with code: 1" in fit.error
    assert "trainbox: FAILED: ValueError: learning rate must be positive" in fit.log
    left = fit.unpack("output.tar.gz")
    assert left["failure"].decode().startswith("ValueError: learning rate must be positive")
    assert fit.unpack("model.tar.gz") == {"half": b"half a model"}


def test_a_host_that_fails_ends_the_job_of_both(estimate: Estimate, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "fail.py").write_text(
        "import os, json, time\n"
        "if os.environ['SM_CURRENT_HOST'] == json.loads(os.environ['SM_HOSTS'])[1]:\n"
        "    raise ValueError('the second host fails')\n"
        "time.sleep(600)\n"
    )
    fit = estimate(entry_point="fail.py", source_dir=str(code), instance_count=2)
    assert "Process exited with code: 1" in fit.error
    (line,) = [line for line in fit.log.splitlines() if "trainbox: FAILED:" in line]
    assert re.search(r"-algo-2-\w+ +\| trainbox: FAILED: ValueError: the second host fails", line)
