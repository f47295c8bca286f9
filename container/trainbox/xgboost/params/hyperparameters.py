"""The checked hyperparameters of XGBoost, and the parameters of the Booster."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from trainbox.errors import HyperparameterError
from trainbox.xgboost.params import checks, constraints, retired, rules
from trainbox.xgboost.params.declaration import Declaration

#: What a resumed job may change, because it shapes no tree. How CSV is read shows in the digest of what was read.
FREE = frozenset(
    {
        *("num_round", "early_stopping_rounds", "eval_train_every", "nthread", "verbosity", "max_cached_hist_node"),
        # What bins there are in the end, which a checkpoint decides, too, is part of a job's identity by itself.
        *("missing", "delimiter", "unseen", "bins"),
        *retired.UNREAD,
    }
)
#: What XGBoost is not given, or not under this name: it is ours, the data's, or another name.
_NOT_PASSED = frozenset(
    {
        *("num_round", "early_stopping_rounds", "checkpoint_every", "eval_train_every", "eval_metric"),
        *("tuning_objective_metric", "external_memory", "kfold", "num_cv_round", "csv_weights", "label_columns"),
        *("group_column", "categorical_features", "missing", "delimiter", "process_type", "feature_weights"),
        *("categorical", "unseen", "bins"),
        *rules.ALIASES,
        *retired.UNREAD,
    }
)
#: What XGBoost's metrics read, too.
_READ_BY_METRICS = (
    *("quantile_alpha", "expectile_alpha", "huber_slope", "ndcg_exp_gain"),
    *("aft_loss_distribution", "aft_loss_distribution_scale"),
)
#: What XGBoost can do from some version on: `reg:expectileerror` and constraints on trees with several outputs.
_EXPECTILES = (3, 3)
_CONSTRAINED_OUTPUTS = (3, 4)
#: From here on dropout belongs to the common trees, and XGBoost complains about `booster=dart`.
_DROPOUT_OF_TREES = (3, 4)


class XGBoostParams(Declaration, frozen=True, kw_only=True):
    """The hyperparameters of SageMaker's built-in XGBoost and of XGBoost 3; null is XGBoost's own default."""

    instead: ClassVar[Mapping[str, str]] = retired.INSTEAD

    def __post_init__(self) -> None:
        """Check them as a whole.

        Raises:
            ValueError: Says everything that is wrong at once.
        """
        problems = checks.find_problems(self)
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def classes(self) -> int | None:
        """The number of classes; None for numbers."""
        return 2 if self.objective.startswith("binary:") else self.num_class

    @property
    def is_ranking(self) -> bool:
        """Whether rows come in groups."""
        return self.objective.startswith("rank:") or self.group_column is not None

    @property
    def method(self) -> str:
        """The tree method that `tree_method` or `updater` selects: hist, approx, exact, or linear."""
        return rules.method(self)

    @property
    def is_binned(self) -> bool:
        """Whether training reads only the bins of features, so that a quantile matrix is enough."""
        return rules.is_binned(self)

    @property
    def runs_on(self) -> str:
        """The device: cpu, cuda or cuda:N; retired names are translated."""
        return rules.device(self)


def notes(params: XGBoostParams) -> tuple[str, ...]:
    """Return a log line for each choice made for the user, and each hyperparameter without effect."""
    return retired.notes(params)


def check_members(params: XGBoostParams, members: int) -> None:
    """Reject hyperparameters that require a single process.

    Raises:
        HyperparameterError: Says all that does not.
    """
    problems = checks.find_multi_process_problems(params) if members > 1 else []
    if problems:
        what = f"there are {members} processes, and {'; '.join(problems)}"
        raise HyperparameterError(what, hint="train in one process on one instance, or change the hyperparameter")


def as_dict(params: XGBoostParams) -> dict[str, Any]:
    """Return the hyperparameters that are set or have a default, by name, as JSON values."""
    values: dict[str, Any] = json.loads(msgspec.json.encode(params))
    return {name: value for name, value in values.items() if value is not None}


def shaping(params: XGBoostParams) -> dict[str, Any]:
    """Return what shapes the model, by current names: a job resumes only from a checkpoint with the same values."""
    values = {name: value for name, value in as_dict(params).items() if name not in FREE}
    for other, name in rules.ALIASES.items():
        if other in values:
            values[name] = values.pop(other)
    values |= {"objective": rules.objective(params), "device": params.runs_on, "tree_method": params.method}
    return values | {"updater": list(_updaters(params))}


def booster_parameters(params: XGBoostParams, *, version: str, features: Sequence[str] = ()) -> dict[str, Any]:
    """Return the parameters of `xgboost.Booster`: those that XGBoost reads here, and no metrics.

    Args:
        params: The hyperparameters.
        version: XGBoost's own, `xgboost.__version__`.
        features: Names of the columns of the data; needed where constraints name features.

    Raises:
        HyperparameterError: This version of XGBoost cannot do it, or a constraint names a feature that is not there.
    """
    release = _release(version)
    _check_version(params, release, version)
    chosen = {
        name: value
        for name in XGBoostParams.__struct_fields__  # and not what a script has added
        if name not in _NOT_PASSED
        and rules.is_read(name, params)
        and (value := getattr(params, name)) not in ((), None)
    }
    for other, name in rules.ALIASES.items():
        value = getattr(params, other)
        if value is not None and rules.is_read(name, params):
            chosen[name] = value
    if "lambda_" in chosen:
        chosen["lambda"] = chosen.pop("lambda_")
    chosen |= {"objective": rules.objective(params), "device": params.runs_on}
    chosen |= _trees(params, release) if params.booster != "gblinear" else {"updater": ",".join(_updaters(params))}
    if params.monotone_constraints is not None:
        chosen["monotone_constraints"] = constraints.monotone(params.monotone_constraints, features)
    if params.interaction_constraints:
        chosen["interaction_constraints"] = constraints.interaction(params.interaction_constraints, features)
    return {**chosen, **metric_parameters(params), "disable_default_eval_metric": 1, "validate_parameters": 1}


def metric_parameters(params: XGBoostParams) -> dict[str, Any]:
    """Return the parameters of the objective that XGBoost's metrics need."""
    values = {name: getattr(params, name) for name in _READ_BY_METRICS if rules.is_read(name, params)}
    return {name: json.dumps(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _trees(params: XGBoostParams, release: tuple[int, ...]) -> dict[str, Any]:
    booster = "gbtree" if params.booster == "dart" and release >= _DROPOUT_OF_TREES else params.booster
    named = _updaters(params)
    # A tree method beside updaters is not read, and XGBoost says so each time.
    how = {"updater": ",".join(named), "tree_method": "auto"} if named else {"tree_method": params.method}
    return {"booster": booster, **how}


def _updaters(params: XGBoostParams) -> tuple[str, ...]:
    """The updaters to name; of a linear model's two the one whose results do not vary from run to run."""
    named = rules.updaters(params)
    return named or (("coord_descent",) if params.booster == "gblinear" else ())


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _check_version(params: XGBoostParams, release: tuple[int, ...], version: str) -> None:
    if params.objective == "reg:expectileerror" and release < _EXPECTILES:
        raise HyperparameterError(
            f"objective reg:expectileerror needs XGBoost 3.3 or newer; here is {version}",
            hint="reg:quantileerror with quantile_alpha asks a similar question",
        )
    constrained = params.monotone_constraints is not None or bool(params.interaction_constraints)
    if params.multi_strategy == "multi_output_tree" and constrained and release < _CONSTRAINED_OUTPUTS:
        raise HyperparameterError(
            f"constraints with multi_strategy=multi_output_tree need XGBoost 3.4 or newer; here is {version}",
            hint="use multi_strategy=one_output_per_tree",
        )
