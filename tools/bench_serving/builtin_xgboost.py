"""SageMaker's built-in XGBoost behind its `/invocations`, in own words: the path of a CSV request, as it is measured.

What counts is what each process and each request costs there, so the same libraries are imported and each step is done
as the container does it (https://github.com/aws/sagemaker-xgboost-container cb8df91 with sagemaker-containers 2.8.6):
Flask reads the body, `csv.Sniffer` guesses the delimiter, Python splits lines and cells, NumPy converts the texts, a
`DMatrix` is made and predicted from, `csv.writer` writes the answer, and lines are logged.
"""

import csv
import inspect
import io
import logging.config
import os

# What the container imports, in its program `serve` and in each worker: of these none answers a request of CSV.
import boto3.s3.transfer
import flask
import gunicorn.app.base
import numpy as np
import pandas as pd
import paramiko
import pkg_resources
import psutil
import pyarrow.parquet
import retrying
import sagemaker_inference.default_handler_service
import scipy.sparse
import xgboost as xgb
from scipy import stats

SNIFFED = 512
UNUSED = (
    *(boto3.s3.transfer, gunicorn.app.base, pd, paramiko, pkg_resources, psutil, pyarrow.parquet, retrying),
    *(sagemaker_inference.default_handler_service, scipy.sparse, stats),
)

logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"long": {"format": "[%(asctime)s:%(levelname)s] %(message)s", "datefmt": "%Y-%m-%d:%H:%M:%S"}},
        "handlers": {"console": {"level": "INFO", "formatter": "long", "class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"], "level": "INFO"},
    }
)
LOG = logging.getLogger(__name__)

app = flask.Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = int(os.environ.get("MAX_CONTENT_LENGTH", "6291456"))
_models: dict[str, xgb.Booster] = {}


def load() -> xgb.Booster:
    """Load the model once in each worker, when it is first asked."""
    path = os.environ["BENCH_MODEL"]
    if path not in _models:
        booster = xgb.Booster()
        booster.load_model(path)
        booster.set_param("nthread", "1")
        _models[path] = booster
    return _models[path]


def media_type(header: str) -> str:
    """The name in a header, without its parameters."""
    name, *parameters = header.split(";")
    for parameter in parameters:
        _, found, _ = parameter.partition("=")
        if not found:
            raise ValueError(header)
    return name.strip().lower()


def parse(body: bytes) -> xgb.DMatrix:
    """Turn CSV into a matrix; an empty cell is a missing value."""
    text = body.strip().decode("utf-8")
    delimiter = csv.Sniffer().sniff(text.split("\n")[0][:SNIFFED]).delimiter
    if delimiter.isalnum():
        delimiter = ","
    LOG.info("Determined delimiter of CSV input is '%s'", delimiter)
    cells = [["nan" if cell == "" else cell for cell in line.split(delimiter)] for line in text.split("\n")]
    return xgb.DMatrix(np.array(cells).astype(float))


def predict(rows: xgb.DMatrix) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Predict, by looking first how this XGBoost wants it."""
    booster = load()
    if "ntree_limit" in inspect.signature(booster.predict).parameters:
        raise RuntimeError("an XGBoost before 2.0")
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = booster.predict(rows, validate_features=False)
    return found


def encode(values: list[float]) -> str:
    """Write a line for each row."""
    array = np.array(values)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", delimiter=",", quotechar='"', doublequote=True, strict=True).writerows(
        np.reshape(array, (array.shape[0], 1))
    )
    return stream.getvalue()


@app.get("/ping")
def ping() -> flask.Response:
    """Answer once the model is there."""
    load()
    return flask.Response(status=200)


@app.post("/invocations")
def invocations() -> flask.Response:
    """Answer with a line for each row."""
    if media_type(flask.request.content_type or "") != "text/csv":
        return flask.Response(status=415)
    predicted = predict(parse(flask.request.data))
    accept = media_type(flask.request.headers.get("accept", ""))
    accept = "text/csv" if accept in {"", "*/*"} else accept
    return flask.Response(encode(predicted.tolist()), mimetype=accept)
