"""What stands for `input_fn`, `predict_fn` and `output_fn` where the model is the user's own and has no card.

As in SageMaker's inference toolkit JSON, CSV and NPY become an array, and an array is written as one of them. What that
reads silently as missing, or unpickles, is refused here.
"""

import csv
import io
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np

from trainbox.errors import DataError
from trainbox.serving.bodies.media_types import choose_output_type
from trainbox.serving.bodies.request_errors import RequestError

_JSON, _CSV, _NPY = "application/json", "text/csv", "application/x-npy"
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
            return np.array(found) if isinstance(found, list) else found
        if kind == _CSV:
            return _read_csv(body.decode())
        if kind == _NPY:
            return np.load(io.BytesIO(body), allow_pickle=False)
    except RequestError:
        raise
    except (ValueError, EOFError, OverflowError, msgspec.DecodeError) as error:
        raise RequestError(f"the body is not {content_type}: {error}", hint="correct the request") from error
    raise RequestError(
        f"the content type {content_type[:100]!r} is not supported",
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        hint=f"send {_KNOWN}; or write an input_fn that reads it",
    )


def _read_csv(text: str) -> Any:  # noqa: ANN401 - an array
    rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    found = np.empty((len(rows), len(rows[0]) if rows else 0), np.float32)
    for number, row in enumerate(rows, 1):
        if len(row) != found.shape[1]:
            raise RequestError(f"row {number} has {len(row)} columns, and row 1 has {found.shape[1]}", row=number)
        for column, cell in enumerate(row, 1):
            try:
                found[number - 1, column - 1] = float(cell) if cell.strip() else np.nan
            except ValueError as error:
                raise RequestError(
                    f"value {cell[:100]!r} of row {number}, column {column} is not a number",
                    row=number,
                    column=column,
                    value=cell,
                    redacted=f"the value of row {number}, column {column} is not a number",
                ) from error
    return found


def predict_plain(data: Any, model: Any) -> Any:  # noqa: ANN401 - whatever the user's model takes and gives
    """Return what a model says: by its `predict`, or by calling it; XGBoost and PyTorch get their own kind of rows.

    Raises:
        DataError: It can do neither.
    """
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__}
    if "xgboost.core.Booster" in kinds and isinstance(data, np.ndarray):
        import xgboost  # noqa: PLC0415 - there, as the model is

        return model.predict(xgboost.DMatrix(data), validate_features=False)
    if "torch.nn.modules.module.Module" in kinds and isinstance(data, np.ndarray):
        import torch  # noqa: PLC0415 - likewise

        with torch.inference_mode():
            return model(torch.from_numpy(data.astype(np.float32) if data.dtype.kind == "f" else data))
    if callable(getattr(model, "predict", None)):
        return model.predict(data)
    if callable(model):
        return model(data)
    raise DataError(
        f"model_fn has returned {type(model).__name__}, which has no predict and cannot be called",
        hint="add predict_fn to the module",
    )


def encode_plain(prediction: Any, accept: str) -> tuple[bytes, str]:  # noqa: ANN401 - whatever a model gives
    """Return a prediction as JSON, CSV or NPY, and which it is.

    Raises:
        RequestError: `Accept` allows none of these.
        DataError: The prediction is no array.
    """
    if hasattr(prediction, "detach"):
        prediction = prediction.detach().cpu().numpy()
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


def _as_builtin(found: Any) -> Any:  # noqa: ANN401 - NumPy's arrays and numbers within lists
    if isinstance(found, np.ndarray | np.generic):
        return found.tolist()
    raise NotImplementedError


def _refuse(prediction: object) -> DataError:
    return DataError(
        f"predict_fn has returned {type(prediction).__name__}, which is no array of numbers",
        hint="add output_fn to the module",
    )
