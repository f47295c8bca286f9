"""`serve` with real models: one of XGBoost by its card, and the user's own by hooks; forks and threads of OpenMP."""

import functools
import gzip
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from tests.support.gpu_hosts import needs_mounts, with_devices
from tests.support.servers import Answered, ServeProcess
from tests.support.trees import wheel
from trainbox.contract.model_card import Features, ModelCard, SampleRow, encode_card

pytestmark = pytest.mark.process

ONE = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
FEATURES = 6
ROWS = np.random.default_rng(3).normal(size=(2000, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def booster() -> xgb.Booster:
    matrix = xgb.DMatrix(ROWS, label=(ROWS[:, 0] > ROWS[:, 1]).astype(np.float32))
    return xgb.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, matrix, 20)


def save(booster: xgb.Booster, model: Path, *, differs_by: float = 0.0) -> None:
    """As training does: the model, and its card with rows that it was asked."""
    (model / "trainbox").mkdir(parents=True)
    booster.save_model(model / "xgboost-model.ubj")
    (model / "xgboost-model.ubj").rename(model / "xgboost-model")
    predicted = booster.predict(xgb.DMatrix(ROWS[:2]))
    card = ModelCard(
        framework="xgboost",
        algorithm="xgboost",
        objective="binary:logistic",
        features=Features(FEATURES),
        classes=(0, 1),
        samples=tuple(
            SampleRow({f"f{place}": float(value) for place, value in enumerate(row)}, float(said) + differs_by)
            for row, said in zip(ROWS[:2], predicted, strict=True)
        ),
    )
    (model / "trainbox" / "model.json").write_bytes(encode_card(card))


def as_csv(rows: np.ndarray) -> bytes:
    return b"".join(b",".join(str(float(value)).encode() for value in row) + b"\n" for row in rows)


def _has_another(server: ServeProcess, worker: int) -> bool:
    return server.workers not in ([], [worker])


def test_a_model_of_xgboost_answers_with_its_own_bits_in_workers_of_two_threads(
    booster: xgb.Booster, tmp_path: Path
) -> None:
    save(booster, tmp_path / "model")
    (tmp_path / "model").chmod(0o555)
    expected = booster.predict(xgb.DMatrix(ROWS))
    with ServeProcess(tmp_path, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}, obedient=None) as server:
        server.until_ready()
        for _ in range(3):
            answered = server.invoke(as_csv(ROWS), {"Content-Type": "text/csv"})
            assert (answered.status, answered.headers["content-type"]) == (200, "text/csv; charset=utf-8")
            assert np.array([float(line) for line in answered.body.split()], np.float32).tobytes() == expected.tobytes()
            (worker,) = server.workers
            os.kill(worker, signal.SIGKILL)  # the next one is another fork of the same loader
            server.until(functools.partial(_has_another, server, worker), "another takes its place")
        refused = server.invoke(b"1,2,3\n", {"Content-Type": "text/csv"})
        assert refused.status == 400
        assert server.stop() == 0


def test_a_body_of_any_length_is_answered_while_it_comes_in_little_memory(booster: xgb.Booster, tmp_path: Path) -> None:
    save(booster, tmp_path / "model")
    times, content = 200, as_csv(ROWS)
    variables = {"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    with ServeProcess(tmp_path, variables, obedient=None) as server:
        server.until_ready()
        (worker,) = server.workers
        once = server.invoke(content, {"Content-Type": "text/csv"}).body
        before = peak(worker)
        connection = server.connect()
        connection.putrequest("POST", "/invocations")
        connection.putheader("Content-Type", "text/csv")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        sender = threading.Thread(target=send_chunks, args=(connection, content, times))
        sender.start()
        answered = Answered(connection.getresponse())
        sender.join()
        connection.close()
        assert answered.body == once * times
        assert peak(worker) - before < 0.8 * len(content) * times / 1024
        with pytest.raises(http.client.IncompleteRead):  # what was answered before a fault has been sent
            server.invoke(content * 20 + b"1,2,x,4,5,6\n" + content, {"Content-Type": "text/csv"})
        server.until(
            lambda: re.search(r"POST /invocations 400 .* 'x' is not a number", server.log), "the fault is told"
        )
        compressed = {"Content-Type": "text/csv", "Content-Encoding": "gzip"}
        assert server.invoke(gzip.compress(content * 3), compressed).body == once * 3
        assert server.invoke(content, compressed).status == 400
        assert server.invoke(content, {**compressed, "Content-Encoding": "br"}).status == 415


def test_a_compressed_request_is_answered_as_the_plain_one_in_its_limit(booster: xgb.Booster, tmp_path: Path) -> None:
    save(booster, tmp_path / "model")
    variables = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1", "TRAINBOX_MAX_BODY_MB": "1"}
    with ServeProcess(tmp_path, variables, obedient=None) as server:
        server.until_ready()
        plain = server.invoke(as_csv(ROWS), {"Content-Type": "text/csv"})
        content, given = gzip.compress(as_csv(ROWS)), {"Content-Type": "text/csv", "Content-Encoding": "gzip"}
        cut = content.partition(content[9:20])[0]
        assert server.invoke(content, given).body == plain.body
        for body, coding, status, text in [
            (gzip.compress(bytes(2**20 + 1)), "gzip", 413, "and more than 1,048,576 after decompression"),
            (as_csv(ROWS), "gzip", 400, "the body is not gzip, as its Content-Encoding says"),
            (cut, "gzip", 400, "the body is not gzip, as its Content-Encoding says"),
            (content, "br", 415, "the content encoding 'br' is not supported; send gzip"),
        ]:
            refused = server.invoke(body, {**given, "Content-Encoding": coding})
            assert (refused.status, text in json.loads(refused.body)["error"]) == (status, True), refused.body
        (worker,) = server.workers
        before = peak(worker)
        assert server.invoke(gzip.compress(bytes(500 * 2**20), 1), given).status == 413
        assert peak(worker) - before < 50 * 1024


def send_chunks(connection: http.client.HTTPConnection, content: bytes, times: int) -> None:
    for _ in range(times):
        connection.send(b"%x\r\n%b\r\n" % (len(content), content))
    connection.send(b"0\r\n\r\n")


def peak(pid: int) -> int:
    """The most memory that a process has had, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_a_model_that_does_not_predict_what_its_card_says_is_not_served(booster: xgb.Booster, tmp_path: Path) -> None:
    save(booster, tmp_path / "model", differs_by=0.1)
    with ServeProcess(tmp_path, obedient=None) as server:
        assert server.wait() == 7
        assert "sample row 1: the model predicts " in server.log


#: Loads a model as the loader does, then forks as many children as it is told, each of which predicts with two threads.
FORKS = """
import os, sys
from pathlib import Path
import numpy as np
from trainbox.contract.hosting import read_hosting
from trainbox.serving.models.find import find_model, list_model, load

hosting = read_hosting({"TRAINBOX_ROOT": sys.argv[1]})
predictor = load(find_model(hosting, list_model(hosting)))
rows = np.random.default_rng(1).normal(size=(2000, 6)).astype(np.float32)
expected = predictor.predict(rows).tobytes()
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if not child:
        predictor.set_threads(2)
        os._exit(predictor.predict(rows).tobytes() != expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("all have answered")
"""


def fork(booster: xgb.Booster, root: Path, count: int) -> None:
    save(booster, root / "model")
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment = {**kept, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FORKS, str(root), str(count)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == (
        "all have answered\n"
    )


def test_children_of_a_loaded_model_predict_with_two_threads(booster: xgb.Booster, tmp_path: Path) -> None:
    fork(booster, tmp_path, 20)


@pytest.mark.long
def test_five_hundred_children_of_a_loaded_model_predict_with_two_threads(booster: xgb.Booster, tmp_path: Path) -> None:
    fork(booster, tmp_path, 500)


def test_the_hooks_of_the_user_answer_with_their_context(tmp_path: Path) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_text("""
import json

def model_fn(model_dir):
    return lambda rows: rows.sum(axis=1)

def execution_parameters_fn():
    return {"MaxConcurrentTransforms": 1, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 9}

def output_fn(prediction, accept, context):
    if prediction[0] < 0:
        raise ValueError("negative")
    if prediction[0] == 0:
        return (f"data: {number}\\n\\n" for number in range(3)), "text/event-stream"
    context.set_response_header("x-mine", context.get_request_header("X-Amzn-SageMaker-Custom-Attributes"))
    return json.dumps(prediction.tolist())
""")
    with ServeProcess(tmp_path, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}, obedient=None) as server:
        server.until_ready()
        answered = server.invoke(
            b"[[1, 2], [3, 4]]",
            {"Content-Type": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "trace=7"},
        )
        assert (answered.status, answered.body) == (200, b"[3, 7]")
        assert (answered.headers["content-type"], answered.headers["x-mine"]) == ("application/json", "trace=7")
        streamed = server.invoke(b"[[0, 0]]")
        assert (streamed.headers["content-type"], streamed.body.count(b"data: ")) == ("text/event-stream", 3)
        parameters = server.ask("/execution-parameters")
        assert json.loads(parameters.body)["MaxPayloadInMB"] == 9
        failed = server.invoke(b"[[-1, 0]]")
        assert failed.status == 500
        assert b"ValueError: negative (inference.py:12 in output_fn)" in failed.body
        assert server.invoke(b"no json").status == 400
        assert "the model brings code, which runs with all rights of the container" in server.log


def test_code_is_refused_where_it_may_not_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "inference.py").write_text("def model_fn(model_dir): ...\n")
    with ServeProcess(tmp_path, {"TRAINBOX_SERVE_CODE": "never"}, obedient=None) as server:
        assert server.wait() == 3
        assert "TRAINBOX_SERVE_CODE" in server.log


def ask_for(root: Path, requirements: str, **wheels: str) -> Path:
    """A model whose module answers with what a package says, from wheels beside it."""
    code = root / "model" / "code"
    code.mkdir(parents=True)
    module = (
        "def model_fn(model_dir): return None\ndef transform_fn(model, body, kind, accept): return dependency.words\n"
    )
    (code / "inference.py").write_text(("import dependency\n" if wheels else "") + module)
    (code / "requirements.txt").write_text(requirements)
    for name, content in wheels.items():
        (root / f"{name}-1.0-py3-none-any.whl").write_bytes(wheel(name, content))
    return code


def test_what_is_there_already_is_not_installed(tmp_path: Path) -> None:
    ask_for(tmp_path, "msgspec\n")
    with ServeProcess(tmp_path, ONE, obedient=None) as server:
        server.until_ready()
        assert "Requirement already satisfied: msgspec" in server.log
        assert server.stop() == 0


def test_what_cannot_be_installed_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    ask_for(tmp_path, "--no-index\nno-such-package-of-anybody\n")
    with ServeProcess(tmp_path, ONE, obedient=None) as server:
        assert server.wait() == 4
        assert "No matching distribution found for no-such-package-of-anybody" in server.log
        assert "requirements.txt names (exit code 1)" in server.log


LOCAL = "--no-index\n--find-links ../..\ndependency\n"


@needs_mounts
@pytest.mark.parametrize("gpus", [0, 2])
def test_where_the_image_cannot_be_written_packages_go_elsewhere_once_for_all_workers(
    tmp_path: Path, gpus: int
) -> None:
    ask_for(tmp_path, LOCAL, dependency="words = 'installed'\n")
    read_only = [
        "unshare",
        "-m",
        "sh",
        "-ec",
        'mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"; exec "$@"',
        sys.prefix,
    ]
    prefix = [*(with_devices(tmp_path / "dev", gpus) if gpus else ()), *read_only]
    variables = {"SAGEMAKER_MODEL_SERVER_WORKERS": "2", "TMPDIR": str(tmp_path), "PIP_ROOT_USER_ACTION": "ignore"}
    with ServeProcess(tmp_path, variables, obedient=None, prefix=prefix) as server:
        server.until_ready()
        assert [server.invoke(b"").body for _ in range(4)] == [b"installed"] * 4
        assert server.log.count("Successfully installed dependency-1.0") == 1
        assert re.search(r"requirements.txt names into \S+/trainbox-\w+: \S+ cannot be written\n", server.log)
        assert server.stop() == 0


def test_pip_installs_what_it_may(tmp_path: Path) -> None:
    ask_for(tmp_path, LOCAL, dependency="words = 'installed'\n")
    with ServeProcess(tmp_path, {**ONE, "TRAINBOX_REQUIREMENTS": "hashes"}, obedient=None) as server:
        assert server.wait() == 4
        assert "--require-hashes mode" in server.log


def test_pip_can_be_left_out(tmp_path: Path) -> None:
    code = ask_for(tmp_path, LOCAL, dependency="")
    (code / "dependency.py").write_text("words = 'beside'\n")
    with ServeProcess(tmp_path, {**ONE, "TRAINBOX_REQUIREMENTS": "off"}, obedient=None) as server:
        assert server.until_ready().invoke(b"").body == b"beside"
        assert f"TRAINBOX_REQUIREMENTS=off: {code}/requirements.txt is not installed\n" in server.log


def anonymous(pid: int) -> int:
    """What a process has of memory that is no file's, in MB."""
    (line,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line) // 1024


@pytest.mark.long
def test_a_worker_returns_the_memory_of_a_large_request(booster: xgb.Booster, tmp_path: Path) -> None:
    save(booster, tmp_path / "model")
    row, count = b"[-0.25, 1.5, 2.25, -3.125, 4.0, 5.5]", 400_000
    headers = {"content-type": "application/json", "accept": "application/x-npy"}
    with ServeProcess(tmp_path, ONE, obedient=None) as server:
        (worker,) = server.until_ready().workers
        assert server.invoke(b"[" + row + b"]", headers).status == 200
        before = anonymous(worker)
        for _ in range(3):
            answered = server.invoke(b"[" + b",".join([row] * count) + b"]", headers)
            assert (answered.status, len(answered.body)) == (200, 4 * count + 128)
        server.until(lambda: anonymous(worker) < before + 24, f"it has {before} MB again")
