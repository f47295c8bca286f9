"""What the built-in XGBoost's hosting answers, in own words: an oracle for requests that it takes.

https://github.com/aws/sagemaker-xgboost-container at cb8df91: `encoder.py`, `algorithm_mode/serve.py` and
`serve_utils.py`. Cells become 64-bit floats and a DMatrix; predictions are widened and written by Python.
"""

import csv
import json
from typing import Any

import numpy as np
import scipy.sparse
import xgboost as xgb

from trainbox.data.formats import parse_body


def answer(
    booster: xgb.Booster, body: bytes, content_type: str, accept: str, *, is_batch: bool = False
) -> tuple[str, bytes]:
    """The content type and body of the built-in's answer.

    Args:
        booster: The model.
        body: A request that the built-in takes.
        content_type: `text/csv`, `text/libsvm` or `application/x-recordio-protobuf`.
        accept: Empty, `text/csv` or `application/json`.
        is_batch: Whether the container was started for a batch transform job.
    """
    predictions = booster.predict(_matrix(body, content_type), validate_features=False).tolist()
    accept = accept or "text/csv"
    if is_batch:
        content = "\n".join(map(str, predictions)) + "\n"
    elif accept == "application/json":
        content = json.dumps({"predictions": [{"score": each} for each in predictions]})
    else:
        rows = [each if isinstance(each, list) else [each] for each in predictions]
        content = "".join(",".join(map(str, row)) + "\n" for row in rows)
    shown = f"{accept}; charset=utf-8" if accept.startswith("text/") else accept
    return shown, content.encode()


def _matrix(body: bytes, content_type: str) -> xgb.DMatrix:
    if content_type == "application/x-recordio-protobuf":
        return xgb.DMatrix(parse_body(body, "recordio-protobuf").features, nthread=1)
    text = body.strip().decode()
    return xgb.DMatrix(_csv(text) if content_type == "text/csv" else _libsvm(text), nthread=1)


def _csv(text: str) -> Any:
    delimiter = csv.Sniffer().sniff(text.split("\n", maxsplit=1)[0][:512]).delimiter
    delimiter = "," if delimiter.isalnum() else delimiter
    return np.array([[cell or "nan" for cell in line.split(delimiter)] for line in text.split("\n")]).astype(float)


def _libsvm(text: str) -> Any:
    """Rows of pairs: where no index is 0, all are taken to count from 1."""
    pairs = [
        (row, int(index), float(value))
        for row, line in enumerate(text.split("\n"))
        for index, colon, value in (token.partition(":") for token in line.split(" "))
        if colon
    ]
    rows, columns, values = (np.array(each) for each in zip(*pairs, strict=True))
    return scipy.sparse.csr_matrix((values, (rows, columns - (columns.min() >= 1))))
