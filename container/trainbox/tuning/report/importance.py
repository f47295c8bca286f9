"""Which hyperparameters decided whether a trial was good."""

import math
from collections.abc import Mapping

from trainbox.tuning.records import TuningRecord
from trainbox.tuning.search.optuna_study import OptunaStudy
from trainbox.tuning.search_space import SearchSettings, is_within

#: With fewer trials that have an objective, the order is chance.
FEWEST_TRIALS = 5


def rank_importance(record: TuningRecord) -> Mapping[str, float]:
    """Return the share of each hyperparameter, the largest first; empty where there is too little to tell."""
    known = [
        (trial.values, trial.objective)
        for trial in record.trials
        if trial.objective is not None and math.isfinite(trial.objective) and is_within(trial.values, record.ranges)
    ]
    if len(known) < FEWEST_TRIALS or len({objective for _, objective in known}) == 1:
        return {}
    study = OptunaStudy(SearchSettings(objective=record.objective, ranges=record.ranges, max_trials=record.max_trials))
    for values, objective in known:
        study.learn(values, objective)
    shares = study.importance()
    return dict(sorted(shares.items(), key=lambda each: -each[1]))
