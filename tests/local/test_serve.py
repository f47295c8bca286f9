"""`trainbox serve`: the model of a job answers the `curl` that is printed, and nothing of it outlives the command."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.support import writers
from tests.support.rights import WITH_RIGHTS_OF_MODES, needs_modes
from tests.support.trees import is_alive
from tests.support.waiting import LIMIT, eventually
from trainbox.contract.model_card import read_card

pytestmark = pytest.mark.process

TRAINBOX = (sys.executable, "-m", "trainbox")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of a small job."""
    here = tmp_path_factory.mktemp("job")
    rows = [f"{int(x > 0)},{x},{x * x / 10}" for x in (-3.0, -2.0, -1.5, -1.0, 1.0, 1.5, 2.0, 3.0)]
    (here / "train.csv").write_text("\n".join(rows) + "\n")
    settings = {"num_round": "5", "objective": "binary:logistic", "min_child_weight": "0"}
    flags = [word for key, value in settings.items() for word in ("--hp", f"{key}={value}")]
    argv = [*TRAINBOX, "run", "xgboost", "--channel", "train=train.csv", *flags, "--out", "result"]
    done = subprocess.run(argv, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert f"trainbox serve {here / 'result'}" in done.stdout
    return here / "result"


class Serving:
    """A `trainbox serve` that is ready."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self.log = scratch / "log"
        self.scratch = scratch / "tmp"
        self.scratch.mkdir()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*TRAINBOX, "serve", str(model), "--port", "0", "--workers", "1"],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.scratch)},
                text=True,
            )
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, "")
        self.said = []
        for line in lines:
            self.said.append(line)
            if "/invocations" in line:
                break
        assert self.said, self.log.read_text()
        self.url = self.said[0].split()[0]

    def server(self) -> int:
        """The process of the program `serve`."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)


@pytest.fixture
def serving(job: Path, tmp_path: Path) -> Iterator[Serving]:
    found = Serving(job, tmp_path)
    yield found
    found.process.terminate()
    found.process.communicate(timeout=LIMIT)


def test_the_printed_curl_answers_what_the_card_says_and_ctrl_c_ends_it_all(job: Path, serving: Serving) -> None:
    assert serving.said[0] == f"{serving.url} is ready; Ctrl-C ends it\n"
    assert "xgboost xgboost, binary:logistic: 2 features -> 2 classes (0, 1)\n" in serving.said
    (curl,) = [line.strip() for line in serving.said if line.startswith("  curl ")]
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True, timeout=LIMIT)
    expected = read_card(job / "model").samples[0].prediction
    assert float(answer.stdout) == expected
    argv = [*TRAINBOX, "invoke", "-", "--url", serving.url]
    row = re.findall(r"--data-raw (\S+)", curl)[0]
    asked = subprocess.run(argv, input=row, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert float(asked.stdout) == expected
    bad = subprocess.run(argv, input="1,abc\n", capture_output=True, text=True, check=False, timeout=LIMIT)
    assert bad.returncode == 7
    assert "the endpoint answered 400" in bad.stderr
    assert "  row 1, column 2" in bad.stderr
    server = serving.server()
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(LIMIT) == 0, serving.log.read_text()
    assert not is_alive(server)
    assert not list(serving.scratch.iterdir())
    assert "Traceback" not in serving.log.read_text()


def test_a_server_does_not_outlive_a_kill_of_the_command(serving: Serving) -> None:
    server = serving.server()
    serving.process.kill()
    serving.process.wait(LIMIT)
    eventually(lambda: not is_alive(server), "the end of the server", logs=serving.log.read_text)


def test_it_listens_on_loopback_alone_and_says_what_else_uses_the_port(job: Path, serving: Serving) -> None:
    port = int(serving.url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=LIMIT):
        pass
    argv = [*TRAINBOX, "serve", str(job), "--port", str(port)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 10
    assert f"port {port} cannot be used: Address already in use" in done.stderr


def test_what_cannot_be_served_ends_with_its_reason(tmp_path: Path) -> None:
    argv = [*TRAINBOX, "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 10
    assert "trainbox: FAILED: " in done.stderr
    assert "the endpoint ended with exit code" in done.stderr


def test_whole_files_are_transformed_by_the_model_of_a_job(job: Path, tmp_path: Path) -> None:
    rows = [f"id-{number},{number % 7 - 3},{number % 5}" for number in range(10_001)]
    (tmp_path / "people.csv").write_text("\n".join(rows))
    argv = [*TRAINBOX, "transform", str(job), "--input", "people.csv", "--output", "out", "--split", "Line"]
    argv += ["--assemble", "Line", "--input-filter", "$[1:]", "--join", "Input", "--output-filter", "$[0,-1]"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    joined = [line.split(",") for line in (tmp_path / "out/people.csv.out").read_text().splitlines()]
    assert [name for name, _ in joined] == [row.split(",")[0] for row in rows]
    answers = {tuple(row.split(",")[1:]): answer for row, (_, answer) in zip(rows, joined, strict=True)}
    assert {0 < float(answer) < 1 for answer in answers.values()} == {True}
    assert all(answers[tuple(row.split(",")[1:])] == answer for row, (_, answer) in zip(rows, joined, strict=True))
    # The same rows as RecordIO: the frames of a mini-batch are cut and sent whole.
    cells = [[0.0, *map(float, row.split(",")[1:])] for row in rows[:500]]
    (tmp_path / "people.pbr").write_bytes(writers.dense(cells))
    argv = [*TRAINBOX, "transform", str(job), "--input", "people.pbr", "--output", "out", "--split", "RecordIO"]
    argv += ["--assemble", "Line", "--accept", "text/csv"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/people.pbr.out").read_text().splitlines() == [answer for _, answer in joined[:500]]
    assert json.loads((job / "job.json").read_text())["status"] == "Completed"


def test_a_folder_of_models_is_one_endpoint_that_each_is_asked_of_by_its_name(job: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    subprocess.run(["tar", "-czf", models / "berlin.tar.gz", "-C", job / "model", "."], check=True)
    (models / "of a job").symlink_to(job)
    (models / "broken").mkdir()
    (models / "notes.txt").write_text("no model")
    argv = [*TRAINBOX, "serve", str(models), "--multi-model", "--port", "0", "--runtime-port", "0", "--workers", "1"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True) as made,
    ):
        assert made.stdout is not None
        lines = []
        for line in made.stdout:
            lines.append(line.rstrip())
            if "trainbox invoke" in line:
                break
        log_text = (tmp_path / "log").read_text()
        schema = "xgboost xgboost, binary:logistic: 2 features -> 2 classes (0, 1)"
        assert {f"berlin.tar.gz: {schema}", f"of a job: {schema}"} <= set(lines), log_text
        assert any(line.startswith("broken: not loaded (400), ") for line in lines)
        (url,) = [line.split()[0] for line in lines if "is ready; Ctrl-C ends it" in line]
        expected = read_card(job / "model").samples[0].prediction
        curls = [line.strip() for line in lines if line.startswith("  curl ")]
        row = re.findall(r"--data-raw (\S+)", curls[0])[0]
        answers = [subprocess.run(["bash", "-c", curl], capture_output=True, check=True).stdout for curl in curls]
        for name in ("berlin.tar.gz", "of a job"):
            asking = [*TRAINBOX, "invoke", "-", "--url", url, "--model", name]
            answers.append(subprocess.run(asking, input=row.encode(), capture_output=True, check=True).stdout)
        (runtime_line,) = [line for line in lines if "sagemaker-runtime" in line]
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "eu-central-1"}
        runtime = boto3.client("sagemaker-runtime", endpoint_url=runtime_line.split('"')[3], **keys)
        with contextlib.closing(runtime):
            for name in ("berlin.tar.gz", "of a job"):
                answer = runtime.invoke_endpoint(
                    EndpointName="e", TargetModel=name, Body=row.encode(), ContentType="text/csv"
                )
                answers.append(answer["Body"].read())
        assert {float(answer) for answer in answers} == {expected}
        assert len(answers) == 6
        asking = [*TRAINBOX, "invoke", "-", "--url", url, "--model", "paris"]
        refused = subprocess.run(asking, input=row.encode(), capture_output=True, check=False)
        assert b"the endpoint answered 404: Model not found: paris" in refused.stderr
        made.send_signal(signal.SIGINT)
        assert made.wait(LIMIT) == 0, log_text


def test_a_folder_without_models_is_no_endpoint_of_many(tmp_path: Path) -> None:
    argv = [*TRAINBOX, "serve", str(tmp_path), "--multi-model"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 10
    assert f"{tmp_path} has no models" in done.stderr


@needs_modes
@pytest.mark.parametrize("model", ["folder", "model.tar.gz", "folder/model"])
@pytest.mark.parametrize("verb", ["describe", pytest.param("serve", marks=pytest.mark.long)])
def test_a_model_that_may_not_be_read_is_named_with_what_to_do(verb: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in tmp_path.iterdir():
        path.chmod(0)
    argv = [*WITH_RIGHTS_OF_MODES, *TRAINBOX, verb, model]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode in {3, 10}
    assert re.fullmatch(
        rf"trainbox: .*{model}\S*( cannot be (read|unpacked))?: Permission denied\n  hint: allow uid \d+ to use it\n",
        done.stderr,
    )
