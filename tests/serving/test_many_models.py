"""An endpoint of many models: SageMaker's API for them, with real processes and real models."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from tests.serving.test_serve_models import ROWS, as_csv, save
from tests.serving.test_serve_process import exchange
from tests.support.many_models import OBEDIENT, ManyModels, read, write_code, write_model
from tests.support.shared_data import shared

pytestmark = pytest.mark.process

TWO = {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
ONE = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}


def grown(rounds: int) -> xgb.Booster:
    matrix = xgb.DMatrix(ROWS, label=(ROWS[:, 0] > ROWS[:, 1]).astype(np.float32))
    return xgb.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, matrix, rounds)


def place(root: Path, name: str, booster: xgb.Booster, *, differs_by: float = 0.0) -> None:
    save(booster, root / "models" / name / "model", differs_by=differs_by)


def predicted(booster: xgb.Booster, rows: np.ndarray) -> list[float]:
    return [float(value) for value in booster.predict(xgb.DMatrix(rows))]


# ---- the contract ----


def test_models_come_and_go_and_each_answers_with_its_own_bits(tmp_path: Path) -> None:
    boosters = {f"m{rounds}": grown(rounds) for rounds in (3, 7)}
    for name, booster in boosters.items():
        place(tmp_path, name, booster)
    with ManyModels(tmp_path, TWO) as server:
        assert (server.ask("/ping").status, server.ask("/ping").body) == (200, b"")
        assert server.call("GET", "/models").body == b'{"models":[]}'
        for name in boosters:
            loaded = server.load(name)
            assert (loaded.status, read(loaded)) == (200, {"status": "Workers scaled"}), server.log
        url = str(tmp_path / "models" / "m3" / "model")
        assert read(server.call("GET", "/models"))["models"][0] == {"modelName": "m3", "modelUrl": url}
        assert read(server.call("GET", "/models/m3")) == {"modelName": "m3", "modelUrl": url}
        for _ in range(2):  # each worker
            for name, booster in boosters.items():
                answered = server.invoke_model(name, as_csv(ROWS[:50]))
                assert list(map(float, answered.body.split())) == predicted(booster, ROWS[:50])
        again = server.load("m3")
        assert (again.status, read(again)["message"]) == (409, "Model m3 is already registered.")
        assert read(server.unload("m3")) == {"status": 'Model "m3" unregistered'}
        assert server.unload("m3").status == 404
        gone = server.invoke_model("m3", as_csv(ROWS[:1]))
        assert (gone.status, read(gone)["message"]) == (404, "Model not found: m3")
        assert server.call("GET", "/models/m3").status == 404
        assert server.invoke_model("m7", as_csv(ROWS[:1])).status == 200
        assert server.names == ["m7"]
        assert server.stop() == 0


def test_the_built_in_containers_own_models_load_by_its_own_requests(tmp_path: Path) -> None:
    """The steps of its test of multi-model endpoints, with its strings; it puts the models below `/opt/ml/model`."""
    models = shared("xgboost-container/models")
    (tmp_path / "model").symlink_to(models)
    with ManyModels(tmp_path, ONE) as server:
        for name in ("pickled_model", "saved_booster"):
            asked = {"model_name": name, "url": str(models / name)}
            refused = server.call("POST", "/models", json.dumps(asked).encode())
            assert refused.status == 400  # outside of the tree
    (tmp_path / "model").unlink()
    shutil.copytree(models, tmp_path / "model")
    with ManyModels(tmp_path, ONE) as server:
        for name in ("pickled_model", "saved_booster"):
            asked = {"model_name": name, "url": str(tmp_path / "model" / name)}
            loaded = server.call("POST", "/models", json.dumps(asked).encode())
            assert (loaded.status, read(loaded)) == (200, {"status": "Workers scaled"}), server.log
            assert server.invoke_model(name, b"0,0,1,0").status in {200, 400}, server.log


def test_the_sdks_local_client_names_the_model_in_a_header(tmp_path: Path) -> None:
    write_code(tmp_path, "a.tar.gz")
    with ManyModels(tmp_path, ONE) as server:
        assert server.load("a.tar.gz").status == 200
        headers = {"content-type": "text/csv", "X-Amzn-SageMaker-Target-Model": "a.tar.gz"}
        assert server.invoke(b"", headers).body.endswith(b" a.tar.gz")
        unnamed = server.invoke(as_csv(ROWS[:1]), {"content-type": "text/csv"})
        assert (unnamed.status, read(unnamed)["message"]) == (
            400,
            "this endpoint has many models, and the request names none",
        )
        assert server.invoke(b"", {**headers, "X-Amzn-SageMaker-Target-Model": "b"}).status == 404


def test_what_cannot_be_loaded_is_refused_with_the_reason_and_nothing_else_notices(tmp_path: Path) -> None:
    booster = grown(3)
    place(tmp_path, "good", booster)
    place(tmp_path, "of another model", booster, differs_by=0.25)
    (tmp_path / "models" / "empty" / "model").mkdir(parents=True)
    write_code(tmp_path, "syntax", "def model_fn(")
    write_code(tmp_path, "raises", "def model_fn(model_dir):\n    raise KeyError('weights')\n")
    write_code(tmp_path, "memory", "def model_fn(model_dir):\n    return bytearray(2**46)\n")
    write_code(tmp_path, "crashes", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\ndef model_fn(_): pass\n")
    write_code(tmp_path, "leaves", "import os\ndef model_fn(_):\n    os._exit(3)\n")
    write_code(tmp_path, "hangs", "import time\ndef model_fn(_):\n    time.sleep(600)\n")
    write_code(tmp_path, "needs", "def model_fn(_): pass\n")
    write_model(tmp_path, "needs", {"code/requirements.txt": "numpy\nno-such-package==1.2\n"})
    write_code(tmp_path, "huge")
    with (tmp_path / "models" / "huge" / "model" / "weights").open("wb") as weights:
        weights.truncate(2**43)
    expected = {
        "of another model": (400, "sample row 1: the model predicts"),
        "empty": (400, "has no model to serve: it holds nothing"),
        "no such directory": (404, "does not exist"),
        "huge": (507, "its files have 8,388,608 MiB"),
        "syntax": (400, "is not a Python module"),
        "raises": (500, "model_fn: KeyError: 'weights' (inference.py:2 in model_fn)"),
        "memory": (507, "not enough memory for the model"),
        "crashes": (500, "killed by SIGSEGV"),
        "leaves": (500, "ended with exit code 3"),
        "hangs": (500, "could not be loaded within 20 s"),
        "needs": (400, "no-such-package==1.2"),
    }
    with ManyModels(tmp_path, {**ONE, "SAGEMAKER_STARTUP_TIMEOUT": "20"}) as server:
        assert server.load("good").status == 200
        server.until(lambda: len(server.workers) == 1, "the worker before has ended")
        before = server.loader, server.workers
        for name, (status, text) in expected.items():
            refused = server.load(name)
            assert (refused.status, text in read(refused)["message"]) == (status, True), refused.body
            assert read(refused)["code"] == status
        assert (server.loader, server.workers) == before
        assert server.names == ["good"]
        assert server.invoke_model("good", as_csv(ROWS[:1])).status == 200


def test_a_directory_outside_of_the_tree_is_refused_however_it_is_written(tmp_path: Path) -> None:
    booster = grown(2)
    save(booster, tmp_path / "outside" / "model")
    inside = tmp_path / "ml"
    (inside / "models").mkdir(parents=True)
    (inside / "models" / "link").symlink_to(tmp_path / "outside")
    (inside / "models" / "loop").symlink_to(inside / "models" / "loop")
    with ManyModels(inside, ONE) as server:
        for url in (
            str(tmp_path / "outside" / "model"),
            f"{inside}/models/../../outside/model",
            f"file://{inside}/models/../../outside/model",
            str(inside / "models" / "link" / "model"),
            "/etc",
            "relative/model",
            "s3://bucket/model.tar.gz",
            f"{inside}/models/\x00",
            "/" + "a" * 5000,
            f"{inside}/{'a' * 300}",
            f"{inside}/models/loop",
        ):
            refused = server.call("POST", "/models", json.dumps({"model_name": "m", "url": url}).encode())
            assert refused.status == 400, url
        assert server.names == []
        assert "FAILED" not in server.log


def test_names_are_keys_whatever_they_look_like(tmp_path: Path) -> None:
    write_code(tmp_path, "m")
    names = [
        "../../etc/passwd",
        "a/b.tar.gz",
        "..",
        "日本 ü",
        "100%25",
        "x" * 1024,
        "?q=1#f",
        '"; rm -rf',
        "invoke",
        "m",
    ]
    with ManyModels(tmp_path, ONE) as server:
        for name in names:
            assert server.load(name, "m").status == 200, server.log
            assert server.invoke_model(name, b"").status == 200, name
        assert sorted(server.names) == sorted(names)
        for name in ("", "a\nb", "\x00", "\x1b[31m", "x" * 1025, "\u2028"):
            assert server.load(name, "m").status == 400
        for path in ("/models/%ff", "/models/%00/invoke", "/models//invoke", "/models/a/b/c", "/models/a/"):
            assert server.call("POST", path, b"1").status in {400, 404}, path
        for method, path in (
            ("PUT", "/models"),
            ("PUT", "/models/m"),
            ("GET", "/models/m/invoke"),
            ("DELETE", "/models"),
        ):
            refused = server.call(method, path)
            assert (refused.status, "allow" in refused.headers) == (405, True)
        for name in names:
            assert server.unload(name).status == 200, name
        assert server.names == []
        assert "\x1b" not in server.log


def test_the_body_of_a_load_is_read_with_care(tmp_path: Path) -> None:
    with ManyModels(tmp_path, ONE) as server:
        for body in (
            b"",
            b"{",
            b"[]",
            b'{"model_name": "m"}',
            b'{"url": "/m"}',
            b'{"model_name": 1, "url": "/m"}',
            b"\xff",
        ):
            assert server.call("POST", "/models", body).status == 400, body
        huge = json.dumps({"model_name": "m", "url": "/" + "a" * 100_000}).encode()
        assert server.call("POST", "/models", huge).status == 413
        assert server.call("POST", "/models", b"x" * 30_000_000).status == 413
        assert server.call("GET", "/models?next_page_token=%21").status == 400
        assert server.call("GET", "/models?limit=0").status == 400
        assert server.ask("/ping").status == 200


def test_requests_of_any_bytes_end_no_worker(tmp_path: Path) -> None:
    draw = random.Random(7)
    pieces = rb"/models|/|..|%2e%2e|%00|%ff|%|m|invoke|?|#|//|%2F".split(b"|")
    pieces += [
        b"next_page_token=",
        b"limit=",
        b"&",
        b"a" * 3000,
        "ü".encode(),
        b" ",
        b"*",
        b"\xff",
        b"http://h/models/m",
    ]
    write_code(tmp_path, "kept")
    with ManyModels(tmp_path, ONE) as server:
        assert server.load("kept").status == 200
        server.until(lambda: len(server.workers) == 1, "the worker before has ended")
        before = server.workers
        for _ in range(300):
            method = draw.choice([b"GET", b"POST", b"DELETE", b"PUT", b"HEAD", b"OPTIONS"])
            path = b"/models" * draw.randint(0, 1) + b"".join(draw.choices(pieces, k=draw.randint(0, 6)))
            body = draw.choice([b"", b"{", b'{"model_name": "n", "url": "/opt"}', draw.randbytes(50)])
            head = b"%b %b HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            answered = exchange(server, head % (method, path, len(body)) + body)
            assert re.match(rb"HTTP/1.1 (200|400|404|405) ", answered), (method, path, body, answered)
        assert server.workers == before
        assert server.names == ["kept"]
        assert "Traceback" not in server.log


# ---- code ----


def test_the_code_of_each_model_is_its_own(tmp_path: Path) -> None:
    module = """
import helper

def model_fn(model_dir, context):
    return context.model_name

def transform_fn(model, body, content_type, accept, context):
    import later
    if body == "stream":
        return stream()
    return f"{model} {context.model_name} {helper.NAME} {later.NAME}"

def stream():
    import streamed
    yield streamed.NAME
    yield " and more"
"""
    for name in ("one", "two"):
        helpers = {f"code/{each}.py": f"NAME = '{each} of {name}'\n" for each in ("helper", "streamed")}
        vendored = {"code/lib/later.py": f"NAME = 'later of {name}'\n", "code/requirements.txt": "numpy\n"}
        write_model(tmp_path, name, {"code/inference.py": module, **helpers, **vendored})
    with ManyModels(tmp_path, ONE) as server:
        for name in ("one", "two"):
            assert server.load(name).status == 200, server.log
        for name in ("one", "two", "one"):
            assert server.invoke_model(name, b"x").body.decode() == f"{name} {name} helper of {name} later of {name}"
            assert server.invoke_model(name, b"stream").body.decode() == f"streamed of {name} and more"


def test_a_thread_that_code_starts_where_workers_do_not_have_it_is_told(tmp_path: Path) -> None:
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    write_code(tmp_path, "threads", thread + OBEDIENT)
    with ManyModels(tmp_path, ONE) as server:
        assert server.load("threads").status == 200
        assert "model 'threads' has started a thread, which the workers do not have" in server.log
        assert server.invoke_model("threads", b"").status == 200


def test_code_is_refused_where_the_endpoint_allows_none(tmp_path: Path) -> None:
    write_code(tmp_path, "code")
    place(tmp_path, "m", grown(2))
    with ManyModels(tmp_path, {**ONE, "TRAINBOX_SERVE_CODE": "never"}) as server:
        refused = server.load("code")
        assert (refused.status, "TRAINBOX_SERVE_CODE is never" in read(refused)["message"]) == (400, True)
        assert server.load("m").status == 200


#: By the name of its row in docs/differences.md: the test that shows it.
DIFFERENCES = {
    "models-processes": test_the_code_of_each_model_is_its_own,
    "models-reasons": test_what_cannot_be_loaded_is_refused_with_the_reason_and_nothing_else_notices,
    "models-described": test_models_come_and_go_and_each_answers_with_its_own_bits,
    "models-requirements": test_what_cannot_be_loaded_is_refused_with_the_reason_and_nothing_else_notices,
    "models-places": test_a_directory_outside_of_the_tree_is_refused_however_it_is_written,
}


def test_the_page_of_differences_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
    assert re.findall(r"(?m)^\| `(models-[\w-]+)` \|", page) == [*DIFFERENCES]
