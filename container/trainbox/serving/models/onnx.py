"""A model in ONNX, where onnxruntime is installed; the image of trainbox does not bring it.

What a model takes and gives stands in its file: one array of rows, or, as scikit-learn's converter writes data frames,
an input of one column for each feature. Of a classifier the probabilities are served, with labels where it has them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.hosting import NO_EXTRAS
from trainbox.contract.model_card import Features, ModelCard, features_of
from trainbox.contract.model_file import read_model_file
from trainbox.errors import DataError
from trainbox.system.machine import read_machine

_HINT = "add code/inference.py with model_fn and predict_fn, which call onnxruntime themselves"
_NUMBERS = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(int64)": "i8", "tensor(int32)": "i4"}
_TABLE, _IMAGES = 2, 4


class OnnxPort(msgspec.Struct, frozen=True):
    """An input or output of a model, as its file has it."""

    name: str
    #: As onnxruntime names it: `tensor(float)`, `seq(map(int64,tensor(float)))`, …
    type: str
    #: A size that is not fixed is a text or None.
    shape: tuple[int | str | None, ...] = ()


class OnnxPlan(msgspec.Struct, frozen=True):
    """How a model is asked."""

    #: Of NumPy, for each input.
    inputs: tuple[tuple[str, str], ...]
    #: The names of the features where each is an input of its own.
    names: tuple[str, ...]
    #: Of one row; empty if it is not fixed.
    shape: tuple[int, ...]
    output: str
    #: Whether the output has a dictionary for each row, the probability by label.
    is_by_label: bool


def plan_model(inputs: Sequence[OnnxPort], outputs: Sequence[OnnxPort]) -> OnnxPlan:
    """Decide how a model is asked, from what its file says.

    Raises:
        DataError: It takes or gives what is no number.
    """
    for port in inputs:
        if port.type not in _NUMBERS:
            raise DataError(f"the input {port.name!r} of the model is {port.type}, expected numbers", hint=_HINT)
    kinds = tuple((port.name, _NUMBERS[port.type]) for port in inputs)
    by_label = next((port for port in outputs if port.type.startswith("seq(map(")), None)
    tensors = [port for port in outputs if port.type in _NUMBERS]
    floats = [port for port in tensors if port.type in {"tensor(float)", "tensor(double)"}]
    chosen = by_label or next(iter([*floats, *tensors]), None)
    if chosen is None:
        found = ", ".join(f"{port.name!r}: {port.type}" for port in outputs)
        raise DataError(f"the model has no output of numbers: {found}", hint=_HINT)
    if len(inputs) == 1:
        fixed = inputs[0].shape[1:]
        shape = tuple(size for size in fixed if isinstance(size, int))
        is_known = len(shape) == len(fixed) and len(inputs[0].shape) in {_TABLE, _IMAGES}
        return OnnxPlan(kinds, (), shape if is_known else (), chosen.name, by_label is not None)
    if any(len(port.shape) != _TABLE or port.shape[1] != 1 for port in inputs):
        listed = ", ".join(port.name for port in inputs)
        raise DataError(f"the model has several inputs, and not a column each: {listed}", hint=_HINT)
    names = tuple(port.name for port in inputs)
    return OnnxPlan(kinds, names, (len(names),), chosen.name, by_label is not None)


def load_predictor(model_dir: Path, name: str) -> "OnnxPredictor":
    """Load a model.

    Args:
        model_dir: Where it is.
        name: Its file.

    Raises:
        DataError: It cannot be read, or is no model that takes and gives numbers.
    """
    import onnxruntime  # noqa: PLC0415 - only who serves such a model has it

    read_model_file(model_dir, name, 1)  # onnxruntime says neither why a file cannot be read nor what to do
    session = _open(model_dir / name, 1)
    plan = plan_model(
        [OnnxPort(port.name, port.type, tuple(port.shape)) for port in session.get_inputs()],
        [OnnxPort(port.name, port.type) for port in session.get_outputs()],
    )
    labels = _labels(session, plan) if plan.is_by_label else ()
    card = ModelCard(
        framework="onnx",
        algorithm="ONNX",
        objective="classification" if labels else "",
        features=features_of(plan.names) if plan.names else Features(plan.shape[0] if len(plan.shape) == 1 else 0),
        shape=() if plan.names else plan.shape,
        classes=labels,
        absent="zero",
        versions={"onnxruntime": str(onnxruntime.__version__)},
    )
    return OnnxPredictor(model_dir / name, session, plan, card)


class OnnxPredictor:
    """A model in ONNX; see `contract.hosting.Predictor`.

    Args:
        path: Its file.
        session: Of onnxruntime.
        plan: How it is asked.
        card: What its file says of it.
    """

    #: A row may have other bits among others.
    is_rowwise = False
    extras = NO_EXTRAS

    def __init__(self, path: Path, session: Any, plan: OnnxPlan, card: ModelCard) -> None:  # noqa: ANN401 - untyped
        self.card = card
        self._path, self._session, self._plan = path, session, plan

    def predict(self, rows: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - dense or sparse
        """Return the numbers of the model, or its probabilities in the order of the labels.

        Raises:
            DataError: The model does not take the rows.
        """
        dense = rows if isinstance(rows, np.ndarray) else rows.toarray()
        found = _run(self._session, self._plan, dense)
        if self._plan.is_by_label:
            found = [[row[label] for label in self.card.classes] for row in found]
        numbers = np.asarray(found, None if isinstance(found, np.ndarray) else np.float32)
        if numbers.shape[:1] != (len(dense),):
            raise DataError(f"the model gives an array of {numbers.shape} for {len(dense):,} rows", hint=_HINT)
        numbers = numbers.astype(np.float64) if numbers.dtype.kind in "iu" else numbers
        return numbers[:, 0] if numbers.shape[1:] == (1,) else numbers

    def set_threads(self, count: int) -> None:
        """Use so many threads; a session keeps those that it was made with, so this makes another."""
        if count > 1:
            self._session = _open(self._path, count)


def _open(path: Path, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime  # noqa: PLC0415 - as above

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # with one there is no pool of threads, which no fork would survive
    options.inter_op_num_threads = 1
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider") if read_machine().gpus else ("CPUExecutionProvider",)
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # damaged files raise whatever the library meets
        raise DataError(
            f"{path} cannot be loaded by onnxruntime {onnxruntime.__version__}: {str(error).partition(chr(10))[0]}",
            hint="is the file whole, and does this version read its opset?",
        ) from error


def _run(session: Any, plan: OnnxPlan, rows: npt.NDArray[Any]) -> Any:  # noqa: ANN401 - onnxruntime has no types
    if plan.names:
        given = {name: rows[:, [place]].astype(kind) for place, (name, kind) in enumerate(plan.inputs)}
    else:
        given = {name: np.ascontiguousarray(rows, kind) for name, kind in plan.inputs}
    try:
        return session.run([plan.output], given)[0]
    except Exception as error:  # its errors have no base of their own
        raise DataError(f"the model does not take the rows: {str(error).partition(chr(10))[0]}") from error


def _labels(session: Any, plan: OnnxPlan) -> tuple[int | str, ...]:  # noqa: ANN401 - onnxruntime has no types
    """Return the labels of a classifier, from what it says of a row of zeros."""
    row = np.zeros((1, *plan.shape), np.float32)
    return tuple(sorted(_run(session, plan, row)[0]))
