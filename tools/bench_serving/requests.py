"""The model that is asked, its requests, and what one server does with them for some time."""

import http.client
import io
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from tests.support.trees import Tree
from tools.bench import REPOSITORY, BrokenError
from tools.bench_serving.load import Loaded
from tools.bench_serving.servers import Paths, Server

FEATURES = 28
ROUNDS, DEPTH = 100, 6


def train(scratch: Path, script: str = "xgboost", **hyperparameters: object) -> Paths:
    """Train a model as a job of trainbox: one of XGBoost unless another script is named.

    Raises:
        BrokenError: The job has failed.
    """
    scratch.mkdir(exist_ok=True)
    rows = make_rows(5_000)
    labels = (rows[:, 0] + rows[:, 1] * rows[:, 2] + 0.3 * rows[:, 3] > 0).astype(np.float32)
    lines = io.BytesIO()
    np.savetxt(lines, np.column_stack([labels, rows]), delimiter=",", fmt="%.7g")
    tree = Tree(scratch / "ml").hosts("localhost").channel("train", {"rows.csv": lines.getvalue()})
    boosting = {"objective": "binary:logistic", "num_round": ROUNDS, "max_depth": DEPTH}
    tree.hyperparameters(trainbox_script=script, **(hyperparameters or boosting))
    ended = tree.run()
    if ended.code:
        raise BrokenError(f"the model could not be trained:\n{ended.log[-2000:]}")
    return Paths(scratch / "ml", scratch)


def make_rows(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows of random numbers, seven digits each."""
    return np.random.default_rng(7).normal(size=(count, FEATURES)).astype(np.float32)


def request_of(body: bytes, content_type: str = "text/csv", path: str = "/invocations") -> bytes:
    """The bytes of a request."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nAccept: */*\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def csv_of(count: int) -> bytes:
    """So many rows as CSV."""
    lines = (",".join(f"{value:.7g}" for value in row) for row in make_rows(count).tolist())
    return ("\n".join(lines) + "\n").encode()


def for_server(name: str, count: int) -> bytes:
    """The request of so many rows, as this server wants it."""
    if name != "LitServe":
        return request_of(csv_of(count))
    body = json.dumps({"row": make_rows(1)[0].tolist()}).encode()
    return request_of(body, "application/json", "/predict")


def ask(server: Server, request: bytes) -> bytes:
    """The body of one answer."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", lines[0].split()[1], body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise BrokenError(f"{server.name}: {answer.status} {content[:300]!r}")
    return content


def load(server: Server, request: bytes, connections: int, seconds: float, scratch: Path) -> tuple[Loaded, float]:
    """Send a request for some time; what came of it, and the processor seconds of each answer."""
    expected = ask(server, request)
    files = scratch / "request", scratch / "expected"
    files[0].write_bytes(request)
    files[1].write_bytes(expected)
    before = server.used().cpu_seconds
    command = (sys.executable, "-m", "tools.bench_serving.load", str(server.port), *map(str, files))
    ended = subprocess.run(
        (*command, str(connections), str(seconds)), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise BrokenError(f"{server.name}: {ended.stderr[-1000:]}")
    loaded = msgspec.json.decode(ended.stdout, type=Loaded)
    return loaded, (server.used().cpu_seconds - before) / loaded.answers
