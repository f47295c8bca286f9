"""The metrics that a job declares, and the line that XGBoost would print for a round. Does not import XGBoost."""

import re
from collections.abc import Iterable, Mapping

from trainbox.metrics import Metric
from trainbox.xgboost.params.catalogue import OBJECTIVES, goal
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.params.rules import objective

CHANNELS = ("train", "validation")


def metric_names(params: XGBoostParams) -> tuple[str, ...]:
    """Return the names of the metrics to evaluate, the tuned one last; by default the metric of the objective."""
    names = list(dict.fromkeys(params.eval_metric))
    if params.tuning_objective_metric is not None:
        tuned = params.tuning_objective_metric.rpartition(":")[2]
        names = [*(name for name in names if name != tuned), tuned]
    return tuple(names) or (OBJECTIVES[objective(params)].metric,)


def objective_name(params: XGBoostParams) -> str:
    """Return the name of the metric for early stopping and tuning, without its channel."""
    return metric_names(params)[-1]


def objective_of(params: XGBoostParams, channel: str = "validation") -> Metric:
    """Return the metric for early stopping and tuning."""
    return Metric(f"{channel}:{objective_name(params)}", goal(objective_name(params)))


def declare(params: XGBoostParams) -> tuple[Metric, ...]:
    """Return every metric that the job logs, of `train` and of `validation`."""
    return tuple(Metric(f"{channel}:{name}", goal(name)) for channel in CHANNELS for name in metric_names(params))


def line(iteration: int, values: Mapping[str, float]) -> str:
    r"""Return the line that XGBoost and SageMaker's built-in print for a round, without its newline.

    >>> line(5, {"train:auc": 0.865973, "validation:auc": 0.84081})
    '[5]\ttrain-auc:0.86597\tvalidation-auc:0.84081'
    """
    fields = (f"\t{name.replace(':', '-', 1)}:{value:.5f}" for name, value in values.items())
    return f"[{iteration}]{''.join(fields)}"


def builtin_regexes(names: Iterable[str]) -> dict[str, str]:
    r"""Return the regex that finds each metric in that line, with tabs or with CloudWatch's `#011`.

    >>> builtin_regexes(["validation:auc"])
    {'validation:auc': '\\[[0-9]+\\].*(?:#011|\\t)validation-auc:(\\S+)'}
    """
    written = {name: re.sub(r"([.+])", r"\\\1", name.replace(":", "-", 1)) for name in names}
    return {name: rf"\[[0-9]+\].*(?:#011|\t){text}:(\S+)" for name, text in written.items()}
