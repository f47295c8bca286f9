"""A former model from the channel `model`: training adds `num_round` rounds to it, as `xgb_model` does."""

import hashlib
from collections.abc import Sequence

import msgspec
import xgboost as xgb

from trainbox.comm import Communicator
from trainbox.errors import DataError, HyperparameterError
from trainbox.former import MODEL_CHANNEL, check_columns, check_names, find_file, former_model
from trainbox.log_lines import emit
from trainbox.xgboost.model_check import Model, check_model
from trainbox.xgboost.params import rules
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.agreement import RowsAgreement

_FILE = "xgboost-model"
_SOURCE = f"{_FILE} of the channel {MODEL_CHANNEL}"
_HINT = "use the values of the former job, or train without the channel"


class FormerBooster(msgspec.Struct, frozen=True):
    """The model that training starts from."""

    model: bytes
    rounds: int
    digest: str


def read_former(params: XGBoostParams, agreement: RowsAgreement, communicator: Communicator) -> FormerBooster | None:
    """Read the former model, the same on all members; None if no member has the channel.

    Args:
        params: The hyperparameters.
        agreement: What is known of the rows.
        communicator: The members; all call this.

    Raises:
        DataError: The channel holds no model of XGBoost, or one of other rows or another kind.
        HyperparameterError: Something is asked for that the former model has decided already.
    """
    directory = former_model()
    owners = communicator.gather(directory is not None, bool)
    if True not in owners:
        return None
    _check_params(params)
    owner = owners.index(True)
    content, columns = b"", agreement.columns
    if communicator.rank == owner and directory is not None:
        content = find_file(directory, _FILE).read_bytes()
        texts = {columns[place]: texts for place, texts in agreement.coding.features.items()}
        check_columns(directory, columns, texts, agreement.coding.labels)
    content = communicator.share(content, owner)
    known = check_model(content, source=_SOURCE)
    _check(known, params, columns)
    if communicator.members.is_first:
        emit(f"channel {MODEL_CHANNEL}: {known.rounds:,} rounds; {params.num_round:,} more are trained on top of them")
    return FormerBooster(_without_names(content, columns), known.rounds, hashlib.sha256(content).hexdigest())


def _check_params(params: XGBoostParams) -> None:
    if params.kfold:
        raise HyperparameterError(
            f"_kfold={params.kfold} has no use for the model of the channel {MODEL_CHANNEL}",
            hint="leave one of them out: each fold starts with a new model",
        )
    if params.base_score is not None:
        raise HyperparameterError(
            f"base_score={params.base_score:g} has no effect: the model of the channel {MODEL_CHANNEL} has its own",
            hint="leave it out",
        )


def _check(known: Model, params: XGBoostParams, columns: Sequence[str]) -> None:
    outputs = params.num_class or max(params.label_columns, len(params.quantile_alpha), len(params.expectile_alpha))
    if rules.objective(params) == "survival:aft":
        outputs = 1
    of_round = params.num_parallel_tree * (1 if params.multi_strategy == "multi_output_tree" else outputs)
    kinds = {params.booster, "gbtree"} if params.booster == "dart" else {params.booster}
    there = {
        "objective": (known.objective, rules.objective(params)),
        "features": (known.features, len(columns)),
        "outputs": (known.outputs, outputs),
    }
    if known.booster not in kinds:
        there["booster"] = (known.booster, params.booster)
    if known.booster != "gblinear":
        there["trees in each round"] = (known.trees // max(known.rounds, 1), of_round)
    differing = [f"{name} was {was} and is {now}" for name, (was, now) in there.items() if was != now]
    if differing:
        raise DataError(f"{_SOURCE} cannot be continued: {'; '.join(differing)}", hint=_HINT)


def _without_names(content: bytes, columns: Sequence[str]) -> bytes:
    """Our matrices have no names; XGBoost refuses a model that has some."""
    booster = xgb.Booster(model_file=bytearray(content))
    if not booster.feature_names:
        return content
    check_names(booster.feature_names, columns)
    booster.feature_names = None
    booster.feature_types = None
    return bytes(booster.save_raw("ubj"))
