"""What an answer holds: from the numbers that a model gives to labels, probabilities and scores.

Names and forms are those of the built-in XGBoost (`SAGEMAKER_INFERENCE_OUTPUT`), for the models of all frameworks.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.contract.hosting import Predictor
from trainbox.contract.model_card import ModelCard
from trainbox.contract.text import some
from trainbox.errors import DataError
from trainbox.serving.bodies.request_errors import RequestError

Numbers: TypeAlias = npt.NDArray[Any]
#: What the numbers of a model are: a probability of the second of two classes, a score whose sign decides, a class,
#: a probability or a logit for each class, or a number.
Kind = Literal["probability", "sign", "class", "probabilities", "logits", "number"]
#: In the order in which JSON has them.
_OF_CLASSES = ("predicted_label", "labels", "probability", "probabilities", "raw_score", "raw_scores")
_WITHOUT_PROBABILITY = ("predicted_label", "labels", "raw_score", "raw_scores")
_OF_NUMBERS = ("predicted_score", "score")
#: Not of the built-in: what models have besides their numbers (`Predictor.extras`).
_EXTRAS = ("contributions", "leaf")
ORDER = (*_OF_CLASSES, *_OF_NUMBERS, *_EXTRAS)
_KINDS: dict[str, Kind] = {
    "binary:logistic": "probability",
    "binary:logitraw": "sign",
    "binary:hinge": "class",
    "multi:softmax": "class",
    "multi:softprob": "probabilities",
}
_HALF = 0.5


class Column(msgspec.Struct, frozen=True, eq=False):
    """One output of all rows."""

    name: str
    #: (n,) or (n, c) numbers; or a list with a label, or a list of labels, for each row.
    values: Numbers | list[Any]


def find_kind(predictor: Predictor) -> Kind:
    """Return what the numbers of a model are."""
    card = predictor.card
    if card.framework == "xgboost":
        return _KINDS.get(card.objective, "number")
    if not card.classes:
        return "number"
    if card.framework == "pytorch":
        return "logits"
    if card.samples:
        return "probabilities" if isinstance(card.samples[0].prediction, tuple) else "class"
    # The card of a foreign estimator does not say whether it has shares.
    numbers = predictor.predict(np.zeros((1, card.features.count), np.float32))
    return "probabilities" if np.ndim(numbers) > 1 else "class"


def outputs_of(kind: Kind, predictor: Predictor) -> tuple[str, ...]:
    """Return the names of all that an answer of this model may hold."""
    if kind == "number":
        names: tuple[str, ...] = _OF_NUMBERS
    else:
        names = _WITHOUT_PROBABILITY if kind in {"sign", "class"} else _OF_CLASSES
    return (*names, *predictor.extras)


def default_outputs(kind: Kind, card: ModelCard) -> tuple[str, ...]:
    """Return what an answer holds if nothing is chosen; nothing: the numbers of the model as they are."""
    if card.framework == "xgboost" or kind == "number":
        return ()
    return ("predicted_label",) if kind == "class" else ("predicted_label", "probability")


def check_extras(names: Sequence[str], predictor: Predictor) -> None:
    """Check that those outputs that are computed besides the numbers of a model can be, by one row of zeros.

    Raises:
        DataError: One cannot.
    """
    for name in names:
        if name in predictor.extras:
            predictor.extras[name](np.zeros((1, predictor.card.features.count), np.float32))


def check_outputs(names: Sequence[str], kind: Kind, predictor: Predictor) -> None:
    """Check that a model has all these outputs.

    Raises:
        DataError: It has not; says which, and which it has.
    """
    known = outputs_of(kind, predictor)
    wrong = [name for name in names if name not in known]
    if wrong:
        raise DataError(f"this model has no output {some(wrong)}", hint=f"its outputs are {some(known, len(known))}")


def select(names: Sequence[str], numbers: Numbers, rows: Any, predictor: Predictor, kind: Kind) -> list[Column]:  # noqa: ANN401
    """Return the chosen outputs of some rows, in the order chosen.

    Args:
        names: The outputs, which the model has.
        numbers: What the model gives: (n,) or (n, c).
        rows: The rows, of which contributions and leaves are computed.
        predictor: The model.
        kind: What its numbers are.

    Raises:
        RequestError: 406: the model cannot say what features contribute, or which leaf a row reaches.
    """
    find, extras = _Outputs(kind, numbers, predictor.card), predictor.extras
    return [Column(name, _compute(extras[name], rows) if name in extras else find.by_name(name)) for name in names]


def _compute(output: Callable[[Any], Any], rows: Any) -> Numbers:  # noqa: ANN401 - dense or sparse
    try:
        return np.asarray(output(rows))
    except DataError as error:
        raise RequestError(error.message, status=HTTPStatus.NOT_ACCEPTABLE, hint=error.hint) from error


class _Outputs:
    """The outputs of some rows."""

    def __init__(self, kind: Kind, numbers: Numbers, card: ModelCard) -> None:
        self._kind = kind
        self._numbers = numbers
        self._card = card

    def by_name(self, name: str) -> Numbers | list[Any]:
        makers: dict[str, Callable[[], Numbers | list[Any]]] = {
            "predicted_label": self._labels,
            "labels": lambda: [list(self._card.classes)] * len(self._numbers),
            "probability": lambda: self._highest(self._probabilities()),
            "probabilities": lambda: self._each(self._probabilities()),
            "raw_score": lambda: self._highest(self._numbers),
            "raw_scores": lambda: self._each(self._numbers),
        }
        return makers.get(name, lambda: self._numbers)()

    def _probabilities(self) -> Numbers:
        if self._kind != "logits":
            return self._numbers
        shifted = self._numbers.astype(np.float64)
        powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        found: Numbers = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return found

    def _highest(self, numbers: Numbers) -> Numbers:
        found: Numbers = numbers if numbers.ndim == 1 else numbers.max(axis=1)
        return found

    def _each(self, numbers: Numbers) -> Numbers:
        """Of one number for two classes that of the first is 1 less it, as the built-in has it."""
        if numbers.ndim > 1:
            return numbers
        second = numbers.astype(np.float64)
        return np.column_stack([1.0 - second, second])

    def _labels(self) -> Numbers | list[Any]:
        numbers, classes = self._numbers, self._card.classes
        if self._kind == "class":
            if classes and isinstance(classes[0], str):
                return [classes[int(place)] for place in numbers.tolist()]
            if self._card.framework == "xgboost":  # the built-in has 2.0 for class 2
                return numbers
            return [int(label) if label.is_integer() else label for label in numbers.tolist()]
        if self._kind == "probability":
            places = (numbers > _HALF).astype(int)
        elif self._kind == "sign":
            places = (numbers > 0).astype(int)
        else:
            places = numbers.argmax(axis=1)
        return [classes[place] if classes else place for place in places.tolist()]
