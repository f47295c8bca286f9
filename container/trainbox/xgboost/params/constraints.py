"""Features by name or position, and constraints on them in XGBoost's notation; nothing is evaluated."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from trainbox.errors import HyperparameterError

T = TypeVar("T")


def position(feature: str, names: Sequence[str], hyperparameter: str) -> int:
    """Return the position of a feature, from 0; a name takes precedence over a position.

    Raises:
        HyperparameterError: There is none.
    """
    if feature in names:
        return names.index(feature)
    if feature.isascii() and feature.isdigit() and (not names or int(feature) < len(names)):
        return int(feature)
    close = difflib.get_close_matches(feature, names, n=1)
    meant = f"; did you mean '{close[0]}'?" if close else ""
    whose = f"from 0 to {len(names) - 1}" if names else "from 0, as the data has no names"
    raise HyperparameterError(
        f"{hyperparameter}: there is no feature {feature!r}{meant}",
        hint=f"give a name of the header, or a position {whose}; the label does not count",
    )


def monotone(wanted: Sequence[int] | Mapping[str, int], names: Sequence[str]) -> str:
    """Return XGBoost's `monotone_constraints`; `names` may be empty if all features are given by position.

    >>> monotone({"age": 1, "2": -1}, ["income", "age", "debt"])
    '(0,1,-1)'

    Raises:
        HyperparameterError: A feature is not there, named twice, or there are more directions than features.
    """
    if not isinstance(wanted, Mapping):
        if names and len(wanted) > len(names):
            what = f"monotone_constraints has {len(wanted)} directions, and the data {len(names)} features"
            raise HyperparameterError(what, hint="one for each feature, in their order; the label does not count")
        return _tuple(wanted)
    given = _by_place(wanted, names, "monotone_constraints")
    return _tuple([given.get(place, 0) for place in range(max(given, default=-1) + 1)])


def weights(wanted: Sequence[float] | Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return the weight of each feature in the draws of `colsample_*`; 1 if a mapping does not name it.

    >>> weights({"age": 2.0, "2": 0.0}, ["income", "age", "debt"])
    [1.0, 2.0, 0.0]

    Raises:
        HyperparameterError: A feature is not there, named twice, or there are not as many weights as features.
    """
    if not isinstance(wanted, Mapping):
        if len(wanted) != len(names):
            what = f"feature_weights has {len(wanted)} weights, and the data {len(names)} features"
            raise HyperparameterError(what, hint="one for each feature, in their order; the label does not count")
        return list(wanted)
    given = _by_place(wanted, names, "feature_weights")
    return [given.get(place, 1.0) for place in range(len(names))]


def interaction(wanted: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """Return XGBoost's `interaction_constraints`: groups of features as lists of positions.

    >>> interaction([["age", "debt"], ["0"]], ["income", "age", "debt"])
    '[[1, 2], [0]]'

    Raises:
        HyperparameterError: A feature is not there.
    """
    return json.dumps([[position(feature, names, "interaction_constraints") for feature in group] for group in wanted])


def _by_place(wanted: Mapping[str, T], names: Sequence[str], hyperparameter: str) -> dict[int, T]:
    places = [position(feature, names, hyperparameter) for feature in wanted]
    if len(set(places)) < len(places):
        raise HyperparameterError(f"{hyperparameter} names a feature twice", hint="by its name or by its position")
    return dict(zip(places, wanted.values(), strict=True))


def _tuple(directions: Sequence[int]) -> str:
    return f"({','.join(map(str, directions))})"
