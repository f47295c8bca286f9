"""Answers of a server have the bits of the library, whatever the format, the size of a batch and the other requests."""

import io
import itertools
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import xgboost as xgb

from tests.serving.test_answer import npy
from tests.support.boosters import train
from tests.support.servers import Answered, ServeProcess
from tests.support.waiting import LIMIT
from tests.support.writers import entry, frame, tensor
from tests.xgboost.test_xgboost_predictor import card_of, draw_rows, saved
from trainbox.contract.model_card import CARD_FILE, encode_card

pytestmark = pytest.mark.process

LARGEST, SENDERS = 130, 16
NAMES = [f"f{place}" for place in range(4)]


def lines(rows: Any) -> list[list[str]]:
    """The cells of rows, as Python writes them; one that is missing is empty."""
    return [["" if np.isnan(cell) else repr(float(cell)) for cell in row] for row in rows]


def table(rows: Any) -> Any:
    return pa.table({name: rows[:, place] for place, name in reversed([*enumerate(NAMES)])})


def parquet(rows: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def arrow(rows: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table(rows).schema) as writer:
        writer.write_table(table(rows))
    return bytes(sink.getvalue().to_pybytes())


WRITE: dict[str, Callable[[Any], bytes]] = {
    "text/csv": lambda rows: "".join(",".join(line) + "\n" for line in lines(rows)).encode(),
    "text/csv; header=present": lambda rows: "".join(
        ",".join(line) + "\n" for line in [NAMES[::-1], *(line[::-1] for line in lines(rows))]
    ).encode(),
    "application/json": lambda rows: json.dumps(
        [[None if np.isnan(cell) else float(cell) for cell in row] for row in rows]
    ).encode(),
    "application/jsonlines": lambda rows: "".join(
        json.dumps(
            {name: float(cell) for name, cell in zip(NAMES, row, strict=True) if not np.isnan(cell)}
            | {name: None for name, cell in zip(NAMES, row, strict=True) if np.isnan(cell)}
        )
        + "\n"
        for row in rows
    ).encode(),
    "text/libsvm": lambda rows: "".join(
        " ".join(f"{place}:{cell}" for place, cell in enumerate(line) if cell) + "\n" if any(line) else "0\n"
        for line in lines(rows)
    ).encode(),
    "application/x-recordio-protobuf": lambda rows: b"".join(frame(entry(1, tensor(row))) for row in rows.tolist()),
    "application/x-npy": npy,
    "application/x-parquet": parquet,
    "application/vnd.apache.arrow.stream": arrow,
}


def read(answered: Answered, shape: tuple[int, ...]) -> Any:
    """The numbers of an answer."""
    kind = answered.headers["content-type"].partition(";")[0]
    if kind == "application/x-npy":
        return np.load(io.BytesIO(answered.body))
    if kind == "application/json":
        found = [each["score"] for each in json.loads(answered.body)["predictions"]]
    else:
        found = [list(map(float, line.split(","))) for line in answered.body.decode().splitlines()]
    return np.array(found, np.float32).reshape(shape)


@pytest.mark.parametrize("kind", ["binary:logistic", "softprob"])
def test_every_batch_in_every_format_has_the_bits_of_the_library(kind: str, tmp_path: Path) -> None:
    booster, _ = train(kind)
    (tmp_path / "model" / CARD_FILE).parent.mkdir(parents=True)
    saved(tmp_path / "model", booster)
    (tmp_path / "model" / CARD_FILE).write_bytes(encode_card(card_of(kind)))
    rows = draw_rows(kind, 2 * LARGEST)
    expected = booster.predict(xgb.DMatrix(rows, nthread=1))
    # Each size once, in each format about as often, and many single rows, which are predicted together.
    order = [*range(1, LARGEST + 1), *[1] * 400]
    random.Random(5).shuffle(order)
    asked = iter([*zip(order, itertools.cycle(WRITE), strict=False)])
    wrong, lock = list[str](), threading.Lock()

    def send(seed: int) -> None:
        chance, connection = random.Random(seed), server.connect()
        while True:
            with lock:
                size, content_type = next(asked, (0, ""))
            if not size:
                break
            first = chance.randrange(len(rows) - size)
            accept = chance.choice(["text/csv", "application/json", "application/x-npy"])
            body = WRITE[content_type](rows[first : first + size])
            connection.request("POST", "/invocations", body, {"Content-Type": content_type, "Accept": accept})
            answered, right = Answered(connection.getresponse()), expected[first : first + size]
            with lock:  # NumPy parses with `ast`, which fails now and then in two threads: python/cpython#106905
                is_right = answered.status == 200 and read(answered, right.shape).tobytes() == right.tobytes()
            if not is_right:
                wrong.append(
                    f"{size} rows of {content_type} from {first} on: {answered.status} {answered.body[:200]!r}"
                )
        connection.close()

    with ServeProcess(tmp_path, {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}, obedient=None) as server:
        server.until_ready()
        threads = [threading.Thread(target=send, args=[seed]) for seed in range(SENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert next(asked, None) is None
        assert not wrong, wrong[:3]
        assert server.stop() == 0
