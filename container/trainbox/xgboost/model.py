"""What a finished model leaves: `xgboost-model`, `model.json`, and in `output/data` importance and learning curves."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import xgboost as xgb

import trainbox
from trainbox import whole
from trainbox.say import say
from trainbox.tabular import curves
from trainbox.tabular.painter import Curves, Importance
from trainbox.xgboost.params import Params, as_dict
from trainbox.xgboost.segments import History

_KINDS = ("gain", "weight", "cover", "total_gain", "total_cover")


def cut(model: bytes, rounds: int) -> xgb.Booster:
    """The model of the first so many rounds."""
    booster = xgb.Booster(model_file=bytearray(model))
    return booster[:rounds] if rounds < booster.num_boosted_rounds() else booster


def describe(params: Params, features: Sequence[str], about: Mapping[str, Any]) -> bytes:
    """The text of `model.json`: what one must know to use the model."""
    versions = {"trainbox": trainbox.__version__, "xgboost": xgb.__version__, "python": sys.version.split()[0]}
    told = {"algorithm": "xgboost", **about, "features": features, "hyperparameters": as_dict(params)}
    return msgspec.json.format(msgspec.json.encode(told | {"versions": versions}), indent=1)


def save_output(name: str, content: bytes) -> Path:
    """Write one file of `output/data`, whole or not at all; SageMaker packs the directory into `output.tar.gz`."""
    directory = trainbox.current_job().layout.output_data_dir
    directory.mkdir(parents=True, exist_ok=True)
    whole.write(directory / name, content)
    return directory / name


def importance(booster: xgb.Booster, features: Sequence[str]) -> dict[str, dict[str, float]]:
    """How much each feature matters, by kind: gain, weight, cover and their sums; a feature never used has 0."""
    kinds = _KINDS if _has_trees(booster) else ("weight",)
    found: dict[str, dict[str, float]] = {}
    for kind in kinds:
        scores = booster.get_score(importance_type=kind)
        values = {name: _number(scores.get(f"f{place}", 0.0)) for place, name in enumerate(features)}
        found[kind] = dict(sorted(values.items(), key=lambda item: -abs(item[1])))
    return found


def _has_trees(booster: xgb.Booster) -> bool:
    return str(json.loads(booster.save_config())["learner"]["gradient_booster"]["name"]) != "gblinear"


def _number(value: float | list[float]) -> float:
    """A linear model of several classes has a weight for each."""
    return max(map(abs, value)) if isinstance(value, list) else value


def save_importance(booster: xgb.Booster, features: Sequence[str]) -> Importance:
    """`feature-importance.json`; gives the picture that is to stand beside it."""
    found = importance(booster, features)
    path = save_output("feature-importance.json", json.dumps(found, indent=1).encode())
    kind = "mean gain of the splits by the feature" if "gain" in found else "weight of the feature"
    return Importance(str(path.with_suffix("")), found.get("gain") or found["weight"], kind)


def save_curves(history: History | tuple[dict[str, float], ...], selected: int) -> Curves:
    """The scores of each round as `learning-curves.json`; gives the picture that is to stand beside it.

    Args:
        history: The scores.
        selected: The round whose model is saved.
    """
    say(f"learning curves and feature importance are in {trainbox.current_job().layout.output_data_dir}")
    return curves.save_curves([*enumerate(history)], unit="rounds", selected=selected)
