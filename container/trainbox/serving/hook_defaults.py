"""What stands for the hooks that the user's module lacks where the model is the user's own, as SageMaker's toolkits do.

Source: https://github.com/aws/sagemaker-inference-toolkit (decoder.py, encoder.py): JSON, CSV and NPY become an array,
the model is called, and an array becomes JSON, CSV or NPY. Nothing is unpickled.
"""

import io
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np

from trainbox.serving.hooks import Defaults
from trainbox.serving.request_errors import RequestError

_JSON, _CSV, _NPY = "application/json", "text/csv", "application/x-npy"
_HINT = f"give {_JSON}, {_CSV} or {_NPY}, or define input_fn and output_fn"


def _decode(body: bytes, content_type: str) -> Any:  # noqa: ANN401 - an array
    kind = content_type.partition(";")[0].strip().lower() or _JSON
    try:
        if kind == _JSON:
            return np.array(msgspec.json.decode(body))
        if kind == _CSV:
            return np.loadtxt(io.BytesIO(body), delimiter=",", dtype=np.float64, ndmin=2, comments=None)
        if kind == _NPY:
            return np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, EOFError, msgspec.DecodeError) as error:
        raise RequestError(f"the body is no {kind}: {error}", redacted=f"the body is no {kind}", hint=_HINT) from error
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    raise RequestError(f"{kind} is not read for a model of model_fn", status=status, hint=_HINT)


def _predict(data: Any, model: Any) -> Any:  # noqa: ANN401 - the user's
    predict = getattr(model, "predict", None)
    return predict(data) if callable(predict) else model(data)


def _encode(prediction: Any, accept: str) -> tuple[bytes, str]:  # noqa: ANN401 - the user's
    array = np.asarray(prediction.detach().cpu() if hasattr(prediction, "detach") else prediction)
    kind = accept.partition(";")[0].strip().lower()
    content = io.BytesIO()
    if kind == _CSV:
        np.savetxt(content, array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1), "%s", ",")
    elif kind == _NPY:
        np.save(content, array, allow_pickle=False)
    elif kind == _JSON:
        content.write(msgspec.json.encode(array.tolist()))
    else:
        raise RequestError(
            f"{accept} is not written for a model of model_fn", status=HTTPStatus.NOT_ACCEPTABLE, hint=_HINT
        )
    return content.getvalue(), kind


DEFAULTS = Defaults(_decode, _predict, _encode)
DEFAULT_ACCEPT = _JSON
