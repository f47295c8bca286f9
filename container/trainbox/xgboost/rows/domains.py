"""The labels that each objective and metric accepts, and the rules for the rows of a job.

XGBoost checks few of them, during the first round, and names no row; the others are trained on, or give NaN.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from trainbox.data import Block
from trainbox.tabular.domains import ANYTHING, Domain, classes_below, codes_of, labels_in, spell
from trainbox.tabular.faults import BadRow, RowRule
from trainbox.xgboost.params.catalogue import split
from trainbox.xgboost.params.declaration import Declaration
from trainbox.xgboost.params.rules import is_read, objective

#: XGBoost's gain of a grade g is 2^g - 1, in 32 bits.
_LARGEST_GRADE = 31

_COUNTS = Domain("labels of 0 or more", lowest=0)
_AMOUNTS = Domain("labels above 0", lowest=0, is_open=True)
_SHARES = Domain("labels from 0 to 1", lowest=0, highest=1)
_LOGARITHMS = Domain("labels above -1", lowest=-1, is_open=True)
_TWO = classes_below(2, hint="give labels 0 and 1; more classes are multi:softprob, numbers are reg:squarederror")
_GRADES = Domain(
    f"grades, whole labels from 0 to {_LARGEST_GRADE}",
    lowest=0,
    highest=_LARGEST_GRADE,
    is_whole=True,
    hint="give smaller grades, or ndcg_exp_gain=false, with which a grade is any number of 0 or more",
)
_GAINS = Domain("grades, labels of 0 or more", lowest=0)
_RELEVANT = classes_below(2, hint="give labels 0 and 1; graded labels are rank:ndcg, with the metric ndcg")

#: By objective. Of multi:* the classes follow from `num_class`, of rank:ndcg the grades from `ndcg_exp_gain`; of
#: survival:aft the bounds are checked as they are read.
DOMAINS: Mapping[str, Domain] = {
    "reg:squarederror": ANYTHING,
    "reg:squaredlogerror": _LOGARITHMS,
    "reg:logistic": _SHARES,
    "reg:pseudohubererror": ANYTHING,
    "reg:absoluteerror": ANYTHING,
    "reg:quantileerror": ANYTHING,
    "reg:expectileerror": ANYTHING,
    "reg:gamma": _AMOUNTS,
    "reg:tweedie": _COUNTS,
    "count:poisson": _COUNTS,
    "binary:logistic": _TWO,
    "binary:logitraw": _TWO,
    "binary:hinge": _TWO,
    "multi:softmax": _TWO,
    "multi:softprob": _TWO,
    "rank:ndcg": _GRADES,
    "rank:map": _RELEVANT,
    "rank:pairwise": ANYTHING,
    "survival:cox": ANYTHING,
    "survival:aft": ANYTHING,
}

#: Of metrics that XGBoost refuses to compute for other labels; those of another kind are not-a-number there.
METRIC_DOMAINS: Mapping[str, Domain] = {"map": _RELEVANT, "pre": _RELEVANT, "ndcg": _GRADES}


def domain_of(params: Declaration) -> Domain:
    """Return the labels that the objective accepts."""
    name = objective(params)
    if name.startswith("multi:"):
        return classes_below(params.num_class or 0, hint="number the classes from 0, and set num_class to their number")
    if name == "rank:ndcg" and not params.ndcg_exp_gain:
        return _GAINS
    return DOMAINS[name]


def rules_for(params: Declaration, metrics: Sequence[str]) -> tuple[RowRule, ...]:
    """Return the rules for every row of every channel.

    Args:
        params: The hyperparameters.
        metrics: The names of those that are evaluated.
    """
    name, rules = objective(params), list[RowRule]()
    domains = {f"objective {name}": domain_of(params)}
    has_gain = params.ndcg_exp_gain or not is_read("ndcg_exp_gain", params)
    for metric in metrics:
        kind = split(metric)[0]
        if kind in METRIC_DOMAINS and (kind != "ndcg" or has_gain):
            domains[f"metric {metric}"] = METRIC_DOMAINS[kind]
    rules += [labels_in(domain, who) for who, domain in domains.items() if not domain.is_everything]
    if params.categorical_features:
        rules.append(codes_of(tuple(map(str, params.categorical_features))))
    if name.startswith("rank:") or params.group_column is not None:
        rules.append(WeightsOfGroups())
    return tuple(rules)


class WeightsOfGroups:
    """A rule: for ranking, all rows of a group have the same weight."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def __call__(self, block: Block, _names: Sequence[str] | None) -> BadRow | None:
        """Find the first row with another weight than the row before it in its group."""
        groups, weights = block.groups, block.weights
        if groups is None or weights is None or not len(groups):
            return None
        differs = np.zeros(len(groups), bool)
        differs[1:] = (groups[1:] == groups[:-1]) & (weights[1:] != weights[:-1])
        before = self._last
        differs[0] = before is not None and groups[0] == before[0] and weights[0] != before[1]
        self._last = int(groups[-1]), float(weights[-1])
        if not differs.any():
            return None
        row = int(np.argmax(differs))
        return BadRow(
            row,
            f"weight {spell(float(weights[row]))} is invalid: the rows before it in group {groups[row]} have another",
            "in ranking a weight is that of a whole group",
        )
