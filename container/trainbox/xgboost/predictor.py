"""A model of XGBoost that answers requests: the bits of `Booster.predict`, by the quickest call that gives them.

Measured with XGBoost 3.4 for one row of 28 features and 100 trees: 9 us by `XGBoosterPredictFromDense` with its
arguments prepared, 160 by `inplace_predict`, which builds them anew, and 236 by a DMatrix (3.2: 45, 250 and more, for
it looks at each call how deep all trees are). All three give the same bits for plain trees. `dart` of several classes
differs in the last bit, and `gblinear` has no such call: both predict from a DMatrix, as in training.
"""

import ctypes
import hashlib
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from trainbox.contract.hosting import Extras
from trainbox.contract.model_card import FeatureType, ModelCard, classes_of, features_of
from trainbox.contract.model_file import read_model_file
from trainbox.errors import DataError
from trainbox.xgboost.c_api import Booster, Kind, Library, Matrix, Prediction, XGBoostError
from trainbox.xgboost.fold_predictions import combine_folds
from trainbox.xgboost.model_check import Model, check_model
from trainbox.xgboost.old_models import convert, is_old

Floats: TypeAlias = npt.NDArray[np.float32]

#: Of `XGBoosterPredictFromDense`: all rounds, no margin, NaN is missing, (n,) where there is one output.
_CONFIG = (
    b'{"type": 0, "training": false, "iteration_begin": 0, "iteration_end": 0, "missing": NaN,'
    b' "strict_shape": false, "cache_id": 0}'
)
#: In UBJSON: a key, and an empty array of floats.
_WEIGHTS = b"L" + (11).to_bytes(8) + b"weight_drop"
_NO_NUMBERS = b"[$d#L" + bytes(8)
_OTHER_OUTPUT = "ask for another output"
_ROWS = b'{"data": [%d, true], "shape": [%d, %d], "typestr": "<f4", "version": 3}'


def load_predictor(
    model_dir: Path, names: Sequence[str], card: ModelCard | None, *, use_ensemble: bool = True
) -> "XGBoostPredictor":
    """Load a model, or those of several folds.

    Args:
        model_dir: Where they are.
        names: Their files, in the order of the folds.
        card: The model's; None for one that trainbox has not made.
        use_ensemble: Whether all folds answer, and not only the first.

    Raises:
        DataError: A file cannot be read, or is no model.
    """
    contents = [read_model_file(model_dir, name) for name in (names if use_ensemble else names[:1])]
    contents = [
        convert(content, source=str(model_dir / name)) if is_old(content) else content
        for name, content in zip(names, contents, strict=False)
    ]
    known: Model | None = None
    for name, content in zip(names, contents, strict=False):
        # What training has written was checked by it: of a large model that takes a second.
        if card is None or card.files.get(name) != hashlib.sha256(content).hexdigest():
            known = check_model(content, source=str(model_dir / name))
    library = Library()
    boosters = [_load(library, content, str(model_dir / name)) for name, content in zip(names, contents, strict=False)]
    if card is None:
        assert known is not None  # noqa: S101 - no card: each was checked
        card = _describe(boosters[0], known)
    return XGBoostPredictor(boosters, card)


class XGBoostPredictor:
    """One model, or the models of several folds; see `contract.hosting.Predictor`.

    Args:
        boosters: The models.
        card: Theirs.

    Raises:
        DataError: They have other features than the card.
    """

    is_rowwise = True

    def __init__(self, boosters: Sequence[Booster], card: ModelCard) -> None:
        self.card = card
        self._boosters, self._width, self._threads = boosters, card.features.count, 1
        if any(booster.num_features() != self._width for booster in boosters):
            counts = ", ".join(f"{booster.num_features():,}" for booster in boosters)
            raise DataError(
                f"the model has {counts} features, and its card {self._width:,}",
                hint="take both from the same model.tar.gz",
            )
        codes = card.features.coded()
        self._kinds = ["c" if place in codes else "q" for place in range(self._width)] if codes else None
        self._calls = [self._choose_call(booster) for booster in boosters]
        #: What no rows give.
        self._nothing = self.predict(np.full((1, self._width), np.nan, np.float32))[:0]

    def predict(self, rows: Any) -> Floats:  # noqa: ANN401 - dense or sparse
        """Return what `Booster.predict` gives; of several folds their mean, or what most of them vote for."""
        if rows.shape[1] != self._width:
            raise DataError(f"a row has {rows.shape[1]:,} features, and the model {self._width:,}")
        if not rows.shape[0]:
            return self._nothing
        if not isinstance(rows, np.ndarray):
            matrix = self._matrix(rows)
            return self._join([booster.predict(matrix) for booster in self._boosters])
        dense: Floats = np.ascontiguousarray(rows, np.float32)
        return self._join([call(dense) for call in self._calls])

    @property
    def extras(self) -> Extras:
        """See `contract.hosting.Predictor`."""
        return {"contributions": self.contributions, "leaf": self.leaves}

    def contributions(self, rows: Any) -> Floats:  # noqa: ANN401 - dense or sparse
        """Return what each feature adds to the margin of each row (SHAP), the bias last.

        Returns:
            (n, m + 1), or (n, c, m + 1) for c classes or targets.

        Raises:
            DataError: The model has several folds, or XGBoost cannot say.
        """
        return self._explain(rows, "contributions", "contributions")

    def leaves(self, rows: Any) -> npt.NDArray[np.int32]:  # noqa: ANN401 - dense or sparse
        """Return the leaf that each row reaches in each tree, as `pred_leaf` does, but in whole numbers.

        Returns:
            (n, trees), the trees in the order in which they were grown.

        Raises:
            DataError: The model has several folds, or XGBoost cannot say.
        """
        return self._explain(rows, "leaf", "leaves").astype(np.int32).reshape(rows.shape[0], -1)

    def _explain(self, rows: Any, kind: Kind, what: str) -> Floats:  # noqa: ANN401 - dense or sparse
        if len(self._boosters) > 1:
            raise DataError(f"{what} are not available for a model of several folds", hint=_OTHER_OUTPUT)
        try:
            return self._boosters[0].predict(self._matrix(rows), kind)
        except XGBoostError as error:
            raise DataError(f"{what} are not available for this model: {error}", hint=_OTHER_OUTPUT) from error

    def set_threads(self, count: int) -> None:
        """Use so many threads from now on."""
        self._threads = count
        for booster in self._boosters:
            booster.set_param("nthread", str(count))

    def _matrix(self, rows: Any) -> Matrix:  # noqa: ANN401 - dense or sparse
        return Matrix(self._boosters[0].library, rows, self._kinds, self._threads)

    def _choose_call(self, booster: Booster) -> Callable[[Floats], Floats]:
        return PreparedCall(booster) if has_plain_trees(booster) else lambda rows: booster.predict(self._matrix(rows))

    def _join(self, answers: list[Floats]) -> Floats:
        return answers[0] if len(answers) == 1 else combine_folds(answers, self.card.objective)


class PreparedCall:
    """`XGBoosterPredictFromDense` of one booster with all arguments prepared that are the same each time.

    One of them is the proxy that holds the rows: without it XGBoost makes one for each call, which up to 3.2 reads the
    limits of the cgroup from files (`Context` asks for `GetCfsCPUCount`): that takes longer than to predict a row.

    Args:
        booster: The model; its trees must be plain ones.
    """

    def __init__(self, booster: Booster) -> None:
        self._booster = booster  # the handle is freed with it
        self._handle = booster.handle
        library = booster.library
        self._check = library.check
        self._predict: Callable[..., int] = library.function("XGBoosterPredictFromDense")
        self._proxy = ctypes.c_void_p()
        library.call("XGProxyDMatrixCreate", ctypes.byref(self._proxy))
        weakref.finalize(self, library.function("XGDMatrixFree"), self._proxy)
        self._lock = threading.Lock()
        self._found = Prediction()
        self._references = self._found.references

    def __call__(self, rows: Floats) -> Floats:
        """Return the prediction for (n, m) rows, C-ordered; of several threads one at a time."""
        with self._lock:
            about = _ROWS % (rows.ctypes.data, *rows.shape)
            self._check(self._predict(self._handle, about, _CONFIG, self._proxy, *self._references))
            return self._found.array()


def has_plain_trees(booster: Booster) -> bool:
    """Return whether a booster is neither linear nor of trees that dropout has weighed."""
    if booster.config()["learner"]["gradient_booster"]["name"] != "gbtree":
        return False
    # XGBoost 3.4 keeps the weights of dropout among its common trees.
    model = booster.save()
    at = model.rfind(_WEIGHTS)
    return at < 0 or model[at + len(_WEIGHTS) :].startswith(_NO_NUMBERS)


def _load(library: Library, content: bytes, source: str) -> Booster:
    try:
        return Booster(library, content)
    except XGBoostError as error:
        raise DataError(
            f"{source} cannot be loaded by XGBoost {library.version}: {error}",
            hint="save the model again with Booster.save_model",
        ) from error


def _describe(booster: Booster, known: Model) -> ModelCard:
    """Return the card of a model that has none: what its file says."""
    names = booster.feature_info("feature_name")
    listed = names if len({*names}) == len(names) == known.features else tuple(f"f{n}" for n in range(known.features))
    types = booster.feature_info("feature_type")
    kinds: dict[str, FeatureType] = {name: "code" for name, kind in zip(listed, types, strict=False) if kind == "c"}
    return ModelCard(
        framework="xgboost",
        algorithm="xgboost",
        objective=known.objective,
        features=features_of(listed, kinds),
        classes=classes_of(known.objective, known.outputs),
        iterations=known.rounds,
        versions={"xgboost": ".".join(map(str, known.version))},
    )
