"""An estimator of scikit-learn that answers requests: the bits of its own `predict_proba`, else of its `predict`.

The trees of a forest are asked one after the other and summed in their order, as the forest itself does with one
thread, but without starting one for each: 350 us for a row instead of 5,290 (100 trees of depth 10).
"""

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse
import skops.io
import threadpoolctl
from sklearn import config_context, ensemble, tree
from sklearn.base import BaseEstimator, is_classifier

from trainbox.contract.hosting import NO_EXTRAS, Extras
from trainbox.contract.model_card import ModelCard, SampleRow, features_of
from trainbox.contract.model_file import read_model_file
from trainbox.data import Coding
from trainbox.errors import DataError
from trainbox.log_lines import emit
from trainbox.model.samples import as_prediction
from trainbox.sklearn.forests.packing import FORESTS, check_trees
from trainbox.sklearn.texts import expand

_PICKLED_HINT = (
    "is the file whole? load it with the versions of its card; a class of your own must be in code/ of model.tar.gz"
)
#: What predicts each row by itself, whatever stands beside it; a product of matrices rounds by their size.
_ROWWISE = (
    *FORESTS,
    tree.DecisionTreeClassifier,
    tree.DecisionTreeRegressor,
    ensemble.GradientBoostingClassifier,
    ensemble.GradientBoostingRegressor,
    ensemble.HistGradientBoostingClassifier,
    ensemble.HistGradientBoostingRegressor,
)


def load_predictor(
    model_dir: Path, name: str, card: ModelCard | None, *, is_pickle: bool, may_run_code: bool
) -> "EstimatorPredictor":
    """Load a fitted estimator.

    Args:
        model_dir: Where it is.
        name: Its file.
        card: The model's; None for one that trainbox has not made.
        is_pickle: Whether it is a pickle, which runs code of whoever made it.
        may_run_code: Whether skops may make objects of other libraries than scikit-learn.

    Raises:
        DataError: The file cannot be read, holds no estimator, or needs code that may not run.
    """
    source = model_dir / name
    content = read_model_file(model_dir, name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            trusted = [] if is_pickle else _trusted_types(content, source, card, may_run_code=may_run_code)
            model = joblib.load(io.BytesIO(content)) if is_pickle else skops.io.loads(content, trusted=trusted)
        except DataError:
            raise
        except Exception as error:  # what a pickle raises is up to it
            raise DataError(
                f"{source} cannot be loaded: {type(error).__name__}: {error}", hint=_PICKLED_HINT
            ) from error
    for line in {str(each.message).partition("\n")[0] for each in told}:
        emit(f"{name}: {line}")
    if not hasattr(model, "predict"):
        raise DataError(f"{source} holds {type(model).__name__}, which does not predict", hint="save the estimator")
    if isinstance(model, FORESTS):
        check_trees(model, features=model.n_features_in_, source=str(source))
    if card is not None:
        return EstimatorPredictor(model, card)
    return _with_sample(EstimatorPredictor(model, _describe(model, source)))


def _with_sample(predictor: "EstimatorPredictor") -> "EstimatorPredictor":
    """Note in the card of a foreign estimator what it gives for zeros: from that one sees what its answers are."""
    try:
        said = predictor.predict(np.zeros((1, predictor.card.features.count), np.float32))
    except DataError as error:
        emit(f"a row of zeros cannot be predicted: {error.message}")
    else:
        sample = SampleRow({}, as_prediction(said[0]))
        predictor.card = msgspec.structs.replace(predictor.card, samples=(sample,))
    return predictor


class EstimatorPredictor:
    """A fitted estimator; see `contract.hosting.Predictor`.

    Where the labels are texts and the estimator predicts a class and no shares, it is the place of the text among the
    classes of the card.

    Args:
        model: The estimator.
        card: Its card.
    """

    def __init__(self, model: Any, card: ModelCard) -> None:  # noqa: ANN401 - any estimator
        self.card = card
        self.is_rowwise = isinstance(model, _ROWWISE)
        self._model, self._name = model, type(model).__name__
        for each in _estimators(model):
            if hasattr(each, "n_jobs"):
                each.n_jobs = 1  # threads take longer to start than a row takes; and a forest adds up in any order
            vars(each).pop("feature_names_in_", None)  # rows come in the order of the card, without names
        self._call = model.predict_proba if hasattr(model, "predict_proba") else model.predict
        self._trees = [grown.tree_ for grown in model.estimators_] if isinstance(model, FORESTS) else []
        self._has_shares = hasattr(model, "predict_proba")
        self._coding = _expanded(card)

    def predict(self, rows: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401 - dense or sparse
        """Return what `predict_proba` gives, (n, classes), or else `predict`, (n,).

        Raises:
            DataError: The estimator does not take these rows.
        """
        if rows.shape[1] != self.card.features.count:
            raise DataError(f"a row has {rows.shape[1]:,} features, and the model {self.card.features.count:,}")
        if not rows.shape[0]:
            return np.empty((0, len(self._model.classes_)) if self._has_shares else (0,))
        rows, is_finite = self._prepare(rows)
        if self._trees and is_finite and isinstance(rows, np.ndarray):
            return self._sum_trees(rows)
        found = self._ask(self._call, rows, is_finite=is_finite)
        if found.dtype.kind in "OUS":
            found = np.searchsorted(self._model.classes_, found)
        return found.astype(np.float64) if found.dtype.kind != "f" else found

    @property
    def extras(self) -> Extras:
        """See `contract.hosting.Predictor`: estimators of trees have their leaves."""
        return {"leaf": self.leaves} if hasattr(self._model, "apply") else NO_EXTRAS

    def leaves(self, rows: Any) -> npt.NDArray[np.int64]:  # noqa: ANN401 - dense or sparse
        """Return what `apply` gives: the leaf that each row reaches in each tree.

        Returns:
            (n, trees); of several classes the trees of a round side by side.

        Raises:
            DataError: The estimator does not take these rows.
        """
        rows, is_finite = self._prepare(rows)
        said = self._ask(self._model.apply, rows, is_finite=is_finite)
        return said.astype(np.int64).reshape(rows.shape[0], -1)

    def set_threads(self, count: int) -> None:
        """Use so many threads in products of matrices and histograms; trees are asked in one."""
        threadpoolctl.threadpool_limits(count)

    def _sum_trees(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        total: npt.NDArray[np.float64] = np.zeros(0)
        for place, grown in enumerate(self._trees):
            said = grown.predict(rows)
            total = np.add(0.0, said) if not place else np.add(total, said, out=total)
        total /= len(self._trees)
        return total if self._has_shares else total[:, 0]

    def _prepare(self, rows: Any) -> tuple[Any, bool]:  # noqa: ANN401 - dense or sparse
        """Return rows as the estimator takes them, and whether no value is missing."""
        if self._coding is not None:
            rows = expand(rows.toarray() if scipy.sparse.issparse(rows) else rows, self._coding)
        if not scipy.sparse.issparse(rows):
            rows = np.ascontiguousarray(rows, np.float32)
        return rows, bool(np.isfinite(rows.data if scipy.sparse.issparse(rows) else rows).all())

    def _ask(self, call: Callable[[Any], Any], rows: Any, *, is_finite: bool) -> npt.NDArray[Any]:  # noqa: ANN401
        try:
            with config_context(assume_finite=is_finite):
                return np.asarray(call(rows))
        except (TypeError, ValueError) as error:
            raise DataError(self._refusal(rows, error, is_finite=is_finite)) from error

    def _refusal(self, rows: Any, error: Exception, *, is_finite: bool) -> str:  # noqa: ANN401 - dense or sparse
        if is_finite or scipy.sparse.issparse(rows) or self._coding is not None:
            return f"{self._name} does not take the rows: {str(error).partition(chr(10))[0]}"
        row, place = map(int, np.argwhere(~np.isfinite(rows))[0])
        name = self.card.features.listed()[place]
        return f"row {row + 1}: {name} is missing, and {self._name} does not take missing values"


def _expanded(card: ModelCard) -> Coding | None:
    """Return the texts whose columns training has made of them; None where it has made none."""
    if card.hyperparameters.get("encoding") != "onehot" or not card.categories:
        return None
    places = {card.features.place(name): texts for name, texts in card.categories.items()}
    return Coding({place: texts for place, texts in places.items() if place is not None})


def _estimators(model: Any) -> Iterator[Any]:  # noqa: ANN401 - any object
    """Yield an estimator, and those that it is made of."""
    rest = [model]
    while rest:
        match rest.pop():
            case BaseEstimator() as found:
                yield found
                rest += vars(found).values()
            case list() | tuple() as several if not several or isinstance(several[0], BaseEstimator | tuple):
                rest += several


def _trusted_types(content: bytes, source: Path, card: ModelCard | None, *, may_run_code: bool) -> list[str]:
    """Return the types that skops may make beyond those that it trusts: those of the card, and scikit-learn's own.

    Raises:
        DataError: The file has others, which may not run.
    """
    asked = skops.io.get_untrusted_types(data=content)
    foreign = [name for name in asked if not name.startswith("sklearn.")]
    if foreign and not may_run_code:
        raise DataError(
            f"{source} holds {', '.join(foreign[:3])}, which is code, and TRAINBOX_SERVE_CODE is never",
            hint="save a model of scikit-learn's own estimators; or allow its code",
        )
    unknown = [name for name in foreign if card is None or name not in card.trusted]
    if unknown:
        emit(f"{source.name} holds {', '.join(unknown[:3])}: loading it runs code of whoever made it")
    return list(asked)


def _describe(model: Any, source: Path) -> ModelCard:  # noqa: ANN401 - any estimator
    """Return the card of an estimator that has none: what it says itself.

    Raises:
        DataError: It does not say how many features it takes.
    """
    count = getattr(model, "n_features_in_", None)
    if not isinstance(count, int):
        raise DataError(
            f"{source}: {type(model).__name__} does not say how many features it takes (n_features_in_)",
            hint="add code/inference.py with input_fn and predict_fn",
        )
    names = [str(name) for name in getattr(model, "feature_names_in_", ())]
    classes = np.asarray(getattr(model, "classes_", ())).tolist() if is_classifier(model) else []
    whole = [int(each) if isinstance(each, float) and each.is_integer() else each for each in classes]
    return ModelCard(
        framework="scikit-learn",
        algorithm=type(model).__name__,
        objective="classification" if is_classifier(model) else "regression",
        features=features_of(names if len({*names}) == count else [f"f{place}" for place in range(count)]),
        classes=tuple(each if isinstance(each, int | str) else str(each) for each in whole),
        absent="zero",
    )
