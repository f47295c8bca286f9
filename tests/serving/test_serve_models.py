"""`serve` with real models: one of XGBoost by its card, and the user's own by hooks; forks and threads of OpenMP."""

import functools
import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from tests.support.servers import Answered, ServeProcess
from trainbox.contract.model_card import Features, ModelCard, SampleRow, encode_card

pytestmark = pytest.mark.process

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
        compressed = {"Content-Type": "text/csv", "Content-Encoding": "gzip"}
        assert server.invoke(gzip.compress(content * 3), compressed).body == once * 3
        assert server.invoke(content, compressed).status == 400
        assert server.invoke(content, {**compressed, "Content-Encoding": "br"}).status == 415
        assert peak(worker) - before < 0.8 * len(content) * times / 1024


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


@pytest.mark.parametrize(("wanted", "code"), [("msgspec\n", 0), ("--no-index\nno-such-package-of-anybody\n", 4)])
def test_what_the_users_code_asks_for_is_there_or_the_server_does_not_start(
    wanted: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_text("def model_fn(model_dir):\n    return sum\n")
    (tmp_path / "model" / "code" / "requirements.txt").write_text(wanted)
    with ServeProcess(tmp_path, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}, obedient=None) as server:
        if code:
            assert server.wait() == code
            assert "No matching distribution found for no-such-package-of-anybody" in server.log
            assert "requirements.txt names (exit code 1)" in server.log
        else:
            assert server.until_ready().stop() == 0
