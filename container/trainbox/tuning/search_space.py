"""The search space of a tuning job: what varies, between which values, and on which scale.

As in SageMaker's CreateHyperParameterTuningJob, `ParameterRanges`:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ParameterRanges.html
"""

from typing import Literal

import msgspec

#: API ContinuousParameterRange: ScalingType; `Auto` is linear here.
Scaling = Literal["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]
#: API HyperParameterTuningJobObjective: Type.
Goal = Literal["Maximize", "Minimize"]
#: API HyperParameterTuningJobConfig: Strategy.
Strategy = Literal["Bayesian", "Random", "Grid", "Hyperband"]


class ContinuousRange(msgspec.Struct, frozen=True, tag="continuous"):
    """A hyperparameter that is any number from `low` to `high`, both included."""

    name: str
    low: float
    high: float
    scaling: Scaling = "Auto"


class IntegerRange(msgspec.Struct, frozen=True, tag="integer"):
    """A hyperparameter that is a whole number from `low` to `high`, both included."""

    name: str
    low: int
    high: int
    scaling: Scaling = "Auto"


class CategoricalRange(msgspec.Struct, frozen=True, tag="categorical"):
    """A hyperparameter that is one of `values`, each as the script receives it."""

    name: str
    values: tuple[str, ...]


ParameterRange = ContinuousRange | IntegerRange | CategoricalRange


class Objective(msgspec.Struct, frozen=True):
    """What is tuned: a metric by its name, the regex that finds it in a log, and whether more is better."""

    name: str
    goal: Goal
    regex: str
