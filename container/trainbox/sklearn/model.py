"""What a finished model leaves: `model.joblib`, `model.skops`, `model.json`, and in `output/data` two pictures."""

import importlib.metadata
import io
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import msgspec
import numpy as np
import scipy.sparse
import sklearn

import trainbox
from trainbox import whole
from trainbox.say import say
from trainbox.sklearn.data import Data
from trainbox.sklearn.packing import COMPRESSION, FORESTS, TRUSTED, load_skops
from trainbox.sklearn.params import Params
from trainbox.sklearn.repeatable import clear_padding, rewrite
from trainbox.sklearn.resuming import History
from trainbox.tabular import curves
from trainbox.tabular.painter import Curves, Importance

_MEASURES = {
    "impurity": "mean decrease of the impurity (all features: 1)",
    "coefficient": "mean size of the coefficient",
    "gain": "mean gain of the splits by the feature",
}


def save_description(params: Params, data: Data, about: Mapping[str, Any]) -> None:
    """`model.json`: what one must know to use the model.

    Args:
        params: The hyperparameters.
        data: The rows.
        about: What is particular to this model.

    Raises:
        OSError: It cannot be written.
    """
    versions = {
        "trainbox": trainbox.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "joblib": joblib.__version__,
        "skops": importlib.metadata.version("skops"),
        "python": sys.version.split()[0],
    }
    told = {
        **about,
        "features": data.features,
        "classes": data.classes,
        "hyperparameters": msgspec.to_builtins(params),
        "versions": versions,
    }
    trainbox.save("model.json", msgspec.json.format(msgspec.json.encode(told), indent=1))


def save_model(model: Any, params: Params, data: Data, about: Mapping[str, Any]) -> None:  # noqa: ANN401 - any estimator
    """Write the model: as a pickle, which whoever loads it must trust, and as skops, which runs no code on loading.

    Args:
        model: The fitted estimator.
        params: The hyperparameters.
        data: The rows.
        about: What is particular to this model.

    Raises:
        OSError: It cannot be written.
    """
    told, skops = dict(about), load_skops(of_forests=isinstance(model, FORESTS))
    if not isinstance(model, FORESTS):  # of which it is done as they grow
        clear_padding(model)
    # At the same time: most of both is zlib, which lets go of the interpreter's lock.
    with ThreadPoolExecutor(2) as pool:
        pickled = pool.submit(_pickle, model)
        packed = pool.submit(_pack, skops, model)
    trainbox.save("model.joblib", pickled.result())
    try:
        safe = packed.result()
    except skops.exceptions.UnsupportedTypeException as error:
        say(f"no model.skops: skops cannot hold this model ({error}); load model.joblib where its origin is certain")
    else:
        trainbox.save("model.skops", safe)
        trusted = TRUSTED if isinstance(model, FORESTS) else skops.get_untrusted_types(data=safe)
        told["skops"] = {"file": "model.skops", "trusted": trusted}
    save_description(params, data, told)
    say(f"saved {type(model).__name__} to {trainbox.model_dir() / 'model.joblib'}")


def _pack(skops: Any, model: Any) -> bytes:  # noqa: ANN401 - any estimator
    return rewrite(skops.dumps(model), level=COMPRESSION)


def _pickle(model: Any) -> bytes:  # noqa: ANN401 - any estimator
    content = io.BytesIO()
    joblib.dump(model, content, compress=COMPRESSION)
    return content.getvalue()


def find_importance(model: Any, features: Sequence[str]) -> tuple[str, dict[str, float]]:  # noqa: ANN401 - any estimator
    """How much each feature matters and what is measured; nothing where the model does not say.

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


def save_importance(kind: str, importance: Mapping[str, float]) -> list[Importance]:
    """`feature-importance.json` in `output/data`, the most important first; gives the picture to stand beside it.

    Args:
        kind: What is measured: impurity, coefficient or gain.
        importance: By feature.
    """
    if not importance:
        say("the model does not say which features matter: there is no feature-importance.json")
        return []
    directory = trainbox.current_job().layout.output_data_dir
    directory.mkdir(parents=True, exist_ok=True)
    ordered = dict(sorted(importance.items(), key=lambda item: -abs(item[1])))
    whole.write(directory / "feature-importance.json", json.dumps({kind: ordered}, indent=1).encode())
    return [Importance(str(directory / "feature-importance"), ordered, _MEASURES[kind])]


def save_curves(history: History) -> Curves:
    """The scores after each group as `learning-curves.json` in `output/data`; gives the picture to stand beside it."""
    return curves.save_curves(history, unit="trees", selected=history[-1][0] if history else None)
