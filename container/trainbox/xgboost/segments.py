"""Exact resume: training is divided into segments, and each depends only on the model before it and its first round.

XGBoost before 3.4 cannot save its random generator: a booster that is saved and loaded again draws other rows and
features than an uninterrupted one (https://github.com/dmlc/xgboost/issues/10324). So after every `checkpoint_every`
rounds training starts again from the model, with a new seed: a resumed job in a new Booster, made from the bytes of the
checkpoint; an uninterrupted one in its own Booster, if all of its other state can be reset. Both run the same segments,
so their models are equal, bit for bit. Checkpoints are written between two segments.

The price: the length of a segment shapes the model, so it belongs to its identity; and a new Booster predicts the
margins of all rows again, which takes longer the more trees there are.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import xgboost as xgb

from trainbox.checkpoint.store import Checkpoint, Checkpoints
from trainbox.comm import Communicator
from trainbox.data import digest_coding
from trainbox.errors import CheckpointError, DataError, HyperparameterError, TrainingError
from trainbox.former import MODEL_CHANNEL
from trainbox.metrics import Metric
from trainbox.xgboost.former import FormerBooster
from trainbox.xgboost.model_check import Model, check_model
from trainbox.xgboost.params import rules
from trainbox.xgboost.params.hyperparameters import XGBoostParams, shaping
from trainbox.xgboost.readers import spell_base_score
from trainbox.xgboost.rows.agreement import RowsAgreement

T = TypeVar("T")

#: The scores of each round, by name; a round has those that were due in it.
History = list[dict[str, float]]

_MODEL = "model.ubj"
_HISTORY = "history.json"
#: What to do where nothing but the bins differs.
_KEEP_BINS = (
    "leave the hyperparameter bins out: a checkpoint keeps its own; exact quantiles need all rows in memory, so set "
    "external_memory=off, or take an instance with as much memory"
)
#: Its digests have been verified: what it holds is what was written.
_FORGED = "it was not written by this job, or the library that wrote it is at fault: start with an empty directory"
#: A prime, so that the seeds of one job's segments are no other job's.
_STRIDE = 1_000_003


class Progress(msgspec.Struct, frozen=True):
    """The state of training between two segments."""

    model: bytes | None = None
    history: tuple[dict[str, float], ...] = ()
    #: Of the last round, with what a stop has added; not part of a checkpoint.
    scores: Mapping[str, float] = {}
    #: Rounds of a former model, in front of those of this job.
    former: int = 0


def seed_of(params: XGBoostParams, start: int) -> int:
    """Return the seed of the segment that begins with round `start`."""
    return (params.seed + start * _STRIDE) % 2**31


def end_of(params: XGBoostParams, start: int) -> int:
    """Return the round after the segment that includes `start`."""
    return (start // params.checkpoint_every + 1) * params.checkpoint_every


def begin_segment(
    settings: Mapping[str, Any], params: XGBoostParams, matrices: Mapping[str, xgb.DMatrix], progress: Progress
) -> xgb.Booster:
    """Return a new booster for a segment: the first of this process, or any where a booster cannot continue."""
    model = None if progress.model is None else bytearray(progress.model)
    settings = {**settings, "seed": seed_of(params, len(progress.history))}
    return xgb.Booster(settings, list(matrices.values()), model_file=model)


def warm_up_gpu(settings: Mapping[str, Any], params: XGBoostParams, matrices: Mapping[str, xgb.DMatrix]) -> None:
    """Copy the training rows to the GPU before the first round: that decides where margins are predicted.

    A booster made of a model predicts on the processor as long as they are not there, which saves the copy, and adds up
    the trees in another order than the GPU: `GBTree::GetPredictor`, XGBoost 3.4. In a process that went through they
    have been there since its first round, in one that goes on they would not be. One round, of which nothing remains,
    brings them there in either.
    """
    if params.runs_on != "cpu" and params.is_binned:
        xgb.Booster(dict(settings), [matrices["train"]]).update(matrices["train"], 0)


def can_continue(params: XGBoostParams) -> bool:
    """Whether the booster of a segment may train the next one: its cached margins equal predicted ones.

    On the processor trees are added to them in the order of prediction, number by number. A GPU sums up the trees
    first; dropped trees (`dart`) count otherwise afterwards; and `approx` gets new matrices.
    """
    return params.booster == "gbtree" and params.is_binned and not params.updater and params.runs_on == "cpu"


def continue_booster(booster: xgb.Booster, params: XGBoostParams, start: int) -> None:
    """Reset the booster for the segment that starts with round `start`, and keep its margins.

    What it must forget are the states of two random generators: that of the rows begins anew with another seed, and
    that of the features goes with the updater of trees, which is made anew where a configuration is loaded.
    """
    booster.load_config(booster.save_config())
    booster.set_param({"seed": seed_of(params, start)})


def identify(
    params: XGBoostParams, agreement: RowsAgreement, bins: str, former: FormerBooster | None = None
) -> dict[str, str]:
    """Return everything that shapes the model; a checkpoint with another identity is rejected.

    Args:
        params: The hyperparameters.
        agreement: What is known of the rows.
        bins: How they are binned.
        former: The model that training starts from.
    """
    identity = {name: json.dumps(value) for name, value in shaping(params).items()}
    for channel, digests in agreement.digests.items():
        rows = f"{agreement.rows[channel]:,} rows x {len(agreement.columns)} features"
        identity[f"channel {channel}"] = f"{rows}, digest {' '.join(digest[:16] for digest in digests)}"
    if agreement.coding:
        identity["texts"] = digest_coding(agreement.coding)
    if former is not None:
        identity[f"channel {MODEL_CHANNEL}"] = f"{former.rounds:,} rounds, digest {former.digest[:16]}"
    return identity | {"bins": bins, "members": str(agreement.members), "xgboost": xgb.__version__}


def save_progress(store: Checkpoints, identity: Mapping[str, str], progress: Progress) -> None:
    """Write a checkpoint."""
    with store.writing(len(progress.history), info=identity) as path:
        (path / _MODEL).write_bytes(spell_base_score(progress.model) if progress.model else b"")
        (path / _HISTORY).write_text(json.dumps(progress.history))


def resume(
    found: Checkpoint | None,
    agreement: RowsAgreement,
    communicator: Communicator,
    identity: Mapping[str, str],
    params: XGBoostParams,
    *,
    former: FormerBooster | None = None,
) -> Progress:
    """Return the state of the newest checkpoint of any member, the same on all members.

    Args:
        found: This member's own newest.
        agreement: Who has the newest of all.
        communicator: The members.
        identity: Of this job.
        params: The hyperparameters.
        former: The model that training starts from where there is no checkpoint.

    Raises:
        CheckpointError: It is of another job: other rows, parameters, versions; the difference is shown. Or it holds
            no model.
        HyperparameterError: It has more rounds than this job is to have.
    """
    rounds = 0 if former is None else former.rounds
    if agreement.checkpoint is None:
        return Progress(None if former is None else former.model, former=rounds)
    step, owner = agreement.checkpoint
    content = b""
    if communicator.rank == owner and found is not None:
        compare(found, identity)
        content = msgspec.msgpack.encode((read_part(found.path / _MODEL), read_part(found.path / _HISTORY)))
    model, history = msgspec.msgpack.decode(communicator.share(content, owner), type=tuple[bytes, bytes])
    if step > params.num_round:
        raise HyperparameterError(
            f"num_round is {params.num_round}, but the checkpoint has {step} rounds",
            hint="set num_round to at least as many, or start with an empty checkpoint directory",
        )
    source = f"{_MODEL} of the checkpoint of step {step}"
    known = check_part(model, source)
    scores = parse_part(history, tuple[dict[str, float], ...], f"{_HISTORY} of the checkpoint of step {step}")
    found_there = (known.objective, known.features, known.rounds, len(scores))
    expected = (rules.objective(params), len(agreement.columns), rounds + step, step)
    if found_there != expected:
        words = "{} of {:,} features, {:,} rounds and scores of {:,}".format
        raise CheckpointError(f"{source} is {words(*found_there)}; expected {words(*expected)}", hint=_FORGED)
    return Progress(model, scores, former=rounds)


def read_part(path: Path) -> bytes:
    """Read a file of a checkpoint.

    Raises:
        CheckpointError: It is not there.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path.parent} lacks {path.name}: {error}", hint=_FORGED) from error


def check_part(model: bytes, source: str) -> Model:
    """Check a model of a checkpoint before XGBoost gets it.

    Raises:
        CheckpointError: It is no model.
    """
    try:
        return check_model(model, source=source)
    except DataError as error:
        raise CheckpointError(error.message, hint=_FORGED) from error


def parse_part(content: bytes, kind: type[T], source: str) -> T:
    """Parse JSON of a checkpoint; NaN is allowed.

    Raises:
        CheckpointError: It is not of that type.
    """
    try:
        return msgspec.convert(json.loads(content), kind)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{source} cannot be used: {error}", hint=_FORGED) from error


def compare(found: Checkpoint, identity: Mapping[str, str]) -> None:
    """Reject a checkpoint of another job.

    Raises:
        CheckpointError: Other rows, parameters or versions; the difference is shown.
    """
    differing = [name for name in sorted({*identity, *found.info}) if identity.get(name) != found.info.get(name)]
    if differing:
        listed = "; ".join(f"{name} was {found.info.get(name)} and is {identity.get(name)}" for name in differing)
        back = _KEEP_BINS if differing == ["bins"] else "restore the values"
        raise CheckpointError(
            f"the checkpoint {found.path} cannot be continued: {listed}",
            hint=f"{back}, or start with an empty checkpoint directory",
        )


def best_round(history: History | tuple[dict[str, float], ...], objective: Metric) -> int | None:
    """Return the first round with the best finite value of the metric; None without one."""
    sign = 1 if objective.goal == "maximize" else -1
    scores = {step: sign * scores.get(objective.name, math.nan) for step, scores in enumerate(history)}
    finite = {step: score for step, score in scores.items() if math.isfinite(score)}
    return max(finite, key=lambda step: finite[step], default=None)


def chosen_round(history: History | tuple[dict[str, float], ...], objective: Metric, params: XGBoostParams) -> int:
    """Return the round whose model is saved: with early stopping the best, else the last."""
    best = best_round(history, objective) if params.early_stopping_rounds else None
    return len(history) - 1 if best is None else best


def is_finished(history: History | tuple[dict[str, float], ...], objective: Metric, params: XGBoostParams) -> bool:
    """Whether all rounds are done or early stopping applies; depends on scores only, so a resumed job decides alike."""
    if not history or len(history) >= params.num_round:
        return bool(history)
    patience = params.early_stopping_rounds
    return patience is not None and len(history) - 1 - (best_round(history, objective) or 0) >= patience


def check_decision(history: History | tuple[dict[str, float], ...], objective: Metric, params: XGBoostParams) -> None:
    """Check that early stopping has a finite value to choose a round by.

    Raises:
        TrainingError: The objective was not a finite number in any round.
    """
    if params.early_stopping_rounds and history and best_round(history, objective) is None:
        raise TrainingError(
            f"early stopping has no best round: {objective.name} was not a finite number in any of"
            f" {len(history)} rounds",
            hint="check the rows of channel validation (auc needs both classes, for example); or use another"
            " eval_metric as the last, or leave early_stopping_rounds out",
        )
