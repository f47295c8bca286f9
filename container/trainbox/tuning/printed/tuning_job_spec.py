"""A tuning job as data: what CreateHyperParameterTuningJob decides, around the `JobSpec` of its trials.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateHyperParameterTuningJob.html
"""

from typing import Literal

import msgspec

from trainbox.contract.job_spec import JobSpec
from trainbox.tuning.search_space import Objective, ParameterRange, Strategy

#: API HyperParameterTuningJobWarmStartConfig: WarmStartType.
WarmStartType = Literal["IdenticalDataAndAlgorithm", "TransferLearning"]


class TuningJobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tuning job: the job that every trial is, and the search over some of its hyperparameters."""

    #: Of the tuning job; what SageMaker does not take in a name is replaced.
    name: str
    #: Hyperparameters that a range names count as tuned, not as static.
    job: JobSpec
    ranges: tuple[ParameterRange, ...]
    objective: Objective
    strategy: Strategy = "Bayesian"
    max_trials: int = 10
    max_parallel: int = 1
    #: None where the service chooses one.
    seed: int | None = None
    early_stopping: bool = False
    #: Names of the tuning jobs whose trials this one starts from.
    parents: tuple[str, ...] = ()
    warm_start_type: WarmStartType = "IdenticalDataAndAlgorithm"
    #: API HyperbandStrategyConfig: MinResource and MaxResource; None where the service infers it.
    min_resource: int = 1
    max_resource: int | None = None
