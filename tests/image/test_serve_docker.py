"""`trainbox serve --docker`: the image serves a model, on loopback alone, and leaves no container."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import COMMAND
from tests.support.waiting import LIMIT
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
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        curl = next(line for line in server.stdout if "curl" in line)
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True, timeout=LIMIT)
        (mine,) = [each for each in engine.containers(filters={"label": LABEL}) if each["Id"] not in before]
        server.send_signal(signal.SIGINT)
        assert server.wait(LIMIT) == 0
    assert float(answer.stdout) == read_card(tmp_path / "result/model").samples[0].prediction
    assert {port["IP"] for port in mine["Ports"] if port.get("PublicPort")} == {"127.0.0.1"}
    assert re.search(r"http://127\.0\.0\.1:\d+/invocations", curl)
    after = {each["Id"] for each in engine.containers(all=True, filters={"label": LABEL})}
    assert mine["Id"] not in after


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
