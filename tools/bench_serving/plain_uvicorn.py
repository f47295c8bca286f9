"""What one would write by hand: an application on uvicorn that parses with NumPy and predicts in place."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import xgboost as xgb

Scope = dict[str, Any]
_models: dict[str, xgb.Booster] = {}


def load() -> xgb.Booster:
    """Load the model once."""
    path = os.environ["BENCH_MODEL"]
    if path not in _models:
        booster = xgb.Booster()
        booster.load_model(path)
        booster.set_param({"nthread": 1})
        _models[path] = booster
    return _models[path]


async def app(scope: Scope, receive: Callable[[], Awaitable[Scope]], send: Callable[[Scope], Awaitable[None]]) -> None:
    """Answer `/ping` and `/invocations`."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = b""
    if scope["path"] == "/invocations":
        rows = np.loadtxt(body.decode().splitlines(), delimiter=",", dtype=np.float32, ndmin=2)
        answer = ("\n".join(map(str, load().inplace_predict(rows).tolist())) + "\n").encode()
    else:
        load()
    headers = [(b"content-type", b"text/csv"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
