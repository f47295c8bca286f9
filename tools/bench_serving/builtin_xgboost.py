"""SageMaker's built-in XGBoost behind its `/invocations`, in own words: the path of a CSV request, as it is measured.

What counts is what each request costs there, so each step is done as the container does it
(https://github.com/aws/sagemaker-xgboost-container, `algorithm_mode/serve.py` and `encoder.py`, cb8df91): Flask reads
the body, `csv.Sniffer` guesses the delimiter, Python splits lines and cells, NumPy converts the texts, a `DMatrix` is
made and predicted from, and a line is logged.
"""

import csv
import logging
import os

import flask
import numpy as np
import xgboost as xgb
from scipy import stats  # which it needs for models of several folds, and which each of its workers loads

LOG = logging.getLogger(__name__)
SNIFFED = 512
VOTE = stats.mode

app = flask.Flask(__name__)
_models: dict[str, xgb.Booster] = {}


def load() -> xgb.Booster:
    """Load the model once in each worker, when it is first asked."""
    path = os.environ["BENCH_MODEL"]
    if path not in _models:
        booster = xgb.Booster()
        booster.load_model(path)
        booster.set_param({"nthread": 1})
        _models[path] = booster
    return _models[path]


def parse(body: bytes) -> xgb.DMatrix:
    """Turn CSV into a matrix; an empty cell is a missing value."""
    text = body.strip().decode("utf-8")
    lines = text.split("\n")
    delimiter = csv.Sniffer().sniff(lines[0][:SNIFFED]).delimiter
    if delimiter.isalnum():
        delimiter = ","
    LOG.info("Determined delimiter of CSV input is '%s'", delimiter)
    cells = [["nan" if cell == "" else cell for cell in line.split(delimiter)] for line in lines]
    return xgb.DMatrix(np.array(cells).astype(float))


@app.get("/ping")
def ping() -> flask.Response:
    """Answer once the model is there."""
    load()
    return flask.Response(status=200)


@app.post("/invocations")
def invocations() -> flask.Response:
    """Answer with a line for each row."""
    predicted = load().predict(parse(flask.request.data), validate_features=False)
    return flask.Response("\n".join(map(str, predicted.tolist())) + "\n", mimetype="text/csv")
