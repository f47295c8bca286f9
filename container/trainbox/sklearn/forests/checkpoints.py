"""A checkpoint after each group of trees, and resuming from the newest."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import sklearn

import trainbox
from trainbox.checkpoint.store import Checkpoint, Checkpoints
from trainbox.comm import Communicator
from trainbox.data import digest, digest_coding
from trainbox.errors import CheckpointError, DataError, HyperparameterError
from trainbox.former import MODEL_CHANNEL
from trainbox.log_lines import emit
from trainbox.sklearn.data import EstimatorData
from trainbox.sklearn.forests.former import FormerForest
from trainbox.sklearn.forests.parts import ForestPart, read_part
from trainbox.sklearn.params import FREE, EstimatorParams

#: The scores so far: after how many trees, and which.
History = list[tuple[int, dict[str, float]]]

_NAME = re.compile(r"trees-([0-9]{8,})-([0-9]{8,})\.skops")


def open_store(communicator: Communicator) -> Checkpoints:
    """Return the checkpoints of this host: all hosts share one S3 prefix, so each of several has its own directory."""
    store = trainbox.checkpoints()
    return store if communicator.size == 1 else store.below(communicator.members.name)


def identify(params: EstimatorParams, data: EstimatorData, former: FormerForest | None = None) -> dict[str, str]:
    """Return everything that shapes the trees; a checkpoint with another identity is rejected."""
    values = msgspec.to_builtins(params)
    identity = {name: json.dumps(value) for name, value in values.items() if name not in FREE}
    shape = " x ".join(map(str, data.train.features.shape))
    identity["channel train"] = f"{shape}, digest {digest(data.train)[:16]}"
    if data.coding:
        identity["texts"] = f"{params.encoding}, digest {digest_coding(data.coding)}"
    start = {} if former is None or not former.trees else {f"channel {MODEL_CHANNEL}": former.sentence}
    return identity | start | {"scikit-learn": sklearn.__version__}


def save_parts(store: Checkpoints, parts: Sequence[ForestPart], identity: Mapping[str, str], history: History) -> None:
    """Write all trees of this host as a checkpoint.

    Raises:
        CheckpointError: It cannot be written.
    """
    # JSON has no word for what is no number.
    noted = [
        (step, {name: None if math.isnan(score) else score for name, score in scores.items()})
        for step, scores in history
    ]
    with store.writing(parts[-1].last, info={"identity": identity, "history": noted}) as path:
        for part in parts:
            (path / f"trees-{part.first:08d}-{part.last:08d}.skops").write_bytes(part.content)


def resume(
    store: Checkpoints, identity: Mapping[str, str], own: range, params: EstimatorParams, data: EstimatorData
) -> tuple[list[ForestPart], History]:
    """Return the trees and scores of this host's newest checkpoint; empty without one.

    Args:
        store: Its checkpoints.
        identity: What shapes the trees.
        own: The numbers of the trees that it is to grow.
        params: The hyperparameters.
        data: The rows.

    Raises:
        CheckpointError: The newest checkpoint is of another forest, with every difference; or its files are none.
        HyperparameterError: It has more trees than are asked for.
    """
    found = store.latest()
    if found is None:
        return [], []
    _refuse_another(found, identity)
    parts: list[ForestPart] = []
    for path, first, last in _list_parts(found.path):
        if first != (parts[-1].last if parts else own.start):
            emit(f"{found.path} has trees from {first} on, grown among other hosts: this host grows its own again")
            return [], []
        if last > own.stop and own.stop < params.n_estimators:
            emit(f"{found.path} has trees that other hosts grow now; this host grows those from {first} on")
            break
        if last > own.stop:
            raise HyperparameterError(
                f"n-estimators is {params.n_estimators}, but {found.path} has {found.step} trees",
                hint="set n-estimators to at least as many, or start with an empty checkpoint directory",
            )
        parts.append(_read(path, first, last, params, data))
    history = [
        (int(step), {name: math.nan if score is None else float(score) for name, score in scores.items()})
        for step, scores in found.info["history"]
        if parts and step <= parts[-1].last
    ]
    return parts, history


def _list_parts(directory: Path) -> list[tuple[Path, int, int]]:
    names = [(path, _NAME.fullmatch(path.name)) for path in directory.iterdir()]
    return sorted(((path, int(name[1]), int(name[2])) for path, name in names if name), key=lambda part: part[1])


def _read(path: Path, first: int, last: int, params: EstimatorParams, data: EstimatorData) -> ForestPart:
    features = len(data.features)
    try:
        return read_part(path.read_bytes(), first, last, params, features=features, source=str(path))
    except DataError as error:
        raise CheckpointError(error.message, hint=error.hint) from error


def _refuse_another(found: Checkpoint, identity: Mapping[str, str]) -> None:
    known = found.info.get("identity", {})
    differing = [name for name in sorted({*identity, *known}) if identity.get(name) != known.get(name)]
    if differing:
        listed = "; ".join(f"{name} was {known.get(name)} and is {identity.get(name)}" for name in differing)
        hint = "restore the values, or start with an empty checkpoint directory"
        raise CheckpointError(f"the checkpoint {found.path} cannot be continued: {listed}", hint=hint)
