"""The image serves: by `trainbox serve --docker`, for any user where nothing can be written, and short of memory."""

import functools
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import xgboost

from tests.support.runs import COMMAND
from tests.support.waiting import LIMIT, eventually
from tools.image import sizes
from trainbox.contract.model_card import read_card
from trainbox.local.backends.engine import LABEL

pytestmark = pytest.mark.docker


def test_a_model_is_served_by_the_image_and_no_container_is_left(tmp_path: Path, engine: Any, image: str) -> None:
    rows = [f"{int(x > 0)},{x},{x * x / 10}" for x in (-3.0, -2.0, -1.5, -1.0, 1.0, 1.5, 2.0, 3.0)]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    job = [*COMMAND, "xgboost", "--channel", "train=train.csv", "--hp", "num_round=2", "--out", "result"]
    subprocess.run(job, cwd=tmp_path, check=True, timeout=LIMIT, capture_output=True)
    before = {each["Id"] for each in engine.containers(all=True, filters={"label": LABEL})}
    argv = [sys.executable, "-m", "trainbox", "serve", "result", "--docker", image, "--port", "0", "--workers", "1"]
    argv += ["--runtime-port", "0"]
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = next(line for line in server.stdout if "sagemaker-runtime" in line).split('"')[3]
        curl = next(line for line in server.stdout if "curl" in line)
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "eu-central-1"}
        with closing(boto3.client("sagemaker-runtime", endpoint_url=url, **keys)) as runtime:
            row = shlex.split(curl)[shlex.split(curl).index("--data-raw") + 1]
            given = {"EndpointName": "e", "ContentType": "text/csv", "Body": row.encode()}
            invoked = runtime.invoke_endpoint(**given)["Body"].read()
            with closing(runtime.invoke_endpoint_with_response_stream(**given)["Body"]) as stream:
                streamed = b"".join(event["PayloadPart"]["Bytes"] for event in stream)
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True, timeout=LIMIT)
        (mine,) = [each for each in engine.containers(filters={"label": LABEL}) if each["Id"] not in before]
        server.send_signal(signal.SIGINT)
        assert server.wait(LIMIT) == 0
    assert invoked == streamed == answer.stdout.encode()
    assert float(answer.stdout) == read_card(tmp_path / "result/model").samples[0].prediction
    assert {port["IP"] for port in mine["Ports"] if port.get("PublicPort")} == {"127.0.0.1"}
    assert re.search(r"http://127\.0\.0\.1:\d+/invocations", curl)
    after = {each["Id"] for each in engine.containers(all=True, filters={"label": LABEL})}
    assert mine["Id"] not in after


#: Asks from within, as there may be no network: the status and the answer; 0 where none came.
ASK = """
import sys, urllib.error, urllib.request
body = sys.argv[2].encode() if sys.argv[2:] else None
request = urllib.request.Request("http://127.0.0.1:8080" + sys.argv[1], body, {"Content-Type": "text/csv"})
try:
    with urllib.request.urlopen(request) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print(0, error)
"""
HOOKS = """
def model_fn(model_dir):
    return "no model"


def transform_fn(model, body, content_type, accept):
    return str(len(bytearray(2 * 10**9))) if body == "eat" else "fine"
"""


class Served:
    """A container that runs `serve`."""

    def __init__(self, engine: Any, container: str) -> None:
        self._engine, self._container = engine, container

    @property
    def log(self) -> str:
        text: bytes = self._engine.logs(self._container)
        return text.decode()

    def ask(self, path: str, *body: str) -> tuple[int, str]:
        """The status and the body of an answer."""
        made = self._engine.exec_create(self._container, ["python", "-c", ASK, path, *body])["Id"]
        status, _, text = self._engine.exec_start(made).decode().partition(" ")
        return int(status), text.rstrip("\n")

    def await_ready(self) -> None:
        eventually(
            lambda: self.ask("/ping")[0] == 200,
            "a server that is ready",
            logs=lambda: self.log,
            ended=lambda: not self._engine.inspect_container(self._container)["State"]["Running"],
        )

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        self._engine.stop(self._container, timeout=30)
        code: int = self._engine.inspect_container(self._container)["State"]["ExitCode"]
        return code


Serve = Callable[..., Served]


@pytest.fixture
def serve(engine: Any, image: str, tmp_path: Path) -> Iterator[Serve]:
    """Start `serve` with what lies in `model`, under the limits that are given."""
    made: list[str] = []

    def start(user: str = "", **limits: Any) -> Served:
        binds = {str(tmp_path / "model"): {"bind": "/opt/ml/model", "mode": "ro"}}
        host = engine.create_host_config(binds=binds, **limits)
        variables = {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
        given = {"environment": variables, "user": user, "host_config": host}
        made.append(engine.create_container(image, ["serve"], **given)["Id"])
        engine.start(made[-1])
        served = Served(engine, made[-1])
        served.await_ready()
        return served

    tmp_path.chmod(0o755)  # the user of the container is another one
    (tmp_path / "model").mkdir()
    yield start
    for container in made:
        engine.remove_container(container, force=True)


@pytest.mark.representative
def test_any_user_is_served_without_files_to_write_shared_memory_network_and_rights(
    serve: Serve, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(x, x[:, 0]), 2)
    booster.save_model(tmp_path / "model" / "xgboost-model.ubj")
    served = serve(
        "12345:12345",
        read_only=True,
        network_mode="none",
        ipc_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
    (expected,) = booster.predict(xgboost.DMatrix(np.array([[1.5, 0.25]], np.float32))).tolist()
    assert served.ask("/invocations", "1.5,0.25") == (200, f"{expected}")
    assert served.stop() == 0, served.log
    assert "2 worker(s)" in served.log
    assert "Traceback" not in served.log


def test_a_worker_that_the_kernel_kills_for_memory_is_told_and_replaced(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "model" / "code").mkdir()
    (tmp_path / "model" / "code" / "inference.py").write_text(HOOKS)
    served = serve(mem_limit="250m", memswap_limit="250m")
    told = r"worker \d \(exit code 137\): out of memory: .* \(limit 250 MiB\); another takes its place"
    for _ in range(3):
        before = len(re.findall(told, served.log))
        assert served.ask("/invocations", "eat")[0] == 0
        is_told = functools.partial(lambda before: len(re.findall(told, served.log)) > before, before)
        eventually(is_told, "what killed it", logs=lambda: served.log)
        assert served.ask("/invocations", "hello") == (200, "fine")
    assert served.stop() == 0, served.log


def test_what_serves_weighs_little(image: str) -> None:
    packages = sizes.read_extra(image, "serving")
    print(*packages, sep="\n")
    assert {"uvicorn", "uvloop", "httptools"} <= {package.name for package in packages}
    assert sum(package.megabytes for package in packages) <= sizes.SERVING_BUDGET_MB == 25


def test_the_models_of_a_folder_are_served_by_one_container(tmp_path: Path, image: str) -> None:
    code = tmp_path / "models" / "berlin" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text("def model_fn(_): return 7\ndef transform_fn(model, *_): return str(model)\n")
    argv = [sys.executable, "-m", "trainbox", "serve", "models", "--multi-model", "--docker", image]
    with subprocess.Popen(
        [*argv, "--port", "0", "--workers", "1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = next(line.rpartition(" ")[2].strip() for line in server.stdout if "trainbox invoke" in line)
        asking = [sys.executable, "-m", "trainbox", "invoke", "-", "--url", url, "--model", "berlin"]
        asked = subprocess.run(asking, input="1", capture_output=True, text=True, check=True, timeout=LIMIT)
        server.send_signal(signal.SIGINT)
        assert server.wait(LIMIT) == 0
    assert asked.stdout == "7"
