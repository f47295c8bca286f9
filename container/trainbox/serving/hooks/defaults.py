"""What stands for `input_fn`, `predict_fn` and `output_fn` where the model is the user's own and has no card.

As in SageMaker's inference toolkit JSON, CSV and NPY become an array, and an array is written as one of them. What that
reads silently as missing, or unpickles, is refused here.
"""

import csv
import io
import math
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np

from trainbox.errors import DataError
from trainbox.serving.bodies.decode_tables import read_npy
from trainbox.serving.bodies.media_types import choose_output_type
from trainbox.serving.bodies.request_errors import RequestError

_JSON, _CSV, _NPY = "application/json", "text/csv", "application/x-npy"
_BOOSTER, _MODULE = "xgboost.core.Booster", "torch.nn.modules.module.Module"
_LARGEST = float(np.finfo(np.float32).max)
_KNOWN = f"{_JSON}, {_CSV} and {_NPY}"


def decode_plain(body: bytes, content_type: str) -> Any:  # noqa: ANN401 - an array, or what JSON has
    """Return the array that a body holds: CSV has a row for each line; JSON that is no array stays as it is.

    Raises:
        RequestError: The body cannot be read, or is of another content type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == _JSON:
            found = msgspec.json.decode(body)
            return _as_rows(found) if isinstance(found, list) else found
        if kind == _CSV:
            return _read_csv(body.decode())
        if kind == _NPY:
            return read_npy(body)
    except RequestError:
        raise
    except (ValueError, OverflowError, RecursionError, csv.Error) as error:  # msgspec's are ValueErrors
        raise RequestError(f"the body is not {content_type}: {error}", hint="correct the request") from error
    raise RequestError(
        f"the content type {content_type[:100]!r} is not supported",
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        hint=f"send {_KNOWN}; or write an input_fn that reads it",
    )


def _as_rows(found: list[Any]) -> Any:  # noqa: ANN401 - an array
    """Return lists as an array, in which null among numbers is missing."""
    rows = np.array(found)
    if rows.dtype.kind != "O":
        return rows
    try:
        return np.array(found, np.float64)
    except (TypeError, ValueError):
        return rows  # of objects: the user's own affair


def _read_csv(text: str) -> Any:  # noqa: ANN401 - an array
    rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    found = np.empty((len(rows), len(rows[0]) if rows else 0), np.float32)
    for number, row in enumerate(rows, 1):
        if len(row) != found.shape[1]:
            raise RequestError(f"row {number} has {len(row)} columns, and row 1 has {found.shape[1]}", row=number)
        for column, cell in enumerate(row, 1):
            found[number - 1, column - 1] = _read_cell(cell, number, column)
    return found


def _read_cell(cell: str, row: int, column: int) -> float:
    """Return a number as text has it, also `nan` and `inf`; an empty cell is missing. Python alone reads `1_000`."""
    if not cell.strip():
        return math.nan
    try:
        value = float(cell) if cell.isascii() and "_" not in cell else None
    except ValueError:
        value = None
    if value is None or (abs(value) > _LARGEST and math.isfinite(value)):
        problem = "is not a number" if value is None else "is too large for a 32-bit float"
        raise RequestError(
            f"value {cell[:100]!r} of row {row}, column {column} {problem}",
            row=row,
            column=column,
            value=cell,
            redacted=f"the value of row {row}, column {column} {problem}",
        )
    return value


def predict_plain(data: Any, model: Any) -> Any:  # noqa: ANN401 - whatever the user's model takes and gives
    """Return what a model says: by its `predict`, or by calling it; XGBoost and PyTorch get their own kind of rows.

    Raises:
        DataError: It can do neither.
    """
    if _is_a(model, _BOOSTER) and isinstance(data, np.ndarray):
        import xgboost  # noqa: PLC0415 - there, as the model is

        return model.predict(xgboost.DMatrix(data), validate_features=False)
    if _is_a(model, _MODULE):
        import torch  # noqa: PLC0415 - likewise

        with torch.inference_mode():
            return model(as_model_input(data, model))
    if callable(getattr(model, "predict", None)):
        return model.predict(data)
    if callable(model):
        return model(data)
    raise DataError(
        f"model_fn has returned {type(model).__name__}, which has no predict and cannot be called",
        hint="add predict_fn to the module",
    )


def as_model_input(data: Any, model: Any) -> Any:  # noqa: ANN401 - an array or a tensor, and any model
    """Return rows as `predict_fn` gets them: a module of PyTorch has a tensor, on its own device."""
    if not isinstance(data, np.ndarray) or not _is_a(model, _MODULE):
        return data
    import torch  # noqa: PLC0415 - there, as the model is

    weights = next(model.parameters(), None)
    rows = torch.tensor(data.astype(np.float32) if data.dtype.kind == "f" else data)
    return rows if weights is None else rows.to(weights.device)


def _is_a(model: object, kind: str) -> bool:
    return any(f"{each.__module__}.{each.__name__}" == kind for each in type(model).__mro__)


def encode_plain(prediction: Any, accept: str) -> tuple[bytes, str]:  # noqa: ANN401 - whatever a model gives
    """Return a prediction as JSON, CSV or NPY, and which it is.

    Raises:
        RequestError: `Accept` allows none of these.
        DataError: The prediction is no array.
    """
    prediction = as_array(prediction)
    kind = choose_output_type(accept, _JSON).name
    if kind == _JSON:
        found = prediction.tolist() if isinstance(prediction, np.ndarray | np.generic) else prediction
        try:
            return msgspec.json.encode(found, enc_hook=_as_builtin), _JSON
        except (TypeError, ValueError, NotImplementedError) as error:
            raise _refuse(prediction) from error
    array = np.asarray(prediction)
    if array.dtype.kind not in "biufUS":
        raise _refuse(prediction)
    if kind == _CSV:
        lines = np.atleast_1d(array).reshape(len(np.atleast_1d(array)), -1).tolist()
        return "".join(",".join(map(str, line)) + "\n" for line in lines).encode(), f"{_CSV}; charset=utf-8"
    if kind == _NPY:
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        return content.getvalue(), _NPY
    raise RequestError(
        f"the prediction cannot be given as {kind}",
        status=HTTPStatus.NOT_ACCEPTABLE,
        hint=f"accept {_KNOWN}; or write an output_fn",
    )


def as_array(prediction: Any) -> Any:  # noqa: ANN401 - whatever a model gives
    """Return a tensor as an array, and anything else as it is."""
    return prediction.detach().cpu().numpy() if hasattr(prediction, "detach") else prediction


def _as_builtin(found: Any) -> Any:  # noqa: ANN401 - NumPy's arrays and numbers within lists
    if isinstance(found, np.ndarray | np.generic):
        return found.tolist()
    raise NotImplementedError


def _refuse(prediction: object) -> DataError:
    return DataError(
        f"predict_fn has returned {type(prediction).__name__}, which is no array of numbers",
        hint="add output_fn to the module",
    )
