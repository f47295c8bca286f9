"""The files of a finished job: `xgboost-model`, its card, and in `output/data` importance and learning curves."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xgboost as xgb

import trainbox
from trainbox.contract.model_card import CARD_FILE, ModelCard, classes_of, encode_card, features_of
from trainbox.data import Coding
from trainbox.log_lines import emit
from trainbox.model import curves
from trainbox.model.plots import Picture, draw_importance
from trainbox.model.samples import (
    MOST_FEATURES,
    Floats,
    Matrix,
    Row,
    as_matrix,
    make_rows,
    sample_rows,
    thin_out,
)
from trainbox.tabular.script import save_output
from trainbox.tabular.texts import by_name
from trainbox.xgboost.fold_predictions import combine_folds
from trainbox.xgboost.params.hyperparameters import XGBoostParams, as_dict
from trainbox.xgboost.params.rules import objective
from trainbox.xgboost.readers import base_scores, for_every_reader
from trainbox.xgboost.rows.agreement import NO_TEXTS
from trainbox.xgboost.rows.blocks import read_features
from trainbox.xgboost.rows.matrices import feature_types
from trainbox.xgboost.rows.shards import Shard
from trainbox.xgboost.segments import History

_KINDS = ("gain", "weight", "cover", "total_gain", "total_cover")


def first_rounds(model: bytes, rounds: int) -> xgb.Booster:
    """Return the model of the first `rounds` rounds."""
    booster = xgb.Booster(model_file=bytearray(model))
    return booster[:rounds] if rounds < booster.num_boosted_rounds() else booster


def describe(
    params: XGBoostParams,
    features: Sequence[str],
    *,
    coding: Coding = NO_TEXTS,
    **about: Any,  # noqa: ANN401 - fields of a card
) -> ModelCard:
    """Return the card of a model, without its files and sample rows.

    Args:
        params: The hyperparameters.
        features: Their names.
        coding: Of columns of texts.
        about: What else is known, by the names of a card.
    """
    kinds = feature_types(features, params, coding) or ()
    codes = [name for name, kind in zip(features, kinds, strict=True) if kind == "c"] if kinds else []
    texts = by_name(coding, features)
    return ModelCard(
        framework="xgboost",
        algorithm="xgboost",
        objective=objective(params),
        features=features_of(features, {name: "text" if name in texts else "code" for name in codes}),
        classes=coding.labels or classes_of(params.objective, params.num_class),
        categories=texts,
        unseen=params.unseen,
        missing=params.missing,
        delimiter=params.delimiter,
        hyperparameters=as_dict(params),
        versions=versions(),
        **about,
    )


def versions() -> dict[str, str]:
    """Return the versions of the libraries that made the model."""
    return {"trainbox": trainbox.__version__, "xgboost": xgb.__version__, "python": sys.version.split()[0]}


def thin_rows(shard: Shard) -> Matrix:
    """Return a sample of the training rows for the card; training frees the rows."""
    first = shard.blocks[0]
    if isinstance(first, Path):
        return thin_out(read_features(first, len(shard.feature_names)))
    return thin_out(first.features)


def save_models(models: Mapping[str, bytes], card: ModelCard, rows: Matrix) -> None:
    """Save models in a form that every XGBoost reads, and their card with predictions of the files as written.

    Args:
        models: UBJSON, by the name of the file; several are those of folds.
        card: What else one must know.
        rows: Some rows of the data, from which the rows of the card are made up.

    Raises:
        OSError: A file cannot be written.
    """
    written = {name: trainbox.save(name, for_every_reader(model)).read_bytes() for name, model in models.items()}
    boosters = [xgb.Booster(model_file=bytearray(content)) for content in written.values()]
    codes = card.features.coded()
    used = {place for booster in boosters for place in _used(booster)} if rows.shape[1] > MOST_FEATURES else ()
    made = make_rows(rows, codes=codes, used=sorted(used), zeros=False)
    predictions = [_predict(booster, made, card.features.count, codes) for booster in boosters]
    card = msgspec.structs.replace(
        card,
        files={name: hashlib.sha256(content).hexdigest() for name, content in written.items()},
        samples=sample_rows(made, combine_folds(predictions, card.objective), card),
    )
    trainbox.save(CARD_FILE, encode_card(card))
    if line := warn_of_readers(written):
        emit(line)


def warn_of_readers(models: Mapping[str, bytes]) -> str:
    """Return a warning about XGBoost versions that read a model wrongly; empty if all read it correctly."""
    counts = {name: len(base_scores(content)) for name, content in models.items()}
    several = [name for name, count in counts.items() if count > 1]
    if not several:
        return ""
    return (
        f"{several[0]} has a base_score for each of its {counts[several[0]]} outputs: XGBoost before 3.1, and with it"
        " SageMaker's built-in hosting, loads it without an error and predicts wrongly; base_score=0.5 makes a model"
        " that all read alike"
    )


def _used(booster: xgb.Booster) -> list[int]:
    """The features that the trees ask for; of a linear model all."""
    return [int(name.removeprefix("f")) for name in booster.get_score(importance_type="weight")]


def _predict(booster: xgb.Booster, made: Sequence[Row], features: int, codes: AbstractSet[int]) -> Floats:
    kinds = ["c" if place in codes else "q" for place in range(features)] if codes else None
    rows = as_matrix(made, features, absent=np.nan, sparse=features > MOST_FEATURES)
    matrix = xgb.DMatrix(rows, feature_types=kinds, enable_categorical=kinds is not None, nthread=1)
    predictions: Floats = booster.predict(matrix)
    return predictions


def importance(booster: xgb.Booster, features: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the importance of each feature that the model uses, by kind: gain, weight, cover and their sums.

    A table of text has a million features, and a model uses a few hundred: those that it never uses are left out.
    """
    kinds = _KINDS if _has_trees(booster) else ("weight",)
    found: dict[str, dict[str, float]] = {}
    for kind in kinds:
        scores = booster.get_score(importance_type=kind)
        by_place = {int(name.removeprefix("f")): _number(score) for name, score in scores.items()}
        ordered = sorted(by_place.items(), key=lambda item: (-abs(item[1]), item[0]))
        found[kind] = {features[place]: value for place, value in ordered if value}
    return found


def _has_trees(booster: xgb.Booster) -> bool:
    return str(json.loads(booster.save_config())["learner"]["gradient_booster"]["name"]) != "gblinear"


def _number(value: float | list[float]) -> float:
    """A linear model of several classes has a weight for each."""
    return max(map(abs, value)) if isinstance(value, list) else value


def save_importance(booster: xgb.Booster, features: Sequence[str]) -> Picture:
    """Write `feature-importance.json`; return its picture, not drawn yet."""
    found = importance(booster, features)
    path = save_output("feature-importance.json", json.dumps(found, indent=1).encode())
    kind = "mean gain of the splits by the feature" if "gain" in found else "weight of the feature"
    return partial(draw_importance, path.with_suffix(""), found.get("gain") or found["weight"], kind=kind)


def save_curves(history: History | tuple[dict[str, float], ...], selected: int) -> Picture:
    """Write the scores of each round as `learning-curves.json`; return their picture, not drawn yet.

    Args:
        history: The scores.
        selected: The round whose model is saved.
    """
    emit(f"learning curves and feature importance are in {trainbox.current_job().layout.output_data_dir}")
    return curves.save_curves([*enumerate(history)], unit="rounds", selected=selected)
