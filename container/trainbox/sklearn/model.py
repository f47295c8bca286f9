"""The files of a finished job: `model.joblib`, `model.skops`, the card; in `output/data` importance and curves."""

import hashlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import joblib
import msgspec
import numpy as np
import scipy.sparse
import sklearn
import skops.io

import trainbox
from trainbox.contract.model_card import CARD_FILE, ModelCard, SampleRow, encode_card, features_of
from trainbox.log_lines import emit
from trainbox.model import curves
from trainbox.model.plots import Picture, draw_importance
from trainbox.model.samples import as_matrix, make_rows, sample_rows, thin_out
from trainbox.sklearn.data import EstimatorData
from trainbox.sklearn.forests.checkpoints import History
from trainbox.sklearn.forests.packing import COMPRESSION, FORESTS, TRUSTED
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.repeatable import clear_padding, rewrite
from trainbox.sklearn.texts import collapse, expand
from trainbox.tabular.script import save_output
from trainbox.tabular.texts import by_name, note_on_texts

_MEASURES = {
    "impurity": "mean decrease of the impurity (all features: 1)",
    "coefficient": "mean size of the coefficient",
    "gain": "mean gain of the splits by the feature",
}


def describe(params: EstimatorParams, data: EstimatorData, **about: Any) -> ModelCard:  # noqa: ANN401 - fields of a card
    """Return the card of a model, without its files and sample rows.

    Args:
        params: The hyperparameters.
        data: The rows.
        about: What is particular to this model, by the names of a card.
    """
    texts = by_name(data.coding, data.columns)
    fields: dict[str, Any] = {
        "framework": "scikit-learn",
        "objective": params.task,
        "features": features_of(data.columns or data.features, dict.fromkeys(texts, "text")),
        "classes": data.coding.labels or data.classes,
        "categories": texts,
        "unseen": params.unseen,
        "missing": params.missing,
        "delimiter": params.delimiter,
        "absent": "zero",
        "hyperparameters": msgspec.to_builtins(params),
        "versions": versions(),
    }
    return ModelCard(**(fields | about))


def versions() -> dict[str, str]:
    """Return the versions of the libraries that made the model."""
    return {
        "trainbox": trainbox.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "joblib": joblib.__version__,
        "skops": importlib.metadata.version("skops"),
        "python": sys.version.split()[0],
    }


def save_model(model: Any, data: EstimatorData, card: ModelCard) -> None:  # noqa: ANN401 - any estimator
    """Save the model as a pickle, to be loaded only from a trusted source, and as skops, which runs no code on loading.

    Args:
        model: The fitted estimator.
        data: The rows.
        card: What else one must know; it is written last.

    Raises:
        OSError: A file cannot be written.
    """
    if not isinstance(model, FORESTS):  # of which it is done as they grow
        clear_padding(model)
    # At the same time: most of both is zlib, which lets go of the interpreter's lock.
    with ThreadPoolExecutor(2) as pool:
        pickled = pool.submit(_pickle, model)
        packed = pool.submit(_pack, model)
    content = pickled.result()
    written, trusted = [trainbox.save("model.joblib", content)], list[str]()
    try:
        safe = packed.result()
    except skops.io.exceptions.UnsupportedTypeException as error:
        emit(f"no model.skops: skops cannot hold this model ({error}); load model.joblib where its origin is certain")
    else:
        written.append(trainbox.save("model.skops", safe))
        trusted = list(TRUSTED) if isinstance(model, FORESTS) else skops.io.get_untrusted_types(data=safe)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    card = msgspec.structs.replace(card, files=digests, trusted=tuple(trusted))
    trainbox.save(CARD_FILE, encode_card(msgspec.structs.replace(card, samples=_samples(content, data, card))))
    emit(f"saved {type(model).__name__} to {written[0]}")
    for text in note_on_texts(data.coding, data.columns, card.unseen):
        emit(text)


def _samples(pickled: bytes, data: EstimatorData, card: ModelCard) -> tuple[SampleRow, ...]:
    """Made-up rows, and what a model just written says of them: a share for each class, else a class or a number."""
    # Not from the file: what this process has pickled itself may be unpickled, what lies on a disk may not.
    model, rows = joblib.load(io.BytesIO(pickled)), thin_out(data.train.features)
    _, importance = find_importance(model, data.features)
    used = [place for place, value in enumerate(importance.values()) if value]
    is_wide = len(data.features) > card.features.count  # texts have a column each
    if is_wide:
        rows, used = collapse(rows, data.coding, card.features.count), []
    made = make_rows(rows, codes=card.features.coded(), used=used, zeros=True)
    inputs = as_matrix(made, card.features.count, absent=0.0, sparse=scipy.sparse.issparse(rows))
    if is_wide:
        inputs = expand(inputs, data.coding)
    if hasattr(model, "n_jobs"):
        model.n_jobs = 1  # with several threads a forest adds up its trees in any order
    predictions = model.predict_proba(inputs) if hasattr(model, "predict_proba") else model.predict(inputs)
    return sample_rows(made, predictions, card)


def _pack(model: Any) -> bytes:  # noqa: ANN401 - any estimator
    return rewrite(skops.io.dumps(model), level=COMPRESSION)


def _pickle(model: Any) -> bytes:  # noqa: ANN401 - any estimator
    content = io.BytesIO()
    joblib.dump(model, content, compress=COMPRESSION)
    return content.getvalue()


def find_importance(model: Any, features: Sequence[str]) -> tuple[str, dict[str, float]]:  # noqa: ANN401 - any estimator
    """Return what is measured, and the importance of each feature; empty if the model has none.

    Trees: how much the splits by a feature lower the impurity. Linear models: the size of the coefficient, of several
    classes the mean.
    """
    if (found := getattr(model, "feature_importances_", None)) is not None:
        kind, values = "impurity", np.asarray(found)
    elif (found := getattr(model, "coef_", None)) is not None:
        sizes = np.abs(np.atleast_2d(found.toarray() if scipy.sparse.issparse(found) else found))
        kind, values = "coefficient", sizes.mean(axis=0)
    else:
        return "", {}
    if values.shape != (len(features),):
        return "", {}
    return kind, dict(zip(features, values.tolist(), strict=True))


def save_importance(kind: str, importance: Mapping[str, float]) -> list[Picture]:
    """Write `feature-importance.json`, the most important feature first; return its picture, not drawn yet.

    Args:
        kind: What is measured: impurity, coefficient or gain.
        importance: By feature.
    """
    if not importance:
        emit("the model has no feature importance: feature-importance.json is not written")
        return []
    ordered = dict(sorted(importance.items(), key=lambda item: -abs(item[1])))
    path = save_output("feature-importance.json", json.dumps({kind: ordered}, indent=1).encode())
    return [partial(draw_importance, path.with_suffix(""), ordered, kind=_MEASURES[kind])]


def save_curves(history: History) -> Picture:
    """Write the scores after each group as `learning-curves.json`; return their picture, not drawn yet."""
    return curves.save_curves(history, unit="trees", selected=history[-1][0] if history else None)
