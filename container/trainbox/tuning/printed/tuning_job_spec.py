"""A tuning job as data: what CreateHyperParameterTuningJob decides, around the `JobSpec` of its trials.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateHyperParameterTuningJob.html
"""

from typing import Literal

import msgspec

from trainbox.contract.job_spec import JobSpec
from trainbox.tuning.search_space import SearchSettings

#: API HyperParameterTuningJobWarmStartConfig: WarmStartType.
WarmStartType = Literal["IdenticalDataAndAlgorithm", "TransferLearning"]


class TuningJobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tuning job: the job that every trial is, and the search over some of its hyperparameters."""

    #: Of the tuning job; what SageMaker does not take in a name is replaced.
    name: str
    #: Hyperparameters that a range names count as tuned, not as static.
    job: JobSpec
    search: SearchSettings
    #: Names whose values are secret, whatever they are called.
    hide: tuple[str, ...] = ()
    #: Names of the tuning jobs whose trials this one starts from.
    parents: tuple[str, ...] = ()
    #: The data and the image may be others than those of the parents.
    warm_start_type: WarmStartType = "TransferLearning"
