"""Estimators by name: those of scikit-learn, or a class of the job's source.

Nothing else is imported, and nothing is evaluated: the constructor gets plain values.
"""

import difflib
import importlib
import importlib.machinery
import inspect
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import all_estimators, get_tags

from trainbox.contract.job import Job
from trainbox.data import Table
from trainbox.errors import DataError, HyperparameterError
from trainbox.log_lines import emit
from trainbox.sklearn.data import EstimatorData, count_missing, targets
from trainbox.sklearn.entry import TORCH_BACKEND
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.scores import score_classes, score_numbers
from trainbox.tabular.script import without

_OF_SKLEARN = re.compile(r"sklearn(?:\.[a-z][a-z0-9_]*)+\.[A-Z][A-Za-z0-9]*")
_OF_SOURCE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_HINT = "name one of scikit-learn's classifiers or regressors, as sklearn.linear_model.LogisticRegression, or"
_HINT += " module:Class of your own source"


def find_source(job: Job) -> tuple[Path, ...]:
    """Return the directories with the user's source: the working directory, the job's code, and the channel `code`."""
    return Path.cwd(), job.layout.code_dir, *[job.channels[name].path for name in job.channels if name == "code"]


def find_estimator(name: str, source: Sequence[Path]) -> type[BaseEstimator]:
    """Return the estimator class with this name.

    Args:
        name: `sklearn.….Class`, or `module:Class`.
        source: The directories with the user's source; a module that lies in none of them is not imported.

    Raises:
        HyperparameterError: There is none, or it is no estimator that learns from labels.
    """
    if _OF_SKLEARN.fullmatch(name):
        found = _find_of_sklearn(name)
    elif _OF_SOURCE.fullmatch(name):
        found = _find_of_source(name, source)
    else:
        raise _wrong(name, "it is not the name of an estimator", hint=_HINT)
    if not (inspect.isclass(found) and issubclass(found, BaseEstimator) and hasattr(found, "predict")):
        raise _wrong(name, "it is not an estimator", hint="it must be a subclass of sklearn.base.BaseEstimator")
    return found


def _wrong(name: str, why: str, *, hint: str) -> HyperparameterError:
    return HyperparameterError(f"hyperparameter 'estimator' is {name!r}: {why}", hint=hint)


def _find_of_sklearn(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise _wrong(name, "scikit-learn has no such class", hint=_suggest(name)) from None
    # A module may hold what it has imported from elsewhere.
    if not str(getattr(found, "__module__", "")).startswith("sklearn."):
        raise _wrong(name, "it is not a class of scikit-learn", hint=_HINT)
    return found


def _suggest(name: str) -> str:
    """What may have been meant; to know all estimators takes a second, which only an error is worth."""
    with without(TORCH_BACKEND), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that say when they are imported that they are on their way out
        known = all_estimators(type_filter=["classifier", "regressor"])
    names = {kind: f"{cls.__module__.partition('._')[0]}.{kind}" for kind, cls in known}
    close = difflib.get_close_matches(name.rpartition(".")[2], names, n=1)
    return f"did you mean {names[close[0]]}?" if close else _HINT


def _find_of_source(name: str, source: Sequence[Path]) -> object:
    module, _, attribute = name.partition(":")
    directories = [str(path) for path in source if path.is_dir()]
    if importlib.machinery.PathFinder.find_spec(module.partition(".")[0], directories) is None:
        where = ", ".join(directories) or "there is none"
        raise _wrong(
            name,
            f"no module '{module}' in the job's source ({where})",
            hint="put it next to the script, or in the channel `code`",
        )
    sys.path[:0] = [path for path in directories if path not in sys.path]
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _wrong(name, str(error), hint="module:Class, in the source that came with the job") from error


def make_estimator(params: EstimatorParams, source: Sequence[Path]) -> Any:  # noqa: ANN401 - any estimator
    """Make the estimator that the hyperparameters name, not fitted yet.

    Where its constructor takes `random_state`, it gets `seed` for it.

    Args:
        params: The hyperparameters, with an estimator.
        source: The directories with the user's source.

    Raises:
        HyperparameterError: There is no such estimator, it is not for the task, or an argument is wrong.
    """
    name = str(params.estimator)
    kind = find_estimator(name, source)
    known = _arguments_of(kind)
    given = ({"random_state": params.seed} if "random_state" in known else {}) | params.estimator_params
    _check_names(name, known, params.estimator_params)
    try:
        made = kind(**given)
        _check_values(made)
    except (TypeError, ValueError) as error:
        raise HyperparameterError(f"hyperparameter 'estimator-params': {error}", hint=f"see {name}") from error
    fits = is_classifier(made) if params.task == "classification" else is_regressor(made)
    if not fits:
        other = "regression" if params.task == "classification" else "classification"
        raise _wrong(name, f"it does not support task={params.task}", hint=f"use task={other}, or another estimator")
    emit(f"estimator: {made!r}; a single fit: an interrupted job starts again")
    return made


def _arguments_of(kind: type[BaseEstimator]) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(kind).parameters
    return {name: one for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}


def _check_names(name: str, known: Mapping[str, inspect.Parameter], given: Mapping[str, object]) -> None:
    problems = []
    for word in given:
        if word not in known:
            close = difflib.get_close_matches(word, known, n=1)
            listed = f" - did you mean '{close[0]}'?" if close else f", which knows: {', '.join(known) or 'none'}"
            problems.append(f"'{word}' is not known to {name}{listed}")
    missing = [word for word, one in known.items() if one.default is one.empty and word not in given]
    problems += [f"{name} needs '{word}'" for word in missing]
    if problems:
        raise HyperparameterError(f"hyperparameter 'estimator-params': {'; '.join(problems)}")


def _check_values(made: Any) -> None:  # noqa: ANN401 - any estimator
    """Let scikit-learn's own classes look at the types and ranges of their arguments before any row is read.

    They would do so when they are fitted; the method has no public name, so it is asked for, and tested.

    Raises:
        ValueError: One is wrong.
    """
    if type(made).__module__.startswith("sklearn.") and hasattr(made, "_validate_params"):
        made._validate_params()  # noqa: SLF001 - see above


def fit_estimator(made: Any, params: EstimatorParams, data: EstimatorData) -> Any:  # noqa: ANN401 - any estimator
    """Fit an estimator on the training rows, with their weights if there are any.

    Raises:
        DataError: Values are missing, and it takes none; or it refuses the rows, with what it says.
        HyperparameterError: Rows have weights, and it takes none.
    """
    missing = count_missing(data.train)
    if missing and not get_tags(made).input_tags.allow_nan:
        raise DataError(
            f"channel train: {missing:,} values are missing, which {type(made).__name__} does not support",
            hint="fill them in, or use an estimator that does, such as sklearn.ensemble.HistGradientBoostingClassifier",
        )
    weights = {}
    if data.train.weights is not None:
        if "sample_weight" not in inspect.signature(made.fit).parameters:
            raise HyperparameterError(
                f"hyperparameter 'csv-weights': {type(made).__name__} does not support sample weights"
            )
        weights = {"sample_weight": data.train.weights}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        try:
            made.fit(data.train.features, targets(data.train, params), **weights)
        except (TypeError, ValueError) as error:
            raise DataError(f"{type(made).__name__} rejects these rows: {error}") from error
    for warning in {str(each.message) for each in said}:
        emit(f"{type(made).__name__}: {warning}")
    return made


def score_estimator(made: Any, params: EstimatorParams, data: EstimatorData) -> dict[str, float]:  # noqa: ANN401 - any estimator
    """Return the metrics of the validation rows, or else of the training rows, by their full names."""
    table = data.train if data.held_out is None else data.held_out
    labels, guesses = targets(table, params), np.asarray(made.predict(table.features))
    if params.task == "regression":
        found = score_numbers(labels, guesses.reshape(-1), table.weights)
    else:
        ranking, are_shares = _rank(made, table)
        found = score_classes(labels, guesses, ranking, data.classes, are_shares=are_shares, weights=table.weights)
    return {f"{data.scored_channel}:{name}": score for name, score in found.items()}


def _rank(made: Any, table: Table) -> tuple[npt.NDArray[Any] | None, bool]:  # noqa: ANN401 - any estimator
    """For each class how much each row looks like it, and whether that is a probability."""
    if hasattr(made, "predict_proba"):
        return np.asarray(made.predict_proba(table.features)), True
    if not hasattr(made, "decision_function"):
        return None, False
    margins = np.asarray(made.decision_function(table.features))
    return (np.column_stack([-margins, margins]) if margins.ndim == 1 else margins), False
